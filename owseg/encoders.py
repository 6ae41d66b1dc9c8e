"""CLIP through open_clip, and the ways in which methods read its image tower."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from owseg import InputError
from owseg.text import CLIP_VOCABULARY, Tokenizer, clip_tokenizer
from owseg.weights import differences, not_finite, read_weights

if TYPE_CHECKING:  # open_clip takes seconds to import, and settings are read without it
    import open_clip

PRETRAIN = "pretrain"
OPENAI_ENTRIES = {"input_resolution", "context_length", "vocab_size"}
"""What OpenAI's files hold beside weights; no other files do."""
Reading = Literal["clip", "maskclip", "sclip", "clearclip", "naclip"]
"""How the last block is read; see `last_block`."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The CLIP that the methods of a run are built around."""

    model: str = "ViT-B-16"
    """open_clip model name, or the path of a model config file in open_clip's JSON format."""
    pretrained: str = "openai"
    """open_clip weight tag, path of a .safetensors or .pt file, or "pretrain": this run trains it first (method clip)."""
    quick_gelu: bool | None = None
    """Activation x * sigmoid(1.702 x) in place of GELU; null = as the weight tag or the model says (a file cannot)."""

    @property
    def supervision(self) -> str:
        """What its weights were learned from: the run's own captions, or whatever CLIP was pretrained on."""
        return "text" if self.pretrained == PRETRAIN else "text + pretrained CLIP"


class Encoder(NamedTuple):
    """A CLIP model (`visual` is an open_clip VisionTransformer) and its tokenizer."""

    clip: "open_clip.CLIP"
    tokenize: Tokenizer


def model_config(model: str) -> dict[str, Any]:
    """open_clip's config of a model name, of a JSON file in the same format, or that a checkpoint's `model.json` records.

    Raises InputError for anything else.
    """
    if model.endswith(".json"):
        try:
            config = json.loads(Path(model).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"encoder.model: cannot read {model}: {error}; give an open_clip model config") from error
        if isinstance(config, dict) and isinstance(recorded := config.get("encoder"), dict):
            config = recorded.get("architecture")
    else:
        import open_clip

        config = open_clip.get_model_config(model)
        if config is None:
            raise InputError(f"encoder.model: open_clip knows no {model!r}; see open_clip.list_models()")
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= config.keys():
        raise InputError(f"encoder.model: {model} lacks embed_dim, vision_cfg or text_cfg")
    return config


def architecture(config: EncoderConfig) -> dict[str, Any]:
    """embed_dim, vision_cfg, text_cfg and quick_gelu of the encoder: open_clip's own config format.

    A model's name alone does not settle its activation: OpenAI's, MetaCLIP's and DFN's weights need QuickGELU, LAION's need
    GELU, and both fit "ViT-B-16". The weight tag's entry in open_clip knows (open_clip itself only warns there).
    """
    settings = model_config(config.model)
    quick_gelu = config.quick_gelu
    if quick_gelu is None:
        quick_gelu = any(known.get("quick_gelu", False) for known in (settings, _tag(config)))
    return {key: settings[key] for key in ("embed_dim", "vision_cfg", "text_cfg")} | {"quick_gelu": quick_gelu}


def build_encoder(config: EncoderConfig) -> Encoder:
    """The architecture of `config` with random weights. Only plain ViT towers serve (TCL's own restriction)."""
    import open_clip

    settings = architecture(config)
    text = settings["text_cfg"]
    if text.keys() & {"hf_model_name", "hf_tokenizer_name"}:
        raise InputError(f"encoder.model: {config.model} reads text with another tokenizer than CLIP's; choose a plain CLIP")
    try:
        clip = open_clip.CLIP(**settings)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"encoder.model: open_clip cannot build {config.model}: {error}") from error
    if not _is_plain_vit(clip.visual):
        raise InputError(f"encoder.model: {config.model} has no plain ViT image tower; choose a ViT model")
    return Encoder(clip, clip_tokenizer(text.get("vocab_size", CLIP_VOCABULARY), text.get("context_length", 77)))


