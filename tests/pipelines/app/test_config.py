"""The settings loader: strict, small, and clear about what is wrong."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from pipelines.app.config import ConfigError, digest, from_dict, load, to_dict
from pipelines.app.describe import describe


@dataclass(frozen=True, kw_only=True)
class Words:
    """A rule."""

    name: Literal["words"] = "words"
    """Which rule."""
    min_words: int = 3
    """Fewest words."""


@dataclass(frozen=True, kw_only=True)
class Letters:
    """Another rule."""

    name: Literal["letters"] = "letters"
    """Which rule."""
    share: float = 0.5
    """Least share of letters."""

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {self.share}")


@dataclass(frozen=True, kw_only=True)
class Filter:
    """A section."""

    top_k: int = 100
    """How many entities
    are kept."""
    rules: tuple[Words | Letters, ...] = (Words(), Letters(share=0.7))
    """What captions must pass."""
    pick: Words | Letters = Letters(share=0.6)
    """One of two."""


@dataclass(frozen=True, kw_only=True)
class Optim:
    """A section with a key that must be set."""

    lr: float
    """Learning rate."""
    schedule: Literal["cosine", "off", 1] = "cosine"
    """Shape of the schedule."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole."""

    run_dir: str = ""
    """Folder."""
    seed: int = 0
    """Seed."""
    verbose: bool = False
    """Talk."""
    limit: int | None = None
    """At most this many; null: all."""
    methods: tuple[str, ...] = ("maskclip", "tcl")
    """Methods."""
    sizes: dict[str, int] = field(default_factory=lambda: {"train": 64, "test": 96})
    """Sizes by split."""
    names: dict[str, str | None] = field(default_factory=dict)
    """Names by what they name."""
    filter: Filter = Filter(top_k=50)
    """Filtering."""
    optim: Optim = Optim(lr=0.1)
    """Optimiser."""
    optims: dict[str, Optim] = field(default_factory=dict)
    """Optimiser by method."""


def write(folder: Path, text: str) -> Path:
    file = folder / "x.yaml"
    file.write_text(text)
    return file


def test_defaults_are_the_base_and_later_sources_win(tmp_path: Path) -> None:
    file = write(tmp_path, "seed: 3\nfilter: {top_k: 7}\noptim:\n  lr: 1e-3\n")
    config = load(Settings, file, ["filter.top_k=20", "methods=[tcl]", "limit=5"])
    assert config == Settings(seed=3, filter=Filter(top_k=20), optim=Optim(lr=0.001), methods=("tcl",), limit=5)


def test_a_default_instance_keeps_its_other_values(tmp_path: Path) -> None:
    """`filter` defaults to top_k=50, not to the class's own 100, also where the file sets a neighbour."""
    config = load(Settings, write(tmp_path, "filter: {pick: {share: 0.1}}"), [])
    assert config.filter == Filter(top_k=50, pick=Letters(share=0.1))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr=1e-3", Settings(optim=Optim(lr=0.001))),
        ("optim.lr=2", Settings(optim=Optim(lr=2.0))),
        ("optim.schedule=off", Settings(optim=Optim(lr=0.1, schedule="off"))),
        ("optim.schedule=1", Settings(optim=Optim(lr=0.1, schedule=1))),
        ("run_dir=a:b c", Settings(run_dir="a:b c")),
        ("run_dir=", Settings(run_dir="")),
        ("run_dir=http://host:1/x?a=b", Settings(run_dir="http://host:1/x?a=b")),
        ("run_dir=12:30:45", Settings(run_dir="12:30:45")),
        ("run_dir=2026-11-20", Settings(run_dir="2026-11-20")),
        ("limit=null", Settings()),
        ("verbose=true", Settings(verbose=True)),
        ("run_dir=/d/my run #1", Settings(run_dir="/d/my run #1")),
        ("run_dir=2", Settings(run_dir="2")),
        ("run_dir=null", Settings(run_dir="null")),
        ("run_dir=[x", Settings(run_dir="[x")),
        ("run_dir={x}: 'y'", Settings(run_dir="{x}: 'y'")),
        ("run_dir= ~ ", Settings(run_dir=" ~ ")),
        ("run_dir=='a'==", Settings(run_dir="='a'==")),
        ("seed=010", Settings(seed=10)),
        ("seed=0777", Settings(seed=777)),
        ("seed= 1_000", Settings(seed=1000)),
        ("seed=+5", Settings(seed=5)),
        ("limit=~", Settings()),
        ("verbose=yes", Settings(verbose=True)),
        ("verbose=On", Settings(verbose=True)),
        ("optim.lr=1_000.5", Settings(optim=Optim(lr=1000.5))),
        ("optim.lr=.5E2", Settings(optim=Optim(lr=50.0))),
        ("methods=tcl", Settings(methods=("tcl",))),
        ("methods=a b #c", Settings(methods=("a b #c",))),
        ("methods=[yes, 2, 1e-3, 'null', '#x', \"a, b\"]", Settings(methods=("yes", "2", "1e-3", "null", "#x", "a, b"))),
        ("methods.1=[x]", Settings(methods=("maskclip", "[x]"))),
        ("names.a=null", Settings(names={"a": None})),
        ("names.a=Null", Settings(names={"a": "Null"})),
        ("names={a: 08, b: 'null', c: null}", Settings(names={"a": "08", "b": "null", "c": None})),
        ("filter.rules.0.min_words=2", Settings(filter=Filter(top_k=50, rules=(Words(min_words=2), Letters(share=0.7))))),
        ("filter.rules=[{name: letters}]", Settings(filter=Filter(top_k=50, rules=(Letters(),)))),
        ("filter.pick.name=words", Settings(filter=Filter(top_k=50, pick=Words()))),
        ("filter.pick={name: letters, share: 1}", Settings(filter=Filter(top_k=50, pick=Letters(share=1.0)))),
        ("sizes.train=8", Settings(sizes={"train": 8, "test": 96})),
        ("sizes={val: 8}", Settings(sizes={"val": 8})),
        ("optims.tcl.lr=3", Settings(optims={"tcl": Optim(lr=3.0)})),
    ],
)
def test_values_of_the_command_line(override: str, expected: Settings) -> None:
    assert load(Settings, None, [override]) == expected
    assert from_dict(Settings, to_dict(expected)) == expected


