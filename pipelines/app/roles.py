"""What each setting has a say in: how work is done, which never changes what comes out, or what one of the stages makes.

A stage's fingerprint is made of what it makes alone. So a setting that says how may change at any time, without a stage being
done again or refused; one that says what is refused where the run's folder holds what another value of it has made.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from owseg.fields import file_name, how_settings, path_settings, scores_only_settings, training_only_settings
from owseg.methods import METHODS, PRETRAININGS, TRAINABLE
from pipelines.app.config import flatten, to_dict
from pipelines.app.settings import Config

Role = Literal["how", "filter", "download", "train", "evaluate"]

HOW: frozenset[Role] = frozenset({"how"})
FILTER: frozenset[Role] = frozenset({"filter"})
DOWNLOAD: frozenset[Role] = frozenset({"download"})
TRAIN: frozenset[Role] = frozenset({"train"})
EVALUATE: frozenset[Role] = frozenset({"evaluate"})

_ROLES: dict[str, frozenset[Role]] = {
    "run_dir": HOW,
    "check_disk": HOW,
    "session": HOW,
    "storage": HOW,
    "tracking": HOW,
    "miniature": FILTER | EVALUATE,
    "filter": FILTER,
    "download": DOWNLOAD,
    "download.target": HOW,
    "download.fetch": HOW,
    **{f"download.fetch.{key}": DOWNLOAD for key in ("respect_opt_out", "max_bytes", "max_redirects", "allow")},
    "seed": TRAIN,
    "encoder": TRAIN | EVALUATE,
    "normalisation": TRAIN | EVALUATE,
    "init": TRAIN,
    "train": TRAIN,
    **{
        f"train.{key}": HOW
        for key in ("log_every", "checkpoint_every", "score_checkpoints", "loader_workers", "threads", "use_gpu")
    },
    **{f"train.{key}": HOW for key in ("workers", "engine", "zero_stage", "micro_batch", "compile")},
    **{f"train.{key}": HOW for key in ("max_failures", "max_bad_share", "max_skipped_steps", "wait_seconds")},
    **{f"train.{key}": HOW for key in ("recovery_seconds", "collective_seconds")},
    "methods": EVALUATE,
    "weights": EVALUATE,
    "evaluate": EVALUATE,
    "evaluate.tuning": TRAIN,
    **{f"evaluate.{key}": HOW for key in ("unreadable", "use_gpu", "window_batch")},
}
"""Of sections and of keys in them: the longest that fits counts. Methods say it of their settings on the fields themselves."""
_METHODS = "method_settings"


def roles_of(key: str) -> frozenset[Role]:
    """What a dotted key has a say in; a section whose keys differ has a say in all that they have."""
    if key.startswith(f"{_METHODS}."):
        return _roles_in_method(*key.split(".")[1:3])
    parts = key.split(".")
    for end in range(len(parts), 0, -1):
        if (section := ".".join(parts[:end])) in _ROLES:
            return _ROLES[section]
    return TRAIN | EVALUATE if key == _METHODS else FILTER | DOWNLOAD | TRAIN | EVALUATE


def _roles_in_method(name: str, setting: str = "") -> frozenset[Role]:
    method = METHODS.get(name)
    if method is None:
        return TRAIN | EVALUATE
    if setting in how_settings(method):
        return HOW
    if name in PRETRAININGS or setting in training_only_settings(method):
        return TRAIN
    return EVALUATE if name not in TRAINABLE or setting in scores_only_settings(method) else TRAIN | EVALUATE


def says_how(key: str) -> bool:
    """Whether a setting has no say in any result."""
    return roles_of(key) == {"how"}


def settings_that_decide(config: Config | Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The dotted keys of what the run makes, with their values."""
    for key, value in flatten(to_dict(config) if isinstance(config, Config) else config):
        if not says_how(key):
            yield key, value


def comparable(key: str, value: object) -> object:
    """A value as two runs compare it: a local file is the same by its name wherever it lies; fingerprints hold its content."""
    _, _, rest = key.partition(f"{_METHODS}.")
    name, _, setting = rest.partition(".")
    named = key.startswith("init.") or key in ("encoder.pretrained", "encoder.model", "evaluate.tuning")
    if named or (name in METHODS and setting in path_settings(METHODS[name])):
        return file_name(value) if isinstance(value, str) else value
    return value