def _is_plain_vit(visual: Any) -> bool:
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if not isinstance(visual, VisionTransformer) or visual.attn_pool is not None:
        return False
    return all(isinstance(block, ResidualAttentionBlock) for block in visual.transformer.resblocks)


def load_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of `config` with its weights, frozen and in eval mode. Raises InputError where weights do not fit."""
    path = _weight_file(config)
    state = read_weights(path)
    if OPENAI_ENTRIES & state.keys() and config.quick_gelu is None and not architecture(config)["quick_gelu"]:
        raise InputError(f"encoder.pretrained: {path} is OpenAI's, trained with QuickGELU; set encoder.quick_gelu=true")
    state = {name: value for name, value in state.items() if name not in OPENAI_ENTRIES}
    encoder = build_encoder(config)
    wrong = differences(state, encoder.clip.state_dict())
    if wrong:
        raise InputError(f"encoder.pretrained: {path} does not fit encoder.model {config.model}: {wrong}")
    if wrong := not_finite(state):
        raise InputError(f"encoder.pretrained: {path}: {wrong}; give a checkpoint from before its numbers were lost")
    encoder.clip.load_state_dict(state)
    return Encoder(encoder.clip.eval().requires_grad_(False), encoder.tokenize)


def _weight_file(config: EncoderConfig) -> Path:
    """The file that `config.pretrained` names, downloaded where it is a tag."""
    import open_clip

    path = Path(config.pretrained)
    if path.is_file():
        return path
    if path.suffix in {".safetensors", ".pt", ".pth", ".bin"}:
        raise InputError(f"encoder.pretrained: {config.pretrained} does not exist")
    tag = weight_tag(config)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; their outcome is reported below
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # each of open_clip's sources raises errors of its own
        raise InputError(
            f"encoder.pretrained: {config.pretrained!r} of {config.model} cannot be downloaded "
            f"({type(error).__name__}); give the path of a file with these weights"
        ) from error


def _tag(config: EncoderConfig) -> dict[str, Any]:
    """open_clip's entry of the weights that `config.pretrained` names; empty for a file or an unknown tag."""
    import open_clip

    return {} if Path(config.pretrained).is_file() else open_clip.get_pretrained_cfg(config.model, config.pretrained)


def weight_tag(config: EncoderConfig) -> dict[str, Any]:
    """open_clip's entry of the weights that `config.pretrained` names. Raises InputError where the model has none such."""
    import open_clip

    model_config(config.model)
    tag = _tag(config)
    if not tag:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(config.model)) or "none"
        raise InputError(
            f"encoder.pretrained: {config.pretrained!r} is neither a file nor a tag of {config.model} (tags: {known})"
        )
    return tag


def encoder_dict(config: EncoderConfig) -> dict[str, Any]:
    """What a checkpoint must record to rebuild the architecture: the model's config, resolved."""
    return {**asdict(config), "architecture": architecture(config)}


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
    """Positional embeddings [1 + h*w, C] for another token grid; the class position stays."""
    if tuple(grid) == tuple(trained):
        return positions
    return torch.cat([positions[:1], resize_grid(positions[1:], trained, grid)])


