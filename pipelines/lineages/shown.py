"""Answers for people: a block for one image, a table for several."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.lineages.answer import Answer

MAX_LISTED = 8
"""Steps, and captions, that a block lists; --json has all of them."""
LABEL = 12


def show(answers: Sequence[Answer], *, as_json: bool) -> None:
    """Print answers."""
    if as_json:
        print(json.dumps([asdict(answer) for answer in answers], indent=1))
    elif len(answers) == 1:
        print("\n".join(block(answers[0])))
    else:
        Console(soft_wrap=True).print(table(answers))


def block(answer: Answer) -> list[str]:
    """All that there is to say about one image, in lines."""
    lines = [answer.name, *_line("run", answer.run)]
    if answer.forgotten:
        lines += _line("forgotten", "it is on the run's list: no later shard and no later batch has it")
    if not answer.known:
        return [*lines, *_line("unknown", "neither the corpus nor the shards of this run have met it")]
    for row in answer.corpus[:MAX_LISTED]:
        status = "kept" if row.status == "kept" else f"dropped as {row.status}"
        lines += _line("corpus", f'{status}: {row.key} "{row.caption}" ({row.file})')
    lines += _more("corpus", len(answer.corpus), "captions")
    for one in answer.download:
        reason = f" ({one.message})" if one.message else ""
        lines += _line("download", f"{one.status}{reason}: {one.url or one.key} ({one.file})")
        lines += _line("", one.likeness) if one.likeness else []
    for place in answer.places:
        lines += _line("shard", f"{place.tar}: sample {place.sample} of {place.samples}, {place.key}, at byte {place.offset}")
    if answer.places and not answer.trainings:
        lines += _line("trainings", "none has shown it")
    for saw in answer.trainings:
        lines += _training(asdict(saw))
    for line in answer.before:
        told = line["answer"]
        where = ", ".join(f"{place['tar']} (sample {place['sample']})" for place in told["places"]) or "no shard"
        lines += _line("before", f"when it was forgotten, on {line['day']}, it was in {where}")
        for seen in told["trainings"]:
            lines += _training(seen)
    return lines


def table(answers: Sequence[Answer]) -> Table:
    """A row for each image: what became of it, and how often each training showed it."""
    found = Table("image", "corpus", "download", "shard", "shown")
    for answer in answers:
        corpus = ", ".join(dict.fromkeys(row.status for row in answer.corpus)) or "-"
        download = ", ".join(dict.fromkeys(row.status for row in answer.download)) or "-"
        tars = ", ".join(f"{place.tar.rpartition('/')[2]} #{place.sample}" for place in answer.places) or "-"
        saw = [f"{_times(asdict(one))} {one.training.removeprefix('train/')}" for one in answer.trainings]
        saw += [
            f"{_times(seen)} {seen['training'].removeprefix('train/')} (before)"
            for line in answer.before
            for seen in line["answer"]["trainings"]
        ]
        name = f"{answer.name} (forgotten)" if answer.forgotten else answer.name
        found.add_row(*map(_plain, (name, corpus if answer.known else "unknown", download, tars, "\n".join(saw) or "-")))
    return found


def _training(saw: Mapping[str, Any]) -> list[str]:
    left_out = [line for told in saw.get("left_out", ()) for line in _line("", told)]
    if saw["unknown"]:
        told = f"after {saw['steps']} steps; which it was shown in cannot be told: {saw['unknown']}"
        return [*_line(saw["training"], told), *left_out]
    lines = _line(saw["training"], f"shown {_times(saw)} in {saw['steps']} steps: {_steps(saw['shown'])}")
    if saw["partner"]:
        lines += _line("", f"as the partner of another image: {_steps(saw['partner'])}")
    for one in saw["checkpoints"]:
        lines += _line("", f"{one['path']}: {one['steps']} steps, shown {one['times']}x")
    return lines + left_out


def _times(saw: Mapping[str, Any]) -> str:
    return "? times" if saw["unknown"] else f"{len(saw['shown']) + len(saw['partner'])}x"


def _steps(shown: Sequence[Sequence[int]]) -> str:
    if not shown:
        return "none for itself"
    told = ", ".join(f"step {step} place {place}" for step, place in shown[:MAX_LISTED])
    return f"{told}, and {len(shown) - MAX_LISTED} more (--json)" if len(shown) > MAX_LISTED else told


def _line(label: str, text: str) -> list[str]:
    return [f"  {label:<{LABEL}}{_plain(text)}" if len(label) < LABEL else f"  {label} {_plain(text)}"]


def _more(label: str, number: int, what: str) -> list[str]:
    return _line(label, f"and {number - MAX_LISTED} more {what} (--json)") if number > MAX_LISTED else []


def _plain(text: str) -> str:
    """Text from elsewhere, without what would move a terminal's cursor."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)
