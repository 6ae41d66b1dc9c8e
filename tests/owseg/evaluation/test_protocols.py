"""The two protocols of the field: their frozen numbers, their class names, and SCLIP's rule against a direct computation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.voc import CONFIG, PLAIN, RandomLabels, sclip_by_definition, write_voc
from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS, list_items
from owseg.evaluation.inference import Prediction, predict, predict_scores
from owseg.evaluation.protocols import EvaluateConfig, SoftmaxRule, View, protocol_of, summary_of, synonyms, view_of
from owseg.evaluation.scoring import score_items

SCLIP = EvaluateConfig(preset="sclip")


def test_the_tcl_preset_is_one_for_all() -> None:
    for name, benchmark in BENCHMARKS.items():
        protocol = protocol_of(EvaluateConfig(), name)
        assert protocol.view == View(short_side=448, max_long_side=2048, window=448, stride=224)
        assert protocol.softmax is None
        assert protocol.queries == (benchmark.names[1:] if benchmark.background else benchmark.names)
        assert protocol.class_of_query == tuple(range(benchmark.background, len(benchmark.names)))


def test_the_sclip_preset_has_its_own_sizes_and_rules() -> None:
    sides = {name: view_of(SCLIP, name).short_side for name in BENCHMARKS}
    assert sides == dict.fromkeys(BENCHMARKS, 336) | {"coco_stuff": 448, "cityscapes": 560}
    for name in BENCHMARKS:
        view = view_of(SCLIP, name)
        assert (view.max_long_side, view.window, view.stride) == (2048, 224, 112)
    rules = {name: protocol_of(SCLIP, name).softmax for name in BENCHMARKS}
    plain = SoftmaxRule(scale=40.0, threshold=0.0, min_share=0.0)
    assert rules == dict.fromkeys(BENCHMARKS, plain) | {
        "voc21": SoftmaxRule(scale=65.0, threshold=0.1, min_share=0.1),
        "context60": SoftmaxRule(scale=50.0, threshold=0.1, min_share=0.0),
        "coco_object": SoftmaxRule(scale=50.0, threshold=0.1, min_share=0.0),
    }


def test_the_sclip_preset_has_a_line_of_names_for_every_class() -> None:
    for name, benchmark in BENCHMARKS.items():
        protocol = protocol_of(SCLIP, name)
        assert protocol.benchmark == benchmark  # tables show mmsegmentation's names under both presets
        assert sorted(set(protocol.class_of_query)) == list(range(len(benchmark.names)))
        assert list(protocol.class_of_query) == sorted(protocol.class_of_query)
    voc = protocol_of(SCLIP, "voc21")
    assert voc.class_of_query.count(0) == 26
    assert voc.queries[:2] == ("sky", "wall")
    assert voc.queries[-1] == "screen"
    assert protocol_of(SCLIP, "context60").queries[0] == "background"
    assert protocol_of(SCLIP, "coco_object").class_of_query.count(1) == 8


def test_overrides_are_taken_and_told() -> None:
    config = EvaluateConfig(short_side=96, window=96, stride=48)
    assert view_of(config, "ade20k") == View(short_side=96, window=96, stride=48)
    assert summary_of(config) == "preset tcl, short side 96, window 96, stride 48"
    assert summary_of(SCLIP) == "preset sclip"
    assert view_of(replace(SCLIP, stride=224), "cityscapes") == View(short_side=560, window=224, stride=224)
    with pytest.raises(InputError, match="stride: 224 is larger than the window"):
        EvaluateConfig(window=96)  # the preset's stride is 224
    with pytest.raises(InputError, match=r"^short_side: -1"):
        EvaluateConfig(short_side=-1)
    with pytest.raises(InputError, match=r"^window_batch"):
        EvaluateConfig(window_batch=0)


def test_commas_part_synonyms_and_nothing_else() -> None:
    assert synonyms("person, person in shirt,body") == ("person", "person in shirt", "body")
    assert synonyms("bed ") == ("bed ",)
    assert synonyms("traffic light") == ("traffic light",)


def test_own_class_names_replace_the_presets(tmp_path: Path) -> None:
    own = tmp_path / "voc21.txt"
    own.write_text("background\nred, crimson\ngreen\nblue\n")
    config = EvaluateConfig(classes=str(tmp_path))
    protocol = protocol_of(config, "voc21")
    assert protocol.benchmark.names == ("background", "red", "green", "blue")
    assert protocol.queries == ("red", "crimson", "green", "blue")
    assert protocol.class_of_query == (1, 1, 2, 3)
    assert protocol_of(replace(config, preset="sclip"), "voc21").queries[0] == "background"
    assert summary_of(config) == "preset tcl, own class names"
    assert summary_of(replace(config, limit=10)) == "preset tcl, own class names, first 10 images"
    with pytest.raises(InputError, match=r"ade20k\.txt"):
        protocol_of(config, "ade20k")
    own.write_text("red\ngreen\n")
    with pytest.raises(InputError, match="must be background"):
        protocol_of(config, "voc21")
    own.write_text("background\nred\nred\n")
    with pytest.raises(InputError, match="'red' twice"):
        protocol_of(config, "voc21")
    own.write_text("background\n,\n")
    with pytest.raises(InputError, match="no name"):
        protocol_of(config, "voc21")
    own.write_bytes(b"background\ncaf\xe9\n")
    with pytest.raises(InputError, match=r"voc21\.txt: cannot be read"):
        protocol_of(config, "voc21")


@pytest.mark.parametrize(("datasets", "message"), [((), "there are none"), (("voc21", "voc21"), "named twice")])
def test_a_list_of_benchmarks_names_each_once(datasets: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=f"datasets: .*{message}"):
        EvaluateConfig(datasets=datasets)


def test_the_best_synonym_speaks_for_its_class(tmp_path: Path) -> None:
    """Under the tcl preset: the same labels as taking each class's maximum over synonyms before the argmax."""
    (tmp_path / "voc20.txt").write_text("a, b, c\nd\ne, f\n")
    protocol = protocol_of(replace(CONFIG, classes=str(tmp_path)), "voc20")
    segmenter = RandomLabels()
    classes = segmenter.embed_classes(protocol.queries)
    image = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)
    scores = full_scores(segmenter, image, classes, protocol.view)
    expected = torch.stack([scores[:3].amax(0), scores[3], scores[4:].amax(0)]).argmax(0).numpy()
    labels = predict(segmenter, image, classes, protocol, PLAIN).labels
    np.testing.assert_array_equal(labels, expected)
    assert len(np.unique(labels)) > 1