def test_overrides_are_checked_together_and_can_switch_an_alternative() -> None:
    config = load(Settings, None, ["filter.pick.name=words", "filter.pick.min_words=9"])
    assert config.filter.pick == Words(min_words=9)


def test_lists_and_dicts_of_the_file_replace_the_defaults(tmp_path: Path) -> None:
    config = load(Settings, write(tmp_path, "sizes: {val: 1}\nfilter:\n  rules:\n    - {name: words}\n"), [])
    assert config.sizes == {"val": 1}
    assert config.filter.rules == (Words(),)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("filter: {topk: 1}", [], "x.yaml: unknown key 'filter.topk'; did you mean 'filter.top_k'?"),
        ("top_k: 1", [], "x.yaml: unknown key 'top_k'; did you mean 'filter.top_k'?"),
        ("xyz: 1", [], "x.yaml: unknown key 'xyz'; the keys here are run_dir, seed, "),
        ("", ["seeds=1"], "command line: unknown key 'seeds'; did you mean 'seed'?"),
        ("seed: yes", [], "x.yaml: 'seed' must be a whole number, not 'yes'"),
        ("seed: true", [], "x.yaml: 'seed' must be a whole number, not true"),
        ("seed: 1.5", [], "x.yaml: 'seed' must be a whole number, not 1.5"),
        ("seed:", [], "x.yaml: 'seed' must be a whole number, not null"),
        ("verbose: 1", [], "x.yaml: 'verbose' must be true or false, not 1"),
        ("optim: {lr: true}", [], "x.yaml: 'optim.lr' must be a number, not true"),
        ("optim: {lr: fast}", [], "x.yaml: 'optim.lr' must be a number, not 'fast'"),
        ("optim: {lr: .nan}", [], "x.yaml: 'optim.lr' must be a number, not '.nan'"),
        ("run_dir:", [], "x.yaml: 'run_dir' must be text, not null; in quotes it is text: 'null'"),
        ("run_dir: !!int 7", [], "x.yaml: 'run_dir' must be text, not 7; in quotes it is text: '7'"),
        ("limit: many", [], "x.yaml: 'limit' must be a whole number or null, not 'many'"),
        ("optim: {schedule: cosin}", [], "x.yaml: 'optim.schedule' must be cosine, off or 1, not 'cosin'"),
        ("optim: {schedule: true}", [], "x.yaml: 'optim.schedule' must be cosine, off or 1, not true"),
        ("methods: tcl", [], "x.yaml: 'methods' must be a list (text), not 'tcl'"),
        ("methods: [tcl, null]", [], "x.yaml: 'methods.1' must be text, not null"),
        ("methods: &all [tcl, *all]", [], "x.yaml: line 1, column 10: found unconstructable recursive node"),
        ("seed: " + "[" * 5000, [], "x.yaml: maximum recursion depth exceeded"),
        ("filter: 1", [], "x.yaml: 'filter' must hold keys (top_k, rules, pick), not 1"),
        ("filter: {rules: [{name: word}]}", [], "x.yaml: 'filter.rules.0.name' must be words or letters, not 'word'"),
        ("filter: {rules: [{share: 1}]}", [], "x.yaml: 'filter.rules.0.name' must be words or letters, which is missing"),
        ("filter: {rules: [{name: words, share: 1}]}", [], "x.yaml: unknown key 'filter.rules.0.share'; "),
        ("filter: {pick: {share: 2}}", [], "x.yaml: filter.pick.share must be between 0 and 1, not 2.0"),
        ("seed: 1", ["filter.pick.share=2"], "command line: filter.pick.share must be between 0 and 1, not 2.0"),
        ("optims: {tcl: {}}", [], "x.yaml: 'optims.tcl.lr' has no default: set it to a number"),
        ("seed: 1", ["seed.x=1"], "command line: 'seed' must be a whole number, not a mapping"),
        ("seed: 1", ["methods.5=x"], "command line: 'methods' must be a list (text), not a mapping"),
        ("seed: 1", ["seed"], "command line: 'seed' is not a setting; write key=value"),
        ("seed: 1", ["=1"], "command line: '=1' is not a setting"),
        ("seed: 1", ["seed=[1"], "command line: 'seed' must be a whole number, not '[1'"),
        ("seed: 1", ["methods=[tcl"], "command line: 'methods=[tcl': line 1, column "),
        ("seed: 1", ["methods=[tcl, *]"], "command line: 'methods=[tcl, *]': line 1, column "),
        ("seed: 1", ["methods=[tcl] #1"], "command line: 'methods=[tcl] #1': '#1' after the end of the value; in a list"),
        ("seed: 1", ["methods="], "command line: 'methods' must be a list (text), not ''"),
        ("seed: 1", ["seed=1e3"], "command line: 'seed' must be a whole number, not 1000.0"),
        ("seed: 1", ["seed="], "command line: 'seed' must be a whole number, not ''"),
        ("seed: 1", ["verbose=2"], "command line: 'verbose' must be true or false, not 2"),
        ("seed: 1", ["run_dir=\udcff"], "command line: 'run_dir' holds bytes that are no text: '\\udcff'; rename it"),
        ("seed: 1", ["min_words=2"], "command line: unknown key 'min_words'; the keys here are run_dir, seed, "),
        ("seed: 1", ["share=2"], "command line: unknown key 'share'; the keys here are run_dir, seed, "),
        ("seed: 1", ["schedule=off"], "command line: unknown key 'schedule'; did you mean 'optim.schedule'?"),
        ("seed: " + "9" * 5000, [], "x.yaml: 'seed' must be a whole number, not '999"),
        ("seed: 1\nseed: 2", [], "x.yaml: line 2, column 1: duplicate key 'seed'"),
        ("filter: {top_k: 1, top_k: 2}", [], "x.yaml: line 1, column 20: duplicate key 'top_k'"),
        ("seed: [1", [], "x.yaml: line 1, column "),
        ("a\tb: [", [], "x.yaml: line 1, column "),
        ("- 1", [], "x.yaml: must hold 'key: value' lines, not the list [1]"),
        ("? [a]\n: 1", [], "x.yaml: line 1, column 3: a key must be text"),
        ("seed: !!python/object:os.system {}", [], "x.yaml: line 1, column 7: could not determine a constructor"),
    ],
)
def test_mistakes_are_one_line_that_names_source_and_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(Settings, Path("x.yaml"), overrides)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load(Settings, tmp_path / "none.yaml", [])
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Settings, tmp_path, [])
    (tmp_path / "latin.yaml").write_bytes(b"run_dir: \xe9")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(Settings, tmp_path / "latin.yaml", [])


def test_the_digest_sees_every_value() -> None:
    assert digest(Settings()) == digest(Settings(filter=Filter(top_k=50)))
    assert digest(Settings()) != digest(Settings(filter=Filter(top_k=51)))


def test_describe_lists_every_key_with_its_meaning() -> None:
    entries = {entry.key: entry for entry in describe(Settings)}
    assert entries["filter.top_k"].meaning == "How many entities are kept."
    assert entries["filter.top_k"].default == "50"
    assert entries["optim.schedule"].type == "cosine, off or 1"
    assert entries["limit"].type == "a whole number or null"
    assert entries["filter.pick(letters).share"].default == "0.6"
    assert entries["filter.rules.0(words).min_words"].default == "3"
    assert entries["optims.<name>.lr"].default == ""
    assert entries["methods"].default == "[maskclip, tcl]"
    assert entries["filter.pick"].default == "letters"
    assert all(entry.meaning for entry in entries.values())
