"""Folders that other libraries load: each is loaded by that library, and its embeddings compared, as it is written."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from owseg import InputError
from owseg.encoders import Encoder
from owseg.exporting import tensors
from owseg.normalisation import Normalisation
from owseg.quiet import quiet_transformers
from owseg.text import CLIP_VOCABULARY, Tokenizer

TOLERANCE = 1e-4
"""By how much an embedding may differ, relative to the largest of its values: kernels of two libraries round differently."""
PROBE = ["a photo of a cat", "two wooden boats on a lake"]
SPECIAL = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
"""open_clip's names of what opens and closes a text, and everybody else's."""


def save_clip(encoder: Encoder, settings: Mapping[str, Any], normalisation: Normalisation, folder: Path) -> None:
    """Write a CLIP as transformers' CLIPModel, with tokenizer and image processor.

    settings: open_clip's, as `owseg.encoders.architecture` returns them. Raises InputError where CLIPModel has no place for all
    of it.
    """
    from transformers import CLIPConfig, CLIPModel

    vision, size = settings["vision_cfg"], encoder.clip.visual.image_size
    text = text_config(encoder.clip, encoder.tokenize, quick_gelu=settings["quick_gelu"], width=settings["embed_dim"])
    side, patch = _side(size), _side(encoder.clip.visual.patch_size)
    sizes = {"hidden_size": vision["width"], "num_hidden_layers": vision["layers"], "image_size": side, "patch_size": patch}
    blocks = encoder.clip.visual.transformer.resblocks
    sizes |= {"num_attention_heads": blocks[0].attn.num_heads, "intermediate_size": blocks[0].mlp.c_fc.out_features}
    sizes |= {"hidden_act": text["hidden_act"], "projection_dim": settings["embed_dim"]}
    config = CLIPConfig(text_config=text, vision_config=sizes, projection_dim=settings["embed_dim"])
    with _fits("transformers' CLIPModel"), torch.no_grad():
        model = CLIPModel(config).eval()
        model.load_state_dict(tensors.clip(encoder.clip.state_dict()))
        images, tokens = torch.rand(2, 3, side, side), encoder.tokenize(PROBE)
        _same(encoder.clip.encode_image(images), model.get_image_features(pixel_values=images).pooler_output)
        _same(encoder.clip.encode_text(tokens), model.get_text_features(input_ids=tokens).pooler_output)
        model.save_pretrained(folder)
        save_tokenizer(encoder.tokenize, folder)
        _save_processor(side, normalisation, folder)


def save_open_clip(encoder: Encoder, settings: Mapping[str, Any], normalisation: Normalisation, folder: Path) -> Path:
    """Write a CLIP as open_clip reads it by `local-dir:` (and the hub by `hf-hub:`); returns the file of its weights.

    A tokenizer of fewer byte pairs than CLIP's travels as transformers', which open_clip then asks for.
    """
    import open_clip

    folder.mkdir(parents=True, exist_ok=True)
    model, weights = json.loads(json.dumps(settings)), folder / "open_clip_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in encoder.clip.state_dict().items()}, weights)
    save_tokenizer(encoder.tokenize, folder)
    if model["text_cfg"].get("vocab_size", CLIP_VOCABULARY) != CLIP_VOCABULARY:
        model["text_cfg"]["hf_tokenizer_name"] = "."
    pixels = {"mean": [*normalisation.mean], "std": [*normalisation.std]}
    _write(folder / "open_clip_config.json", {"model_cfg": model, "preprocess_cfg": pixels})
    with _fits("open_clip"), torch.no_grad():
        again = open_clip.create_model(f"local-dir:{folder}").eval()
        side = _side(encoder.clip.visual.image_size)
        images, tokens = torch.rand(2, 3, side, side), open_clip.get_tokenizer(f"local-dir:{folder}")(PROBE)
        _same(encoder.clip.encode_image(images), again.encode_image(images))
        _same(encoder.clip.encode_text(encoder.tokenize(PROBE)), again.encode_text(tokens))
    return weights


def save_clip_text(tower: nn.Module, tokenize: Tokenizer, folder: Path, *, quick_gelu: bool) -> str:
    """Write a CLIP text tower as transformers' CLIPTextModel; returns what loads the folder.

    tower: with open_clip's token_embedding, positional_embedding, transformer and ln_final.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    kept = tuple(name.partition(".")[0] for name in tensors.TEXT)
    state = {name: tensor for name, tensor in tower.state_dict().items() if name.startswith((*kept, "transformer."))}
    with _fits("transformers' CLIPTextModel"):
        model = CLIPTextModel(CLIPTextConfig(**text_config(tower, tokenize, quick_gelu=quick_gelu)))
        model.load_state_dict(tensors.text_tower(state))
        model.save_pretrained(folder)
        save_tokenizer(tokenize, folder)
    return "transformers.CLIPTextModel (its pooled output stands for the text)"


