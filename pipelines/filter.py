"""Links and captions in, the filtered corpus out: caption rules, entity frequency, and which captions mention a kept entity."""

import sys
from pathlib import Path

from cluster.data import run_on_ray
from filtering.captions.corpus import build_corpus, corpus_fingerprint
from filtering.reports import corpus as report
from owseg.evaluation.class_names import class_names
from pipelines.app.cli import VERIFY, main
from pipelines.app.context import Context, Result, open_context
from pipelines.app.settings import Config
from pipelines.app.world import filter_config

REPORT = ("report.html", "report.json", "report.png")
FILES = ("entities.parquet", "index.parquet", *REPORT)
"""What the filter writes beside its shards."""


def run_filter(context: Context) -> Result:
    """The filter stage: `corpus/` in the run's folder."""
    out = context.run_dir / "corpus"
    config = filter_config(context)
    benchmarks = class_names()
    fingerprint = corpus_fingerprint(config, benchmarks)

    def work() -> Result:
        with context.tracker.child("filter", stage="filter") as run:
            result = build_corpus(config, out, run=run_on_ray(context.config.session), benchmarks=benchmarks)
            run.metrics({"links": result["links"], "kept": result["kept"], "entities": result["entities"]})
            run.metrics({f"dropped/{reason}": count for reason, count in result["dropped"].items()})
            run.metrics(report.numbers(report.write(out, result)))
            run.dataset("links", source=config.source.shown, digest=fingerprint, context="filtering")
            for name in REPORT:
                run.artifact(out / name)
        return {**result, "shards": config.shards}

    result = context.stage("filter", fingerprint, out, work, files=lambda: [out / name for name in FILES])
    dropped = ", ".join(f"{count} {reason}" for reason, count in result["dropped"].items())
    print(f"corpus: {result['kept']} of {result['links']} links kept; dropped: {dropped or 'none'}")
    return result


def run(config: Config, verify: bool = False) -> None:
    """The verb."""
    with open_context(config, verify=verify) as context:
        run_filter(context)
        print(f"look at {Path(config.run_dir) / 'corpus' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags=VERIFY))
