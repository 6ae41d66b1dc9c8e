"""Links and captions in, the filtered corpus out: caption rules, entity frequency, and which captions mention a kept entity."""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys
from pathlib import Path

from cluster.data import run_on_ray
from cluster.tracking import Data
from filtering.captions.corpus import FilterConfig, build_corpus, find_leakage, shares
from filtering.files import digest_of
from filtering.link_set import forgotten_in
from filtering.reports import corpus as report
from pipelines.app.cli import VERIFY, main
from pipelines.app.context import Context, Result, open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.evaluated import evaluated_classes, excluded_classes, fingerprint_of
from pipelines.app.records import corpus_data, settings_of
from pipelines.app.settings import Config
from pipelines.app.world import filter_config

REPORT = ("report.html", "report.json", "report.png")
FILES = ("entities.parquet", "index.parquet")
"""What the filter writes beside its shards."""
SUMMARY = ("links", "kept", "dropped", "entities", "digest")
"""What the report tells of a corpus."""


def run_filter(context: Context) -> Result:
    """The filter stage: `corpus/` in the run's folder, and the report on it."""
    out = context.run_dir / "corpus"
    config = filter_config(context)
    excluded = excluded_classes(context.config)
    fingerprint = fingerprint_of(context.config, config)

    def work() -> Result:
        with context.tracker.child("filter", stage="filter") as run:
            run.params(settings_of(context.config, "filter"))
            run.dataset(Data(name="links", source=config.source.shown, digest=fingerprint), context="filtering")
            runner, forgotten = run_on_ray(context.config.session, run), forgotten_in(context.run_dir)
            result = build_corpus(config, out, run=runner, benchmarks=excluded, forgotten=forgotten)
            run.metrics({"links": result["links"], "kept": result["kept"], "entities": result["entities"]})
            run.metrics({f"dropped/{reason}": count for reason, count in result["dropped"].items()})
            run.dataset(corpus_data(context.run_dir, result), context="filtered")
            run.tags({"corpus_digest": result["digest"]})
            run.describe(f"{result['links']} links → **{result['kept']} kept**.")
        return result

    result = context.stage("filter", fingerprint, out, work, files=lambda: [out / name for name in FILES])
    result["leakage"] = _report(context, config, result)
    dropped = ", ".join(f"{count} {reason}" for reason, count in result["dropped"].items())
    print(f"corpus: {result['kept']} of {result['links']} links kept; dropped: {dropped or 'none'}")
    return result


def _report(context: Context, config: FilterConfig, corpus: Result) -> dict[str, float]:
    """Write the report; returns the leakage. It alone depends on what is evaluated, and is written again for other classes."""
    out = context.run_dir / "corpus"
    benchmarks, missing = evaluated_classes(context.config)
    for name, reason in missing.items():
        print(f"leakage: {name} is left out: {reason}", flush=True)

    def work() -> Result:
        leakage = find_leakage(config, out, benchmarks)
        told = shares(leakage, corpus["kept"])
        shown = {**{key: corpus[key] for key in SUMMARY}, "leakage": told}
        content = report.write(out, shown, leakage, source=config.source.paths)
        with context.tracker.child("filter", stage="filter") as run:
            run.metrics(report.numbers(content))
            for name in REPORT:
                run.artifact(out / name)
        return {"leakage": told, "digest": digest_of(told)}

    if out.is_symlink():  # a sweep's cells share the corpus, and the report on it
        return shares(find_leakage(config, out, benchmarks), corpus["kept"])
    fingerprint = digest_of([corpus["digest"], benchmarks, config.source.paths])
    result = context.part("filter-report", fingerprint, out / REPORT[0], work, files=lambda: [out / name for name in REPORT])
    leakage: dict[str, float] = result["leakage"]
    return leakage


def run(config: Config, verify: bool = False) -> None:
    """The verb."""
    with open_context(config, verify=verify) as context:
        run_filter(context)
        print(f"look at {Path(config.run_dir) / 'corpus' / 'report.html'}")


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags={**VERIFY, **dry_run("filter")}))
