"""Opt-outs: what is asked to be forgotten goes into the run's list, and what was known of it into its record."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

from filtering.files import replacing
from filtering.link_set import FORGOTTEN, LinkSet, forgotten_in, write_forgotten
from pipelines.app.config import ConfigError
from pipelines.app.settings import Config
from pipelines.lineages.answer import Answer
from pipelines.lineages.look_up import RECORD, content_of, look_up, read_record


def forget(config: Config, links: LinkSet, notes: list[str]) -> list[Answer]:
    """Put links and keys on the list of the run in `config.run_dir`, which this process holds; returns what is known of each.

    A key stands for its image: the link goes on the list as well, or where there is none the keys of all captions. What is on
    the list already stays as it is. `notes` gets lines on what is damaged, which keeps nobody from being forgotten. Raises
    ConfigError where the run shares its data with others.
    """
    folder = Path(config.run_dir)
    if shared := next((folder / name for name in ("corpus", "shards") if (folder / name).is_symlink()), None):
        raise ConfigError(f"run_dir: {shared} is what runs of a sweep share, and they are compared; forget, then sweep anew")
    before = forgotten_in(folder)
    answers = look_up(config, links.names, notes)
    _write_record(folder, answers)
    write_forgotten(folder, before.with_more(name for answer in answers for name in _names(answer)))
    return [replace(answer, forgotten=True) for answer in answers]


def _names(answer: Answer) -> list[str]:
    """What stands for an image on the list."""
    if not answer.urls:
        return [answer.name, *sorted(answer.keys)]
    own = {one.key for one in answer.places} if not answer.download else set()  # tars of the user's own go by keys
    return [answer.name, *sorted(answer.urls), *sorted(own)]


def _write_record(folder: Path, answers: Sequence[Answer]) -> None:
    """Add answers that are not there yet to the record, whole or not at all; damaged lines stay in it."""
    there = {line["answer"]["name"] for line in read_record(folder, [])}
    new = [{**asdict(answer), "before": []} for answer in answers if answer.name not in there]
    before, day = content_of(folder / RECORD), datetime.now(UTC).date().isoformat()
    cut = b"\n" if before and not before.endswith(b"\n") else b""
    with replacing(folder / RECORD) as temporary:
        lines = (json.dumps({"day": day, "answer": answer}).encode() + b"\n" for answer in new)
        temporary.write_bytes(b"".join([before, cut, *lines]))


def consequences(answers: Sequence[Answer], run_dir: Path) -> list[str]:
    """What the run's next start will do about it, in lines."""
    tars = sorted({one.tar for answer in answers for one in answer.places if answer.download})
    own = any(answer.places and not answer.download for answer in answers)
    lines = [f"{run_dir / FORGOTTEN}: {len(forgotten_in(run_dir).names)} links and keys that no later shard or batch has"]
    if tars:
        lines.append(f"the next start of the run writes {len(tars)} tar{'s'[: len(tars) > 1]} anew without them")
    if own:
        lines.append("tars of train.shards stay as they are: the next start leaves the samples out")
    if tars or own:
        lines.append("trainings then begin anew on what is left; what is trained is kept in train/before")
    return lines