def full_scores(segmenter: RandomLabels, image: np.ndarray, classes: torch.Tensor, view: View) -> torch.Tensor:
    scores = predict_scores(segmenter, image, classes, False, view, PLAIN)
    return torch.nn.functional.interpolate(scores[None], image.shape[:2], mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize(
    "rule",
    [
        SoftmaxRule(scale=4.0, threshold=0.3, min_share=0.1),
        SoftmaxRule(scale=2.0, threshold=0.18),
        SoftmaxRule(scale=65.0, threshold=0.1, min_share=0.1),
        SoftmaxRule(scale=65.0, threshold=0.1, min_share=0.99),
    ],
)
def test_sclips_rule_equals_a_direct_computation(rule: SoftmaxRule) -> None:
    protocol = replace(protocol_of(replace(SCLIP, short_side=48, window=32, stride=16), "voc21"), softmax=rule)
    segmenter = RandomLabels()
    classes = segmenter.embed_classes(protocol.queries)
    rng = np.random.default_rng(1)
    for size in ((48, 60), (51, 40), (90, 70)):
        coarse = rng.integers(0, 256, (size[0] // 9 + 1, size[1] // 9 + 1, 3), dtype=np.uint8)
        image = coarse.repeat(9, 0).repeat(9, 1)[: size[0], : size[1]]
        expected = sclip_by_definition(full_scores(segmenter, image, classes, protocol.view), protocol.class_of_query, rule)
        labels = predict(segmenter, image, classes, protocol, PLAIN).labels
        np.testing.assert_array_equal(labels, expected)


def test_small_classes_are_measured_against_the_foreground() -> None:
    """Of 20 foreground pixels 4 are enough at a least share of 0.1, 2 are not; the 80 of the background do not count."""
    truth = np.repeat([0, 1, 2, 3], [80, 14, 4, 2]).reshape(10, 10)

    class Certain(RandomLabels):
        def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.from_numpy(truth), 4).permute(2, 0, 1)[None].float()

    protocol = replace(
        protocol_of(replace(SCLIP, short_side=10), "voc21"),
        queries=("a", "b", "c", "d"),
        class_of_query=(0, 1, 2, 3),
        softmax=SoftmaxRule(scale=9.0, threshold=0.1, min_share=0.1),
    )
    labels = predict(Certain(), np.zeros((10, 10, 3), np.uint8), torch.zeros(4, 1), protocol, PLAIN).labels
    np.testing.assert_array_equal(labels, np.where(truth == 3, 0, truth))


def test_a_confidence_equal_to_the_threshold() -> None:
    """Is background under the tcl rule, whose argmax takes the first maximum, and is sure enough under SCLIP's."""
    confidence = np.array([np.nextafter(np.float32(0.1), np.float32(0)), 0.1, 0.2], dtype=np.float32)
    choice = np.array([1, 2, 3])
    assert Prediction(choice, confidence, 0.1).labels.tolist() == [0, 0, 3]
    assert Prediction(choice, confidence, 0.1, strict=True).labels.tolist() == [0, 2, 3]


def test_without_background_sclip_takes_the_highest_score(tmp_path: Path) -> None:
    write_voc(tmp_path, count=2)
    config = replace(CONFIG, preset="sclip")
    protocol = protocol_of(config, "voc20")
    score = score_items(RandomLabels(), protocol, list_items(BENCHMARKS["voc20"], tmp_path), config, PLAIN)
    assert score.threshold is None
    assert score.counts.shape == (20, 20)
    segmenter = RandomLabels()
    classes = segmenter.embed_classes(protocol.queries)
    image = np.random.default_rng(2).integers(0, 256, (33, 47, 3), dtype=np.uint8)
    assert protocol.softmax is not None
    expected = sclip_by_definition(
        full_scores(segmenter, image, classes, protocol.view), protocol.class_of_query, protocol.softmax
    )
    np.testing.assert_array_equal(predict(segmenter, image, classes, protocol, PLAIN).labels, expected)
