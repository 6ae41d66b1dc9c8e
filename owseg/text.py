"""Tokens and prompts."""

import gzip
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:  # open_clip takes seconds to import, and settings are read without it
    import open_clip

CLIP_VOCABULARY = 49408

TEMPLATES: dict[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    # TCL's evaluation prompts: CLIP's seven best ImageNet templates and two for things that come in numbers.
    "tcl": (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
        "a photo of many {}.",
        "a photo of {}s.",
    ),
}
"""Prompt templates by name; `{}` stands for the class name."""

Tokenizer = Callable[[str | Sequence[str]], torch.Tensor]
"""Texts in, token ids [n, context length] out (int64, end-of-text = the largest id, zero-padded)."""


def clip_tokenizer(vocabulary: int, context_length: int) -> Tokenizer:
    """CLIP's byte-pair tokenizer; a vocabulary below 49408 keeps its most frequent merges only (small text towers)."""
    from open_clip.tokenizer import SimpleTokenizer, default_bpe

    bpe = default_bpe() if vocabulary == CLIP_VOCABULARY else _first_merges(vocabulary)
    tokenizer: Tokenizer = SimpleTokenizer(bpe_path=bpe, context_length=context_length)
    return tokenizer


@cache
def _first_merges(vocabulary: int) -> str:
    """A merges file cut to `vocabulary` entries: 2 * 256 bytes, the merges, start and end of text."""
    from open_clip.tokenizer import default_bpe

    header, *merges = gzip.decompress(Path(default_bpe()).read_bytes()).decode().split("\n")
    folder = Path(tempfile.mkdtemp(prefix="owseg-bpe-"))
    path = folder / "merges.txt.gz"
    path.write_bytes(gzip.compress("\n".join([header, *merges[: vocabulary - 514]]).encode()))
    return str(path)


@torch.no_grad()
def embed_prompts(
    clip: "open_clip.CLIP", tokenize: Tokenizer, names: Sequence[str], templates: Sequence[str], *, chunk: int = 1024
) -> torch.Tensor:
    """Class embeddings [n, E]: the mean of the un-normalised prompt embeddings, then L2-normalised (TCL's order)."""
    device = clip.positional_embedding.device
    prompts = [template.format(name) for name in names for template in templates]
    parts = [clip.encode_text(tokenize(prompts[i : i + chunk]).to(device)) for i in range(0, len(prompts), chunk)]
    embeddings = torch.cat(parts).reshape(len(names), len(templates), -1).mean(dim=1)
    return torch.nn.functional.normalize(embeddings, dim=-1)