def resize_grid(positions: Tensor, trained: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Positional embeddings [h*w, C] of patches alone for another grid, bicubic without aligned corners."""
    if tuple(grid) == tuple(trained):
        return positions
    square = positions.T.reshape(1, -1, *trained)
    return F.interpolate(square, size=tuple(grid), mode="bicubic", align_corners=False).flatten(2)[0].T


def run_blocks(visual: Any, tokens: Tensor, start: int, stop: int) -> Tensor:
    """Tokens after blocks start..stop-1 with their ordinary attention."""
    for block in visual.transformer.resblocks[start:stop]:
        tokens = run_block(block, tokens)
    return tokens


def run_block(block: Any, x: Tensor) -> Tensor:
    """One residual block with its ordinary attention: [B, L, C] → [B, L, C].

    What block(x) computes. nn.MultiheadAttention, where it records gradients, turns tokens to [L, B, C] and then multiplies
    with the frozen projection position by position.
    """
    return feed_forward(block, x + attention(block, x, ["qk"]))


def value_only(block: Any, x: Tensor) -> Tensor:
    """One residual block in which each token attends to itself alone: MaskCLIP's reading of the last block.

    x: [B, L, C] → [B, L, C]. Attention reduces to the value and output projections; residual and MLP stay (official TCL,
    `ie_ignore_last_attn`).
    """
    width = x.shape[-1]
    value = F.linear(block.ln_1(x), block.attn.in_proj_weight[2 * width :], block.attn.in_proj_bias[2 * width :])
    return feed_forward(block, x + block.ls_1(block.attn.out_proj(value)))


def attention(block: Any, x: Tensor, pairs: Sequence[str], prior: Tensor | None = None) -> Tensor:
    """What a block's attention reads, without residual and MLP: [B, L, C] → [B, L, C].

    pairs: "qk" compares queries with keys, softmax(q k^T / sqrt(d)), as trained; "qq" and "kk" compare like with like. The
    readings of the values under all pairs are added. prior: [L, L], added to the similarities before the softmax.
    """
    attn = block.attn
    projected = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    split = projected.reshape(*x.shape[:2], 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    heads = dict(zip("qkv", split, strict=True))
    mask = None if prior is None else prior.to(split)
    read = [F.scaled_dot_product_attention(heads[p[0]], heads[p[1]], heads["v"], attn_mask=mask) for p in pairs]
    output: Tensor = block.ls_1(attn.out_proj(sum(read[1:], read[0]).transpose(1, 2).flatten(2)))
    return output


def feed_forward(block: Any, x: Tensor) -> Tensor:
    """The second half of a residual block, its MLP: [B, L, C] → [B, L, C]."""
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


def gaussian_prior(grid: tuple[int, int], sigma: float) -> Tensor:
    """NACLIP's neighbourhood prior [1 + h*w, 1 + h*w]: exp(-distance^2 / (2 sigma^2)) between patches, 0 with the class token.

    sigma: in patches. The Gaussian of a distance is the product of those along the two axes.
    """
    rows, columns = ((torch.arange(n)[:, None] - torch.arange(n)).double().square() for n in grid)
    return F.pad(torch.kron(torch.exp(-rows / (2 * sigma**2)), torch.exp(-columns / (2 * sigma**2))), (1, 0, 1, 0))


def last_block(block: Any, x: Tensor, reading: Reading, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, 1 + h*w, C] after the last block, read as plain CLIP or as one of the training-free methods does.

    clip: as trained. maskclip (2112.01071): each token attends to itself alone. sclip (2312.01597): queries with queries plus
    keys with keys. clearclip (2407.12442): queries with queries, no residual, no MLP. naclip (2404.08181): keys with keys
    under a Gaussian neighbourhood prior (sigma 5 patches), no residual, no MLP.
    """
    match reading:
        case "clip":
            x = run_block(block, x)
        case "maskclip":
            x = value_only(block, x)
        case "sclip":
            x = feed_forward(block, x + attention(block, x, ["qq", "kk"]))
        case "clearclip":
            x = attention(block, x, ["qq"])
        case "naclip":
            x = attention(block, x, ["kk"], gaussian_prior(grid, sigma=5.0))
    return x


def dense_features(visual: Any, image: Tensor, reading: Reading) -> Tensor:
    """Joint-space features [B, E, h, w] of the patches of images [B, 3, H, W], the last block read as `reading` says."""
    blocks = visual.transformer.resblocks
    grid = token_grid(visual, image)
    tokens = run_blocks(visual, embed_patches(visual, image), 0, len(blocks) - 1)
    tokens = visual.ln_post(last_block(blocks[-1], tokens, reading, grid)) @ visual.proj
    return to_map(tokens, grid)


def pad_to_multiple(image: Tensor, patch: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
    """Zero-pad [B, 3, H, W] to multiples of the patch size, half before and the rest after; also (top, left)."""
    bottom, right = (-image.shape[-2]) % patch[0], (-image.shape[-1]) % patch[1]
    top, left = bottom // 2, right // 2
    return F.pad(image, (left, right - left, top, bottom - top)), (top, left)
