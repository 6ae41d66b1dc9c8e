"""The verb `segment` on videos."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import tiny
from helpers.videos import moving, read_video, write_video
from owseg.photos import read_photo
from owseg.predict import Model, load
from owseg.videos import VideoReader, VideoWriter
from pipelines import segment


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames, alone in their folder."""
    folder = tmp_path / "clips"
    folder.mkdir()
    return write_video(folder / "clip.avi", moving(6))


@pytest.fixture
def call(tiny_run: Path, tmp_path: Path) -> Callable[..., int]:
    def on_the_tiny_run(*arguments: object) -> int:
        given = ("--labels", ", ".join(tiny.LABELS), "--checkpoint", tiny_run, "--out", tmp_path / "out")
        return segment.main([*map(str, (*given, *arguments))])

    return on_the_tiny_run


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.iterdir())}


def frames_of(path: Path) -> list[np.ndarray]:
    with VideoReader(path) as video:
        return list(video)


def test_each_frame_is_segmented_as_a_photo_is(
    call: Callable[..., int], tiny_run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(clip, "--masks") == 0
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {"clip.overlay.mp4", "clip.json", "clip.masks"}
    drawn, rate = read_video(out / "clip.overlay.mp4")
    assert (len(drawn), drawn[0].shape, rate) == (6, (40, 56, 3), 12.5)
    expected = [load(tiny_run).segment(frame, tiny.LABELS) for frame in frames_of(clip)]
    masks = masks_in(out / "clip.masks")
    assert list(masks) == [f"{number:06}" for number in range(6)]
    assert all((mask == one.labels + 1).all() for mask, one in zip(masks.values(), expected, strict=True))
    told = json.loads((out / "clip.json").read_text())
    assert (told["video"], told["frames"], told["segmented"], told["rate"]) == ("clip.avi", 6, 6, 12.5)
    for index, label in enumerate(told["labels"], 1):
        assert label["share"] == pytest.approx(np.mean([mask == index for mask in masks.values()]), abs=1e-6)
    assert told["nothing"] == pytest.approx(np.mean([mask == 0 for mask in masks.values()]), abs=1e-6)
    printed, progress = capsys.readouterr()
    assert printed.splitlines()[-1].startswith(f"[1/1] {clip}: 6 frames of 56 x 40, ")
    assert progress.startswith("clip.avi: 6/6 frames, ")


def test_frames_between_keep_the_labels_of_the_one_before(
    call: Callable[..., int], tiny_run: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    score = Model.score
    monkeypatch.setattr(Model, "score", lambda self, image, *a, **b: seen.append(image) or score(self, image, *a, **b))
    assert call(clip, "--every", 4, "--masks") == 0
    frames = frames_of(clip)
    assert len(seen) == 2
    assert (seen[1] == frames[4]).all()
    assert list(masks_in(tmp_path / "out" / "clip.masks")) == ["000000", "000004"]
    told = json.loads((tmp_path / "out" / "clip.json").read_text())
    assert (told["frames"], told["segmented"], told["every"]) == (6, 2, 4)
    assert len(read_video(tmp_path / "out" / "clip.overlay.mp4")[0]) == 6


def test_smoothing_is_an_exponential_mean_of_the_scores(
    call: Callable[..., int], tiny_run: Path, clip: Path, tmp_path: Path
) -> None:
    assert call(clip, "--smooth", 0.75, "--masks") == 0
    model, names = load(tiny_run), tuple(tiny.LABELS)
    mean: Any = None
    for mask, frame in zip(masks_in(tmp_path / "out" / "clip.masks").values(), frames_of(clip), strict=True):
        with torch.inference_mode():
            scores = model.score(frame, names)
            mean = scores if mean is None else 0.75 * mean + 0.25 * scores
        expected = model.decide(frame, names, mean)
        # The sum above rounds in another order; labels may differ where two scores, or a score and the threshold, are equal.
        assert (mask == expected.labels + 1).mean() > 0.999
    alone = model.segment(frame, names).labels + 1
    assert (mask != alone).any()


def test_photos_videos_and_moving_gifs_lie_in_one_folder(call: Callable[..., int], clip: Path) -> None:
    first, *others = map(Image.fromarray, moving(2))
    first.save(clip.with_name("wave.gif"), save_all=True, append_images=others, duration=100)
    first.save(clip.with_name("photo.png"))
    for _ in range(2):  # its own results are not taken for inputs
        assert call(clip.parent, "--out", clip.parent, "--masks") == 0
    made = {path.name for path in clip.parent.iterdir()} - {"clip.avi", "wave.gif", "photo.png"}
    videos = {f"{stem}{end}" for stem in ("clip", "wave") for end in (".overlay.mp4", ".json", ".masks")}
    assert made == videos | {"photo.overlay.png", "photo.mask.png", "photo.json"}


def test_a_bad_video_costs_its_own_line(
    call: Callable[..., int], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = clip.with_name("cut.avi")
    cut.write_bytes(clip.read_bytes()[: clip.stat().st_size // 2])
    clip.with_name("empty.mp4").touch()
    assert call(clip.parent) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert errors[0].startswith(f"error: {cut}: ")
    assert errors[1] == f"error: {clip.parent}/empty.mp4: not a readable video (the file is empty)"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"clip.overlay.mp4", "clip.json"}


def test_what_is_interrupted_leaves_no_video(
    call: Callable[..., int], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: VideoWriter, frame: np.ndarray) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "write", interrupted)
    assert call(clip) == 130
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--every", 0), "--every: 0 must be at least 1"),
        (("--smooth", 1), "--smooth: 1 is out of range; give 0 (none) up to, but not, 1"),
        (("--smooth", "nan"), "--smooth: nan is out of range"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    call: Callable[..., int], clip: Path, option: tuple[object, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(clip, *option) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tiny_run: Path, tmp_path: Path) -> None:
    """400 frames of 640 x 360 are 276 MB; the process grows by less than a quarter of that after the first of them."""
    import subprocess
    import sys

    from helpers.paths import REPO

    frames = [np.roll(tiny.blocks(360, 640), 4 * number, axis=1) for number in range(8)]
    write_video(tmp_path / "short.mp4", frames)
    write_video(tmp_path / "long.mp4", frames * 50)
    code = (
        "import resource; from pipelines import segment\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10\n"
        f"call = lambda name: segment.main([{str(tmp_path)!r} + '/' + name, '--labels', 'a, b', '--checkpoint', "
        f"{str(tiny_run)!r}, '--out', {str(tmp_path / 'out')!r}, '--every', '50'])\n"
        "assert call('short.mp4') == 0; before = peak(); assert call('long.mp4') == 0; print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 69
    assert len(read_photo(Image.fromarray(read_video(tmp_path / "out" / "long.overlay.mp4")[0][399]))) == 360
