"""The verb `segment`, as a user calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import tiny
from helpers.chain import environment
from helpers.paths import REPO
from owseg.checkpoint import sha256
from owseg.fit import WEIGHTS
from pipelines import segment


def test_the_verb_as_a_user_calls_it(tiny_run: Path, tmp_path: Path) -> None:
    """Files and folders, one bad image among good: it is told by name, the others are done, and the exit code is 2."""
    folder = tmp_path / "holiday" / "day one"
    folder.mkdir(parents=True)
    Image.fromarray(tiny.blocks(40, 56)).save(folder / "beach.jpg")
    Image.fromarray(tiny.blocks(40, 56, 1)).save(tmp_path / "beach.png")
    (tmp_path / "bad.jpg").write_bytes((folder / "beach.jpg").read_bytes()[:300])
    out = tmp_path / "out"
    arguments = [tmp_path / "beach.png", tmp_path / "bad.jpg", tmp_path / "holiday", tmp_path / "beach.png"]
    command = [sys.executable, "pipelines/segment.py", *arguments, "--labels", ", ".join(tiny.LABELS), "--checkpoint", tiny_run]
    done = subprocess.run(
        [*command, "--out", out], cwd=REPO, env=environment(), capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {tmp_path}/bad.jpg: not a readable image (")
    assert len(done.stderr.splitlines()) == 1
    lines = done.stdout.splitlines()
    assert lines[0].startswith("model: tcl from ")
    assert [line.split(": ")[0] for line in lines[1:]] == [f"[1/3] {tmp_path}/beach.png", f"[3/3] {folder}/beach.jpg"]
    written = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert written == {
        f"{stem}{suffix}" for stem in ("beach", "day one/beach") for suffix in (".overlay.png", ".mask.png", ".json")
    }
    told = json.loads((out / "beach.json").read_text())
    mask = Image.open(out / "beach.mask.png")
    index = np.asarray(mask)
    assert index.shape == (40, 56)
    assert str(tmp_path) not in json.dumps(told)
    assert told["sha256"][WEIGHTS] == sha256(tiny_run / "train" / "tcl" / WEIGHTS)
    assert [entry["label"] for entry in told["labels"]] == tiny.LABELS
    for entry in told["labels"]:
        assert entry["share"] == pytest.approx((index == entry["index"]).mean(), abs=1e-6)
        assert mask.getpalette()[3 * entry["index"] : 3 * entry["index"] + 3] == entry["colour"]
    assert told["nothing"] == pytest.approx((index == 0).mean(), abs=1e-6)
    with Image.open(out / "beach.overlay.png") as overlay:
        assert overlay.size[0] >= 56
        assert overlay.size[1] > 40  # the legend


def call(tiny_run: Path, *arguments: object) -> int:
    return segment.main([*map(str, arguments), "--checkpoint", str(tiny_run)])


def test_the_same_call_writes_the_same_bytes(tiny_run: Path, photo: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert call(tiny_run, photo, "--labels", "red wall, sky", "--out", tmp_path / out, "--no-background") == 0
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("one", "two"))
    assert one == two
    assert len(one) == 3
    assert json.loads(one["photo.json"])["nothing"] == 0


def test_results_beside_the_photos_are_not_taken_for_photos(tiny_run: Path, photo: Path) -> None:
    folder = photo.parent
    (folder / "photo.jpeg").write_bytes(photo.read_bytes())
    for _ in range(2):
        assert call(tiny_run, folder, "--labels", "red wall", "--out", folder) == 0
    names = sorted(path.name for path in folder.iterdir())
    stems = ("photo-2", "photo")
    assert names == sorted(
        [*(f"{stem}{end}" for stem in stems for end in (".json", ".mask.png", ".overlay.png")), "photo.jpeg", "photo.png"]
    )


def test_a_file_name_need_not_be_text(tiny_run: Path, photo: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    shutil.copy(photo, tmp_path / f"{name}.png")
    assert call(tiny_run, tmp_path / f"{name}.png", "--labels", "a", "--out", tmp_path) == 0
    assert json.loads((tmp_path / f"{name}.json").read_text())["image"] == f"{name}.png"


def test_options_reach_the_model(tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "labels.txt").write_text("cat, or dog\nsky\n")
    sizes = ("--short-side", 48, "--window", 48, "--stride", 24, "--grid-scale", 1.5)
    settings = ("--set", "background_threshold=0.25", "--set", "pamr=true")
    shutil.copy(photo, tmp_path / "other.png")
    options = ("--labels", f"@{tmp_path}/labels.txt", "--out", tmp_path, tmp_path / "other.png", *sizes, *settings)
    assert call(tiny_run, photo, *options) == 0  # options may stand between the images
    assert (tmp_path / "other.json").exists()
    told = json.loads((tmp_path / "photo.json").read_text())
    assert [entry["label"] for entry in told["labels"]] == ["cat, or dog", "sky"]
    sizes_told = {"short_side": 48, "max_long_side": 2048, "window": 48, "stride": 24}
    assert told["view"] == sizes_told | {"grid_scale": 1.5, "refine": "none"}
    assert (told["method"]["background_threshold"], told["method"]["pamr"]) == (0.25, True)
    assert "short side 48, window 48, stride 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--labels", "a"], "the following arguments are required: INPUT"),
        (["{photo}"], "the following arguments are required: --labels"),
        (["{photo}", "--labels", ""], "labels: there are none"),
        (["{photo}", "--labels", "cat,,dog"], "labels: number 2 is empty"),
        (["{photo}", "--labels", "cat, cat"], "labels: 'cat' is given twice"),
        (["{photo}", "--labels", "@none.txt"], "--labels: none.txt cannot be read"),
        (["{photo}", "--labels", "a", "--lables", "b"], "unrecognized arguments: --lables b; see --help"),
        (["{photo}", "--labels", "a", "--out", "{photo}/out"], "--out: {photo}/out cannot be written"),
        (["{photo}", "--labels", "a", "--out", "/proc/none"], "--out: /proc/none cannot be written"),
        (["{photo}", "--labels", "a", "--method", "nacilp"], "{run}: which method of this run? name one of tcl, chance"),
        (["{photo}", "--labels", "a", "--grid-scale", "9"], "grid_scale: 9 is out of range; give a factor from 1 to 4"),
        (["{photo}", "--labels", "a", "--refine", "pamr", "--set", "pamr=true"], "pamr: TCL refines its masks already"),
        (["{photo}", "--labels", "a", "--set", "pmr=true"], "command line: unknown key 'pmr'; did you mean 'pamr'?"),
        (["{photo}", "--labels", "a", "--set", "pamr=maybe"], "command line: 'pamr' must be true or false, not 'maybe'"),
        (["{photo}", "--labels", "a", "--window", "0"], "window: 0 must be at least 1"),
        (["{photo}", "--labels", "a", "--device", "warp"], "device: 'warp' cannot be used here"),
        (["{photo}.none", "--labels", "a"], "{photo}.none: no such file"),
        (["{run}/train/clip", "--labels", "a"], "{run}/train/clip: holds no images"),
        (["{run}/train/tcl/model.json", "--labels", "a"], "{run}/train/tcl/model.json: not a readable image"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tiny_run: Path,
    photo: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(photo.parent)
    assert call(tiny_run, *(argument.format(photo=photo, run=tiny_run) for argument in arguments)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: " + message.format(photo=photo, run=tiny_run))


def test_without_weights_at_hand_it_says_what_to_do(
    photo: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The default is a training-free mode on published weights; where there is no network, one line says so."""
    import open_clip

    def no_network(*_: object, **__: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    assert segment.main([str(photo), "--labels", "a", "--out", str(tmp_path)]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: --encoder-weights: 'openai' of ViT-B-16 cannot be downloaded")


def test_what_is_not_looked_at_in_a_folder_is_counted_and_named(
    tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """HEIC files, sounds and notes; not what systems leave, nor what this verb wrote. Linked folders are looked into."""
    holiday, elsewhere = tmp_path / "holiday", tmp_path / "elsewhere"
    for folder in (holiday, elsewhere):
        folder.mkdir()
        shutil.copy(photo, folder / f"{folder.name}.png")
    for name in ("a.heic", "b.mp3", "notes.txt", "c.json", ".DS_Store", "._holiday.png", "Thumbs.db", "holiday.png~"):
        (holiday / name).write_bytes(b"\x00\x05\x16\x07")
    (holiday / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(holiday)
    for _ in range(2):
        assert call(tiny_run, holiday, "--labels", "a", "--out", holiday) == 0
        out, err = capsys.readouterr()
        assert err == ""
        (note,) = [line for line in out.splitlines() if line.startswith("note: ")]
        assert note.startswith(f"note: {holiday}: 4 files (a.heic, b.mp3, c.json, notes.txt) of other kinds not looked at; ")
        assert [line.split(":")[0] for line in out.splitlines() if line.startswith("[")] == [
            f"[1/2] {holiday}/holiday.png",
            f"[2/2] {holiday}/linked/elsewhere.png",
        ]


def test_pipes_and_links_to_themselves_cost_their_own_line(
    tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(photo.parent / "a.jpg")
    (photo.parent / "b.jpg").symlink_to("b.jpg")
    (photo.parent / "c.jpg").symlink_to("/dev/zero")
    assert call(tiny_run, photo.parent, "--labels", "a", "--out", tmp_path / "out") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[:3] == [
        f"error: {photo.parent}/a.jpg: not a readable image (not a regular file)",
        f"error: {photo.parent}/b.jpg: not a readable image (Too many levels of symbolic links)",
        f"error: {photo.parent}/c.jpg: not a readable image (not a regular file)",
    ]
    assert (tmp_path / "out" / "photo.mask.png").is_file()


def test_an_empty_photo_and_a_folder_without_any_are_named(
    tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photo.parent / "empty.jpg").touch()
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    for number in range(7):
        (sounds / f"{number}.mp3").touch()
    assert call(tiny_run, photo.parent / "empty.jpg", photo, sounds, "--labels", "a", "--out", tmp_path / "out") == 2
    one, two = capsys.readouterr().err.splitlines()
    assert one == f"error: {photo.parent}/empty.jpg: not a readable image (the file is empty)"
    assert two.endswith("), but 7 files (0.mp3, 1.mp3, 2.mp3, 3.mp3, 4.mp3, ...)")
    assert (tmp_path / "out" / "photo.mask.png").is_file()


def test_nothing_found_is_said_with_the_best_score_and_the_threshold(
    tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--labels", "cat, sky", "--out", tmp_path, "--set", "background_threshold=0.999")
    assert call(tiny_run, photo, *options) == 0
    told = json.loads((tmp_path / "photo.json").read_text())
    assert (told["nothing"], told["threshold"]) == (1.0, 0.999)
    label, score = told["best"].values()
    assert label in ("cat", "sky")
    assert 0 < score <= 0.999
    _, line, why = capsys.readouterr().out.splitlines()
    assert ": 56 x 40, nothing 100 % → " in line
    assert why.startswith(
        f"nothing found in photo.png: no label exceeds the threshold of 0.999; the best is '{label}' with {score:.3g}; "
        "lower it with --set background_threshold"
    )
    with Image.open(tmp_path / "photo.overlay.png") as overlay, Image.open(photo) as shown:
        drawn = np.asarray(overlay)
        assert (drawn[:40, :56] == np.asarray(shown.convert("RGB"))).all()
        assert (drawn[40:] < 128).any(), "the legend says so"
        assert overlay.height > 40 + 3 * 22  # "nothing 100 %", and why in several lines


def test_labels_that_are_cut_are_named_and_those_that_become_one_refused(
    tiny_run: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    long = "a very long description of a thing " * 12
    assert call(tiny_run, photo, "--labels", f"cat, {long}", "--out", tmp_path) == 0
    (line,) = caplog.messages
    assert line.startswith("labels: 1 name is longer than the text tower reads, and cut: 'a very long description")
    assert call(tiny_run, photo, "--labels", f"{long} in red, cat, {long} in blue", "--out", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: labels: 'a very long")
    assert " in red' and 'a very long" in line
    assert " in blue' are the same in the first " in line
