"""The whole chain on a handful of real photos: a folder of COCO's own annotations stands in for the web and for a benchmark.

    python tools/coco_mini.py SOURCE OUT [key.sub=value ...]

SOURCE has `images/`, `annotations/captions_*.json` and `annotations/instances_*.json`, as COCO publishes them. Its captions
become the links of `OUT/links.tsv`, a local server answers for their host with its photos, and its instances become an
evaluation set in the layout of COCO-Object under `OUT/benchmarks`. The run itself, `configs/coco_mini.yaml`, is in `OUT/run`.
"""

import argparse
import io
import json
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
from pycocotools import mask as rle  # type: ignore[import-untyped]

from miniature.server import serve
from owseg import InputError
from owseg.evaluation.datasets import BENCHMARKS
from owseg.evaluation.rle import decode as decode_runs
from pipelines import full
from pipelines.app import cli
from pipelines.app.config import ConfigError
from pipelines.app.outcome import USER_MISTAKE

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "coco_mini.yaml"
HOST = "photos.coco.test"
LABELS = BENCHMARKS["coco_object"].names
"""Class names in label order, the background first."""

Annotation = Mapping[str, Any]


def prepare(source: Path, out: Path) -> None:
    """Write the links and the benchmark of `source` into `out`; files that are right already keep their times.

    Raises ConfigError that names what is missing or does not fit.
    """
    captions = _read(source, "captions")
    instances = _read(source, "instances")
    names = {image["id"]: str(image["file_name"]) for image in captions["images"]}
    _put(out / "links.tsv", "".join(links(captions["annotations"], names)).encode())
    benchmark = out / "benchmarks" / "coco_stuff164k"
    wanted = set()
    for image, name, label in label_maps(instances, source / "images"):
        wanted.add(name)
        _put(benchmark / "images" / "val2017" / name, image)
        buffer = io.BytesIO()
        Image.fromarray(label).save(buffer, "PNG")
        _put(benchmark / "annotations" / "val2017" / f"{Path(name).stem}_instanceTrainIds.png", buffer.getvalue())
    if strangers := {path.name for path in (benchmark / "images" / "val2017").iterdir()} - wanted:
        raise ConfigError(f"{out} holds photos of another source ({min(strangers)}); choose another folder or delete it")


def links(annotations: Sequence[Annotation], names: Mapping[int, str]) -> Iterator[str]:
    """A line `url<TAB>caption` for each caption; captions of one photo share its URL."""
    for annotation in annotations:
        yield f"http://{HOST}/{quote(names[annotation['image_id']])}\t{' '.join(annotation['caption'].split())}\n"


def label_maps(instances: Mapping[str, Any], photos: Path) -> Iterator[tuple[bytes, str, np.ndarray]]:
    """(encoded photo, file name, label map [H, W] uint8) of every image: things 1..80 in COCO's order, 0 elsewhere."""
    labels = {category["id"]: _label_of(category["name"]) for category in instances["categories"]}
    by_image = defaultdict(list)
    for annotation in instances["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    for image in instances["images"]:
        file = photos / image["file_name"]
        try:
            content = file.read_bytes()
            with Image.open(io.BytesIO(content)) as photo:
                width, height = photo.size
        except OSError as error:
            raise ConfigError(f"{file}: not a readable photo ({error.strerror or error})") from None
        if (width, height) != (image["width"], image["height"]):
            raise ConfigError(f"{file}: {width}x{height} pixels, annotated as {image['width']}x{image['height']}")
        yield content, file.name, label_map(by_image[image["id"]], labels, (height, width))


def label_map(annotations: Sequence[Annotation], labels: Mapping[int, int], shape: tuple[int, int]) -> np.ndarray:
    """The label map [H, W] uint8 of one image's instances: polygons, or run lengths for crowds.

    Where instances overlap the smaller one lies on top, and any single instance on a crowd: a cup is drawn on its table.
    The official maps come from drawings of their own, so that they may settle some overlaps otherwise.
    """
    drawn = np.zeros(shape, np.uint8)
    for annotation in sorted(annotations, key=lambda one: (not one["iscrowd"], -one["area"], one["id"])):
        drawn[decode(annotation["segmentation"], shape)] = labels[annotation["category_id"]]
    return drawn


def decode(segmentation: Any, shape: tuple[int, int]) -> np.ndarray:
    """The mask [H, W] bool of an instance: a list of polygons, or run lengths as numbers or as COCO's compressed text."""
    if isinstance(segmentation, dict):
        return decode_runs(segmentation, shape)
    mask: np.ndarray = rle.decode(rle.merge(rle.frPyObjects(segmentation, *shape))).astype(bool)
    return mask


def _label_of(name: str) -> int:
    if name not in LABELS:
        raise ConfigError(f"instances: {name!r} is none of COCO's 80 things")
    return LABELS.index(name)


def _read(source: Path, kind: str) -> dict[str, Any]:
    files = sorted((source / "annotations").glob(f"{kind}_*.json"))
    if len(files) != 1:
        raise ConfigError(f"{source}: {len(files)} files annotations/{kind}_*.json; give a folder with exactly one")
    try:
        content: dict[str, Any] = json.loads(files[0].read_bytes())
    except ValueError as error:
        raise ConfigError(f"{files[0]}: not JSON ({error})") from None
    if not {"images", "annotations"} <= content.keys():
        raise ConfigError(f"{files[0]}: no COCO annotations; it must have 'images' and 'annotations'")
    return content


def _put(file: Path, content: bytes) -> None:
    """Write unless the file is there with this content: the stages look at names, sizes and times."""
    if file.is_file() and file.read_bytes() == content:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare, serve, run. Exit codes as those of `pipelines/full.py`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with images/ and annotations/")
    parser.add_argument("out", type=Path, help="folder of everything this writes")
    parser.add_argument("settings", nargs="*", metavar="key.sub=value", help="settings over those of configs/coco_mini.yaml")
    options = parser.parse_args(arguments)
    source, out = options.source.resolve(), options.out.resolve()
    try:
        prepare(source, out)
    except (ConfigError, InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_MISTAKE
    with serve(source / "images") as address:
        settings = {
            "run_dir": out / "run",
            "filter.source.path": out / "links.tsv",
            "download.fetch.connect_to": json.dumps({HOST: address}),
            "evaluate.root": out / "benchmarks",
        }
        argv = ["--config", str(CONFIG), *(f"{key}={value}" for key, value in settings.items()), *options.settings]
        return cli.main(full.run, doc=__doc__ or "", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
