"""The corpus in, image shards out: fetch (or take out of ready tars), check, resize, and a row of status for every link."""

import sys

from cluster.data import run_on_ray
from filtering.download import content_digest, download_corpus
from filtering.select import in_tars, select_corpus
from filtering.stage import digest_of
from pipelines.cli import main
from pipelines.context import Context, Result, open_context
from pipelines.filter import run_filter
from pipelines.settings import Config
from pipelines.world import download_config


def run_download(context: Context, corpus: Result) -> Result:
    """The download stage: `shards/` in the run's folder. A corpus made from tars is selected from them without a request."""
    out = context.run_dir / "shards"

    def work() -> Result:
        with context.tracker.child("download", stage="download") as run, download_config(context) as config:
            folder = context.run_dir / "corpus"
            obtain = select_corpus if in_tars(folder) else download_corpus
            result = obtain(config, folder, out, run=run_on_ray(context.config.session))
            run.metrics({"links": result["links"], "success": result["success"], "retryable": result["retryable"]})
            run.metrics({f"status/{status}": count for status, count in result["by_status"].items()})
            run.dataset("corpus", source=str(folder), digest=corpus["digest"], context="download")
        return result

    fingerprint = digest_of([content_digest(context.config.download), corpus["digest"]])
    result = context.stage("download", fingerprint, out, work)
    failed = ", ".join(f"{count} {status}" for status, count in result["by_status"].items() if status != "success")
    print(f"shards: {result['success']} of {result['links']} images obtained; failed: {failed or 'none'}")
    return result


def run(config: Config) -> None:
    """The verb; a corpus that is not there yet is filtered first."""
    with open_context(config) as context:
        run_download(context, run_filter(context))


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or ""))
