"""Finer grids and refinement at inference, for every method: against the plain loop, at odd sizes, and bounded in memory."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.tiny import SEGMENTERS, blocks
from helpers.voc import CONFIG, PLAIN, RandomLabels, sclip_by_definition
from owseg import InputError
from owseg.evaluation.inference import normalise, predict, predict_scores, resize, slide, window_scores, window_starts
from owseg.evaluation.oracle import slide_regions
from owseg.evaluation.protocols import EvaluateConfig, View, protocol_of, summary_of, view_of
from owseg.pamr import pamr
from pipelines.app.config import ConfigError, load
from pipelines.app.settings import Config

VIEW = View(short_side=32, window=32, stride=16)


class Patches(RandomLabels):
    """Scores that are constant in patches of 4 pixels: a token grid that can be made finer. Remembers what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[int, ...]] = []

    def segment(self, image: torch.Tensor, classes: torch.Tensor, background: bool) -> torch.Tensor:
        self.shown.append(tuple(image.shape))
        tokens = F.adaptive_avg_pool2d(image, [max(side // 4, 1) for side in image.shape[-2:]])
        return F.interpolate(torch.einsum("bchw,nc->bnhw", tokens, classes), size=image.shape[-2:], mode="nearest")


def scores_by_definition(image: np.ndarray, classes: torch.Tensor, view: View) -> torch.Tensor:
    """One window after the other: enlarged, segmented, brought back, refined, added up."""
    scaled = normalise(resize(image, view), PLAIN)
    height, width = scaled.shape[1:]
    total, counts = torch.zeros(len(classes), height, width), torch.zeros(height, width)
    for top in window_starts(height, view.window, view.stride):
        for left in window_starts(width, view.window, view.stride):
            crop = scaled[None, :, top : top + view.window, left : left + view.window]
            size = tuple(crop.shape[-2:])
            large = [round(side * view.grid_scale) for side in size]
            scores = Patches().segment(F.interpolate(crop, large, mode="bilinear", align_corners=False), classes, False)
            scores = F.interpolate(scores, size, mode="bilinear", align_corners=False)
            if view.refine == "pamr":
                scores = pamr(crop, scores)
            total[:, top : top + size[0], left : left + size[1]] += scores[0]
            counts[top : top + size[0], left : left + size[1]] += 1
    return total / counts


@pytest.mark.parametrize("size", [(32, 32), (33, 91), (60, 40)])
@pytest.mark.parametrize(("grid_scale", "refine"), [(1.3, "none"), (2.0, "none"), (1.0, "pamr"), (1.3, "pamr")])
def test_scores_equal_the_plain_loop(size: tuple[int, int], grid_scale: float, refine: str) -> None:
    view = replace(VIEW, grid_scale=grid_scale, refine=refine)  # type: ignore[arg-type]
    image, classes = blocks(*size), RandomLabels().embed_classes(["a", "b", "c", "d"])
    found = predict_scores(Patches(), image, classes, False, view, PLAIN, batch=3)
    torch.testing.assert_close(found, scores_by_definition(image, classes, view), atol=1e-5, rtol=0)


def test_nothing_changes_where_neither_is_asked_for() -> None:
    windows, classes = torch.rand(2, 3, 32, 27), torch.rand(4, 3)
    assert torch.equal(window_scores(Patches(), windows, classes, False, VIEW), Patches().segment(windows, classes, False))


def test_a_window_is_shown_as_large_as_asked_and_fewer_at_once() -> None:
    """What a method works on at a time, and with it its memory, stays about the same."""
    image = torch.rand(3, 32, 80)
    for grid_scale, shown in (
        (1.0, [(4, 3, 32, 32)]),
        (1.3, [(2, 3, 42, 42), (2, 3, 42, 42)]),
        (2.0, [(1, 3, 64, 64)] * 4),
        (4.0, [(1, 3, 128, 128)] * 4),
    ):
        segmenter = Patches()
        scores = slide(segmenter, image, torch.rand(2, 3), False, replace(VIEW, grid_scale=grid_scale), batch=4)
        assert segmenter.shown == shown
        assert scores.shape == (2, 32, 80)


def test_a_finer_grid_sees_smaller_things() -> None:
    """A spot of two pixels is lost in a patch of four; enlarged twice, it fills one."""
    image = torch.zeros(1, 3, 32, 32)
    image[..., 8:10, 8:10] = 1
    coarse, fine = (
        window_scores(Patches(), image, torch.ones(1, 3), False, replace(VIEW, grid_scale=scale))[0, 0] for scale in (1.0, 4.0)
    )
    assert coarse.max() == pytest.approx(3 / 4)
    assert fine[8:10, 8:10].min() > 2
    assert fine[11:, 11:].max() == pytest.approx(0, abs=1e-6)


def test_the_oracles_regions_are_drawn_on_the_finer_grid_too() -> None:
    class Blocks(Patches):
        """Regions of 4 x 4 pixels, numbered row by row."""

        regions_across_windows = False

        def regions(self, image: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
            self.shown.append(tuple(image.shape))
            rows, columns = (torch.arange(side) // 4 for side in image.shape[-2:])
            return (rows[:, None] * (image.shape[-1] // 4) + columns).expand(len(image), -1, -1)

    segmenter = Blocks()
    drawn = slide_regions(segmenter, torch.rand(3, 32, 32), torch.rand(2, 3), replace(VIEW, grid_scale=2.0))
    assert segmenter.shown == [(1, 3, 64, 64)]
    pixels = torch.arange(32) // 2  # a block of 4 on the enlarged window is one of 2 here
    assert torch.equal(drawn, pixels[:, None] * 16 + pixels)


def test_refinement_draws_scores_to_edges() -> None:
    image = torch.zeros(1, 3, 40, 40)
    image[..., 18:] = 1  # no multiple of the patch: the grid's edge lies at 16 or 20
    scores = {
        refine: window_scores(Patches(), image, torch.ones(1, 3), False, replace(VIEW, refine=refine))[0, 0]  # type: ignore[arg-type]
        for refine in ("none", "pamr")
    }
    assert (scores["none"][:, 17] - scores["none"][:, 18]).abs().max() == 0
    assert (scores["pamr"][:, 18] - scores["pamr"][:, 17]).min() > 0.5


@pytest.mark.parametrize("method", SEGMENTERS)
def test_every_method_serves(tmp_path: Path, method: str) -> None:
    """At odd sizes, with and without a background, whose plane is refined where a method draws one itself."""
    segmenter = SEGMENTERS[method](tmp_path)
    classes = segmenter.embed_classes(["a", "b", "c"])
    view = replace(VIEW, grid_scale=1.4, refine="pamr")
    windows = torch.from_numpy(blocks(31, 29)).permute(2, 0, 1)[None].float() / 255
    for background in (False, True):
        scores = window_scores(segmenter, windows, classes, background, view)
        assert scores.shape == (1, 3 + background, 31, 29)
        assert scores.isfinite().all()
        seen = F.interpolate(windows, size=(43, 41), mode="bilinear", align_corners=False)
        plain = F.interpolate(segmenter.segment(seen, classes, background), size=(31, 29), mode="bilinear", align_corners=False)
        torch.testing.assert_close(scores, pamr(windows, plain))
    protocol = protocol_of(replace(CONFIG, grid_scale=1.4, refine="pamr"), "voc21")
    labels = predict(segmenter, blocks(33, 35), segmenter.embed_classes(protocol.queries), protocol, PLAIN).labels
    assert labels.shape == (33, 35)
    assert 0 <= labels.min() <= labels.max() < 21


def test_the_second_protocol_decides_on_the_finer_scores() -> None:
    config = replace(CONFIG, preset="sclip", grid_scale=1.3, refine="pamr")
    protocol = protocol_of(config, "voc21")
    assert protocol.softmax is not None
    image, classes = blocks(40, 60), RandomLabels().embed_classes(list(protocol.queries))
    scores = scores_by_definition(image, classes, protocol.view)
    scores = F.interpolate(scores[None], size=(40, 60), mode="bilinear", align_corners=False)[0]
    expected = sclip_by_definition(scores, protocol.class_of_query, protocol.softmax)
    found = predict(Patches(), image, classes, protocol, PLAIN).labels
    assert (found == expected).mean() > 0.999  # sums in another order may tip a pixel
    assert len(np.unique(found)) > 1


def test_titles_and_views_tell_of_them() -> None:
    config = replace(CONFIG, grid_scale=1.5, refine="pamr")
    assert view_of(config, "ade20k") == replace(view_of(CONFIG, "ade20k"), grid_scale=1.5, refine="pamr")
    assert summary_of(config).endswith("stride 16, grid scale 1.5, refined by PAMR")


@pytest.mark.parametrize("grid_scale", [0.5, -2, 4.1, float("nan")])
def test_a_scale_out_of_range_is_refused(grid_scale: float) -> None:
    with pytest.raises(InputError, match=r"^grid_scale: .* is out of range; give a factor from 1 to 4$"):
        EvaluateConfig(grid_scale=grid_scale)


def test_masks_are_not_refined_twice() -> None:
    twice = ["method_settings.tcl.pamr=true", "evaluate.refine=pamr"]
    with pytest.raises(ConfigError, match=r"method_settings\.tcl\.pamr: TCL refines .* evaluate\.refine=pamr would again"):
        load(Config, None, [*twice, "methods=[maskclip,tcl]"])
    assert load(Config, None, [*twice, "methods=[maskclip]"]).evaluate.refine == "pamr"  # without a row of TCL it has no say
