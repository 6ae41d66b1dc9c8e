"""The whole world in one call: links, the pictures behind them, and the benchmarks."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from miniature import InputError
from miniature.benchmarks import IMAGE_SETS, draw_item, picture_size, write_lists
from miniature.captions import caption
from miniature.concepts import CONCEPTS
from miniature.links import Link, plan_links
from miniature.scenes import Scene, draw_scene

MARKER = "world.json"
_BUILDING = ".building"
_OUTPUTS = ("links.tsv", "web", "benchmarks", "tuning")
_CODE = ("benchmarks", "captions", "concepts", "junk", "links", "pen", "scenes", "textures", "things", "world")
"""The modules that decide the bytes: a world that other code built is built anew."""


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What the generated world contains. The same values give the same bytes."""

    links: int = 8000
    """Links in the table, junk included: at least 20."""
    size: int = 112
    """Side of a scene in pixels, 64 to 160; scenes vary by a seventh around it."""
    seed: int = 0
    """Another seed gives another world."""
    junk: float = 0.2
    """Share of links with a junk caption, 0 to 0.9."""
    faults: float = 0.12
    """Share of URLs that the server answers badly, 0 to 1."""
    benchmark_images: int = 40
    """Images per image set of the reported benchmarks: at least 10."""
    tuning_images: int = 24
    """Images per image set of the tuning split, on which settings are chosen: at least 10."""

    def __post_init__(self) -> None:
        if self.links < 20:
            raise InputError(f"links: {self.links} is too few; give at least 20")
        if not 64 <= self.size <= 160:
            raise InputError(f"size: {self.size} is out of range; give 64 to 160 pixels")
        if not 0 <= self.junk <= 0.9:
            raise InputError(f"junk: {self.junk} is out of range; give a share from 0 to 0.9")
        if not 0 <= self.faults <= 1:
            raise InputError(f"faults: {self.faults} is out of range; give a share from 0 to 1")
        for name in ("benchmark_images", "tuning_images"):
            if getattr(self, name) < 10:
                raise InputError(f"{name}: {getattr(self, name)} is too few; give at least 10, so that every class can occur")


@dataclass(frozen=True)
class Captioned:
    """The true caption of a scene, and what it leaves out."""

    text: str
    mentioned: tuple[int, ...]
    shown: tuple[int, ...]
    area: float
    """Share of the picture that the mentioned concepts cover."""


def build_world(config: WorldConfig, out: Path, *, processes: int | None = None) -> None:
    """Write the world into the folder `out`; `world.json`, written last, says that it is complete.

    Returns at once if `out` holds this very world, by the number and bytes of its files. The bytes do not depend on `processes`
    (default: one per core, at most four). Raises `InputError` if `out` holds files of someone else under the names to be
    written.
    """
    if _is_complete(config, out):
        return
    _clear(out)
    parts = processes or min(4, len(os.sched_getaffinity(0)))
    captions: dict[int, Captioned] = {}
    digests: dict[str, str] = {}
    for part_captions, part_digests in _draw_all(config, out, parts):
        captions.update(part_captions)
        digests.update(part_digests)

    links = plan_links(config)
    rows = [f"{link.url}\t{link.caption or captions[link.scene].text}\n" for link in links]
    faults = {link.path: link.fault for link in sorted(links, key=lambda link: link.path) if link.fault}
    files = [_write(out / "links.tsv", "url\tcaption\n" + "".join(rows))]
    files.append(_write(out / "web" / "faults.json", json.dumps(faults, indent=1) + "\n"))
    files.extend(write_lists(out / "benchmarks", config.benchmark_images))
    files.extend(write_lists(out / "tuning", config.tuning_images))
    digests.update((path.relative_to(out).as_posix(), _digest(path.read_bytes())) for path in files)
    world = {
        "config": asdict(config),
        "code": _code_digest(),
        "counts": _count(links, captions),
        "files": len(digests),
        "bytes": sum((out / name).stat().st_size for name in digests),
        "digest": _digest(json.dumps(sorted(digests.items())).encode()),
    }
    temporary = _write(out / f".{MARKER}", json.dumps(world, indent=1) + "\n")
    os.replace(temporary, out / MARKER)
    (out / _BUILDING).unlink()


def scene_of(config: WorldConfig, index: int) -> tuple[Scene, Captioned]:
    """The scene with this number and its caption."""
    rng = Random(f"{config.seed}/scene/{index}")
    scene = draw_scene(rng, picture_size(rng, config.size))
    text, mentioned = caption(rng, scene.shown)
    area = sum(depicted.share for depicted in scene.shown if depicted.concept in mentioned)
    return scene, Captioned(text, mentioned, tuple(depicted.concept for depicted in scene.shown), area)


