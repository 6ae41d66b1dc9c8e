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
        (["--labels", "a"], "the following arguments are required: IMAGE"),
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
