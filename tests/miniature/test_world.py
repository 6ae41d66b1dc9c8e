"""The generated world: same seed same bytes, and every link has its picture."""

import errno
import json
import os
import re
import shutil
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

from helpers.files import files_under
from helpers.miniature import SMALL, mentioned_in, rows_of
from helpers.paths import REPO
from miniature import InputError
from miniature.concepts import ID
from miniature.junk import RARE
from miniature.links import FAULTS, plan_links
from miniature.scenes import draw_scene
from miniature.sheet import contact_sheet
from miniature.world import WorldConfig, build_world

# Bytes


def test_the_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(world: Path, tmp_path: Path) -> None:
    build_world(SMALL, tmp_path / "again", processes=3)
    assert files_under(tmp_path / "again") == files_under(world)


def test_another_seed_gives_another_world(world: Path, tmp_path: Path) -> None:
    build_world(replace(SMALL, seed=1), tmp_path / "other")
    one, other = files_under(world), files_under(tmp_path / "other")
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
    whole = files_under(out)
    next((out / "web").glob("*.jpg")).unlink()
    build_world(config, out)
    assert files_under(out) == whole
    build_world(SMALL, out)
    assert files_under(out) == files_under(world)


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
    assert files_under(out) == files_under(world)


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


# The picture, and the command


def test_the_contact_sheet_is_a_picture(world: Path, tmp_path: Path) -> None:
    sheet = contact_sheet(Path(shutil.copytree(world, tmp_path / "world")))  # the one for all stays as it was built
    with Image.open(sheet) as image:
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 100


def test_the_command_tells_a_mistake_in_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "miniature", str(tmp_path / "world"), "--links", "5"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (2, "error: links: 5 is too few; give at least 20\n")


def test_a_drawing_process_hands_over_what_the_disk_refused(tmp_path: Path) -> None:
    job = {"config": asdict(WorldConfig(links=20)), "out": str(tmp_path / "missing"), "part": 0, "parts": 1}
    command = [sys.executable, "-m", "miniature.worker", json.dumps(job)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPO, text=True) as process:
        assert process.stdout is not None
        number, _, file = json.loads(process.stdout.read())["os_error"]
    assert process.returncode == 0
    assert number == errno.ENOENT
    assert file.startswith(str(tmp_path / "missing"))