def draw_part(config: WorldConfig, out: Path, part: int, parts: int) -> tuple[dict[int, Captioned], dict[str, str]]:
    """Draw every `parts`-th picture, from number `part` on. Returns scene → caption, and path → SHA-256 of its bytes."""
    digests: dict[str, str] = {}
    behind: dict[int, set[str]] = {}
    for link in plan_links(config):
        paths = behind.setdefault(link.scene, set())
        if link.file:
            paths.add(link.file)
    captions = {}
    for index in sorted(behind)[part::parts]:
        scene, captions[index] = scene_of(config, index)
        buffer = io.BytesIO()
        scene.image.save(buffer, "JPEG", quality=90)
        for file in sorted(behind[index]):
            (out / file).write_bytes(buffer.getvalue())
            digests[file] = _digest(buffer.getvalue())
    items = [
        (split, name, index, images)
        for split, images in (("benchmarks", config.benchmark_images), ("tuning", config.tuning_images))
        for name in IMAGE_SETS
        for index in range(images)
    ]
    for split, name, index, images in items[part::parts]:
        rng = Random(f"{config.seed}/{split}/{name}/{index}")
        for path in draw_item(rng, out / split, name, index, images, config.size):
            digests[path.relative_to(out).as_posix()] = _digest(path.read_bytes())
    return captions, digests


def _draw_all(config: WorldConfig, out: Path, parts: int) -> Iterable[tuple[dict[int, Captioned], dict[str, str]]]:
    """All parts: the first here, the others each in a process of its own."""
    (out / "web" / "moved").mkdir(parents=True)
    job = {"config": asdict(config), "out": str(out.resolve()), "parts": parts}
    command = [sys.executable, "-m", "miniature.worker"]
    workers = [
        # Its standard input is the lifeline by which a worker ends with this process.
        subprocess.Popen(
            [*command, json.dumps(job | {"part": part})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).parents[1],
        )
        for part in range(1, parts)
    ]
    try:
        yield draw_part(config, out, 0, parts)
        for worker in workers:
            assert worker.stdout is not None
            printed = worker.stdout.read()
            if (code := worker.wait()) < 0:
                raise InputError(f"{out}: a drawing process was killed by signal {-code}; free some memory and run it again")
            if code:
                raise RuntimeError(f"a drawing process ended with code {code}")
            answer = json.loads(printed)
            if isinstance(answer, dict):
                raise OSError(*answer["os_error"])
            captions, digests = answer
            yield {int(index): Captioned(**values) for index, values in captions.items()}, digests
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _is_complete(config: WorldConfig, out: Path) -> bool:
    try:
        world = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    if world.get("config") != asdict(config) or world.get("code") != _code_digest():
        return False
    there = [path for name in _OUTPUTS for path in (out / name).rglob("*") if path.is_file()]
    there += [out / name for name in _OUTPUTS if (out / name).is_file()]
    sizes = [path.stat().st_size for path in there]
    return bool(world["files"] == len(sizes) and world["bytes"] == sum(sizes))


def _clear(out: Path) -> None:
    """Remove another or an unfinished world, but nothing that is not ours."""
    taken = [name for name in _OUTPUTS if (out / name).exists()]
    if taken and not ((out / MARKER).exists() or (out / _BUILDING).exists()):
        raise InputError(f"{out / taken[0]}: exists and is no part of a miniature world; choose another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / _BUILDING).touch()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); choose another folder") from None
    (out / MARKER).unlink(missing_ok=True)
    for name in taken:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _count(links: list[Link], captions: dict[int, Captioned]) -> dict[str, Any]:
    true = [captions[link.scene] for link in links if link.kind == "true"]
    urls = {link.path: link for link in links}
    mentions = Counter(CONCEPTS[concept].name for scene in true for concept in scene.mentioned)

    def mean(value: Callable[[Captioned], float]) -> float:
        return round(sum(map(value, true)) / len(true), 4)

    return {
        "links": len(links),
        "urls": len(urls),
        "kinds": dict(sorted(Counter(link.kind for link in links).items())),
        "faults": dict(sorted(Counter(link.fault["fault"] for link in urls.values() if link.fault).items())),
        "mentions": {concept.name: mentions[concept.name] for concept in CONCEPTS},
        "shown_per_scene": mean(lambda scene: len(scene.shown)),
        "mentioned_per_caption": mean(lambda scene: len(scene.mentioned)),
        "area_mentioned": mean(lambda scene: scene.area),
    }


def _code_digest() -> str:
    folder = Path(__file__).parent
    return _digest(b"".join((folder / f"{module}.py").read_bytes() for module in _CODE))


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
