"""--help in parts, in the width of the terminal; and that it, like a mistyped key, waits for no library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.chain import environment
from helpers.paths import REPO
from pipelines.app import cli, early
from pipelines.app.config import ConfigError, load
from pipelines.app.describe import describe
from pipelines.app.help import Reference, help_text, mistyped
from pipelines.app.settings import Config

HEAVY = ("torch", "ray", "mlflow", "spacy", "pyarrow", "numpy")


@pytest.fixture(scope="module")
def reference() -> Reference:
    return cli.reference_of("Does a thing.", {"--check": cli.Switch("look at things")})


@pytest.mark.parametrize("width", [80, 140])
def test_all_of_it_has_every_key(reference: Reference, width: int) -> None:
    text = help_text(reference, "all", width=width)
    assert text.startswith("Does a thing.\n\nusage: python ")
    assert max(map(len, text.splitlines()[4:])) <= width
    for entry in describe(Config):
        assert entry.key in text
        assert entry.meaning
        assert entry.meaning.split()[0] in text


def test_alone_it_is_a_screen_with_a_line_for_each_section(reference: Reference) -> None:
    lines = help_text(reference, "", width=80).splitlines()
    assert len(lines) < 50
    assert max(len(line) for line in lines if not line.startswith("usage: ")) <= 80
    for section in ("filter", "download", "train", "evaluate", "method_settings", "tracking"):
        assert sum(line.startswith(f"  {section} ") for line in lines) == 1
    assert not any("filter.top_k" in line for line in lines)


@pytest.mark.parametrize(
    ("topic", "there", "elsewhere"),
    [
        ("train", "train.workers", "filter.top_k"),
        ("method_settings.tcl.optim", "method_settings.tcl.optim.lr", "method_settings.clip.optim.lr"),
        ("seed", "Seed of training", "run_dir"),
        ("filter.rules", "filter.rules.0(too_short).min_words", "filter.top_k"),
    ],
)
def test_of_a_section(reference: Reference, topic: str, there: str, elsewhere: str) -> None:
    text = help_text(reference, topic, width=80)
    assert there in text
    assert elsewhere not in text


def test_an_unknown_section_is_told_with_what_may_be_meant(reference: Reference) -> None:
    with pytest.raises(ValueError, match=r"unknown section 'trian'; did you mean 'train'\?"):
        help_text(reference, "trian", width=80)
    with pytest.raises(ValueError, match=r"did you mean 'method_settings\.\w+\.optim'\?"):
        help_text(reference, "train.optim", width=80)


@pytest.mark.parametrize(
    "key", ["trian", "train.worker", "filter.list", "method_settings.tcl.pamr_", "lr", "models", "nothing.at.all"]
)
def test_the_quick_answer_is_that_of_the_settings(reference: Reference, key: str) -> None:
    with pytest.raises(ConfigError) as told:
        load(Config, None, [f"{key}=1"])
    assert mistyped(reference, [key]) == str(told.value).removeprefix("command line: ")


@pytest.mark.parametrize(
    "key", ["seed", "train.workers", "filter.rules.0.min_words", "filter.vocabulary.path", "weights.tcl", "methods.0"]
)
def test_what_only_the_settings_can_tell_is_left_to_them(reference: Reference, key: str) -> None:
    assert mistyped(reference, [key]) == ""


def test_nothing_is_kept_for_another_state_of_the_sources(
    reference: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert early.recall("full") is None
    early.keep("full", reference)
    assert early.recall("full") == reference
    monkeypatch.setattr(early, "_sources", lambda: [1, 2, 3])
    assert early.recall("full") is None


def test_help_and_mistyped_keys_wait_for_no_library(tmp_path: Path) -> None:
    """From the second call on: the first one has to find out what the settings are."""
    home = environment() | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(REPO)])}

    def call(*argv: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-X", "importtime", "pipelines/full.py", *argv]
        return subprocess.run(command, cwd=REPO, env=home, capture_output=True, text=True, check=False)

    def loaded(result: "subprocess.CompletedProcess[str]") -> set[str]:
        return {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}

    first = call("--help")
    assert "torch" in loaded(first), "what is not asked for below would go unnoticed"
    second, typo = call("--help"), call("trian.workers=2")
    assert second.stdout == first.stdout
    assert (first.returncode, second.returncode, typo.returncode) == (0, 0, 2)
    assert "error: command line: unknown key 'trian'; did you mean 'train'?" in typo.stderr
    for result in (second, typo):
        assert not loaded(result) & set(HEAVY)
