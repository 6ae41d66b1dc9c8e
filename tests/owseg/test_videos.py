"""Videos, a frame at a time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import tiny
from helpers.videos import moving, read_video, write_video
from owseg import InputError
from owseg.evaluation.pictures import legend_panel, palette
from owseg.videos import MAX_SIDE, VideoReader, VideoWriter, is_video


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.avi", "a.mkv", "a.webm"])
def test_frames_size_and_rate_are_those_of_the_file(tmp_path: Path, name: str) -> None:
    frames = moving(4)
    path = write_video(tmp_path / name, frames)
    assert is_video(path)
    with VideoReader(path) as video:
        assert (video.width, video.height, video.rate) == (56, 40, 12.5)
        read = list(video)
    assert len(read) == 4
    assert all(np.abs(a.astype(int) - b).mean() < 12 for a, b in zip(read, frames, strict=True))


def test_a_gif_is_a_video_where_it_moves(tmp_path: Path) -> None:
    first, *others = map(Image.fromarray, moving(3))
    first.save(tmp_path / "moving.gif", save_all=True, append_images=others, duration=100)
    first.save(tmp_path / "still.gif")
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    assert [is_video(tmp_path / f"{name}.gif") for name in ("moving", "still", "broken")] == [True, False, False]
    with VideoReader(tmp_path / "moving.gif") as video:
        assert video.rate == 10
        assert len(list(video)) == 3


@pytest.mark.parametrize("size", [(40, 56), (41, 57), (1, 1), (3, 200)])
def test_what_is_written_is_read_back(tmp_path: Path, size: tuple[int, int]) -> None:
    """An odd side grows by a pixel that repeats the edge."""
    frames = moving(3, *size)
    with VideoWriter(tmp_path / "out.mp4", width=size[1], height=size[0], rate=29.97) as out:
        for frame in frames:
            out.write(frame)
    read, rate = read_video(tmp_path / "out.mp4")
    assert rate == pytest.approx(29.97)
    assert len(read) == 3
    assert read[0].shape == (size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(read[2][: size[0], : size[1]].astype(int) - frames[2]).mean() < 15
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_what_is_stopped_leaves_no_file(tmp_path: Path) -> None:
    def stopped() -> None:
        with VideoWriter(tmp_path / "out.mp4", width=56, height=40, rate=25) as out:
            out.write(tiny.blocks(40, 56))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_lost_its_end_is_no_result(tmp_path: Path) -> None:
    """As on a full disk, of which OpenCV says nothing."""

    def cut() -> None:
        with VideoWriter(tmp_path / "out.mp4", width=56, height=40, rate=25) as out:
            out.write(tiny.blocks(40, 56))
            out._frames += 1  # one that OpenCV took, and that is not there

    with pytest.raises(InputError, match="cannot be written to its end"):
        cut()
    assert list(tmp_path.iterdir()) == []


def damaged(folder: Path) -> dict[str, bytes]:
    whole = write_video(folder / "whole.avi", moving(40)).read_bytes()
    return {
        "empty.mp4": b"",
        "text.mp4": b"not a video, but a text that is long enough",
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n#EXT-X-ENDLIST\n",
        "noise.mov": b"\x00\x00\x00\x18ftypqt  " + bytes(range(256)) * 8,
        "cut.avi": whole[: len(whole) // 2],
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.mp4", "none.mp4: not a readable video (no such file)"),
        ("empty.mp4", "empty.mp4: not a readable video (the file is empty)"),
        ("text.mp4", "text.mp4: not a readable video (neither MP4, QuickTime, AVI, Matroska, WebM nor GIF)"),
        ("list.mp4", "list.mp4: not a readable video (neither MP4, "),
        ("noise.mov", "noise.mov: not a readable video (damaged, or coded in a way that OpenCV does not know)"),
        ("cut.avi", "cut.avi: is cut or damaged after "),
    ],
)
def test_what_is_no_video_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, message: str) -> None:
    for file, content in damaged(tmp_path).items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as told, VideoReader(tmp_path / name) as video:
        list(video)
    assert str(told.value).startswith(f"{tmp_path}/{message}")
    assert capfd.readouterr().err == "", "FFmpeg says nothing itself"


def test_a_video_larger_than_mp4_holds_is_refused_before_a_frame_is_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "wide.webm", [np.zeros((2, MAX_SIDE + 10, 3), np.uint8)])
    with pytest.raises(InputError, match=f"wide.webm: 8200 x 2 pixels; at most {MAX_SIDE} a side"):
        VideoReader(path)


def test_a_legend_takes_a_corner_at_most() -> None:
    legend = [(f"thing number {i}", colour) for i, colour in enumerate(palette(9))]
    for width, height in ((640, 480), (56, 40), (2000, 30), (1, 1), (30, 2000)):
        panel = legend_panel(legend, width, height)
        assert panel.width <= width // 2
        assert panel.height <= height // 2 + 4
    assert legend_panel(legend, 640, 480).height > legend_panel(legend[:3], 640, 480).height > 0
    assert legend_panel(legend, 1, 1).size == (0, 0)
