"""Text towers: tokens in, a feature for every token and one for the whole sentence out.

BERT and its like through transformers, or a copy of the run's own CLIP text tower.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import Encoder
from owseg.exporting.folders import is_quick_gelu, save_clip_text
from owseg.noise import in_parts
from owseg.quiet import quiet_transformers
from owseg.text import Tokenizer

KEY = "method_settings.ovsegmentor.text_tower"
BERT_CONTEXT = 77
"""Tokens of a text that BERT reads, and to which it is padded (official OVSegmentor)."""
TOKENIZERS = {"bert-base-uncased": "distilbert-base-uncased"}
"""Models that official OVSegmentor reads with another model's tokenizer: the same vocabulary, without token types."""
LENGTH_BUCKETS = 8
"""Most buckets of similar length that a batch of texts is split into: more save padding, and make more and smaller products."""
MIN_BUCKET = 32
"""Texts of a bucket at least: below that, what a bucket costs on its own outweighs the padding that it saves."""
CLIP_MASK_WORD = "m"
"""CLIP has no mask token; the official variant with a CLIP text tower writes the token "m</w>" (332) for one."""


class Texts(NamedTuple):
    """What a tower reads in a batch of texts."""

    features: Tensor
    """[B, L, C], the last hidden states."""
    real: Tensor
    """[B, L] bool; false where a text is padded."""
    position: Tensor
    """[B] int64, the token whose feature stands for the sentence."""

    @property
    def sentence(self) -> Tensor:
        """The sentence features [B, C]."""
        return self.features[torch.arange(len(self.position), device=self.position.device), self.position]

    def sentence_alone(self) -> "Texts":
        """The same sentences as texts of one token each."""
        return Texts(self.sentence[:, None], torch.ones_like(self.real[:, :1]), torch.zeros_like(self.position))

    def padded(self, length: int) -> "Texts":
        """The same texts, `length` tokens long: 0 in `features` beyond their own."""
        more = length - self.features.shape[1]
        return Texts(F.pad(self.features, (0, 0, 0, more)), F.pad(self.real, (0, more)), self.position)


