"""What MLflow is told of a run and its stages: settings, funnel, scores, and a text that a person reads."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.open_tracker import as_parameters
from cluster.tracking import Data, Tracker
from filtering.secrets import masked, masked_tree
from owseg.evaluation.datasets import BENCHMARKS, averaged
from owseg.evaluation.intervals import AVERAGE
from owseg.fields import flatten
from pipelines.app.config import to_dict
from pipelines.app.roles import roles_of, says_how
from pipelines.app.settings import Config
from storage.copies import shown

Results = Mapping[str, Mapping[str, Any]]
METHODS = "method_settings."
STANDARD = frozenset(BENCHMARKS)
_HEADLINE = (
    ".optim.batch_size", ".optim.lr", ".head", ".texts", ".image_tower", ".background_threshold",
    "evaluate.refine", "evaluate.short_side", "evaluate.window", "evaluate.stride",
)  # fmt: skip
PRODUCTS = {"filter": "corpus", "download": "shards"}
"""What stages make."""


def settings_of(config: Config, stage: str, method: str = "") -> dict[str, object]:
    """The settings of a stage that are not the defaults, by dotted key; of the methods' only those of one.

    The stage's are those that have a say in it, or in how it is done.
    """
    found: dict[str, object] = {}
    usual = dict(flatten(to_dict(Config())))
    for key, value in flatten(masked_tree(to_dict(config))):
        here = stage in roles_of(key) or (says_how(key) and key.startswith(f"{stage}."))
        if here and usual.get(key) != value and (not key.startswith(METHODS) or key.startswith(f"{METHODS}{method}.")):
            found[key] = value
    return as_parameters(found.items())


def headline_of(config: Config, stage: str, method: str) -> dict[str, object]:
    """The few of these that a method's run shows as its parameters, by their names within its settings.

    MLflow writes all parameters of a run above each of its pictures, which hides the picture where they are many. The parent
    run has them all, and the model those of its training.
    """
    own = f"{METHODS}{method}."
    return {
        key.removeprefix(own): value for key, value in settings_of(config, stage, method).items() if key.endswith(_HEADLINE)
    }


def average_name(datasets: Sequence[str]) -> str:
    """The name of an average in MLflow, which says of what it is: the eight benchmarks, or those that it names."""
    names = averaged([name for name in datasets if name != AVERAGE])
    return "average_of_8" if set(names) == STANDARD else "_".join(["average_of", *names])


def by_dataset(metric: str, row: Mapping[str, float]) -> dict[str, float]:
    """A row of the table as MLflow's metrics: mIoU/voc21, ..., mIoU/average_of_8."""
    return {f"{metric}/{average_name([*row]) if name == AVERAGE else name}": value for name, value in row.items()}


def record_run(tracker: Tracker, config: Config, stages: Results) -> None:
    """Tell the parent run what its stages came to, whether they ran just now or before."""
    corpus, shards, scores = (stages.get(name, {}) for name in ("filter", "download", "evaluate"))
    tracker.tags(
        {
            "source": source_of(config),
            "methods": ", ".join(config.methods),
            **{
                f"{name}_digest": stages[stage]["digest"]
                for stage, name in PRODUCTS.items()
                if "digest" in stages.get(stage, {})
            },
            **({"protocol": scores["protocol"], "preset": config.evaluate.preset} if scores else {}),
        }
    )
    if corpus:
        tracker.metrics({"corpus/links": corpus["links"], "corpus/kept": corpus["kept"]})
        tracker.metrics({f"leakage/{name}": share for name, share in corpus.get("leakage", {}).items()})
        tracker.dataset(corpus_data(Path(config.run_dir), corpus), context="filtered")
    if shards:
        tracker.metrics({"corpus/images": shards["success"]} if "success" in shards else {})
        tracker.dataset(shards_data(config, Path(config.run_dir), shards), context="training")
    for name, row in scores.get("mIoU", {}).items():
        tracker.metrics(by_dataset(f"mIoU/{name}", row))
    tracker.describe("\n".join(_description(config, stages)))


def shards_data(config: Config, run_dir: Path, shards: Mapping[str, Any]) -> Data:
    """A run's image shards as data: what download wrote, and training reads."""
    profile = {key: shards[key] for key in ("captions", "success", "shards") if key in shards}
    source = given_shards(config) or shown(run_dir / "shards")
    return Data(name="shards", source=source, digest=shards["digest"], profile=profile)


def corpus_data(run_dir: Path, corpus: Mapping[str, Any]) -> Data:
    """A run's corpus as data: what filter wrote, and download reads."""
    profile = {key: corpus[key] for key in ("links", "kept", "entities") if key in corpus}
    return Data(name="corpus", source=shown(run_dir / "corpus"), digest=corpus["digest"], profile=profile)


def source_of(config: Config) -> str:
    """Where a run's pairs come from, for people."""
    world = f"the miniature world, {config.miniature.links} links"
    return given_shards(config) or _joined(config.filter.source.path) or world


def given_shards(config: Config) -> str:
    """The own shards that a run trains on; empty where it makes its own."""
    return _joined(config.train.shards)


def _joined(paths: str | Sequence[str]) -> str:
    return masked(paths if isinstance(paths, str) else ", ".join(paths))


def _description(config: Config, stages: Results) -> Iterator[str]:
    yield f"**{' → '.join(stages)}** on {source_of(config)}"
    if scores := stages.get("evaluate"):
        yield from ("", *score_table(scores["mIoU"]), "", f"Zero-shot mIoU in percent, {scores['protocol']}.")
    if corpus := stages.get("filter"):
        images = f" → {stages['download']['success']} images" if "success" in stages.get("download", {}) else ""
        yield from ("", f"Corpus: {corpus['links']} links → {corpus['kept']} kept{images}.")
        leaks = {name: share for name, share in corpus.get("leakage", {}).items() if share}
        if leaks:
            yield ""
            yield "Leakage (kept captions that name a class): " + ", ".join(
                f"{name} {told:.1%}" for name, told in leaks.items()
            )
    trained = [f"train {name}" for name in stages.get("train", {}).get("methods", {})]
    scored = [f"evaluate {name}" for name in stages.get("evaluate", {}).get("mIoU", {})]
    featured = [f"features {name}" for name in stages.get("features", {}).get("methods", {})]
    runs = [*(stage for stage in PRODUCTS if stage in stages), *featured, *trained, *scored]
    yield from ("", " · ".join(f"[[{name}]]" for name in runs))


def score_table(miou: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The table of scores in Markdown."""
    columns = [*next(iter(miou.values()))]
    heads = [average_name(columns).replace("_", " ") if name == AVERAGE else name for name in columns]
    rows = [f"| {name} | {' | '.join(f'{row[column]:.1f}' for column in columns)} |" for name, row in miou.items()]
    return [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(columns)}", *rows]
