"""Further names of classes: whose they are, what becomes of their embeddings, and clear words about bad files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.chain import SMOKE
from helpers.paths import REPO, load_tool
from helpers.tiny import SEGMENTERS
from helpers.voc import CONFIG, PLAIN, RandomLabels
from miniature.benchmarks import CLASSES
from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS, DATASETS
from owseg.evaluation.inference import embed_queries, predict
from owseg.evaluation.protocols import EvaluateConfig, check_synonyms, protocol_of, summary_of
from owseg.evaluation.synonyms import SHIPPED, read_synonyms
from pipelines.app.cli import main
from pipelines.evaluate import run as evaluate_verb


def with_file(path: Path, text: str, **settings: object) -> EvaluateConfig:
    path.write_text(text)
    return replace(EvaluateConfig(**settings), synonyms=str(path))  # type: ignore[arg-type]


@pytest.mark.parametrize("method", SEGMENTERS)
def test_an_embedding_is_the_mean_over_a_classs_names(tmp_path: Path, method: str) -> None:
    segmenter = SEGMENTERS[method](tmp_path)
    config = with_file(tmp_path / "more.txt", "sheep: ewe, ram\ntrain: locomotive\n")
    protocol = protocol_of(config, "voc_unseen")
    with torch.no_grad():
        found = embed_queries(segmenter, protocol)
        for query, embedding in zip(protocol.queries, found, strict=True):
            names = {"sheep": ["sheep", "ewe", "ram"], "train": ["train", "locomotive"]}.get(query, [query])
            mean = sum(segmenter.embed_classes([name])[0] for name in names) / len(names)
            torch.testing.assert_close(embedding, F.normalize(mean, dim=0), atol=1e-5, rtol=0)
        plain = protocol_of(replace(config, synonyms=""), "voc_unseen")
        assert torch.equal(embed_queries(segmenter, plain), segmenter.embed_classes(plain.queries))


def test_labels_follow_the_averaged_embeddings(tmp_path: Path) -> None:
    class Table(RandomLabels):
        def embed_classes(self, names: list[str]) -> torch.Tensor:
            known = {"pottedplant": [0.0, 0, 1], "sheep": [1.0, 0, 0], "ewe": [0.0, 1, 0]}
            return torch.tensor([known.get(name, [0.0, 0, 0]) for name in names])

    image = np.full((32, 32, 3), (0, 200, 170), np.uint8)  # green beats blue alone, and not as half of a mean
    config = with_file(tmp_path / "more.txt", "sheep: ewe\n")
    sizes = {"short_side": 32, "window": 32, "stride": 16}
    chosen = {}
    for synonyms in ("", config.synonyms):
        protocol = protocol_of(EvaluateConfig(synonyms=synonyms, **sizes), "voc_unseen")
        labels = predict(Table(), image, embed_queries(Table(), protocol), protocol, PLAIN).labels
        chosen[synonyms] = {protocol.benchmark.names[label] for label in np.unique(labels)}
    assert chosen == {"": {"pottedplant"}, config.synonyms: {"pottedplant"}}
    image = np.full((32, 32, 3), (0, 200, 130), np.uint8)  # 200 / sqrt(2) is more than 130
    labels = predict(Table(), image, embed_queries(Table(), protocol), protocol, PLAIN).labels
    assert {protocol.benchmark.names[label] for label in np.unique(labels)} == {"sheep"}


def test_names_that_speak_for_two_classes_speak_for_neither(tmp_path: Path) -> None:
    text = "# ours\n\nboat: ship, Vessel, dinghy\nbottle: vessel, flask\nbus: car, coach\ncar: car, auto\n"
    protocol = protocol_of(with_file(tmp_path / "more.txt", text), "voc20")
    found = {query: more for query, more in zip(protocol.queries, protocol.further, strict=True) if more}
    assert found == {"boat": ("ship", "dinghy"), "bottle": ("flask",), "bus": ("coach",), "car": ("auto",)}


def test_they_join_the_first_of_a_classs_queries(tmp_path: Path) -> None:
    """Under the second protocol a class may have several texts, of which the best speaks for it: those stay as they are."""
    text = "background: nothing\nperson: human, body\ntvmonitor: screen, television set\n"
    protocol = protocol_of(with_file(tmp_path / "more.txt", text, preset="sclip"), "voc21")
    found = {query: more for query, more in zip(protocol.queries, protocol.further, strict=True) if more}
    assert found == {"sky": ("nothing",), "person": ("human", "body"), "television monitor": ("television set",)}
    assert protocol.queries == protocol_of(EvaluateConfig(preset="sclip"), "voc21").queries
    tcl = protocol_of(with_file(tmp_path / "more.txt", text), "voc21")
    assert tcl.further[0] == ()  # no text stands for the background
    assert len(tcl.further) == len(tcl.queries) == 20


def test_a_folder_has_a_file_for_each_benchmark(tmp_path: Path) -> None:
    folder = tmp_path / "synonyms"
    folder.mkdir()
    (folder / "voc20.txt").write_text("sofa: couch\n")
    config = EvaluateConfig(synonyms=str(folder), datasets=("voc20", "voc_unseen", "ade20k"))
    for name in ("voc20", "voc_unseen"):  # a part of a benchmark has its file
        protocol = protocol_of(config, name)
        assert protocol.further[protocol.queries.index("sofa")] == ("couch",)
    with pytest.raises(InputError, match=r"evaluate.synonyms: .*ade20k\.txt cannot be read"):
        protocol_of(config, "ade20k")
    (folder / "ade20k.txt").write_text("bed: bunk\npottedplant: fern\n")
    with pytest.raises(InputError, match=r"ade20k\.txt, line 2: 'pottedplant' is no class of the set"):
        protocol_of(config, "ade20k")
    (folder / "ade20k.txt").write_text("bed: bunk\n")
    protocol = protocol_of(config, "ade20k")
    assert protocol.further[protocol.queries.index("bed ")] == ("bunk",)  # whose own name ends with a space


def test_one_file_serves_all_sets_that_are_asked_for(tmp_path: Path) -> None:
    config = with_file(tmp_path / "more.txt", "sofa: couch\nrider: cyclist\n", datasets=("voc20", "cityscapes"))
    assert any(protocol_of(config, "voc20").further)
    assert any(protocol_of(config, "cityscapes").further)
    with pytest.raises(InputError, match=r"more\.txt, line 2: 'rider' is no class"):
        protocol_of(replace(config, datasets=("voc20",)), "voc20")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: kitty\nsofaa: couch\n", r"line 2: 'sofaa' is no class of the set \(did you mean 'sofa'\?\)"),
        ("cat\n", r"line 1: 'cat' is not of the form \"class: name, name\""),
        ("cat: ,\n", "line 1: 'cat: ,' is not of the form"),
        (": kitty\n", "line 1: ': kitty' is not of the form"),
        ("cat: kitty\n\ncat: tabby\n", "line 3: 'cat' has a line already"),
        (b"cat: caf\xe9\n", "cannot be read"),
        (None, r'cannot be read .*; give a file of lines "class: name, name", a folder .*, or "lexicon"'),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, text: str | bytes | None, message: str) -> None:
    path = tmp_path / "more.txt"
    if text is not None:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError, match=message) as told:
        protocol_of(EvaluateConfig(synonyms=str(path)), "voc20")
    assert str(path) in str(told.value)
    assert "\n" not in str(told.value)


def test_the_verb_refuses_unknown_classes_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where the miniature world, whose classes they must be, is not drawn yet."""
    path = tmp_path / "more.txt"
    path.write_text("cat: kitty\naeroplane: jet\n")
    arguments = ["--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", f"evaluate.synonyms={path}"]
    assert main(evaluate_verb, doc="", argv=arguments) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"{path}, line 2: 'aeroplane' is no class" in told
    assert not (tmp_path / "run" / "world").exists()
    check_synonyms(EvaluateConfig(synonyms="lexicon"), CLASSES)


