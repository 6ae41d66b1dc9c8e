"""The corpus in, image shards out: fetch (or take out of ready tars), check, resize, and a row of status for every link.

Run again, it asks only for links that are new, and for those that failed for a reason that may have passed.
"""

if __name__ == "__main__":  # help and mistyped keys, before the libraries below are loaded
    from pipelines.app.early import answer

    answer(__file__)

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

from cluster.data import run_on_ray
from cluster.tracking import Run, RunOf
from filtering.files import digest_of, record_of
from filtering.images.download import DownloadConfig, content_digest, download_corpus
from filtering.images.from_tars import in_tars, select_corpus
from filtering.images.mirror import SIZES, Target
from filtering.images.progress import conclude
from filtering.images.results import RETRIES, Retry
from filtering.reports import download as download_report
from filtering.secrets import masked_tree
from filtering.shards import output_of_shards
from pipelines.app.cli import VERIFY, Choice, main
from pipelines.app.context import Context, Result, open_context
from pipelines.app.dry_run import dry_run
from pipelines.app.records import corpus_data, settings_of, shards_data
from pipelines.app.run_dir import CONFIG_FILE
from pipelines.app.settings import Config
from pipelines.app.stage_marker import describe_losses
from pipelines.app.world import download_config
from pipelines.filter import run_filter

REPORT = ("report.html", "report.json", "report.png")


def run_download(context: Context, corpus: Result, retry: Retry = "none") -> Result:
    """The download stage: `shards/` in the run's folder. A corpus made from tars is selected from them without a request.

    A complete stage is done again only where `retry` names failures that it has.
    """
    folder, out = context.run_dir / "corpus", context.run_dir / "shards"
    settings = context.config.download

    def work() -> Result:
        with context.tracker.child("download", stage="download") as run, download_config(context) as config:
            run.params(settings_of(context.config, "download"))
            run.tags({"corpus_digest": corpus["digest"], "filter_run": RunOf("filter")})
            run.dataset(corpus_data(context.run_dir, corpus), context="download")
            runner = run_on_ray(context.config.session, run)
            if in_tars(folder):
                result = select_corpus(config, folder, out, run=runner)
            else:
                result = download_corpus(config, folder, out, run=runner, retry=retry)
            _record(run, result, download_report.write(out, result, masked_tree(asdict(settings))))
            if settings.target:
                Target(settings.target).push([out / name for name in REPORT])
            run.dataset(shards_data(context.config, context.run_dir, result), context="downloaded")
            run.tags({"shards_digest": result["digest"]})
            run.describe(f"The corpus of [[filter]]: {result['links']} links → **{result['success']} images**.")
            for name in REPORT:
                run.artifact(out / name)
        return result

    def again(result: Result) -> bool:
        failures = {"none": 0, "transient": result["retryable"], "permanent": result["links"] - result["success"]}
        return failures[retry] > 0 and not in_tars(folder)

    fingerprint = fingerprint_of(settings, corpus["digest"])
    result = context.stage(
        "download", fingerprint, out, work, again=again, files=lambda: [out / name for name in (SIZES, *REPORT)]
    )
    if settings.target and result["status"] == "skipped":
        _copy_again(Target(settings.target), out, result["shards"])
    print(f"shards: {conclude(result['by_status'])}; report: {out / 'report.html'}")
    result = {"captions": result["links"], **result}  # older versions counted none
    if result["captions"] != result["links"]:
        print(f"shards: {result['captions']} captions of {result['links']} images, each asked for and stored once")
    if result["retryable"]:
        again_by = f"python pipelines/download.py --config {shlex.quote(str(context.run_dir / CONFIG_FILE))}"
        print(f"shards: {result['retryable']} may work another day; this asks for them alone: {again_by}")
    return result


def _copy_again(target: Target, out: Path, shards: int) -> None:
    """Copy what the target has lost of a complete download."""
    recorded = output_of_shards(out, shards) | {name: record_of(out / name) for name in (SIZES, *REPORT)}
    lost = target.lost({name: told.bytes or (out / name).stat().st_size for name, told in recorded.items()})
    if lost:
        print(f"download.target: {describe_losses(lost, len(recorded))}: copied again", flush=True)
        target.push([out / name for name in recorded], {name: told.sha256 for name, told in recorded.items()})


def fingerprint_of(settings: DownloadConfig, corpus: str) -> str:
    """Changes with whatever changes the shards: where else they are copied does not. corpus: its digest."""
    return digest_of([content_digest(settings), settings.shard_size, corpus])


def retry_flag(default: Retry) -> Choice:
    """The option `--retry` of a verb that downloads."""
    meaning = "which failed links of an earlier run to ask for again: none, those that may work by now, or permanent ones too"
    return Choice(RETRIES, f"{meaning} (without it: {default})", renamed={"passing": "transient"})


def _record(run: Run, result: Result, report: download_report.Content) -> None:
    run.metrics({name: result[name] for name in ("links", "captions", "success", "retryable", "bytes")})
    run.metrics({f"status/{status}": count for status, count in result["by_status"].items()})
    run.metrics(download_report.numbers(report))
    run.table(report["hosts"]["most"]["hosts"], "hosts.json")


def check_target(config: Config) -> None:
    """Raise InputError where shards cannot be copied to the target, before hours of work lead up to it."""
    if config.download.target:
        Target(config.download.target).check()


def run(config: Config, retry: Retry = "transient", verify: bool = False) -> None:
    """The verb; a corpus that is not there yet is filtered first."""
    check_target(config)
    with open_context(config, verify=verify) as context:
        run_download(context, run_filter(context), retry)


if __name__ == "__main__":
    sys.exit(
        main(
            run,
            doc=__doc__ or "",
            flags={"--retry": retry_flag("transient"), **VERIFY, **dry_run("download")},
        )
    )