class TextTower(nn.Module):
    """What every text tower has."""

    width: int
    """Channels C of its features."""
    tokenize: Tokenizer
    """Texts to token ids [n, context] int64, padded. Picklable."""
    mask_word: str
    """What stands for a masked entity in a text."""

    def forward(self, tokens: Tensor) -> Texts:
        """Features of texts [B, L], which may be trimmed."""
        raise NotImplementedError

    def real(self, tokens: Tensor) -> Tensor:
        """[B, L] bool, true up to the last token of each text; what follows it is padding."""
        raise NotImplementedError

    def trim(self, tokens: Tensor) -> Tensor:
        """Tokens [B, L] without the trailing columns that are padding in every row."""
        return tokens[:, : int(self.real(tokens).sum(dim=1).max())]

    def forward_bucketed(self, tokens: Tensor) -> Texts:
        """`forward`, in a few buckets of texts of similar length: none is padded to the longest of them all.

        What lies beyond the end of a bucket's longest text is 0 in `features`.
        """
        count = min(LENGTH_BUCKETS, max(1, len(tokens) // MIN_BUCKET))
        lengths, order = self.real(tokens).sum(dim=1).sort()
        ends = [
            int(length) for length in torch.stack([bucket[-1] for bucket in lengths.chunk(count)]).tolist()
        ]  # one wait for a GPU
        buckets = [self(tokens[some, :end]) for some, end in zip(in_parts(order.chunk(count)), ends, strict=True)]
        back, padded = order.argsort(), [bucket.padded(ends[-1]) for bucket in buckets]
        return Texts(*(torch.cat(parts)[back] for parts in zip(*padded, strict=True)))

    def load(self) -> None:
        """Fill in pretrained weights, where the tower was built without."""

    def save(self, folder: Path) -> str:
        """Write tower and tokenizer as transformers reads them; returns what loads the folder."""
        raise NotImplementedError


class BertTokens:
    """The fast tokenizer of a transformers model as a `Tokenizer`: padded and cut to `context` tokens."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self._tokenizer, self._context = tokenizer, context

    def __call__(self, texts: str | Sequence[str]) -> Tensor:
        texts = [texts] if isinstance(texts, str) else list(texts)
        found = self._tokenizer(texts, padding="max_length", max_length=self._context, truncation=True)
        return torch.tensor(found["input_ids"], dtype=torch.int64).reshape(len(texts), self._context)

    def encode(self, text: str) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
        ids: list[int] = found["input_ids"]
        return ids

    def save(self, folder: Path) -> None:
        """Write it as transformers reads it."""
        self._tokenizer.save_pretrained(folder)


class BertTower(TextTower):
    """A transformers encoder with a mask token; the first token ([CLS]) stands for the sentence, and no pooler is kept."""

    tokenize: BertTokens
    _padding: int

    def __init__(self, name: str) -> None:
        """`name`: a transformers id or a local folder; its weights stay random until `load`."""
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self._name = name
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else its threads complain in every loader process
        with quiet_transformers(), _told(name, "no text model"):
            config = AutoConfig.from_pretrained(name)
            tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS.get(name, name))
            model = AutoModel.from_config(config, dtype=torch.float32)
        _check(name, config, tokenizer)
        if hasattr(model, "pooler"):
            model.pooler = None
        self.model = model
        self.width = config.hidden_size
        self.tokenize = BertTokens(tokenizer, min(BERT_CONTEXT, config.max_position_embeddings))
        self.mask_word = tokenizer.mask_token
        self._padding = tokenizer.pad_token_id

    def forward(self, tokens: Tensor) -> Texts:
        real = self.real(tokens)
        features: Tensor = self.model(input_ids=tokens, attention_mask=real.long()).last_hidden_state
        return Texts(features, real, tokens.new_zeros(len(tokens)))

    def real(self, tokens: Tensor) -> Tensor:
        # Counted from the end: a caption may itself say "[PAD]", and transformers takes that for a word.
        later: Tensor = (tokens != self._padding).flip(1).cumsum(dim=1).flip(1)
        return later > 0

    def load(self) -> None:
        """Fill in the pretrained weights. Raises InputError where the folder or the download lacks any of them."""
        from transformers import AutoModel

        with quiet_transformers(), _told(self._name, "no weights of its own"):
            # In full precision: left alone, transformers takes that of the file.
            pretrained, found = AutoModel.from_pretrained(self._name, dtype=torch.float32, output_loading_info=True)
        missing = sorted(name for name in found["missing_keys"] if not name.startswith("pooler."))
        if missing:
            raise InputError(f"{KEY}: {self._name} lacks weights of its text model ({missing[0]}, {len(missing)} in all)")
        state = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("pooler.")}
        self.model.load_state_dict(state)

    def save(self, folder: Path) -> str:
        with quiet_transformers():
            self.model.save_pretrained(folder)
            self.tokenize.save(folder)
        return "transformers.AutoModel (its first token stands for the text; there is no pooler)"


class ClipTower(TextTower):
    """A trainable copy of a CLIP's text tower, without its projection; the end-of-text token stands for the sentence."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        clip = encoder.clip
        self.token_embedding = copy.deepcopy(clip.token_embedding)
        self.positional_embedding = copy.deepcopy(clip.positional_embedding)
        self.transformer = copy.deepcopy(clip.transformer)
        self.ln_final = copy.deepcopy(clip.ln_final)
        self.attn_mask: Tensor | None
        self.register_buffer("attn_mask", copy.deepcopy(clip.attn_mask), persistent=False)
        self.requires_grad_(True)
        self.width = self.positional_embedding.shape[1]
        self.tokenize = encoder.tokenize
        self.mask_word = CLIP_MASK_WORD

    def forward(self, tokens: Tensor) -> Texts:
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length]
        features = self.ln_final(self.transformer(x, attn_mask=mask))
        return Texts(features, self.real(tokens), tokens.argmax(dim=1))

    def real(self, tokens: Tensor) -> Tensor:
        return torch.arange(tokens.shape[1], device=tokens.device) <= tokens.argmax(dim=1, keepdim=True)

    def save(self, folder: Path) -> str:
        return save_clip_text(self, self.tokenize, folder, quick_gelu=is_quick_gelu(self.transformer.resblocks[0]))


def bert_tower(name: str) -> TextTower:
    """The text tower of a transformers id or local folder (BERT, DistilBERT, RoBERTa, ...), with random weights until `load`.

    Raises InputError where there is no such model, or it has no mask token.
    """
    return BertTower(name)


def clip_text_tower(encoder: Encoder) -> TextTower:
    """A trainable copy of the run's CLIP text tower, with its weights."""
    return ClipTower(encoder)


def _check(name: str, config: Any, tokenizer: Any) -> None:
    """Raise InputError for a model that cannot read a text with masked words."""
    if config.is_encoder_decoder or tokenizer.mask_token is None or tokenizer.pad_token is None:
        raise InputError(f"{KEY}: {name} has no mask token or is no plain encoder; give a BERT, as bert-base-uncased")
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # what transformers makes up where there is none
        raise InputError(f"{KEY}: {name} holds no tokenizer; give a local folder with tokenizer.json or vocab.txt, too")
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{KEY}: {name}: the tokenizer knows {len(tokenizer)} tokens, the model {config.vocab_size}")


@contextmanager
def _told(name: str, what: str) -> Iterator[None]:
    """Tell whatever goes wrong within as the user's mistake: transformers raises errors of many kinds."""
    try:
        yield
    except Exception as error:
        source = "holds" if Path(name).is_dir() else "is no folder here, and cannot be downloaded or holds"
        raise InputError(
            f"{KEY}: {name!r} {source} {what} ({type(error).__name__}); give a local folder as transformers saves it"
        ) from error
