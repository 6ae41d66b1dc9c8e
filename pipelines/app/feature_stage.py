"""The features stage: what frozen towers make of the shards' images and texts, for trainings that read it instead of pixels."""

from collections.abc import Sequence

from cluster.features import MILLISECONDS, FeaturePlan, Made, plan_features, runner_of
from cluster.tracking import RunOf
from cluster.train_config import RayTrainJob
from filtering.files import digest_of
from filtering.images.progress import size
from filtering.shards import digest_of_markers, sum_counts
from pipelines.app.context import Context, Result
from pipelines.app.records import settings_of, shards_data
from pipelines.app.resolve import features_folder
from pipelines.app.stage_marker import lost_files, read_marker

STAGE = "features"


def run_features(context: Context, jobs: Sequence[RayTrainJob], shards: Result) -> Result:
    """The features stage: `features/<method>/` in the run's folder for each of the trainings, whose towers are there.

    A tar is not looked at again whose features were made by the same weights and settings.
    """
    plans = {job.method.name: plan_features(job) for job in jobs}

    def work() -> Result:
        made = {name: _make(context, plan, shards) for name, plan in plans.items()}
        images = sum(result["images"] for result in made.values())
        return {"images": images, "methods": made, "digest": digest_of([result["digest"] for result in made.values()])}

    def again(_: Result) -> bool:
        parts = [read_marker(context.run_dir, f"{STAGE}-{name}") for name in plans]
        return any(part is None or lost_files(context.run_dir, part, verify=context.verify) for part in parts)

    out = context.run_dir / STAGE
    out.mkdir(parents=True, exist_ok=True)
    return context.stage(STAGE, digest_of([plan.fingerprint for plan in plans.values()]), out, work, again=again)


def _make(context: Context, plan: FeaturePlan, shards: Result) -> Result:
    """Those of one training, in a tracked run of its own."""
    config, name = context.config, plan.job.method.name
    out = features_folder(context.run_dir, name)

    def work() -> Result:
        with context.tracker.child(f"{STAGE} {name}", stage=STAGE) as run:
            run.params(settings_of(config, "train", name))
            run.tags({"method": name, "shards_digest": shards["digest"], "download_run": RunOf("download")})
            run.dataset(shards_data(config, context.run_dir, shards), context=STAGE)
            result = _result(plan.make(out, runner_of(plan.job, config.session, run)))
            run.metrics({key: value for key, value in result.items() if isinstance(value, (int, float))})
            rate = f", {result['images_per_second']:.3g} images/s" if "images_per_second" in result else ""
            run.describe(f"Features of **{result['images']} images** of [[download]] for [[train {name}]]{rate}.")
        return result

    result = context.part(f"{STAGE}-{name}", plan.fingerprint, out, work)
    left_out = f" without {result['unreadable']} that cannot be read" if result["unreadable"] else ""
    print(f"{STAGE} {name}: {result['images']} images{left_out}, {size(result['bytes_per_image'])} each", flush=True)
    return result


def _result(made: Made) -> Result:
    """Counts, bytes, a worker's rate, and that of what was made just now, if anything was."""
    counts, stored = sum_counts(made.markers), sum(sum(marker.sizes.values()) for marker in made.markers)
    milliseconds = counts.pop(MILLISECONDS)
    return {
        **counts,
        "images_per_second_and_worker": round(1000 * counts["images"] / max(1, milliseconds), 3),
        "bytes": stored,
        "bytes_per_image": round(stored / max(1, counts["images"])),
        **({"images_per_second": round(made.new / made.seconds, 3)} if made.new else {}),
        "shards": len(made.markers),
        "digest": digest_of_markers(made.markers),
    }
