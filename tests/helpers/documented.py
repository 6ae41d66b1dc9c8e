"""Fenced blocks of the pages, the shell commands in them, and whether a command would be understood without running it.

Above a block of shell commands stands what becomes of it in the tests, as a comment that readers do not see:

    <!-- test: quick -->          run as printed by `make test`: a second or two
    <!-- test: slow -->           run as printed by `make test-all`, in a clone, after the page's earlier ones
    <!-- test: server -->         likewise, in the background until the page's last command; it names its --port
    <!-- test: parse; REASON -->  not run here: scripts, verbs, options, settings and config files are looked up alone
    <!-- test: by; FILE -->       another test runs it, with what its settings ask for

and above any other block that a command needs as a file: <!-- file: NAME -->.
"""

import importlib
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.paths import REPO
from pipelines.app.config import lay_over, load, read_values
from pipelines.app.console import MODULES, VERBS
from pipelines.app.settings import Config

PAGES = [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((REPO / "docs").glob("*.md"))
KINDS = ("quick", "slow", "server", "parse", "by")
SHELL = ("sh", "console")
"""Languages of blocks that hold commands; in a `console` they follow "$ ", and what they print is there, too."""
PROGRAMS = {"cat", "cd", "cp", "curl", "docker", "export", "git", "jq", "kubectl", "mkdir", "mlflow", "pip", "ray", "watch"}
"""What else a reader may be asked to run; not looked into."""

_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<mark>[^\n]*?) -->\n(?P=indent))?```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, with what the comment above it says: "test: slow", "file: mine.yaml" or nothing."""

    page: Path
    line: int
    language: str
    mark: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPO)}:{self.line}"

    @property
    def kind(self) -> str:
        """What becomes of its commands: one of KINDS; anything else is no classification."""
        kind = self.mark.removeprefix("test: ").partition(";")[0] if self.mark.startswith("test: ") else ""
        return kind if (kind in ("parse", "by")) == bool(self.why) else ""

    @property
    def why(self) -> str:
        """The reason why its commands are not run here, or the test that runs them."""
        return self.mark.partition(";")[2].strip()

    @property
    def file(self) -> str:
        """The name of the file whose content it is, if it is one's."""
        return self.mark.removeprefix("file: ") if self.mark.startswith("file: ") else ""

    @property
    def script(self) -> str:
        """Its commands, as one would type them."""
        if self.language != "console":
            return self.text
        return "".join(line[2:] for line in self.text.splitlines(keepends=True) if line.startswith("$ "))


def blocks_of(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return blocks_in(page, page.read_text(encoding="utf-8"))


def blocks_in(page: Path, text: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    blocks = []
    for found in _FENCE.finditer(text):
        inside = found["text"].replace(f"\n{found['indent']}", "\n").removeprefix(found["indent"])
        line = text.count("\n", 0, found.start()) + 1
        blocks.append(Block(page, line, found["language"], found["mark"] or "", inside))
    return blocks


def shell_blocks() -> list[Block]:
    """The blocks of all pages that hold commands."""
    return [block for page in PAGES if page.exists() for block in blocks_of(page) if block.language in SHELL]


def commands_of(script: str) -> Iterator[list[str]]:
    """The words of each command: lines that quotes or a backslash hold together are one, comments are none."""
    command = ""
    for line in script.splitlines():
        command += line
        if command.endswith("\\"):
            command = command[:-1]
            continue
        try:
            words = shlex.split(command, comments=True)
        except ValueError:  # a quote is still open
            command += "\n"
            continue
        command = ""
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words
    if command:
        raise AssertionError(f"the command never ends: {command}")


def check_command(words: Sequence[str], options_of: Callable[[str], str], given: dict[str, str]) -> None:
    """Raise AssertionError, or what the configuration raises, where a command would not be understood.

    `options_of` gives the help of a verb, `given` the page's own files by name.
    """
    match [*words]:
        case ["source", ".venv/bin/activate"]:
            pass
        case ["make", *rest]:
            targets = [word for word in rest if "=" not in word]
            for target in targets:
                assert re.search(rf"^{re.escape(target)}:", (REPO / "Makefile").read_text(), re.MULTILINE), (
                    f"no target {target}"
                )
        case ["ray", "job", "submit", *rest] if "--" in rest:
            check_command(rest[rest.index("--") + 1 :], options_of, given)
        case ["owseg", verb, *rest] if not verb.startswith("-"):
            assert verb in VERBS, f"no verb {verb}"
            _check_verb(MODULES.get(verb, verb), rest, options_of, given)
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            assert importlib.util.find_spec(module), f"no module {module}"
        case ["python" | ".venv/bin/python", script, *rest]:
            assert (REPO / script).is_file() or script in given, f"no script {script}"
            if Path(script).parent == Path("pipelines"):
                _check_verb(Path(script).stem, rest, options_of, given)
        case ["torchrun", *rest]:
            assert any((REPO / word).is_file() or word in given for word in rest), "torchrun without a script"
        case [program, *_]:
            assert program in PROGRAMS | {"owseg"}, f"unknown program {program}"


def _check_verb(verb: str, words: Sequence[str], options_of: Callable[[str], str], given: dict[str, str]) -> None:
    """`verb` is a module of `pipelines`."""
    helped = options_of(verb)
    for word in words:
        if word.startswith("--") and word != "--help":
            assert re.search(rf"{re.escape(word)}\b", helped), f"{verb} has no option {word}"
    if "key=value" not in helped:
        return  # it takes no settings
    file, settings, varied = None, [], []
    rest = iter(words)
    for word in rest:
        if word == "--config":
            file = _config_file(next(rest), given)
        elif word == "--vary":
            varied.append(next(rest))
        elif re.match(r"[a-z_]+(\.[^=]+)?=", word):
            settings.append(word)
    config = load(Config, file, settings)
    for values in varied:
        key, choices = read_values(config, values, source="--vary")
        for choice in choices.values() if isinstance(choices, dict) else choices:
            lay_over(config, {key: choice}, source="--vary")


def _config_file(name: str, given: dict[str, str]) -> Path:
    """The file that a command names: the page's own, the repository's, a shipped one by its bare name, or a run's."""
    if name in given:
        return Path(given[name])
    if re.fullmatch(r"runs/\w+/config.yaml", name):
        name = "demo"
    file = REPO / name if "." in name else REPO / "configs" / f"{name}.yaml"
    assert file.is_file(), f"no config {name}"
    return file
