"""Every setting of a run, by section."""

from dataclasses import dataclass, field

from cluster.session import SessionConfig
from cluster.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole run: where it lives, what it is made from, and where the work is done."""

    run_dir: str = ""
    """Folder of everything this run writes; empty: runs/<name of the config file>."""
    seed: int = 0
    """Seed of everything random: the same seed gives the same corpus, shards and training order."""
    session: SessionConfig = field(default_factory=SessionConfig)
    """Where heavy work runs."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Where runs are recorded."""
