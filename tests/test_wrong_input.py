"""The user's mistakes: one line that says what to do, exit code 2, nothing lost, and no work done before it is told."""

from pathlib import Path
from subprocess import CompletedProcess

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from helpers.chain import command, run, run_each
from helpers.paths import REPO
from pipelines.app.stage_marker import StageMarker, write_marker

CASES: dict[str, tuple[str, tuple[str, ...], str]] = {
    "missing source": (
        "filter",
        ("filter.source.path={there}/none.tsv",),
        "filter.source.path: no such file: {there}/none.tsv",
    ),
    "missing column": (
        "filter",
        ("filter.source.path={there}/links.parquet", "filter.source.caption_column=titel"),
        "filter.source.caption_column: ",
    ),
    "empty table": ("filter", ("filter.source.path={there}/empty.tsv",), "filter.source.path: {there}/empty.tsv holds no rows"),
    "unknown key": ("full", ("train.worker=3",), "command line: unknown key 'train.worker'; did you mean 'train.workers'?"),
    "bad value": ("full", ("train.workers=many",), "command line: train.workers must be a number, or two with .. between them"),
    "a path that is too long": ("evaluate", ("evaluate.synonyms=" + "x" * 300,), "xxxx"),
    "a root that is too long": ("evaluate", ("evaluate.root=" + "x" * 300,), "xxxx"),
    "NUL in a path": ("full", ('weights={{tcl: "a\\0b"}}',), "command line: 'weights.tcl' holds the character NUL"),
    "infinity": (
        "full",
        ("method_settings.tcl.tv_weight=.inf",),
        "command line: 'method_settings.tcl.tv_weight' must be a finite number, not inf",
    ),
    "a number of many digits": ("full", ("seed=" + "9" * 5000,), "command line: 'seed' must be a whole number, not '9999"),
    "a negative seed": ("full", ("seed=-1",), "command line: seed: -1 is out of range"),
    "class names without a root": (
        "evaluate",
        ("evaluate.classes=/nope",),
        "command line: evaluate.classes: /nope is for benchmarks in",
    ),
    "unknown method": (
        "full",
        ("methods=[maskclip,tlc]",),
        "command line: methods: unknown method 'tlc' (did you mean 'tcl'?); choose from",
    ),
    "no MLflow server": (
        "full",
        ("tracking.enabled=true", "tracking.uri=http://127.0.0.1:1"),
        "tracking.uri: no MLflow server answers at http://127.0.0.1:1",
    ),
    "unknown choice": ("full", ("--retry=often",), "--retry: unknown value 'often'; choose from none, transient, permanent"),
    "no Ray cluster": ("filter", ("session.address=127.0.0.1:1",), "session.address: no Ray cluster answers at '127.0.0.1:1'"),
    "run_dir below a file": ("full", ("run_dir={there}/empty.tsv/run",), "run_dir: {there}/empty.tsv/run cannot be written"),
    "run_dir in /proc": ("full", ("run_dir=/proc/run",), "run_dir: /proc/run cannot be written"),
    "missing weights": (
        "full",
        ("encoder.pretrained={there}/none.safetensors",),
        "encoder.pretrained: {there}/none.safetensors does not exist",
    ),
    "weights of another model": (
        "full",
        ("encoder.pretrained={there}/other.safetensors",),
        "encoder.pretrained: {there}/other.safetensors does not fit encoder.model {repo}/configs/smoke_clip.json",
    ),
    "missing trained weights": (
        "evaluate",
        ("weights.tcl={there}/none.pth",),
        "weights.tcl: {there}/none.pth does not exist",
    ),
    "trained weights of another model": (
        "full",
        ("weights.tcl={there}/other.safetensors",),
        "{there}/other.safetensors: belongs to another architecture",
    ),
    "no methods": ("evaluate", ("methods=[]",), "methods: there are none to score"),
    "no benchmarks": ("evaluate", ("evaluate.root={there}",), "voc21: {there}/VOCdevkit/"),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of faulty inputs."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "empty.tsv").touch()
    pq.write_table(pa.table({"url": ["http://a.test/1.jpg"], "caption": ["a dog on a lawn"]}), folder / "links.parquet")
    save_file({"visual.proj": torch.zeros(3, 3)}, folder / "other.safetensors")
    return folder


@pytest.fixture(scope="module")
def results(there: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, CompletedProcess[str]]]:
    """What became of each case, and its run's folder; the faulty inputs are as they were."""
    before = {path: path.stat().st_mtime_ns for path in there.rglob("*")}
    folders = [tmp_path_factory.mktemp("case") / "run" for _ in CASES]
    given = [
        command(verb, folder, "tracking.enabled=false", *(setting.format(there=there) for setting in settings))[1:]
        for (verb, settings, _), folder in zip(CASES.values(), folders, strict=True)
    ]
    found = dict(zip(CASES, zip(folders, run_each(given), strict=True), strict=True))
    assert {path: path.stat().st_mtime_ns for path in there.rglob("*")} == before
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_is_one_line_and_exit_code_2(
    there: Path, results: dict[str, tuple[Path, CompletedProcess[str]]], name: str
) -> None:
    run_dir, result = results[name]
    _, _, message = CASES[name]
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if not line.startswith("read: ")]  # progress
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: " + message.format(there=there, repo=REPO))
    assert not list(run_dir.glob("*.done.json"))
    assert not (run_dir / "summary.json").exists()


def test_a_config_of_another_run_is_refused_and_its_folder_left_alone(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert run("full", run_dir, "session.address=127.0.0.1:1").returncode == 2  # writes the run's config
    write_marker(run_dir, "filter", StageMarker(fingerprint="complete", digest="", seconds=0.0))
    before = (run_dir / "config.yaml").read_bytes()
    result = run("full", run_dir, "seed=7")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"error: run_dir: {run_dir} holds a run of another config: 'seed' was 0 and is now 7")
    assert (run_dir / "config.yaml").read_bytes() == before
    assert yaml.safe_load(before)["seed"] == 0


def test_a_mistake_in_a_file_names_the_file(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text((REPO / "configs" / "smoke.yaml").read_text().replace("  shards: 2", "  shard: 2"))
    result = run("filter", tmp_path / "run", config=config)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {config}: unknown key 'filter.shard'; did you mean 'filter.shards'?")


def test_help_names_every_section(tmp_path: Path) -> None:
    verbs = ("filter", "download", "train", "evaluate", "full")
    for verb, result in zip(
        verbs, run_each([command(verb, tmp_path / "run", "--help", "all")[1:] for verb in verbs]), strict=True
    ):
        assert result.returncode == 0, result.stderr
        for key in (
            "--config FILE",
            "run_dir",
            "filter.source.path",
            "method_settings.tcl.area_prior",
            "evaluate.stride",
            "tracking.uri",
        ):
            assert key in result.stdout
        assert ("[--retry none|transient|permanent]" in result.stdout) == (verb in ("download", "full"))
    assert not (tmp_path / "run").exists()
