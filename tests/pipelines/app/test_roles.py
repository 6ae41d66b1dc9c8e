"""Every setting says how work is done, or what named stages make; fingerprints and what a folder refuses agree with it."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cluster.tracking import NullTracker
from filtering.captions import corpus
from filtering.files import digest_of
from owseg.methods import TRAINABLE
from pipelines import download, evaluate, train
from pipelines.app import run_dir
from pipelines.app.config import ConfigError, override, to_dict
from pipelines.app.context import Context
from pipelines.app.describe import describe
from pipelines.app.evaluated import fingerprint_of
from pipelines.app.roles import roles_of, says_how
from pipelines.app.run_dir import digest_of_run, prepare_run_dir
from pipelines.app.settings import EVALUATED_METHODS, Config
from pipelines.app.stage_marker import StageMarker, write_marker
from pipelines.sweeps.work import training_config

ALTERNATIVES = {
    "run_dir": "elsewhere",
    "filter.source.format": "tsv",
    "filter.rules": "[{name: too_short, min_words: 9}]",
    "filter.vocabulary": "{name: paper}",
    "filter.stop_words": "[cat]",
    "filter.near_duplicates": "{threshold: 0.5}",
    "filter.balance": "{per_entity: 7}",
    "filter.confidence": "0.9",
    "download.fetch.allow": "[10.0.0.0/8]",
    "download.fetch.connect_to": "{a.test: '127.0.0.1:80'}",
    "download.fetch.nameservers": "[127.0.0.1]",
    "download.target": "/elsewhere",
    "miniature.size": "120",
    "encoder.model": "RN50",
    "encoder.pretrained": "openai",
    "encoder.quick_gelu": "true",
    "normalisation.mean": "[0.1, 0.2, 0.3]",
    "normalisation.std": "[0.1, 0.2, 0.3]",
    "methods": "[maskclip]",
    "weights": "{}",
    "init": "{}",
    "train.zero_stage": "2",
    "evaluate.datasets": "[voc20]",
    "evaluate.thresholds": "[0.5]",
    "evaluate.classes": "lists",
    "evaluate.synonyms": "lexicon",
    "evaluate.grid_scale": "2.0",
    "evaluate.window": "400",
    "evaluate.bootstrap": "0",
    "session.data_label": "role=data",
    "session.train_label": "role=train",
    "session.num_cpus": "3",
    "session.data_workers": "3",
    "storage.endpoint": "http://there:9000",
    "tracking.uri": "http://there:5000",
}
"""Another value of keys of which no rule below makes one."""
ENDINGS = {
    ".templates": ["{key}=imagenet80"],
    ".phases": ["{key}.0.steps=7"],
    ".optim.betas": ["{key}=[0.5, 0.6]"],
    ".optim.warmup_lr": ["{key}=0.05", "{section}.schedule=cosine_unshifted"],
    ".optim.schedule": ["{key}=cosine", "{section}.warmup_lr=0"],
    ".vilseg.image_weights": ["{key}=dino.pth", "{section}.init=dino"],
    ".local_area": ["{key}=[0.1, 0.3]"],
    ".vilseg.text.width": ["{key}=512"],
    ".vilseg.text.heads": ["{key}=2"],
    ".vilseg.text.vocabulary": ["{key}=49000"],
}
"""The same for the ends of keys, with what must change with them."""
ONE_VALUE = tuple(f"method_settings.talk2dino.augment.{key}" for key in ("rand_augment", "erase"))
"""Keys that can have no other value."""
NO_SAY_ALONE = ("filter.source.path", "weights", "init", "evaluate.tuning")
"""What lies in these files decides, wherever they lie."""


@dataclass(frozen=True)
class FakeProtocol:
    name: str


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("roles")
    (folder / "links.tsv").write_text("http://a.test/1.jpg\ta dog near a house\n")
    return override(
        Config(run_dir=str(folder / "run")),
        [
            f"filter.source.path={folder / 'links.tsv'}",
            f"evaluate.root={folder}",
            f"methods=[{', '.join(EVALUATED_METHODS)}]",
            "encoder.pretrained=pretrain",
        ],
    )


@pytest.fixture
def fingerprints(monkeypatch: pytest.MonkeyPatch) -> Callable[[Config], dict[str, str]]:
    """What each stage, and each training, goes by; files apart."""
    monkeypatch.setattr(corpus, "Words", FakeWords)
    monkeypatch.setattr(evaluate, "protocol_of", lambda config, name: FakeProtocol(name))
    monkeypatch.setattr(evaluate, "list_items", lambda *arguments: [])
    monkeypatch.setattr(FakeProtocol, "benchmark", None, raising=False)

    def find(config: Config) -> dict[str, str]:
        context = Context(config, NullTracker())
        trained = {
            f"train {name}": digest_of(train.deciding_settings(config, getattr(config.method_settings, name)))
            for name in TRAINABLE
        }
        scores = evaluate.fingerprint_of_scores(config, config.evaluate, evaluate.contenders_of(context))
        return {
            "filter": fingerprint_of(config, config.filter),
            "download": download.fingerprint_of(config.download, ""),
            **trained,
            "evaluate": scores,
        }

    return find


class FakeWords:
    """Loading the real tagger for each key would take minutes."""

    def __init__(self, *settings: object) -> None:
        self.settings = settings

    def fingerprint(self) -> str:
        return ""


def changes(base: Config) -> Iterator[tuple[str, list[str]]]:
    """Every key that has a value of its own, and settings that give it another."""
    entries = [entry for entry in describe(Config, default=base) if not re.search(r"[(<]|\.\d", entry.key)]
    sections = {entry.key.rpartition(".")[0] for entry in entries} - {*ALTERNATIVES}
    for entry in entries:
        key = entry.key
        if key in sections or key in ONE_VALUE or entry.type == key.rpartition(".")[2]:
            continue
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), "")
        if key in ALTERNATIVES or not ending:
            yield key, [f"{key}={ALTERNATIVES.get(key) or another(entry.type, entry.default)}"]
        else:
            yield key, [setting.format(key=key, section=key.rpartition(".")[0]) for setting in ENDINGS[ending]]


def another(kind: str, value: str) -> str:
    if kind == "true or false":
        return "false" if value == "true" else "true"
    if kind.startswith("a whole number"):
        return str(int(value) + 1) if value != "null" else "1"
    if kind.startswith("a number"):
        return str(round(float(value) * 0.9 + 0.05, 6)) if value != "null" else "0.5"
    if kind == "text":
        return "something else"
    return next((choice for choice in re.split(", | or ", kind) if choice != value), "")


def test_every_setting_has_the_say_that_is_declared(base: Config, fingerprints: Callable[[Config], dict[str, str]]) -> None:
    before, digest = fingerprints(base), digest_of_run(base)
    wrong, seen = [], 0
    for key, settings in changes(base):
        changed = override(base, settings)
        if changed == base or key in NO_SAY_ALONE:
            continue
        seen += 1
        after = fingerprints(changed)
        moved = {stage for stage in before if before[stage] != after.get(stage)}
        roles = {stage.partition(" ")[0] for stage in moved}
        declared = set(roles_of(key)) - {"how"}
        if key.startswith("miniature."):
            declared = set()  # the world is drawn where a run names no links or benchmarks: its files decide
        elif key.startswith("method_settings.") and not moved <= {f"train {key.split('.')[1]}", "evaluate"}:
            wrong.append(f"{key}: also has a say in {sorted(moved)}")
        if roles != declared:
            wrong.append(f"{settings}: has a say in {sorted(roles)}, not {sorted(declared)}")
        if says_how(key) != (digest_of_run(changed) == digest):
            wrong.append(f"{key}: the run's digest says otherwise")
    assert not wrong, "\n".join(wrong)
    assert seen > 200


def test_what_says_how_is_refused_nowhere(base: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what evaluation alone goes by; what made the corpus or a training is, in a line that names it."""
    here = override(base, [f"run_dir={tmp_path}"])
    prepare_run_dir(here)
    write_marker(tmp_path, "filter", StageMarker(fingerprint="", digest="", seconds=0.0))
    for name in ("tcl", "clip"):
        (tmp_path / "train" / name / "checkpoints" / "checkpoint_2026-01-01_00-00-00.000001").mkdir(parents=True)
    monkeypatch.setattr(run_dir, "settings_in", lambda content, name: to_dict(here))  # 300 times the same, and slow
    refused, wanted = {}, set()
    for key, settings in changes(base):
        changed = override(here, settings)
        of_another_method = key.startswith("method_settings.") and key.split(".")[1] not in ("tcl", "clip")
        if changed != here and roles_of(key) & {"filter", "train"} and not of_another_method:
            wanted.add(key)
        try:
            run_dir.refuse_other_run(replace(changed, run_dir=here.run_dir))
        except ConfigError as error:
            refused[key] = str(error)
    assert set(refused) == wanted
    assert {"train.log_every", "evaluate.datasets", "method_settings.tcl.background_threshold"}.isdisjoint(refused)
    for key, message in refused.items():
        section = re.escape(key.rpartition(".")[0] or key)
        line = rf"holds a run of another config: '{section}[.\w]*' was .* and is now .*run_dir=FOLDER"
        assert re.search(line, message), message


