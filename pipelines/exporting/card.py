"""The model card of an export, README.md with the hub's YAML head. What is not known is said to be so."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from owseg.encoders import PRETRAIN
from owseg.evaluation.intervals import AVERAGE
from pipelines.exporting.origin import Origin

CARD = "README.md"
UNKNOWN = "Not recorded: the checkpoint does not lie in the folder of the run that made it."
WHOLE = "Masks, and the scores below, are the whole method's: other libraries load its towers, which give embeddings."
SIGNS = str.maketrans({"|": "\\|", "<": "&lt;", ">": "&gt;", "`": "'", "[": "\\[", "*": "\\*", "\n": " ", "\r": " "})
"""What would be markup in a card."""
SHOWN_OPTIM = ("batch_size", "lr", "weight_decay", "warmup", "schedule")


def write_card(folder: Path, origin: Origin, loads: Mapping[str, str], library: str) -> None:
    """Write the card. loads: what loads each part of the export; library: the hub's name of the one that loads its root."""
    head = yaml.safe_dump(_head(origin, library), sort_keys=False, allow_unicode=True)
    sections = [
        ("How it loads", [*_table(("part", "loaded by"), [*loads.items()]), "", WHOLE]),
        ("Data", _data(origin)),
        ("Leakage", _leakage(origin)),
        ("Scores", _scores(origin)),
        ("Training", _training(origin)),
        ("Licences", _licences(origin)),
        ("Limitations", _limitations(origin)),
    ]
    text = "\n".join(f"## {title}\n\n{chr(10).join(lines)}\n" for title, lines in sections)
    what = "Zero-shot semantic segmentation of any labels, learned from image-caption pairs and no mask."
    (folder / CARD).write_text(f"---\n{head}---\n\n# {plain(origin.name)}\n\n{what}\n\n{text}", encoding="utf-8")


def plain(value: object) -> str:
    """Text that is no markup, whatever it holds."""
    return str(value).translate(SIGNS)


def _head(origin: Origin, library: str) -> dict[str, Any]:
    results = [
        {
            "task": {"type": "image-segmentation", "name": "zero-shot semantic segmentation"},
            "dataset": {"name": _set_name(origin, dataset), "type": dataset},
            "metrics": [{"type": "mean_iou", "name": "mIoU (%)", "value": round(value, 2)}],
        }
        for dataset, value in origin.scores.items()
        if dataset != AVERAGE
    ]
    head: dict[str, Any] = {"license": "apache-2.0" if origin.is_generated else "other"}
    if not origin.is_generated:
        head["license_name"] = "see-licences-below"
    head |= {"library_name": library} if library else {}
    head |= {
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "zero-shot", "open-vocabulary", origin.name],
    }
    if origin.source:
        head["datasets"] = [origin.dataset]
    return head | ({"model-index": [{"name": origin.name, "results": results}]} if results else {})


def _data(origin: Origin) -> list[str]:
    filtered, downloaded = origin.stage("filter"), origin.stage("download")
    if not origin.config:
        return [UNKNOWN]
    lines = [f"- source: {plain(origin.source)}"]
    if filtered:
        dropped = ", ".join(f"{count} {plain(why)}" for why, count in filtered.get("dropped", {}).items())
        lines += [
            f"- corpus: {filtered.get('kept')} of {filtered.get('links')} links kept; dropped: {dropped or 'none'}",
            f"- SHA-256 of the corpus: {plain(filtered.get('digest'))}",
        ]
    if downloaded:
        lines += [
            f"- images: {downloaded.get('success')} of {downloaded.get('links')} obtained",
            f"- SHA-256 of the shards: {plain(downloaded.get('digest'))}",
        ]
    return lines


def _leakage(origin: Origin) -> list[str]:
    leakage = origin.stage("filter").get("leakage", {})
    if not leakage:
        return [UNKNOWN]
    rows = [(name, f"{100 * share:.1f}") for name, share in leakage.items()]
    told = "Share of the corpus's captions that mention a class of a benchmark: how far its classes are not new to the model."
    return [told, "", *_table(("benchmark", "captions (%)"), rows)]


