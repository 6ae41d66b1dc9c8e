"""Tokens and prompts."""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from owseg import InputError

if TYPE_CHECKING:  # open_clip takes seconds to import, and settings are read without it
    import open_clip

CLIP_VOCABULARY = 49408

# CLIP's seven best ImageNet templates, as its authors named them.
_IMAGENET7 = (
    "itap of a {}.",
    "a bad photo of a {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
_TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": ("{}",),
    "simple": ("a photo of a {}.",),
    "imagenet7": _IMAGENET7,
    # TCL's evaluation prompts: those seven and two for things that come in numbers.
    "tcl": (*_IMAGENET7, "a photo of many {}.", "a photo of {}s."),
    "maskclip": (
        "there is a {} in the scene.",
        "there is the {} in the scene.",
        "this is a {} in the scene.",
        "this is the {} in the scene.",
        "this is one {} in the scene.",
    ),
}
TEMPLATES = (*_TEMPLATES, "imagenet80")
"""Names of the prompt template sets."""
MAX_NAMED, SHOWN = 3, 60
"""Cut names in a line, and characters of each."""
ReadTexts = Callable[[list[str]], torch.Tensor]
"""A row for each text: its token ids [n, context length], or what a frozen tower has made of it [n, D]."""


class Tokenizer(Protocol):
    """What makes tokens of texts for a text tower."""

    def __call__(self, texts: str | Sequence[str]) -> torch.Tensor:
        """Token ids [n, context length] int64 of texts, padded; longer ones are cut."""
        ...

    def encode(self, text: str) -> Sequence[int]:
        """All ids of a text, however long, without those that open and close it."""
        ...


def clip_tokenizer(vocabulary: int, context_length: int) -> Tokenizer:
    """CLIP's byte-pair tokenizer; a vocabulary below 49408 keeps its most frequent merges only (small text towers)."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    with tempfile.TemporaryDirectory(prefix="owseg-bpe-") as folder:
        bpe = default_bpe() if vocabulary == CLIP_VOCABULARY else _first_merges(vocabulary, Path(folder))
        tokenizer: Tokenizer = SimpleTokenizer(bpe_path=bpe, context_length=context_length)
    return tokenizer


def check_templates(name: str) -> None:
    """Raise InputError where no set of prompt templates has this name."""
    if name not in TEMPLATES:
        raise InputError(f"templates: {name!r} is none of {', '.join(TEMPLATES)}")


def prompt_templates(name: str) -> tuple[str, ...]:
    """The templates of one of TEMPLATES; `{}` stands for the class name. "imagenet80" is CLIP's whole ImageNet set."""
    if name != "imagenet80":
        return _TEMPLATES[name]
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES)


def shortened(tokenize: Tokenizer, names: Sequence[str], templates: Sequence[str]) -> tuple[str, ...]:
    """The names that a text tower reads without their end, in a template at least.

    Raises InputError where two different ones are the same to it: one of them would get all pixels, and the other none.
    """
    room = tokenize("").shape[-1] - 2  # what opens and closes a text takes two
    cut = [name for name in dict.fromkeys(names) if any(_is_cut(tokenize, one.format(name), room) for one in templates)]
    read: dict[bytes, str] = {}
    for name in cut:
        other = read.setdefault(tokenize([one.format(name) for one in templates]).numpy().tobytes(), name)
        if other != name:
            raise InputError(
                f"{_brief(other)} and {_brief(name)} are the same in the first {room + 2} tokens, which are all that the text "
                "tower reads; shorten them"
            )
    return tuple(cut)


def told_shortened(names: Sequence[str]) -> str:
    """A line about names that were cut."""
    some = ", ".join([*map(_brief, names[:MAX_NAMED]), *["..."][: len(names) > MAX_NAMED]])
    return f"{len(names)} name{'s are' if len(names) > 1 else ' is'} longer than the text tower reads, and cut: {some}"


def _is_cut(tokenize: Tokenizer, prompt: str, room: int) -> bool:
    return len(prompt.encode()) > room and len(tokenize.encode(prompt)) > room  # a token is a byte at least


def _brief(name: str) -> str:
    """A name with its end left out, where that is far."""
    return repr(name if len(name) <= SHOWN else f"{name[: SHOWN // 2]} ... {name[-SHOWN // 2 :]}")


def _first_merges(vocabulary: int, folder: Path) -> str:
    """A merges file in `folder`, cut to `vocabulary` entries: 2 * 256 bytes, the merges, start and end of text."""
    from open_clip.tokenizer import default_bpe

    header, *merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    path = folder / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join([header, *merges[: vocabulary - 514]]).encode()))
    return str(path)


@torch.no_grad()
def embed_prompts(
    clip: "open_clip.CLIP",
    tokenize: Tokenizer,
    names: Sequence[str],
    templates: Sequence[str],
    *,
    unit_prompts: bool = False,
    chunk: int = 1024,
) -> torch.Tensor:
    """Class embeddings [n, E]: the L2-normalised mean over the prompts of a name.

    TCL takes the mean of the embeddings as they are; with `unit_prompts` each is L2-normalised first (CLIP's own order).
    """
    device = clip.positional_embedding.device
    prompts = [template.format(name) for name in names for template in templates]
    parts = [clip.encode_text(tokenize(prompts[i : i + chunk]).to(device)) for i in range(0, len(prompts), chunk)]
    embeddings = torch.cat(parts).reshape(len(names), len(templates), -1)
    if unit_prompts:
        embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    return torch.nn.functional.normalize(embeddings.mean(dim=1), dim=-1)
