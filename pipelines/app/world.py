"""The miniature world as the input of a run that names none of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.tuning import of_tuning
from filtering.captions.corpus import FilterConfig
from filtering.images.download import DownloadConfig
from miniature.server import serve
from miniature.world import build_world
from owseg.evaluation.protocols import EvaluateConfig
from owseg.evaluation.synonyms import LEXICON
from pipelines.app.context import Context

HOSTS = "*.miniature.test"


def world_dir(context: Context) -> Path:
    """The folder of the run's miniature world, built on first use."""
    folder = context.run_dir / "world"
    if not (folder / "world.json").exists():
        print(f"world: drawing {context.config.miniature.links} links and the benchmarks", flush=True)
    build_world(context.config.miniature, folder)
    return folder


def filter_config(context: Context) -> FilterConfig:
    """The filter's config with its source; the miniature world's links where the run names none."""
    config = context.config.filter
    if config.source.path:
        return config
    return replace(config, source=replace(config.source, path=str(world_dir(context) / "links.tsv")))


def evaluate_config(context: Context) -> EvaluateConfig:
    """The evaluation's config with its benchmarks; the miniature world's where the run names none."""
    config = context.config.evaluate
    if config.synonyms != LEXICON:
        config = replace(config, synonyms=_absolute(config.synonyms))
    config = replace(config, datasets=tuple(one if isinstance(one, str) else one.located() for one in config.datasets))
    if config.root or len(config.own) == len(config.datasets):
        return replace(config, classes=_absolute(config.classes))
    benchmarks = world_dir(context) / "benchmarks"
    return replace(config, root=str(benchmarks), classes=str(benchmarks / "classes"))


def tuning_config(context: Context) -> EvaluateConfig:
    """How the benchmarks' presets are scored on the run's tuning split: the miniature world's where the run names none."""
    config = evaluate_config(context)
    root = config.tuning or str(world_dir(context) / "tuning")
    config = of_tuning(config, _absolute(root))
    return replace(config, datasets=tuple(one for one in config.datasets if isinstance(one, str)))


def _absolute(path: str) -> str:
    """A path that may be empty, for Ray's workers, which have another working directory."""
    return str(Path(path).expanduser().resolve()) if path else ""


@contextmanager
def download_config(context: Context) -> Iterator[DownloadConfig]:
    """The downloader's config; while the block runs, the miniature world's own server answers for its hosts."""
    config = context.config.download
    if context.config.filter.source.path:
        yield config
        return
    world = world_dir(context)
    with serve(world / "web", log=world / "requests.log") as address:
        yield replace(config, fetch=replace(config.fetch, connect_to={**config.fetch.connect_to, HOSTS: address}))
