"""The command line of all verbs: `[--config FILE] [key.sub=value ...]`, exit codes, and help from the settings themselves."""

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from owseg import near_miss
from pipelines.app.arguments import Parser, command_line
from pipelines.app.config import ConfigError, flatten, load, to_dict
from pipelines.app.describe import describe
from pipelines.app.early import keep, recall, topic_of
from pipelines.app.help import EVERYTHING, HELP, Reference, help_text
from pipelines.app.object_store import inputs_here
from pipelines.app.outcome import Scene, exit_code, print_text
from pipelines.app.run_dir import open_run_dir, run_folder
from pipelines.app.settings import Config
from storage.client import Store, is_object_store, use
from storage.copies import at, shown, workspace_of

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
"""The shipped configs: a link to the repository's folder, so that they are installed, too."""
DEFAULT_CONFIG = CONFIGS / "demo.yaml"

Action = Callable[[Config], None]
"""What is done instead of the verb, without holding the run's folder. Its docstring is its help."""


@dataclass(frozen=True)
class Choice:
    """One of `values`, which the verb gets as a keyword named like the option. `meaning` is its help.

    `renamed` maps values of older versions to what they are called now, for the message that refuses them.
    """

    values: tuple[str, ...]
    meaning: str
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Option:
    """A text that the verb gets as a keyword named like the option, or a tuple of them where it may stand `several` times.

    `value` is what help writes for it, `meaning` is its help.
    """

    value: str
    meaning: str
    several: bool = False


@dataclass(frozen=True)
class Switch:
    """An option without a value, which the verb gets as a keyword that is true. `meaning` is its help."""

    meaning: str


Flag = Action | Choice | Option | Switch

VERIFY = {
    "--verify": Switch(
        "read what complete stages wrote and compare digests (without it: names and sizes); what differs is made again"
    )
}
"""The option of the verbs that resume."""
RESTART = {"--restart": Switch("train anew what was trained with other settings; it is kept in the run's train/before")}
"""The option of the verbs that train."""


def main(
    run: Callable[..., None], *, doc: str, argv: Sequence[str] | None = None, flags: Mapping[str, Flag] | None = None
) -> int:
    """Run a verb with the settings that `argv` asks for and return its exit code. `doc` says what the verb does.

    `flags` are options of this verb alone.
    """
    flags = flags or {}
    again = [*(sys.argv[1:] if argv is None else argv)]
    scene = Scene(again=lambda: command_line(again))

    def work() -> None:
        given = _parse(tuple(again), flags)
        _keep(doc, flags)
        if given.topic is not None:
            print_text(_help(doc, flags, given.topic))
            return
        config = load(Config, given.file, given.overrides)
        scene.given = [
            str(item) for _, value in flatten(to_dict(config)) for item in (value if isinstance(value, list) else [value])
        ]
        if given.file == DEFAULT_CONFIG and (config.filter.source.path or config.evaluate.root):
            print(
                f"settings: the demo's ({DEFAULT_CONFIG.name}), as there is no --config: look at them before real data",
                flush=True,
            )
        if given.instead:
            use(config.storage)
            run_dir = config.run_dir if is_object_store(config.run_dir) else str(run_folder(config, given.file))
            given.instead(inputs_here(replace(config, run_dir=run_dir)))
            return
        restart = bool(given.chosen.pop("restart", False))
        with open_run_dir(config, given.file, restart=restart) as held:
            scene.folder = None if at(Path(held.run_dir)) else Path(held.run_dir)
            if not any(override.startswith("run_dir=") for override in given.overrides):
                again.append(f"run_dir={shown(Path(held.run_dir))}")
            run(held, **given.chosen)

    return exit_code(work, scene)


@dataclass
class _Given:
    """A command line, taken apart."""

    file: Path = DEFAULT_CONFIG
    overrides: list[str] = field(default_factory=list)
    topic: str | None = None
    """What --help is asked about; None where it is not asked for."""
    instead: Action | None = None
    chosen: dict[str, str | tuple[str, ...] | bool] = field(default_factory=dict)