def save_vit(vit: Any, normalisation: Normalisation, folder: Path) -> str:
    """Write a timm ViT as timm reads it by `local-dir:`; returns what loads the folder."""
    import timm
    from timm.models import save_for_hf

    pixels = {"mean": [*normalisation.mean], "std": [*normalisation.std]}
    with _fits("timm"), torch.no_grad():
        save_for_hf(vit, str(folder), model_config={"pretrained_cfg": pixels}, safe_serialization=True)
        again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = torch.rand(2, 3, *vit.patch_embed.img_size)
        _same(vit.forward_features(images), again.forward_features(images))
    return "timm.create_model('local-dir:FOLDER', pretrained=True)"


def is_quick_gelu(block: Any) -> bool:
    """Whether a block of open_clip's has x * sigmoid(1.702 x) for its activation."""
    from open_clip.transformer import QuickGELU

    return isinstance(block.mlp.gelu, QuickGELU)


def text_config(tower: Any, tokenize: Any, *, quick_gelu: bool, width: int = 0) -> dict[str, Any]:
    """transformers' settings of a CLIP text tower. width: of its projection, where it has one."""
    blocks = tower.transformer.resblocks
    context, channels = tower.positional_embedding.shape
    sizes = {"hidden_size": channels, "num_hidden_layers": len(blocks), "max_position_embeddings": context}
    sizes |= {"num_attention_heads": blocks[0].attn.num_heads, "intermediate_size": blocks[0].mlp.c_fc.out_features}
    end = tokenize.eot_token_id
    special = {"bos_token_id": tokenize.sot_token_id, "eos_token_id": end, "pad_token_id": end}
    activation = "quick_gelu" if quick_gelu else "gelu"
    vocabulary = tower.token_embedding.num_embeddings
    return {**sizes, **special, "vocab_size": vocabulary, "hidden_act": activation, "projection_dim": width or channels}


def save_tokenizer(tokenize: Any, folder: Path) -> None:
    """Write CLIP's tokenizer, with as many byte pairs as it has, as transformers'. Both read plain text alike.

    What only open_clip's does is to mend broken encodings and HTML's escapes first.
    """
    from transformers import CLIPTokenizer

    vocabulary = {SPECIAL.get(token, token): number for token, number in tokenize.encoder.items()}
    context = tokenize.context_length
    CLIPTokenizer(vocab=vocabulary, merges=[*tokenize.bpe_ranks], model_max_length=context).save_pretrained(folder)


def _save_processor(side: int, normalisation: Normalisation, folder: Path) -> None:
    """Write how images come in, as transformers' CLIPImageProcessor says it."""
    from transformers import CLIPImageProcessor

    mean, std = ([*values] for values in (normalisation.mean, normalisation.std))
    size, crop = {"shortest_edge": side}, {"height": side, "width": side}
    CLIPImageProcessor(size=size, crop_size=crop, image_mean=mean, image_std=std).save_pretrained(folder)


@contextmanager
def _fits(library: str) -> Iterator[None]:
    """Tell what a library cannot hold, or reads differently, as a limit of the export."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # open_clip tells each of its steps there
    try:
        with quiet_transformers():
            yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"--to: {library} cannot hold this model as it is ({why}); choose another form") from error
    finally:
        logging.root.setLevel(level)


def _same(ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours - theirs).abs().max() / ours.abs().max())
    if not difference <= TOLERANCE:
        raise ValueError(f"its embeddings come out differently, by {difference:.1e}")


def _side(size: Any) -> int:
    """The side of a square, given as it or as a pair. Raises InputError for any other."""
    sides = {*size} if isinstance(size, tuple | list) else {size}
    if len(sides) != 1:
        raise InputError(f"--to: images or patches of {size} are not square, which the export asks for; choose another form")
    return int(sides.pop())


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
