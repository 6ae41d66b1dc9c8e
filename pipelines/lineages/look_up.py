"""What a run knows of images: looked up together, answered one by one."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filtering.link_set import LinkSet, forgotten_in
from pipelines.app.own_shards import tars_at
from pipelines.app.settings import Config
from pipelines.lineages.answer import Answer, CorpusRow, Downloaded, Place, TrainingSaw
from pipelines.lineages.places import concerns, corpus_rows, downloaded, downloaded_like, keys_by_url, places
from pipelines.lineages.trainings import Training, trainings_of
from storage.copies import shown
from storage.indexes import IndexFile, indexes_of
from storage.understood import Noted, shaped, understood

RECORD = "forgotten.jsonl"
"""In a run's folder: what was known of each image when it was forgotten."""
_ROW, _STEPS = {"key": str, "url": str}, [[int, int]]
_SAW = {
    "training": str,
    "fingerprint": str,
    "steps": int,
    "unknown": str,
    "shown": _STEPS,
    "partner": _STEPS,
    "checkpoints": [{"path": str, "steps": int, "times": int}],
}
_LINE = {
    "day": str,
    "answer": {
        "name": str,
        "corpus": [_ROW],
        "download": [{**_ROW, "keys": [str]}],
        "places": [{"tar": str, "sample": int}],
        "trainings": [_SAW],
    },
}
"""Of the record."""


def look_up(config: Config, names: Sequence[str], notes: list[str]) -> list[Answer]:
    """What the run in `config.run_dir` knows of some links and keys, in their order; `notes` gets lines on what is damaged."""
    folder, links = Path(config.run_dir), LinkSet().with_more(names)
    rows = corpus_rows(folder / "corpus", links)
    links = links.with_more([row.url for row in rows if row.url])
    found = downloaded(folder / "shards", links)
    # A key may be that of a further caption: the link's other rows are the same image's.
    more = LinkSet().with_more([*(row.url for row in found if row.url), *(key for row in found for key in row.keys)])
    rows = corpus_rows(folder / "corpus", links.with_more(more.names)) if more.ids - links.ids else rows
    indexes = _indexes(config, found)
    by_url = keys_by_url(indexes, links) if config.train.shards else {}
    keys = {row.key for row in found} | by_url.keys() | {*links.names}
    return _answers(config, names, rows, found, places(indexes, keys), by_url, read_record(folder, notes))


def look_up_image(config: Config, image: Path, notes: list[str]) -> list[Answer]:
    """What the run knows of an image file: an answer for each picture of the download that is or looks like it."""
    found = downloaded_like(Path(config.run_dir) / "shards", image, config.download.image)
    answers = look_up(config, [row.key for row in found], notes)
    like = {row.key: row.likeness for row in found}
    return [
        replace(answer, download=[replace(row, likeness=like.get(row.key, "")) for row in answer.download])
        for answer in answers
    ]


def _indexes(config: Config, found: Iterable[Downloaded]) -> list[IndexFile]:
    """Those of the tars that may hold what is looked for."""
    if config.train.shards:
        return indexes_of(tars_at(config.train.shards))
    shards = Path(config.run_dir) / "shards"
    tars = sorted({Path(row.file).with_suffix(".tar").name for row in found if row.status == "success"})
    return indexes_of([shards / name for name in tars])


def _answers(
    config: Config,
    names: Sequence[str],
    rows: Sequence[CorpusRow],
    found: Sequence[Downloaded],
    samples: Sequence[Place],
    by_url: Mapping[str, str],
    record: Sequence[Mapping[str, Any]],
) -> list[Answer]:
    folder = Path(config.run_dir)
    forgotten, trainings = forgotten_in(folder), trainings_of(config)
    answers = []
    for name in names:
        download = [row for row in found if concerns(name, row.keys, [row.url])]
        urls, keys = {row.url for row in download if row.url}, {key for row in download for key in row.keys} | {name}
        corpus = [row for row in rows if row.key in keys or concerns(name, (row.key,), [row.url]) or row.url in urls]
        keys |= {key for key, url in by_url.items() if concerns(name, (), [url])}
        here = [one for one in samples if one.key in keys]
        answer = Answer(
            name=name,
            run=shown(folder),
            forgotten=False,
            corpus=corpus,
            download=download,
            places=here,
            trainings=seen_by(trainings, frozenset(one.key for one in here)),
            before=[_moved(one, trainings) for one in record if _is_of(one, name, keys, urls)],
        )
        answers.append(replace(answer, forgotten=any(one in forgotten for one in (name, *answer.keys, *answer.urls))))
    return answers


def seen_by(trainings: Iterable[Training], keys: frozenset[str]) -> list[TrainingSaw]:
    """What trainings showed of samples of these keys."""
    found = (training.saw(keys) for training in trainings) if keys else ()
    return [saw for saw in found if saw is not None]


def read_record(run_dir: Path, notes: list[str]) -> list[dict[str, Any]]:
    """What was known when images were forgotten: lines of {"day", "answer"}; `notes` gets one on each that is damaged."""
    file, found = run_dir / RECORD, []
    for number, line in enumerate(content_of(file).split(b"\n"), start=1):
        if line.strip():
            with Noted(f"{file}: line {number}", notes):
                found.append(shaped(json.loads(line), _LINE))
    return found


def content_of(record: Path) -> bytes:
    """The bytes of the record; none where there is none. Raises InputError where it cannot be read."""
    with understood(record, "move it away, and ask again", also=(OSError,)):
        return record.read_bytes() if record.exists() else b""


def _is_of(line: Mapping[str, Any], name: str, keys: set[str], urls: set[str]) -> bool:
    answer = line["answer"]
    told = {key for row in answer["download"] for key in row["keys"]} | {row["key"] for row in answer["corpus"]}
    links = {row["url"] for row in (*answer["corpus"], *answer["download"]) if row["url"]}
    return name == answer["name"] or bool(told & keys) or bool(links & urls) or concerns(name, told, links)


def _moved(line: Mapping[str, Any], trainings: Iterable[Training]) -> dict[str, Any]:
    """A line of the record with its trainings where they lie now: one that began anew has put them aside."""
    now = {training.fingerprint: training.path for training in trainings if training.fingerprint}
    answer = dict(line["answer"])
    answer["trainings"] = [_at(saw, now.get(saw["fingerprint"], "")) for saw in answer["trainings"]]
    return {"day": line["day"], "answer": answer}


def _at(saw: Mapping[str, Any], path: str) -> dict[str, Any]:
    """What a training showed, with its paths below `path`; "" where it is gone."""
    told = dict(saw)
    before, told["training"] = told["training"], path or f"{told['training']} (deleted since)"
    told["checkpoints"] = [
        {**one, "path": path + one["path"].removeprefix(before) if path else one["path"]} for one in told["checkpoints"]
    ]
    return told