def _scores(origin: Origin) -> list[str]:
    if not origin.scores:
        return [UNKNOWN if not origin.config else "Not evaluated by its run."]
    evaluated = origin.stage("evaluate")
    intervals = evaluated.get("intervals", {}).get(origin.name, {})
    images = evaluated.get("images", {})
    rows = [
        (
            dataset if dataset == AVERAGE else _set_name(origin, dataset),
            f"{value:.1f}",
            "{:.1f}..{:.1f}".format(*intervals[dataset]) if dataset in intervals else "",
            str(images.get(dataset, "")),
        )
        for dataset, value in origin.scores.items()
    ]
    return [
        f"mIoU in percent, zero-shot; {plain(evaluated.get('protocol'))}. Intervals: 95 %, over resampled images.",
        "",
        *_table(("benchmark", "mIoU", "interval", "images"), rows),
    ]


def _training(origin: Origin) -> list[str]:
    if not origin.training:
        return ["None: the method reads a CLIP as it is."]
    lines = []
    for number, phase in enumerate(origin.training.get("phases", ()), 1):
        optim = phase.get("optim") or origin.training.get("optim", {})
        told = ", ".join(f"{key} {optim[key]}" for key in SHOWN_OPTIM if key in optim)
        lines.append(f"- phase {number}: {phase['steps']} steps, {plain(told)}; trains {plain(', '.join(phase['train']))}")
    encoder = origin.config.get("encoder") or origin.settings.get("encoder", {})
    if "encoder" in origin.settings and encoder.get("pretrained") == PRETRAIN:
        lines.append("- built on a CLIP that the run trained first, on the same pairs")
    elif "encoder" in origin.settings:
        model, weights = (plain(Path(str(encoder.get(key))).name) for key in ("model", "pretrained"))
        lines.append(f"- built on the CLIP {model} with the weights {weights}")
    if origin.tower == PRETRAIN:
        lines.append("- its image tower was trained by the run first, on the same images and no text")
    elif origin.tower:
        lines.append(f"- its image tower is {plain(Path(origin.tower).name)}, frozen")
    if costs := origin.stage("train").get("costs", {}).get(origin.name, {}):
        hours = costs.get("cpu_seconds", 0) / 3600
        lines.append(
            f"- compute: {costs.get('pairs')} pairs in {costs.get('steps')} steps, {hours:.2f} hours of processor time, "
            f"{costs.get('peak_memory_mb', 0):.0f} MiB at the most in a process"
        )
    if origin.config:
        lines.append(f"- seed: {origin.config.get('seed')}")
    digests = origin.settings.get("sha256", {})
    return [*lines, *(f"- SHA-256 of {plain(Path(name).name)} as trained: {digest}" for name, digest in digests.items())]


def _licences(origin: Origin) -> list[str]:
    lines = ["- The code that made it is Apache-2.0."]
    if origin.is_generated:
        return [*lines, "- Its captions and images are generated by that code; no one else's work is in the weights."]
    encoder = origin.settings.get("encoder", {}).get("pretrained", "")
    if encoder and not Path(encoder).suffix:
        lines.append(f"- It holds the CLIP weights '{plain(encoder)}' or what was learned on them: their licence applies.")
    if origin.tower not in ("", PRETRAIN):
        lines.append(f"- Its image tower is '{plain(Path(origin.tower).name)}': its licence applies.")
    return [*lines, "- Captions and images belong to those who made them. Look at the terms of the data's source before use."]


def _limitations(origin: Origin) -> list[str]:
    lines = [
        "- Masks follow what captions speak of: labels that captions seldom name, parts, and small things are found badly.",
        "- A label is what its text tower makes of a short text; two names of one thing may give two masks.",
        "- Captions from the web carry their authors' views of people and places into the masks.",
        "- Scores on benchmarks say little of other images; nothing here was made or checked for decisions about people.",
    ]
    if origin.is_generated:
        lines.insert(0, "- **It has seen generated scenes alone, and knows no photos.** It shows that the pipeline works.")
    return lines


def _set_name(origin: Origin, dataset: str) -> str:
    return f"{dataset} (generated miniature)" if not origin.config.get("evaluate", {}).get("root") else dataset


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def lines() -> Iterator[str]:
        yield f"| {' | '.join(names)} |"
        yield f"|{'---|' * len(names)}"
        for row in rows:
            yield f"| {' | '.join(map(plain, row))} |"

    return [*lines()]
