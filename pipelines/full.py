"""The whole chain: links in, a table of zero-shot mIoU out. Each stage resumes where an earlier run of it stopped."""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import sys

from filtering.images.results import Retry
from pipelines.app.checks import check_benchmarks, check_encoder, check_methods, check_weights
from pipelines.app.cli import RESTART, VERIFY, main
from pipelines.app.context import SUMMARY, Result, open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.own_shards import own_shards
from pipelines.app.resolve import planned_stages
from pipelines.app.settings import Config
from pipelines.download import check_target, retry_flag, run_download
from pipelines.evaluate import run_evaluate
from pipelines.filter import run_filter
from pipelines.train import run_train


def run(config: Config, retry: Retry = "none", verify: bool = False) -> None:
    """filter → download → (features →) train → evaluate, tracked as one parent run."""
    check_encoder(config)
    check_methods(config)
    check_weights(config)
    check_benchmarks(config)
    check_target(config)
    planned = planned_stages(config)
    with open_context(config, verify=verify, planned=planned) as context:
        if config.train.shards:
            run_train(context, own_shards(config))
            run_evaluate(context)
        else:
            corpus = run_filter(context)
            shards = run_download(context, corpus, retry)
            run_train(context, shards)
            run_evaluate(context)
            print_funnel(corpus, shards)
            print(f"corpus report: {context.run_dir / 'corpus' / 'report.html'}")
    print(f"summary: {context.run_dir / SUMMARY}")


def print_funnel(corpus: Result, shards: Result) -> None:
    """How many rows and images were left after each step."""
    images = f" ({shards['captions']} captions of {shards['links']} images)" if shards["captions"] != shards["links"] else ""
    print(f"corpus funnel: {corpus['links']} links → {corpus['kept']} kept{images} → {shards['success']} downloaded")


if __name__ == "__main__":
    sys.exit(main(run, doc=__doc__ or "", flags={"--retry": retry_flag("none"), **RESTART, **VERIFY, **dry_run("evaluate")}))
