"""The generated world: same seed same bytes, true captions that leave something out, and masks in the real encodings."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from helpers.paths import SHARED, needs
from miniature import InputError
from miniature.benchmarks import CITIES, CLASSES, IMAGE_SETS, VOID, voc_palette
from miniature.captions import BRANDS, MEDIA, MONTHS, MOODS, ONE, PLACES, TAGS, THREE, TWO, words_to_ids
from miniature.concepts import CONCEPTS, ID, STUFF, THINGS
from miniature.junk import RARE
from miniature.links import FAULTS, plan_links
from miniature.scenes import VISIBLE, Scene, draw_scene
from miniature.sheet import contact_sheet
from miniature.world import Captioned, WorldConfig, build_world, scene_of

LEMMAS = SHARED / "data" / "entities" / "imagenet21k_lemmas.tsv"
SMALL = WorldConfig(links=240, size=64, benchmark_images=12, tuning_images=10, faults=0.3)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "out"
    build_world(SMALL, out, processes=1)
    return out


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def rows_of(root: Path) -> list[dict[str, str]]:
    with (root / "links.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def mentioned_in(text: str) -> set[int]:
    """The concepts that a reader finds in a caption: whole words, the longest first."""
    ids = words_to_ids()
    words = sorted(ids, key=len, reverse=True)
    return {ids[match.lower()] for match in re.findall(rf"(?i)\b(?:{'|'.join(map(re.escape, words))})\b", text)}


# Bytes


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(world: Path, tmp_path: Path) -> None:
    build_world(SMALL, tmp_path / "again", processes=3)
    assert files_of(tmp_path / "again") == files_of(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    build_world(replace(SMALL, seed=1), tmp_path / "other")
    one, other = files_of(world), files_of(tmp_path / "other")
    pictures = [name for name in one.keys() & other.keys() if name.endswith((".jpg", ".png"))]
    assert len(pictures) > 100
    assert not [name for name in pictures if one[name] == other[name] and "SegmentationClass" not in name]
    assert one["links.tsv"] != other["links.tsv"]


def test_a_complete_world_is_left_alone_and_a_changed_config_rebuilds_it(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = replace(SMALL, links=40, benchmark_images=10)
    build_world(config, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    build_world(config, out)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    build_world(SMALL, out)
    assert files_of(out) == files_of(world)


def test_a_killed_build_is_redone(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "import sys, json; from pathlib import Path; from miniature.world import *\n"
    code += "build_world(WorldConfig(**json.loads(sys.argv[2])), Path(sys.argv[1]), processes=2)"
    config = asdict(replace(SMALL, links=100_000))
    with subprocess.Popen([sys.executable, "-c", code, str(out), json.dumps(config)]) as build:
        while len(list((out / "web").glob("*.jpg"))) < 20:
            assert build.poll() is None
        os.kill(build.pid, signal.SIGKILL)
    assert not (out / "world.json").exists()
    build_world(SMALL, out)
    assert files_of(out) == files_of(world)


def test_files_of_someone_else_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "index.html").write_text("mine")
    with pytest.raises(InputError, match="web: exists and is no part of a miniature world"):
        build_world(SMALL, tmp_path)
    assert (tmp_path / "web" / "index.html").read_text() == "mine"


@pytest.mark.parametrize(
    ("key", "value"),
    [("links", 3), ("size", 500), ("junk", 1.0), ("faults", -0.1), ("benchmark_images", 2), ("tuning_images", 0)],
)
def test_bad_values_are_refused_by_name(key: str, value: float) -> None:
    with pytest.raises(InputError, match=f"^{key}: "):
        replace(SMALL, **{key: value})


# Links


def test_counts(world: Path) -> None:
    counts = json.loads((world / "world.json").read_text())["counts"]
    rows = rows_of(world)
    faults = json.loads((world / "web" / "faults.json").read_text())
    assert len(rows) == counts["links"] == SMALL.links
    assert sum(count for kind, count in counts["kinds"].items() if kind != "true") == round(SMALL.links * SMALL.junk)
    assert len({row["url"] for row in rows}) == counts["urls"] == SMALL.links - counts["kinds"]["duplicate"]
    assert len(faults) == round(counts["urls"] * SMALL.faults)
    assert Counter(fault["fault"] for fault in faults.values()) == counts["faults"]
    assert set(counts["faults"]) == set(FAULTS)


def test_every_link_has_a_picture_unless_its_fault_has_none(world: Path) -> None:
    faults = json.loads((world / "web" / "faults.json").read_text())
    served = set()
    for row in rows_of(world):
        host, _, name = row["url"].removeprefix("http://").partition("/")
        assert re.fullmatch(r"photos-[1-5]\.miniature\.test", host)
        fault = faults.get(f"/{name}", {})
        file = world / "web" / fault.get("to", name).lstrip("/")
        assert file.exists() == (fault.get("fault") not in ("404", "410", "html"))
        if file.exists():
            served.add(file)
            with Image.open(file) as image:
                assert image.format == "JPEG"
                assert all(round(64 * 6 / 7) <= side <= round(64 * 8 / 7) for side in image.size)
    assert served == set((world / "web").rglob("*.jpg"))


@pytest.fixture(scope="module")
def captioned_scenes() -> list[tuple[Scene, Captioned]]:
    return [scene_of(SMALL, index) for index in range(1800)]


def test_captions_mention_only_what_is_shown_and_not_all_of_it(captioned_scenes: list[tuple[Scene, Captioned]]) -> None:
    shown, mentioned = [], []
    for scene, captioned in captioned_scenes:
        visible = {concept for concept in range(len(CONCEPTS)) if (scene.labels == concept).mean() >= VISIBLE}
        assert set(captioned.shown) == visible
        assert set(captioned.mentioned) == mentioned_in(captioned.text), captioned.text
        assert set(captioned.mentioned) < visible
        assert captioned.area == pytest.approx(np.isin(scene.labels, captioned.mentioned).mean())
        shown.append(len(visible))
        mentioned.append(len(captioned.mentioned))
    assert 3 <= np.mean(shown) <= 6
    assert np.mean(mentioned) < 0.5 * np.mean(shown)
    assert set(mentioned) == {1, 2, 3}


def test_a_plural_is_said_of_several_and_a_singular_of_one(captioned_scenes: list[tuple[Scene, Captioned]]) -> None:
    said = Counter[bool]()
    for scene, captioned in captioned_scenes:
        for concept in set(captioned.mentioned) - set(range(len(STUFF))):
            several = len(np.unique(scene.instances[scene.labels == concept])) > 1
            forms = [(noun.singular, noun.plural) for noun in CONCEPTS[concept].nouns if noun.singular != noun.plural]
            for number, words in enumerate(zip(*forms, strict=True)):
                if re.search(rf"(?i)\b({'|'.join(words)})\b", captioned.text):
                    assert several == bool(number), captioned.text
                    said[several] += 1
    assert said[True] > 100
    assert said[False] > 500


def test_things_and_stuff_are_each_mentioned_about_equally_often_and_more_often_than_any_distractor(
    captioned_scenes: list[tuple[Scene, Captioned]],
) -> None:
    texts = [captioned for _, captioned in captioned_scenes]
    mentions = Counter(concept for text in texts for concept in text.mentioned)
    assert set(mentions) == set(range(len(CONCEPTS)))
    stuff, things = ([mentions[ID[concept.name]] for concept in kind] for kind in (STUFF, THINGS))
    assert max(stuff) < 1.8 * min(stuff)
    assert max(things) < 1.8 * min(things)
    assert sum(things) / len(things) > sum(stuff) / len(stuff)  # things are smaller and harder to learn
    words = Counter(word for text in texts for word in set(re.findall(r"[a-z]+", text.text.lower())))
    single = [concept.nouns[0] for concept in CONCEPTS if " " not in concept.name]
    rarest = min(sum(words[form] for form in set(noun)) for noun in single)
    distractors = {word.lower() for phrase in (*PLACES, *BRANDS, *MEDIA, *MOODS, *MONTHS, *TAGS) for word in phrase.split()}
    assert max(words[word] for word in distractors) < rarest


def test_words_are_what_they_claim_to_be() -> None:
    assert len(STUFF) + len(THINGS) == len(CONCEPTS) >= 22
    assert len(set(ONE + TWO + THREE)) >= 30
    spoken = " ".join((*ONE, *TWO, *THREE, *PLACES, *BRANDS, *MEDIA, *MOODS, *MONTHS, *TAGS, *RARE))
    assert not mentioned_in(spoken)
    words = [word for concept in CONCEPTS for word in concept.words]
    assert len(words) == len(set(words))
    for concept in STUFF:
        assert all(mentioned_in(phrase) == {ID[concept.name]} for phrase in concept.phrases)
        for noun in concept.nouns:
            assert any(noun.singular in phrase.split() for phrase in concept.phrases)


@needs(LEMMAS)
def test_names_are_lemmas_of_imagenet_or_plain_scene_nouns() -> None:
    lemmas = {lemma.strip() for line in LEMMAS.read_text().splitlines() for lemma in line.split("\t")[1].split(",")}
    assert {concept.name for concept in CONCEPTS} - lemmas <= {"sea", "forest"}


def test_junk_comes_in_every_kind_and_names_no_concept(world: Path) -> None:
    links = plan_links(replace(SMALL, links=2000))
    kinds = Counter(link.kind for link in links)
    assert set(kinds) == {"true", "code", "foreign", "short", "duplicate", "mirror", "rare", "markup", "abstract"}
    assert not [link.caption for link in links if link.caption and mentioned_in(link.caption)]
    rows = [tuple(row.values()) for row in rows_of(world)]
    assert len(rows) - len(set(rows)) == sum(link.kind == "duplicate" for link in plan_links(SMALL))
    rare = Counter(word for link in links if link.kind == "rare" for word in RARE if word in str(link.caption).split())
    assert 0 < max(rare.values()) < 10


# Scenes


def test_a_mask_covers_the_thing_and_nothing_else() -> None:
    rng = Random("exact")
    for _ in range(20):
        scene = draw_scene(rng, (96, 96), must=[ID["cat"]], choice=[ID["snow"], ID["cat"]])
        cat = scene.labels == ID["cat"]
        pixels = np.asarray(scene.image.convert("L"), dtype=int)
        assert set(np.unique(scene.labels)) == {ID["snow"], ID["cat"]}
        assert (scene.instances > 0).tolist() == cat.tolist()
        assert 0.04 < cat.mean() < 0.6
        # Snow is nearly white; what is clearly not white is cat, but for the soft shadow at its foot.
        assert np.mean(cat[pixels < 0.45 * np.median(pixels[~cat])]) > 0.97


def test_scenes_of_every_allowed_size_can_be_drawn() -> None:
    for size in (64, 160):
        high = round(size * 8 / 7)
        for shape in ((high, high), (2 * size, size)):
            scene = draw_scene(Random(size), shape)
            assert scene.image.size == shape
            assert scene.labels.shape == scene.instances.shape == shape[::-1]


# Benchmarks


LAYOUTS = {
    "voc21": ("VOCdevkit/VOC2012/SegmentationClass/*.png", "P", 0, True),
    "voc20": ("VOCdevkit/VOC2012/SegmentationClass/*.png", "P", 1, True),
    "context60": ("VOCdevkit/VOC2010/SegmentationClassContext/*.png", "P", 0, False),
    "context59": ("VOCdevkit/VOC2010/SegmentationClassContext/*.png", "P", 1, False),
    "coco_object": ("coco_stuff164k/annotations/val2017/*_instanceTrainIds.png", "L", 0, False),
    "coco_stuff": ("coco_stuff164k/annotations/val2017/*_labelTrainIds.png", "L", 0, True),
    "cityscapes": ("cityscapes/gtFine/val/*/*_gtFine_labelTrainIds.png", "L", 0, True),
    "ade20k": ("ade/ADEChallengeData2016/annotations/validation/*.png", "L", 1, False),
}
"""Dataset → where its masks lie, their mode, the label of the first class, and whether `VOID` may occur."""


@pytest.mark.parametrize("split", ["benchmarks", "tuning"])
@pytest.mark.parametrize("dataset", list(CLASSES))
def test_masks_follow_the_layout(world: Path, split: str, dataset: str) -> None:
    pattern, mode, first, void = LAYOUTS[dataset]
    root = world / split
    names = (root / "classes" / f"{dataset}.txt").read_text().splitlines()
    assert tuple(names) == CLASSES[dataset]
    assert (names[0] == "background") == (dataset in ("voc21", "context60", "coco_object"))
    paths = sorted(root.glob(pattern))
    assert len(paths) == (SMALL.benchmark_images if split == "benchmarks" else SMALL.tuning_images)
    values: set[int] = set()
    for path in paths:
        with Image.open(path) as mask:
            assert mask.mode == mode
            if mode == "P":
                assert bytes(mask.getpalette() or []) == voc_palette()[: len(mask.getpalette() or [])]
            values |= set(np.unique(np.asarray(mask)).tolist())
    allowed = set(range(first + len(names))) | ({VOID} if void else set())
    assert values <= allowed
    assert set(range(first, first + len(names))) <= values
    assert VOID in values or not void or split == "tuning"  # a small split may show nothing that is unlabelled


@pytest.mark.parametrize("split", ["benchmarks", "tuning"])
def test_every_mask_has_its_image_of_the_same_size(world: Path, split: str) -> None:
    root = world / split
    for image_set in IMAGE_SETS.values():
        folder, _, suffix = image_set.images.replace("{city}", "*").rpartition("{stem}")
        images = sorted(root.glob(f"{folder}*{suffix}"))
        assert len(images) == (SMALL.benchmark_images if split == "benchmarks" else SMALL.tuning_images)
        for path in images:
            stem, city = path.name.removesuffix(suffix), path.parent.name
            with Image.open(path) as image:
                assert image.mode == "RGB"
                for labelling in image_set.labellings:
                    with Image.open(root / labelling.masks.format(stem=stem, city=city)) as mask:
                        assert mask.size == image.size
                assert image.width == 2 * image.height or not image_set.wide
        if image_set.listing:
            assert (root / image_set.listing).read_text().split() == [path.stem for path in images]
    assert {path.name for path in (root / "cityscapes" / "leftImg8bit" / "val").iterdir()} == set(CITIES)


def test_coco_labels_agree_and_the_unlabelled_is_background_for_objects(world: Path) -> None:
    folder = world / "benchmarks" / "coco_stuff164k" / "annotations" / "val2017"
    objects = len(CLASSES["coco_object"]) - 1
    assert CLASSES["coco_stuff"][:objects] == CLASSES["coco_object"][1:]
    for path in sorted(folder.glob("*_labelTrainIds.png")):
        stuff = np.asarray(Image.open(path)).astype(int)
        things = np.asarray(Image.open(path.with_name(path.name.replace("label", "instance"))))
        assert np.array_equal(things, np.where(stuff < objects, stuff + 1, 0))


def test_no_benchmark_scene_is_a_captioned_one(world: Path) -> None:
    pictures = Counter(path.read_bytes() for split in ("benchmarks", "tuning") for path in (world / split).rglob("*.jpg"))
    assert set(pictures.values()) == {1}
    assert not pictures.keys() & {path.read_bytes() for path in (world / "web").rglob("*.jpg")}


def test_voc_palette_is_the_devkits() -> None:
    palette = np.frombuffer(voc_palette(), np.uint8).reshape(256, 3)
    assert palette[[0, 1, 2, 15, 20, 255]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
        [224, 224, 192],
    ]


# The picture, and the command


def test_the_contact_sheet_is_a_picture(world: Path) -> None:
    sheet = contact_sheet(world)
    with Image.open(sheet) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100


def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniature", str(tmp_path / "world"), "--links", "5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "error: links: 5 is too few; give at least 20\n")