def test_a_run_may_move_with_its_files(base: Config, tmp_path: Path) -> None:
    """The same links, and weights of the same name, elsewhere."""
    source = Path(base.filter.source.path)
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / source.name
    moved.write_bytes(source.read_bytes())
    here = override(base, [f"run_dir={tmp_path}", "init.tcl=/old/tcl.pth", "encoder.pretrained=/old/clip.pt"])
    prepare_run_dir(here)
    write_marker(tmp_path, "filter", StageMarker(fingerprint=fingerprint_of(here, here.filter), digest="", seconds=0.0))
    (tmp_path / "train" / "tcl").mkdir(parents=True)
    prepare_run_dir(override(here, [f"filter.source.path={moved}", "init.tcl=/new/tcl.pth", "encoder.pretrained=/new/clip.pt"]))
    with pytest.raises(ConfigError, match=r"'init\.tcl' was /new/tcl\.pth and is now /new/other\.pth"):
        prepare_run_dir(override(here, [f"filter.source.path={moved}", "init.tcl=/new/other.pth"]))
    (tmp_path / "others.tsv").write_text("http://a.test/1.jpg\tanother caption\n")
    with pytest.raises(ConfigError, match=r"'filter\.source\.path' was .*moved/links\.tsv and is now .*others\.tsv"):
        prepare_run_dir(override(here, [f"filter.source.path={tmp_path / 'others.tsv'}"]))


