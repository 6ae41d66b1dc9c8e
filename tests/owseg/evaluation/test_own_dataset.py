"""A user's own dataset from the configuration alone: CamVid-like folders, a list, 16 bits, colours, and what is told wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.camvid import CAMVID, VOID, write_camvid
from helpers.chain import run
from helpers.paths import REPO
from owseg import InputError
from owseg.evaluation.check import check_benchmark
from owseg.evaluation.datasets import IGNORE, Item, list_items, read_image, read_label
from owseg.evaluation.own_dataset import OwnDataset, Suffixes
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from pipelines.app.checks import check_benchmarks
from pipelines.app.config import ConfigError, from_dict, load, to_dict
from pipelines.app.settings import Config


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    return write_camvid(tmp_path)


def settings(camvid: Path, **changes: Any) -> OwnDataset:
    given: dict[str, Any] = {
        "name": "camvid",
        "images": str(camvid / "images"),
        "labels": str(camvid / "labels"),
        "names": str(camvid / "names.txt"),
        "split": str(camvid / "val.txt"),
        "ignore": VOID,
        "suffix": Suffixes(labels="_L.png"),
    }
    return OwnDataset(**given | changes)


def test_the_list_gives_the_images_and_void_does_not_count(camvid: Path) -> None:
    dataset = settings(camvid).dataset()
    items = list_items(dataset, Path("nowhere"))
    assert [item.id for item in items] == ["seq1/0003", "seq0/0000", "seq1/0001"]
    for item in items:
        stored = np.asarray(Image.open(item.label))
        label = read_label(dataset, item, read_image(item.image).shape[:2])
        assert (label[stored == VOID] == IGNORE).all()
        assert (label[stored != VOID] == stored[stored != VOID]).all()
    report = check_benchmark(dataset, Path("nowhere"))
    assert (report.images, report.decoded, report.verdict) == (3, 3, "OK")
    assert len(list_items(settings(camvid, split="").dataset(), Path("nowhere"))) == 4


def in_palette(stored: np.ndarray) -> Image.Image:
    image = Image.fromarray(stored.astype(np.uint8)).convert("P")
    image.putdata(stored.ravel().tolist())
    image.putpalette([value for label in range(256) for value in (label, 255 - label, 7 * label % 256)])
    return image


def test_it_is_a_row_beside_the_benchmarks_by_the_config_alone(camvid: Path) -> None:
    own = (
        f"{{name: camvid, images: {camvid}/images, labels: {camvid}/labels, names: {camvid}/names.txt, ignore: 11, "
        f"split: {camvid}/val.txt, suffix: {{labels: _L.png}}, reduce_zero_label: false, background: null}}"
    )
    config = load(Config, None, [f"evaluate.datasets=[voc21, {own}]", "evaluate.root=/data"])
    assert config.evaluate.names == ("voc21", "camvid")
    assert config.evaluate.own["camvid"] == settings(camvid)
    assert from_dict(Config, to_dict(config)) == config
    protocol = protocol_of(config.evaluate, "camvid")
    assert protocol.queries == CAMVID
    assert protocol.benchmark.names == CAMVID
    with pytest.raises(ConfigError, match=r"unknown key 'evaluate\.datasets\.0\.imagse'; did you mean"):
        load(Config, None, ["evaluate.datasets=[{name: a, imagse: x, labels: y, names: z}]"])
    with pytest.raises(ConfigError, match=r"'evaluate\.datasets\.0\.names' has no default"):
        load(Config, None, ["evaluate.datasets=[{name: a, images: x, labels: y}]"])
    with pytest.raises(ConfigError, match="'voc21' is a benchmark's"):
        load(Config, None, ["evaluate.datasets=[{name: voc21, images: x, labels: y, names: z}]"])
    with pytest.raises(ConfigError, match="none of voc21"):
        load(Config, None, ["evaluate.datasets=[camvid]"])


def test_other_names_may_be_shown_to_the_text_tower_and_a_class_may_have_several(camvid: Path) -> None:
    (camvid / "names.txt").write_text("\n".join(["Sky, heaven", *CAMVID[1:]]))
    (camvid / "prompts.txt").write_text("\n".join(name.lower() for name in CAMVID))
    plain, other = settings(camvid), settings(camvid, prompt_names=str(camvid / "prompts.txt"))
    assert plain.dataset().names == CAMVID
    assert protocol_of(EvaluateConfig(datasets=(plain,)), "camvid").queries[:2] == ("Sky", "heaven")
    assert protocol_of(EvaluateConfig(datasets=(other,)), "camvid").queries[:2] == ("sky", "building")


def test_a_background_has_no_name_of_its_own(camvid: Path) -> None:
    own = settings(camvid, background="Sky")
    protocol = protocol_of(EvaluateConfig(datasets=(own,)), "camvid")
    assert protocol.benchmark.background
    assert protocol.queries == CAMVID[1:]


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I", "RGB"])
def test_label_maps_of_all_kinds_say_the_same(camvid: Path, mode: str) -> None:
    stored = np.arange(48).reshape(6, 8) % 12
    rng = np.random.default_rng(1)
    colours = rng.permutation(4096)[:12, None] * np.array([7, 11, 13]) % 256
    made = {
        "L": lambda: Image.fromarray(stored.astype(np.uint8)),
        "P": lambda: in_palette(stored),
        "I;16": lambda: Image.fromarray(stored.astype(np.uint16)),
        "I": lambda: Image.fromarray(stored.astype(np.int32)),
        "RGB": lambda: Image.fromarray(colours[stored].astype(np.uint8)),
    }[mode]()
    assert made.mode == mode
    ending = "_L.tif" if mode == "I" else "_L.png"  # 32 bits are none of PNG's
    made.save(camvid / "labels" / "seq0" / f"0000{ending}")
    (camvid / "colours.txt").write_text("\n".join(" ".join(map(str, colour)) for colour in colours))
    (camvid / "val.txt").write_text("seq0/0000")
    colour_list = str(camvid / "colours.txt") if mode == "RGB" else ""
    dataset = settings(camvid, colours=colour_list, suffix=Suffixes(labels=ending)).dataset()
    (item,) = list_items(dataset, Path())
    assert (read_label(dataset, item, (6, 8)) == np.where(stored == VOID, IGNORE, stored)).all()


def test_zero_may_not_count(camvid: Path) -> None:
    dataset = settings(camvid, reduce_zero_label=True, ignore=None).dataset()
    for item in list_items(dataset, Path()):
        stored = np.asarray(Image.open(item.label)).astype(int)
        assert (read_label(dataset, item, (6, 8)) == np.where(stored == 0, IGNORE, stored - 1)).all()


def test_mistakes_are_told(camvid: Path) -> None:
    dataset = settings(camvid, ignore=None).dataset()
    with pytest.raises(InputError, match=r"label value 11 is outside the 11 classes of camvid"):
        read_label(dataset, list_items(dataset, Path())[0], (6, 8))
    with pytest.raises(
        InputError, match=r"camvid: .*seq1/0003\.png is missing; see images, labels, suffix and split of camvid"
    ):
        list_items(settings(camvid, suffix=Suffixes()).dataset(), Path())
    with pytest.raises(InputError, match=r"camvid: images: .*nowhere is no folder"):
        list_items(settings(camvid, images=str(camvid / "nowhere")).dataset(), Path())
    with pytest.raises(InputError, match=r"camvid\.names: .*none\.txt cannot be read"):
        settings(camvid, names=str(camvid / "none.txt")).dataset()
    (camvid / "two.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"two\.txt: has 2 lines for the 11 classes"):
        settings(camvid, prompt_names=str(camvid / "two.txt")).texts()
    with pytest.raises(InputError, match="'road' must be the first class"):
        settings(camvid, background="road").dataset()
    (camvid / "grey.txt").write_text("1 2 3\n4 5\n")
    with pytest.raises(InputError, match=r"grey\.txt, line 2: '4 5' is not of the form"):
        settings(camvid, colours=str(camvid / "grey.txt")).dataset()


def test_ids_with_spaces_and_folders_behind_links_are_found(camvid: Path) -> None:
    for kind, suffix in (("images", ""), ("labels", "_L")):
        (camvid / "elsewhere" / kind).mkdir(parents=True)
        for name in ("street 1", "street"):
            Image.new("L", (2, 2)).save(camvid / "elsewhere" / kind / f"{name}{suffix}.png")
        (camvid / kind / "linked").symlink_to(camvid / "elsewhere" / kind)
    (camvid / "val.txt").write_text("linked/street 1\nseq1/0003 extra\n")
    assert [item.id for item in list_items(settings(camvid).dataset(), Path())] == ["linked/street 1", "seq1/0003"]
    assert len(list_items(settings(camvid, split="").dataset(), Path())) == 6
    (camvid / "images" / "back").symlink_to(camvid / "images")
    assert len(list_items(settings(camvid, split="").dataset(), Path())) == 6, "a link back up ends"
    (camvid / "images" / "gone.png").symlink_to(camvid / "nowhere.png")
    with pytest.raises(InputError, match=r"gone\.png is missing"):
        list_items(settings(camvid, split="").dataset(), Path())


def test_a_palette_means_its_colours_where_they_are_listed(camvid: Path) -> None:
    red, green = (200, 0, 0), (0, 200, 0)
    (camvid / "two.txt").write_text("cat\ndog\n")
    (camvid / "colours.txt").write_text("200 0 0\n0 200 0\n")
    own = settings(camvid, names=str(camvid / "two.txt"), colours=str(camvid / "colours.txt"), ignore=None).dataset()
    picture = Image.fromarray(np.array([[green, red], [red, green]], np.uint8))
    picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=2).save(camvid / "map.png")
    label = read_label(own, Item("map", camvid / "map.png", camvid / "map.png"), (2, 2))
    assert label.tolist() == [[1, 0], [0, 1]]


def test_images_of_16_bits_are_refused(camvid: Path) -> None:
    Image.fromarray(np.full((2, 2), 5000, np.uint16)).save(camvid / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png: mode I;16; images have 8 bits a channel"):
        read_image(camvid / "deep.png")


@pytest.mark.parametrize(
    ("changes", "lines", "message"),
    [
        ({}, "cat\n\ntree\n", r"line 2 names nothing; labels are counted by lines"),
        ({}, "cat\n,dog\n", r"line 2 names nothing"),
        ({}, ",\n,\n", r"line 1 names nothing"),
        ({"ignore": 1}, "cat\ndog\n", r"camvid\.ignore: 1 is the label of 'dog'; give another, or null"),
        ({"ignore": 255, "reduce_zero_label": True}, "\n".join(map(str, range(255))), r"ignore: 255 is the label of '254'"),
        ({"images": ""}, "cat\n", r"images: is empty; give a folder"),
        ({"colours": "{colours}"}, "cat\ndog\n", r"has 1 colours for 2 labels"),
    ],
)
def test_lists_that_cannot_be_meant_are_refused(camvid: Path, changes: dict[str, Any], lines: str, message: str) -> None:
    (camvid / "own.txt").write_text(lines)
    (camvid / "colours.txt").write_text("1 2 3\n")
    given = {"names": str(camvid / "own.txt"), **changes}
    if "colours" in given:
        given["colours"] = str(camvid / "colours.txt")
    with pytest.raises(InputError, match=message):
        settings(camvid, **given).dataset()


def test_the_pages_configuration_is_checked_and_scored(camvid: Path) -> None:
    """The lines of docs/evaluation.md with the paths of this folder, and nothing else; beside a benchmark of the world."""
    page = (REPO / "docs" / "evaluation.md").read_text()
    (lines,) = re.findall(r"```yaml\n(evaluate:\n  datasets:\n.*?)```", page, flags=re.DOTALL)
    file, folder = camvid / "camvid.yaml", camvid / "run"
    world = "  pictures: false\nminiature: {links: 40, benchmark_images: 10, tuning_images: 10, size: 64}\nmethods: [chance]\n"
    file.write_text(lines.replace("/data/camvid", str(camvid)) + world)
    checked = run("evaluate", folder, "--check", config=file)
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"camvid .* 3 ", checked.stdout)
    done = run("evaluate", folder, config=file)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "evaluate" / "chance" / "camvid.json").read_text())
    assert report["images"] == 3
    assert report["IoU"].keys() == {*CAMVID}
    assert "Sky" in (folder / "evaluate" / "chance" / "camvid.json").read_text()


def test_what_is_not_looked_at_is_counted_and_named(camvid: Path) -> None:
    """Photos of other kinds, and label maps without an image; nothing where a list chooses."""
    for name in ("seq0/a.heic", "seq0/b.mov", "notes.txt", ".DS_Store"):
        (camvid / "images" / name).touch()
    (camvid / "labels" / "seq1" / "lost_L.png").touch()
    (camvid / "labels" / "Thumbs.db").touch()
    assert settings(camvid).dataset().files.left_out(Path()) == []
    assert settings(camvid, split="").dataset().files.left_out(Path()) == [
        f"3 files (notes.txt, seq0/a.heic, seq0/b.mov) in {camvid}/images not looked at, being no images",
        f"1 file (seq1/lost_L.png) in {camvid}/labels not looked at, having no image",
    ]


def test_images_and_label_maps_may_share_a_folder(camvid: Path) -> None:
    for folder in ("seq0", "seq1"):
        for image in (camvid / "images" / folder).iterdir():
            image.rename(image.with_name(f"{image.stem}_img.png"))
        for label in (camvid / "labels" / folder).iterdir():
            label.rename(camvid / "images" / folder / label.name)
    (camvid / "images" / "seq0" / "lost_L.png").touch()
    folder = str(camvid / "images")
    own = settings(camvid, labels=folder, split="", suffix=Suffixes(images="_img.png", labels="_L.png")).dataset()
    assert len(list_items(own, Path())) == 4
    assert own.files.left_out(Path()) == [f"1 file (seq0/lost_L.png) in {folder} not looked at, having no image"]


def test_files_that_are_cut_are_met_before_anything_is_begun(camvid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = settings(camvid, split="")
    config = Config(methods=("chance",), evaluate=EvaluateConfig(datasets=(own,)))
    check_benchmarks(config)
    items = list_items(own.dataset(), Path())
    items[0].image.write_bytes(b"")
    items[1].label.write_bytes(items[1].label.read_bytes()[:60])
    with pytest.raises(InputError, match=r"^2 of 4 images of camvid cannot be scored: .*; mend them, or leave out") as stopped:
        check_benchmarks(config)
    assert f"{items[0].image}: not a readable image (the file is empty); {items[1].label}: not a readable label map (" in str(
        stopped.value
    )
    check_benchmarks(replace(config, evaluate=replace(config.evaluate, unreadable="skip")))
