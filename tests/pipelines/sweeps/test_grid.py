"""The grid of a sweep, and what is told of a wrong one before any work."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.chain import SMOKE
from helpers.paths import REPO
from helpers.sweeps import ABLATION, cells_of
from owseg.phases import scheduled_phases
from owseg.step_log import pairs_between
from pipelines import sweep
from pipelines.app.cli import main
from pipelines.app.config import load
from pipelines.app.outcome import DONE, USER_MISTAKE
from pipelines.app.resolve import methods_to_train
from pipelines.app.settings import Config
from pipelines.sweeps.grid import make_grid


def test_a_grid_is_every_combination_times_seeds(tmp_path: Path) -> None:
    cells = cells_of(tmp_path, ABLATION, "evaluate.short_side=[64, 80]", seeds=2, settings=("seed=5",))
    assert [cell.name for cell in cells] == [
        f"{setting}-short_side={side}-seed{seed}" for seed in (5, 6) for setting in ("contrast", "whole") for side in (64, 80)
    ]
    last = cells[-1]
    assert (last.setting, last.column, last.seed) == ("whole", "short_side=80", 6)
    assert last.config.run_dir == str(tmp_path / "cells" / last.name)
    assert (last.config.seed, last.config.evaluate.short_side, last.config.method_settings.tcl.tv_weight) == (6, 80, 1.0)
    assert cells[0].config.method_settings.tcl.tv_weight == 0
    assert cells[0].config.method_settings.tcl.phases == last.config.method_settings.tcl.phases, (
        "a mapping is laid over the section"
    )


def test_without_keys_there_is_a_cell_for_each_seed(tmp_path: Path) -> None:
    assert [(cell.name, cell.setting) for cell in cells_of(tmp_path, seeds=2)] == [("seed0", ""), ("seed1", "")]


BAD: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown key": (
        ("--vary", "method_settings.tlc=[1, 2]"),
        "--vary: unknown key 'method_settings.tlc'; did you mean 'method_settings.tcl'?",
    ),
    "value that does not fit": (("--vary", "seed=[1, many]"), "--vary: 'seed' must be a whole number"),
    "value that is refused": (
        ("--vary", "method_settings.tcl.area_prior=[0.4, 2]"),
        "--vary: method_settings.tcl.area_prior: 2.0 is outside 0..1",
    ),
    "seeds < 1": (("--seeds", "0"), "--seeds: '0' is no number of seeds"),
    "seeds in words": (("--seeds=three",), "--seeds: 'three' is no number of seeds"),
    "too many seeds": (("--seeds", "99999"), "--seeds: '99999' is no number of seeds; give a whole number from 1 to 1000"),
    "seeds of many digits": (("--seeds", "9" * 5000), "--seeds: '9999"),
    "a negative seed": (("--vary", "seed=[-1, 0]"), "--vary: seed: -1 is out of range"),
    "a section and a key in it": (
        ("--vary", "evaluate.refine=[none, pamr]", "--vary", "evaluate={p: {refine: pamr}, q: {}}"),
        "--vary: 'evaluate' holds 'evaluate.refine', which is varied too",
    ),
    "no seeds": (("--seeds",), "--seeds needs a value: --seeds N"),
    "no values": (("--vary", "seed=[]"), "--vary: 'seed' has no values"),
    "one value": (("--vary", "train.workers=2"), "--vary: 'train.workers' needs several values"),
    "no key": (("--vary", "[1, 2]"), "--vary: '[1, 2]' is not a setting"),
    "broken YAML": (("--vary", "seed=[1, 2"), "--vary: 'seed=[1, 2': line 1"),
    "twice": (("--vary", "train.threads=[1]", "--vary", "train.threads=[2]"), "--vary: 'train.threads' is varied twice"),
    "seed twice": (("--vary", "seed=[1, 2]", "--seeds", "2"), "--vary: 'seed' is what --seeds varies"),
    "same label": (
        ("--vary", "method_settings.tcl.templates=[tcl, tcl]"),
        "--vary: 2 values of 'method_settings.tcl.templates' have the label",
    ),
    "no label": (("--vary", "method_settings.tcl={'': {}, b: {}}"), "--vary: a value of 'method_settings.tcl' has no label"),
    "where, not what": (("--vary", "session.num_cpus=[1, 2]"), "--vary: 'session.num_cpus' says where or how"),
    "a check of a cell": (
        ("--vary", "method_settings.clip.optim.batch_size=[8, 9]", "train.workers=2"),
        "--vary batch_size=9: method_settings.clip.optim.batch_size",
    ),
    "unknown option": (
        ("--wary", "seed=[1]"),
        "unknown option '--wary'; the options are --config FILE, --vary KEY=[a, b], --seeds N",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_told_in_one_line_before_any_work(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", *arguments]
    assert main(sweep.run, doc="", argv=argv, flags=sweep.FLAGS) == USER_MISTAKE
    told = capsys.readouterr().err
    assert told.startswith(f"error: {message}"), told
    assert told.count("\n") == 1
    assert not (tmp_path / "run" / "shared").exists()


def test_help_shows_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(sweep.run, doc="A grid.", argv=["--help"], flags=sweep.FLAGS) == DONE
    shown = capsys.readouterr().out
    assert "[--vary KEY=[a, b]] [--seeds N] [--config FILE]" in shown
    assert "runs of each combination" in " ".join(shown.split())


def test_a_sweeps_folder_stays_that_of_its_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run" / "cells").mkdir(parents=True)
    argv = ["--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", "--seeds", "0"]
    assert main(sweep.run, doc="", argv=argv, flags=sweep.FLAGS) == USER_MISTAKE
    assert "--seeds: '0'" in capsys.readouterr().err
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    assert main(sweep.run, doc="", argv=[*argv, "evaluate.short_side=80"], flags=sweep.FLAGS) == USER_MISTAKE
    assert "holds a run of another config: 'evaluate.short_side' was" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before


def test_a_cell_of_another_grid_is_refused_and_a_single_run_too(tmp_path: Path) -> None:
    (cell,) = cells_of(tmp_path)
    folder = Path(cell.config.run_dir)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("method_settings: {tcl: {tv_weight: 0.5}}\n")
    (folder / "train.done.json").write_text("{}")
    with pytest.raises(ValueError, match=r"seed0 holds a run of another config: '[\w.]+' was"):
        sweep.check([cell])
    (tmp_path / "train.done.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a single run"):
        sweep.run(replace(cell.config, run_dir=str(tmp_path)))


@pytest.mark.parametrize(("name", "rows"), [("ablation_tcl", 5), ("ablation_ovsegmentor", 3)])
def test_the_command_in_an_ablations_head_is_a_grid(name: str, rows: int, tmp_path: Path) -> None:
    file = REPO / "configs" / f"{name}.yaml"
    head = " ".join(line.lstrip("# ").rstrip("\\") for line in file.read_text().splitlines() if line.startswith("#"))
    (vary,) = re.findall(r"--vary '(.*?)'", head)
    cells = make_grid(load(Config, file, [f"run_dir={tmp_path}"]), [vary], "1").cells
    assert len(cells) == rows
    (method,) = cells[0].config.methods
    assert getattr(cells[-1].config.method_settings, method) == getattr(load(Config, file, []).method_settings, method), (
        "the last row is all of it"
    )
    sweep.check(cells)


def test_compared_systems_see_as_many_pairs_their_encoders_counted() -> None:
    config = load(Config, REPO / "configs" / "compare.yaml", [])
    pairs = {job: pairs_between(scheduled_phases(job.phases, job.optim), 0, 10**9) for job in methods_to_train(config)}
    clip, *jobs = pairs
    assert [job.name for job in jobs] == ["tcl", "ovsegmentor", "vilseg"]
    assert {pairs[job] + pairs[clip] * job.uses_clip for job in jobs} == {38_400}