def _keep(doc: str, flags: Mapping[str, Flag]) -> None:
    """Let later calls of a verb of this package answer --help and mistyped keys at once."""
    verb = Path(sys.argv[0]).resolve()
    if verb.parent == CONFIGS.parent and recall(verb.stem) is None:
        keep(verb.stem, reference_of(doc, flags))


def _help(doc: str, flags: Mapping[str, Flag], topic: str) -> str:
    try:
        return help_text(reference_of(doc, flags), topic, width=shutil.get_terminal_size().columns)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _parse(argv: Sequence[str], flags: Mapping[str, Flag]) -> _Given:
    if (topic := topic_of(argv)) is not None:
        return _Given(topic=topic)
    parser = Parser(usage=None, description=None)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--config", nargs="?", const="", default=str(DEFAULT_CONFIG))
    for name, flag in flags.items():
        if isinstance(flag, (Choice, Option)):
            several = isinstance(flag, Option) and flag.several
            parser.add_argument(name, nargs="?", const="", action="append" if several else "store")  # "" = the value is missing
        else:
            parser.add_argument(name, action="store_true")
    parsed, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        known = ", ".join(["--config FILE", *_usage(flags)])
        raise ConfigError(f"unknown option '{unknown[0]}'; the options are {known} and --help, settings are key=value")
    if not parsed.config:
        raise ConfigError("--config needs a file: --config FILE")
    given = _Given(_config_file(parsed.config, parsed.settings), parsed.settings)
    for name, flag in flags.items():
        value = getattr(parsed, name.removeprefix("--").replace("-", "_"))
        if isinstance(value, list):
            given.chosen[name.removeprefix("--")] = tuple(_checked(name, one, flag) for one in value)
        elif isinstance(value, str):
            given.chosen[name.removeprefix("--")] = _checked(name, value, flag)
        elif value and isinstance(flag, Switch):
            given.chosen[name.removeprefix("--")] = True
        elif value and not isinstance(flag, (Choice, Option, Switch)):
            given.instead = flag
    return given


def _config_file(name: str, settings: Sequence[str]) -> Path:
    """The file that --config names: a path, the URL of one in an object store, or the bare name of a shipped config."""
    if is_object_store(name):
        parent, _, file = name.rpartition("/")
        storage = load(Config, None, [one for one in settings if one.startswith("storage.")]).storage
        content = Store(parent, storage).get(file)
        if content is None:
            raise ConfigError(f"--config {name}: there is no such object; correct the address")
        given = workspace_of(parent, storage).root.with_suffix(".config") / file
        given.parent.mkdir(parents=True, exist_ok=True)
        given.write_bytes(content)
        return given
    shipped = CONFIGS / f"{name}.yaml"
    return shipped if name.isidentifier() and not Path(name).exists() and shipped.is_file() else Path(name)


def _checked(name: str, value: str, flag: Flag) -> str:
    if isinstance(flag, Option) and not value:
        raise ConfigError(f"{name} needs a value: {name} {flag.value}")
    if not isinstance(flag, Choice) or value in flag.values:
        return value
    hint = f" (now called '{flag.renamed[value]}')" if value in flag.renamed else near_miss(value, flag.values)
    wrong = f"{name}: unknown value '{value}'{hint}" if value else f"{name} needs a value"
    raise ConfigError(f"{wrong}; choose from {', '.join(flag.values)}")


def _usage(flags: Mapping[str, Flag]) -> dict[str, str]:
    """How each option is written, and what it means."""
    usage = {}
    for name, flag in flags.items():
        match flag:
            case Choice():
                usage[f"{name} {'|'.join(flag.values)}"] = flag.meaning
            case Option():
                usage[f"{name} {flag.value}"] = flag.meaning
            case Switch():
                usage[name] = flag.meaning
            case _:
                usage[name] = flag.__doc__ or ""
    return usage


def reference_of(doc: str, flags: Mapping[str, Flag] | None = None) -> Reference:
    """What --help tells of a verb."""
    options = _usage(flags or {})
    options |= {
        "--config FILE": "values in YAML: a path or URL, or the name of a shipped file such as tcl; without it demo",
        HELP: f"this text; with a section or a key what it means, with {EVERYTHING} all of them",
    }
    return Reference(doc, options, describe(Config))