def test_a_training_without_a_checkpoint_binds_no_setting(base: Config, tmp_path: Path) -> None:
    """The learning rate that made it diverge is lowered in the same folder."""
    here = override(base, [f"run_dir={tmp_path}", "method_settings.tcl.optim.lr=1e30"])
    prepare_run_dir(here)
    write_marker(tmp_path, "filter", StageMarker(fingerprint=fingerprint_of(here, here.filter), digest="", seconds=0.0))
    (tmp_path / "train" / "tcl" / "checkpoints").mkdir(parents=True)
    lower = override(here, ["method_settings.tcl.optim.lr=0.001"])
    prepare_run_dir(lower)
    (tmp_path / "train" / "tcl" / "checkpoints" / "checkpoint_2026-01-01_00-00-00.000001").mkdir()
    with pytest.raises(
        ConfigError, match=r"'method_settings.tcl.optim.lr' was 0.001 .* or train anew in it with --restart, .*"
    ):
        prepare_run_dir(here)
    prepare_run_dir(here, restart=True)
    with pytest.raises(ConfigError, match=r"'filter.min_count' was .* or delete that one$"):
        prepare_run_dir(override(here, ["filter.min_count=7"]), restart=True)


def test_other_processes_engines_and_stages_go_on_with_a_training(base: Config) -> None:
    """But for official forms, whose losses depend on the number of ranks."""
    tcl = base.method_settings.tcl
    other = override(base, ["train.workers=4", "train.engine=torch", "train.zero_stage=3", "train.threads=2"])
    assert train.deciding_settings(other, tcl) == train.deciding_settings(base, tcl)
    assert train.deciding_settings(override(base, ["train.bf16=true"]), tcl) != train.deciding_settings(base, tcl)
    official = [override(config, ["method_settings.tcl.fidelity=official"]) for config in (base, other)]
    one, two = (train.deciding_settings(config, config.method_settings.tcl) for config in official)
    assert (one.pop("workers"), two.pop("workers")) == (1, 4)
    assert one == two


def test_a_sweep_of_thresholds_trains_once(base: Config) -> None:
    cells = [override(base, [f"method_settings.tcl.background_threshold={value}"]) for value in ("0.4", "0.5")]
    shared = {digest_of_run(training_config(cell, cell.method_settings.tcl)) for cell in cells}
    assert len(shared) == 1
    assert len({digest_of_run(cell) for cell in cells}) == 2
