"""Which benchmark classes a list contains."""

from pathlib import Path

import pyarrow as pa
import pytest

from filtering.captions.leakage import count_leaks, leaked
from filtering.captions.lexicon import load_lexicon, paper_names
from filtering.captions.vocabulary import FrequencyList, PaperList
from filtering.files import write_table
from filtering.schema import CORPUS
from owseg.evaluation.class_names import class_names
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.own_dataset import OwnDataset
from owseg.evaluation.protocols import EvaluateConfig

OVSEGMENTORS_VOC = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "table", "dog", "horse", "motorbike",
    "person", "plant", "sheep", "sofa", "train", "monitor",
]  # fmt: skip
"""It evaluates VOC under names of its own."""


@pytest.mark.parametrize(
    ("spellings", "found"),
    [
        (["dog"], {"dog": "dog"}),
        (["bed "], {"bed ": "bed"}),
        (["Shelves"], {"Shelves": "shelf"}),
        (["stairs"], {"stairs": "stairs"}),
        (["t-shirt"], {"t-shirt": "t-shirt"}),
        (["motorbike"], {"motorbike": "motorcycle"}),
        (["dining table"], {"dining table": "table"}),
        (["pottedplant"], {"pottedplant": "potted plant"}),
        (["playingfield"], {"playingfield": "playing field"}),
        # one class, several entities
        (
            ["tvmonitor", "television monitor", "monitor", "television"],
            {"tvmonitor": "monitor", "tvmonitor (television)": "tv"},
        ),
        (["boat", "ship"], {"boat": "boat", "boat (ship)": "ship"}),
        # hyphens of COCO-Stuff
        (["wall-brick"], {"wall-brick": "wall"}),
        (["window-blind"], {"window-blind": "window blind"}),
        (["sky-other"], {"sky-other": "sky"}),
        # parts and kinds do not count, stopped names are no entities
        (["traffic sign"], {}),
        (["person", "person in dress"], {"person": "person"}),
        (["dirt track"], {}),
        (["platform"], {}),
    ],
)
def test_classes_that_are_entities(spellings: list[str], found: dict[str, str]) -> None:
    assert leaked({"some": [spellings]}, load_lexicon()) == {"some": found}


def test_classes_of_the_eight_benchmarks() -> None:
    classes = class_names()
    assert {name: len(found) for name, found in classes.items()} == {
        "voc21": 20, "voc20": 20, "context60": 59, "context59": 59, "coco_object": 80, "coco_stuff": 171, "cityscapes": 19,
        "ade20k": 150,
    }  # fmt: skip
    assert classes.keys() == BENCHMARKS.keys()
    assert classes["voc21"][0] == ("aeroplane",)
    assert classes["voc20"][3] == ("boat", "ship")
    assert classes["voc21"][-1] == ("tvmonitor", "television monitor", "tv monitor", "monitor", "television", "screen")
    assert classes["context60"] == classes["context59"]
    assert not any("background" in spellings or "sky" in spellings for spellings in classes["voc21"])


def test_the_papers_words_are_evaluation_classes_letter_by_letter() -> None:
    """The counts that were found in OVSegmentor's release, by comparing strings."""
    words = paper_names()
    names = {name: [spellings[0].strip() for spellings in found] for name, found in class_names().items()}
    edited = {"tvmonitor": "monitor", "pottedplant": "plant"}
    context = [edited.get(name, name) for name in names["context59"]]
    found = [sum(name in words for name in some) for some in (OVSEGMENTORS_VOC, names["coco_object"], context, names["ade20k"])]
    assert found == [19, 60, 30, 31]
    classes = [*OVSEGMENTORS_VOC, *names["coco_object"]]
    assert sum(word in {*classes, *(name.split()[-1] for name in classes)} for word in words) == 71


def test_leaks_of_the_papers_list() -> None:
    paper = PaperList()
    leaks = leaked(class_names(), paper.lexicon(load_lexicon()))
    listed = set(paper.names().values())
    in_list = {
        name: len({label.partition(" (")[0] for label, entity in found.items() if entity in listed})
        for name, found in leaks.items()
    }
    assert in_list == {
        "voc21": 19, "voc20": 19, "context60": 30, "context59": 30, "coco_object": 64, "coco_stuff": 71, "cityscapes": 8,
        "ade20k": 35,
    }  # fmt: skip
    entities = frozenset(entity for found in leaks.values() for entity in found.values())
    assert listed - entities == {"racket", "shirt"}
    table = paper.choose({}, top_k=100, min_count=1, excluded=entities)
    assert {row["entity"] for row in table.to_pylist() if row["kept"]} == {"racket", "shirt"}


def test_an_honest_list_names_no_class() -> None:
    leaks = leaked(class_names(), load_lexicon())
    entities = frozenset(entity for found in leaks.values() for entity in found.values())
    counts = {"dog": 9, "window": 8, "necklace": 7, "tv": 6, "beach": 5}
    table = FrequencyList().choose(counts, top_k=2, min_count=1, excluded=entities)
    assert [row["entity"] for row in table.to_pylist() if row["kept"]] == ["necklace", "beach"]


def test_captions_are_counted_and_not_mentions(tmp_path: Path) -> None:
    entities = [["dog", "cat"], ["cat", "tree"], ["person"], ["tree"], [], ["tree", "person", "dog"]]
    for number, names in enumerate((entities[:2], entities[2:])):
        rows = [{"key": f"{at:024x}", "url": "", "caption": "x", "entities": some} for at, some in enumerate(names)]
        write_table(tmp_path / f"{number}.parquet", pa.Table.from_pylist(rows, schema=CORPUS))
    leaks = {"voc": frozenset({"dog", "cat"}), "coco": frozenset({"dog", "person"}), "ade": frozenset({"sky"})}
    counted = count_leaks(tmp_path.glob("*.parquet"), leaks)
    assert counted == {"captions": {"ade": 0, "coco": 3, "voc": 3}, "leaked": 4}
    assert count_leaks(tmp_path.glob("*.parquet"), {}) == {"captions": {}, "leaked": 0}


def test_own_lists_count_as_they_stand(tmp_path: Path) -> None:
    """What the run evaluates, under its own names; built-in lists say nothing of it."""
    (tmp_path / "voc21.txt").write_text("background\ncat, zzz\nsubmarine\n")
    (tmp_path / "context59.txt").write_text("zebra\nqqq\n")
    (tmp_path / "mine.txt").write_text("void\nsofa, couch\nqqq\n")
    mine = OwnDataset(name="mine", images=".", labels=".", names=str(tmp_path / "mine.txt"), background="void")
    config = EvaluateConfig(root=".", classes=str(tmp_path), datasets=("voc21", "context59", mine))
    found = class_names(config)
    assert found == {
        "voc21": (("cat", "zzz"), ("submarine",)),
        "context59": (("zebra",), ("qqq",)),
        "mine": (("sofa", "couch"), ("qqq",)),
    }
    assert leaked(found, load_lexicon()) == {
        "voc21": {"cat": "cat", "submarine": "submarine"},
        "context59": {"zebra": "zebra"},
        "mine": {"sofa": "sofa"},
    }


def test_of_a_subset_the_scored_classes_count() -> None:
    found = class_names(EvaluateConfig(datasets=("voc_unseen", "voc_unseen_all", "context33")))
    assert len(found["context33"]) == 33
    assert [spellings[0] for spellings in found["voc_unseen"]] == [spellings[0] for spellings in found["voc_unseen_all"]]
    assert len(found["voc_unseen_all"]) == 5
