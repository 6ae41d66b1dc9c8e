"""Any text survives: on the command line, in a file that a YAML writer made, in a sweep's values, and in a run's own config."""

from pathlib import Path

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from helpers.sweeps import cells_of
from pipelines.app.cli import main
from pipelines.app.config import ConfigError, load, override
from pipelines.app.run_dir import prepare_run_dir, refuse_other_run
from pipelines.app.settings import Config
from pipelines.app.stage_marker import StageMarker, write_marker
from pipelines.app.values import yaml_of

MARKS = "#:,[]{}'\"&*!|>%@`=~-?\\ \n\t\r/\x85\u2028\ufeff0129.eE_é日"
HARD = [
    *("", " ", "yes", "no", "on", "null", "~", "true", "2", "-1", "1e3", "1e-3", "08", "0x1f", "1_000", ".5", ".inf", "1:30"),
    *("2026-11-29", "#x", "a #b", "a: b", "[x", "[x]", "{x", "{a: b}", "'quoted'", '"', "- a", "? a", "<<", "=", "!!int 3"),
    *("&a", "*a", "%TAG", "@x", "`x`", "| x", "> x", "key==value", " lead", "trail ", "tab\t", "two\nlines", "...", "---"),
    *("café", "日本", "\u2028", "\ufeff", "\x85", "\x1b[0m", "😀", "\x7f"),
]
TEXTS = st.one_of(
    st.sampled_from(HARD), st.text(MARKS, max_size=12), st.text(st.characters(exclude_characters="\0"), max_size=8)
)
quickly = settings(max_examples=60, derandomize=True, deadline=None, database=None, phases=[Phase.generate])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


@pytest.fixture(scope="module")
def config() -> Config:
    return Config()


@quickly
@given(text=TEXTS)
def test_any_text_survives_the_command_line(config: Config, text: str) -> None:
    given_ = override(config, [f"run_dir={text}", f"filter.source.caption_column={text}", f"tracking.experiment=x{text}"])
    assert (given_.run_dir, given_.filter.source.caption_column) == (text, text)
    assert given_.tracking.experiment == f"x{text}"


@quickly
@given(text=TEXTS)
def test_any_text_survives_a_file_that_pyyaml_wrote(folder: Path, text: str) -> None:
    file = folder / "x.yaml"
    tree = {"run_dir": text, "filter": {"source": {"caption_column": text}}, "evaluate": {"datasets": ["voc21"]}}
    for flow in (False, True):
        file.write_text(yaml.safe_dump(tree, default_flow_style=flow), encoding="utf-8")
        loaded = load(Config, file, [])
        assert (loaded.run_dir, loaded.filter.source.caption_column) == (text, text)


@quickly
@given(text=TEXTS)
def test_any_text_survives_a_runs_own_config(folder: Path, text: str) -> None:
    written = yaml_of({"a": text, text: ["é", text]})
    assert yaml.safe_load(written) == {"a": text, text: ["é", text]}
    assert "é" in written, "people read it"
    (folder / "own.yaml").write_text(yaml_of({"run_dir": text}), encoding="utf-8")
    assert load(Config, folder / "own.yaml", []).run_dir == text


def test_a_run_with_odd_texts_is_taken_up_again(tmp_path: Path) -> None:
    mine = override(Config(run_dir=str(tmp_path)), ["filter.source.caption_column=a #b\x85c: 1e3"])
    prepare_run_dir(mine)
    write_marker(tmp_path, "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    refuse_other_run(mine)
    assert load(Config, tmp_path / "config.yaml", []) == mine
    with pytest.raises(ConfigError, match=r"'filter\.source\.caption_column' was"):
        refuse_other_run(override(mine, ["filter.source.caption_column=a"]))


@pytest.mark.parametrize(
    ("given_", "texts"),
    [
        ("[2, yes, 1e-3, 08]", ["2", "yes", "1e-3", "08"]),
        ("['#x', \"a: b\", 'null', '']", ["#x", "a: b", "null", ""]),
        ("{a: 2, b: 'c #d'}", ["2", "c #d"]),
    ],
)
def test_texts_of_a_sweep_are_what_is_written(tmp_path: Path, given_: str, texts: list[str]) -> None:
    if "''" in given_:
        given_ = f"{{{', '.join(f'n{i}: {text}' for i, text in enumerate(given_[1:-1].split(', ')))}}}"
    cells = cells_of(tmp_path, f"filter.source.caption_column={given_}")
    assert [cell.config.filter.source.caption_column for cell in cells] == texts
    assert [cell.varied["filter.source.caption_column"] for cell in cells] == texts, "and so they are recorded"


def test_a_run_dir_with_a_mark_of_yaml_is_that_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[str] = []
    for name in ("my run #1", "2", "null", "[x", "a: b", "'q'", "50% ?x"):
        assert main(lambda config: seen.append(config.run_dir), doc="", argv=[f"run_dir={name}"]) == 0
        assert seen.pop() == str(tmp_path / name)
        assert (tmp_path / name / "config.yaml").exists()
