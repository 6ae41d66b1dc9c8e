"""Every setting of a run, by section."""

from dataclasses import dataclass, field, fields

from cluster.session import SessionConfig
from cluster.tracking import TrackingConfig
from cluster.train_config import TrainConfig
from filtering.captions.corpus import FilterConfig
from filtering.images.download import DownloadConfig
from miniature.world import WorldConfig
from owseg import near_miss
from owseg.encoders import EncoderConfig
from owseg.evaluation.protocols import EvaluateConfig
from owseg.methods import PRETRAININGS, TRAINABLE, Methods
from owseg.normalisation import Normalisation
from pipelines.app.config import FORMER, ConfigError
from storage.client import StorageConfig, is_object_store

EVALUATED_METHODS = tuple(row.name for row in fields(Methods) if row.name not in PRETRAININGS)
TRAINED = tuple(name for name in EVALUATED_METHODS if name in TRAINABLE)

LARGEST_SEED = 2**32
"""NumPy, torch and a sweep's further seeds take all below it."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole run: where it lives, what it is made from, and where the work is done."""

    run_dir: str = ""
    """Folder of everything this run writes, here or in an object store (s3://, gs://, az://); empty: runs/<name of config>."""
    seed: int = 0
    """Seed of training: the same seed gives the same batches and fresh weights."""
    check_disk: bool = True
    """Before each stage, stop where what it is expected to write does not fit on the disk."""
    miniature: WorldConfig = WorldConfig()
    """The generated world that stands in where filter.source.path or evaluate.root is empty."""
    filter: FilterConfig = FilterConfig()
    """From links to the corpus."""
    download: DownloadConfig = DownloadConfig()
    """From the corpus to image shards."""
    encoder: EncoderConfig = EncoderConfig()
    """The CLIP that methods of the run are built around."""
    normalisation: Normalisation = Normalisation()
    """How images are normalised, for all methods."""
    methods: tuple[str, ...] = ("maskclip", "tcl")
    """Rows of the results table, in order; those that train are trained."""
    method_settings: Methods = field(default=Methods(), metadata={FORMER: "models"})
    """The settings of each method."""
    weights: dict[str, str] = field(default_factory=dict)
    """Trained weights by method, used in place of training: weights.tcl=tcl.pth, a checkpoint's folder, or its .safetensors."""
    init: dict[str, str] = field(default_factory=dict)
    """Weights that a method's training begins with: init.tcl=tcl.pth, a checkpoint's folder, or its .safetensors."""
    train: TrainConfig = TrainConfig()
    """How training is spread."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """The benchmarks and how they are scored."""
    storage: StorageConfig = StorageConfig()
    """How object stores are reached, and where their files lie on a machine's own disk meanwhile."""
    session: SessionConfig = SessionConfig()
    """Where heavy work runs."""
    tracking: TrackingConfig = TrackingConfig()
    """Where runs are recorded."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < LARGEST_SEED:
            raise ConfigError(f"seed: {self.seed} is out of range; give a whole number from 0 to {LARGEST_SEED - 1}")
        if self.download.target and is_object_store(self.run_dir):
            raise ConfigError("download.target: the shards lie in an object store already, in run_dir's shards/; leave it out")
        if self.evaluate.classes and not self.evaluate.root:
            raise ConfigError(f"evaluate.classes: {self.evaluate.classes} is for benchmarks in evaluate.root; set that, too")
        for name in self.methods:
            if name not in EVALUATED_METHODS:
                known = f"{near_miss(name, EVALUATED_METHODS)}; choose from {', '.join(EVALUATED_METHODS)}"
                raise ConfigError(f"methods: unknown method {name!r}{known}")
        if len(set(self.methods)) != len(self.methods):
            raise ConfigError("methods: a method is named twice")
        for section, given in (("weights", self.weights), ("init", self.init)):
            for name, path in given.items():
                if not path:
                    raise ConfigError(f"{section}.{name}: is empty; give a file or folder, or leave it out")
        for name in self.init:
            if name not in TRAINABLE:
                known = f"{near_miss(name, TRAINABLE)}; there are {', '.join(TRAINABLE)}"
                raise ConfigError(f"init.{name}: no trainable method of that name{known}")
            if name in self.weights:
                raise ConfigError(f"init.{name}: weights.{name} takes the place of its training; give one of the two")
        for name in self.weights:
            if name not in TRAINED:
                known = f"{near_miss(name, TRAINED)}; there are {', '.join(TRAINED)}"
                raise ConfigError(f"weights.{name}: no trainable method of that name{known}")
        if "tcl" in self.methods and self.method_settings.tcl.pamr and self.evaluate.refine != "none":
            refine = f"evaluate.refine={self.evaluate.refine}"
            raise ConfigError(
                f"method_settings.tcl.pamr: TCL refines its masks already, and {refine} would again; set one of the two"
            )