def test_the_shipped_list_is_of_classes_and_of_one_sense() -> None:
    shipped = read_synonyms(SHIPPED)
    known = {name.strip() for names in (*(row.names for row in BENCHMARKS.values()), *CLASSES.values()) for name in names}
    assert shipped.keys() <= known
    assert {"couch", "settee"} <= {*shipped["sofa"]}
    assert shipped["mouse"] == ("computer mouse",)
    assert shipped["wall-brick"] == ("brick wall",)
    assert not {"cabinet", "plate", "platform", "track", "bar", "cat-o'-nine-tails"} & shipped.keys()  # which is meant is open
    assert not {"machine", "coach", "bike", "guy"} & {name for class_ in ("car", "bus", "cat") for name in shipped[class_]}


@pytest.mark.parametrize("name", DATASETS)
def test_the_shipped_list_serves_every_set(name: str) -> None:
    config = EvaluateConfig(synonyms="lexicon")
    protocol = protocol_of(config, name)
    assert any(protocol.further)
    names = [*protocol.queries, *(word for words in protocol.further for word in words)]
    assert len(set(names)) == len(names)  # none of a set's names stands for two classes


def test_titles_tell_of_them(tmp_path: Path) -> None:
    assert summary_of(replace(CONFIG, synonyms="lexicon")).endswith(", synonyms of the lexicon")
    assert summary_of(replace(CONFIG, synonyms=str(tmp_path))).endswith(", own synonyms")


@pytest.mark.slow
def test_the_shipped_list_is_what_the_tool_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    tool = load_tool("build_synonyms")
    monkeypatch.setattr("sys.argv", ["build_synonyms.py", "--out", str(tmp_path / "synonyms.txt")])
    tool.main()
    assert (tmp_path / "synonyms.txt").read_text() == SHIPPED.read_text()
