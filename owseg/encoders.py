"""CLIP through open_clip, and the ways in which methods read its image tower."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.text import CLIP_VOCABULARY, Tokenizer, clip_tokenizer

if TYPE_CHECKING:  # open_clip takes seconds to import, and settings are read without it
    import open_clip

PRETRAIN = "pretrain"


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The CLIP that every method of a run stands on."""

    model: str = "ViT-B-16-quickgelu"
    """open_clip model name, or the path of a model config file in open_clip's JSON format."""
    pretrained: str = "openai"
    """open_clip weight tag, path of a .safetensors or .pt file, or "pretrain": this run trains it first (method clip)."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Per-channel mean of the input normalisation, RGB in 0..1 (ImageNet's, as TCL; OpenAI's CLIP itself used others)."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Per-channel standard deviation of the input normalisation."""

    def __post_init__(self) -> None:
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise InputError("mean and std need three numbers each, and std must be positive")


class Encoder(NamedTuple):
    """A CLIP model (`visual` is an open_clip VisionTransformer) and its tokenizer."""

    clip: "open_clip.CLIP"
    tokenize: Tokenizer


def model_config(model: str) -> dict[str, Any]:
    """open_clip's config of a model name or of a JSON file in the same format. Raises InputError for neither."""
    if model.endswith(".json"):
        try:
            config = json.loads(Path(model).read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"encoder.model: cannot read {model}: {error}; give an open_clip model config") from error
    else:
        import open_clip

        config = open_clip.get_model_config(model)
        if config is None:
            raise InputError(f"encoder.model: open_clip knows no {model!r}; see open_clip.list_models()")
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise InputError(f"encoder.model: {model} lacks embed_dim, vision_cfg or text_cfg")
    return config


def build_encoder(config: EncoderConfig) -> Encoder:
    """The architecture of `config` with random weights. Only plain ViT towers serve (TCL's own restriction)."""
    import open_clip

    settings = model_config(config.model)
    known = {key: settings[key] for key in ("embed_dim", "vision_cfg", "text_cfg")}
    clip = open_clip.CLIP(**known, quick_gelu=settings.get("quick_gelu", False))
    if not isinstance(clip.visual, open_clip.transformer.VisionTransformer):
        raise InputError(f"encoder.model: {config.model} has no plain ViT image tower; choose a ViT model")
    text = settings["text_cfg"]
    return Encoder(clip, clip_tokenizer(text.get("vocab_size", CLIP_VOCABULARY), text.get("context_length", 77)))


def load_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of `config` with its weights, frozen and in eval mode. Raises InputError where weights do not fit."""
    import open_clip
    from open_clip.factory import load_state_dict

    encoder = build_encoder(config)
    if not Path(config.pretrained).exists():
        if Path(config.pretrained).suffix in {".safetensors", ".pt", ".bin"}:
            raise InputError(f"encoder.pretrained: {config.pretrained} does not exist")
        weights = open_clip.download_pretrained(weight_tag(config))
        clip = open_clip.create_model(config.model, pretrained=weights)
    else:
        clip = encoder.clip
        try:
            clip.load_state_dict(load_state_dict(config.pretrained))
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"encoder.pretrained: {config.pretrained} does not fit encoder.model {config.model}: {reason}"
            ) from error
    return Encoder(clip.float().eval().requires_grad_(False), encoder.tokenize)


def weight_tag(config: EncoderConfig) -> dict[str, Any]:
    """open_clip's entry of the weights that `config.pretrained` names. Raises InputError where the model has none such."""
    import open_clip

    tag: dict[str, Any] = open_clip.get_pretrained_cfg(config.model, config.pretrained)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise InputError(
            f"encoder.pretrained: {config.pretrained!r} is neither a file nor a tag of {config.model} (tags: {known})"
        )
    return tag


def encoder_dict(config: EncoderConfig) -> dict[str, Any]:
    """What a checkpoint must record to rebuild the architecture: the model's config, resolved."""
    return {**asdict(config), "architecture": model_config(config.model)}


def embed_patches(visual: Any, image: Tensor) -> Tensor:
    """Tokens [B, 1 + h*w, C] that enter the first block: patches, class token, resized positions, `ln_pre`.

    image: [B, 3, H, W], H and W multiples of the patch size. Positions for another grid than the trained one are resized
    bicubic without aligned corners; the class position stays (official TCL).
    """
    x = visual.conv1(image)
    grid = x.shape[-2:]
    x = x.flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], dim=1)
    positions = resize_positions(visual.positional_embedding, visual.grid_size, (grid[0], grid[1]))
    tokens: Tensor = visual.ln_pre(x + positions.to(x.dtype))
    return tokens


def resize_positions(positions: Tensor, trained: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Positional embeddings [1 + h*w, C] for another token grid."""
    if tuple(grid) == tuple(trained):
        return positions
    cls, patches = positions[:1], positions[1:]
    square = patches.T.reshape(1, -1, *trained)
    resized = F.interpolate(square, size=tuple(grid), mode="bicubic", align_corners=False)
    return torch.cat([cls, resized.flatten(2)[0].T])


def run_blocks(visual: Any, tokens: Tensor, start: int, stop: int) -> Tensor:
    """Tokens after blocks start..stop-1 with their ordinary attention."""
    for block in visual.transformer.resblocks[start:stop]:
        tokens = block(tokens)
    return tokens


def value_only(block: Any, x: Tensor) -> Tensor:
    """One residual block in which each token attends to itself alone: MaskCLIP's reading of the last block.

    x: [B, L, C] → [B, L, C]. Attention reduces to the value and output projections; residual and MLP stay (official TCL,
    `ie_ignore_last_attn`).
    """
    width = x.shape[-1]
    value = F.linear(block.ln_1(x), block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])
    x = x + block.ls_1(block.attn.out_proj(value))
    mixed: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + mixed


def to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Patch tokens of [B, 1 + h*w, C] as a map [B, C, h, w] (class token dropped, row-major)."""
    return tokens[:, 1:].transpose(1, 2).reshape(tokens.shape[0], -1, *grid)


def pool(visual: Any, tokens: Tensor) -> Tensor:
    """The image's embedding [B, E] from the last block's tokens [B, 1 + h*w, C], pooled as the tower does."""
    pooled, _ = visual._pool(tokens)
    projected: Tensor = pooled @ visual.proj
    return projected


def token_grid(visual: Any, image: Tensor) -> tuple[int, int]:
    """(h, w) of the token grid of an image batch [B, 3, H, W]."""
    patch_h, patch_w = visual.patch_size
    return image.shape[-2] // patch_h, image.shape[-1] // patch_w


def maskclip_features(visual: Any, image: Tensor) -> Tensor:
    """Dense joint-space features [B, E, h, w] of frozen CLIP, last block value-only (MaskCLIP as TCL runs it)."""
    blocks = visual.transformer.resblocks
    tokens = run_blocks(visual, embed_patches(visual, image), 0, len(blocks) - 1)
    tokens = visual.ln_post(value_only(blocks[-1], tokens)) @ visual.proj
    return to_map(tokens, token_grid(visual, image))


def pad_to_multiple(image: Tensor, patch: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Zero-pad [B, 3, H, W] to multiples of the patch size, half before and the rest after; also (top, left)."""
    bottom, right = (-image.shape[-2]) % patch[0], (-image.shape[-1]) % patch[1]
    top, left = bottom // 2, right // 2
    return F.pad(image, (left, right - left, top, bottom - top)), (top, left)
