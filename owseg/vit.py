"""Plain ViTs through timm: their architecture by name, and pretrained weights by tag or file."""

import logging
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from owseg import InputError
from owseg.weights import differences, not_finite, read_weights
from storage.understood import MISFITS, Errors

LARGEST = {"image_size": 4096, "patch_size": 512, "width": 8192, "depth": 128, "heads": 128}
"""Sizes above which no image tower goes."""
UNFIT: Errors = (*MISFITS, AssertionError, RuntimeError)
"""What timm's and torch's parts raise where sizes or tensors do not go together; all else is a fault and stays one."""
TRIAL = (2, 3)
"""Rows and columns of patches of the image that a tower is tried out on."""


@dataclass(frozen=True, kw_only=True)
class VitSize:
    """Sizes of the image tower where they are not those of the timm model it is named by; 0 = the model's."""

    image_size: int = 0
    """Side in pixels of the images that its positions are learned for."""
    patch_size: int = 0
    """Side of a patch in pixels."""
    width: int = 0
    """Channels of a token."""
    depth: int = 0
    """Blocks."""
    heads: int = 0
    """Attention heads."""

    def __post_init__(self) -> None:
        for name, most in LARGEST.items():
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name}: {getattr(self, name)} is outside 1..{most}; give a size, or 0 for the model's own")
        if self.image_size and self.patch_size and self.image_size % self.patch_size:
            raise InputError(f"image_size: {self.image_size} pixels are no whole patches of {self.patch_size}; give a multiple")
        if self.width and self.heads and self.width % self.heads:
            raise InputError(f"heads: {self.heads} heads do not divide the width {self.width}")

    def arguments(self) -> dict[str, int]:
        """What timm calls them; those that are left to the model are left out."""
        sizes = {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
        }
        return {name: size for name, size in sizes.items() if size}


def refuse_partial_patches(side: int, patch: int, key: str) -> None:
    """Raise InputError, naming `key`, where a side in pixels is no whole number of patches."""
    if side % patch:
        nearest = [str(size) for size in (side - side % patch, side - side % patch + patch) if size]
        raise InputError(f"{key}: {side} pixels are no whole patches of {patch}; give {' or '.join(nearest)}")


def create_vit(model: str, key: str, **arguments: Any) -> Any:
    """Any of timm's models with random weights. Raises InputError, naming `key`, where it cannot be built, or has no blocks."""
    import timm

    try:
        vit = timm.create_model(model, pretrained=False, **arguments)
    except Exception as error:  # what timm makes of a wrong name is RuntimeError, ValueError and more
        raise InputError(f"{key}: timm cannot build {model!r} ({_told(error)}); see timm.list_models('vit*')") from error
    if not hasattr(vit, "blocks"):
        raise InputError(f"{key}: {model} is no ViT; choose one such as vit_base_patch16_224.dino")
    return vit


def timm_vit(model: str, key: str, **arguments: Any) -> Any:
    """timm's model with random weights. Raises InputError, naming `key`, where it is not just patches, positions and blocks."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    vit = create_vit(model, key, **arguments)
    plain = isinstance(vit, VisionTransformer) and isinstance(vit.patch_embed, PatchEmbed) and vit.pos_embed is not None
    if not plain or not all(isinstance(block, Block) for block in vit.blocks):
        raise InputError(f"{key}: {model} is no plain ViT; choose one such as vit_base_patch16_224.dino")
    return vit


def trial_image(patch: int) -> Tensor:
    """A small image [1, 3, H, W] for a tower with such patches."""
    return torch.zeros(1, 3, *(side * patch for side in TRIAL))


@torch.no_grad()
def tried_patch(vit: Any, model: str, key: str) -> int:
    """Side in pixels of the patches of timm's `model`, which gives one token for each of an image of any size.

    Raises InputError, naming what stands under `key`, where it does not: a hybrid, or sizes that do not go together.
    """
    from timm.layers import PatchEmbed

    wrong = "it begins with more than patches"
    if isinstance(embed := getattr(vit, "patch_embed", None), PatchEmbed):
        patch: int = embed.patch_size[0]
        try:
            shape = (*vit.forward_features(trial_image(patch)).shape,)
            if shape == (1, vit.num_prefix_tokens + TRIAL[0] * TRIAL[1], vit.embed_dim):
                return patch
            wrong = f"{TRIAL[0]} x {TRIAL[1]} patches become {shape}"
        except UNFIT as error:  # what parts make of sizes that do not go together
            wrong = _told(error)
    heads = getattr(getattr(vit.blocks[-1], "attn", None), "num_heads", 1)
    if vit.embed_dim % heads:
        raise InputError(f"{key}.image_size.heads: {heads} heads do not divide the width {vit.embed_dim} of {model}")
    raise InputError(
        f"{key}.image_tower: {model}, with image_size, gives no token for each patch of an image ({wrong}); choose one such as "
        "vit_base_patch16_224.dino"
    )


def timm_state(model: str, weights: str, *, tower: str, file: str) -> tuple[str, dict[str, Any]]:
    """Where a ViT's pretrained weights come from, for messages, and the weights: of a file, or timm's own, downloaded.

    tower and file: the settings that name the model and the file. Raises InputError where the weights cannot be had.
    """
    import timm

    if weights:
        if not Path(weights).is_file():
            raise InputError(f"{file}: {weights} does not exist")
        state = read_weights(Path(weights))
        if wrong := not_finite(state):
            raise InputError(f"{file}: {weights}: {wrong}; give a checkpoint from before its numbers were lost")
        return f"{file}: {weights}", state
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries; their outcome is reported below
    try:
        return f"{tower}: timm's weights", timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # each of timm's sources raises errors of its own
        raise InputError(
            f"{tower}: the weights of {model} cannot be downloaded ({type(error).__name__}); give a file with them as {file}"
        ) from error


def fill_vit(vit: Any, model: str, weights: str, *, tower: str, file: str) -> None:
    """Fill timm's `model` with its pretrained weights, or with a file's of timm's names or DINO's where `weights` names one.

    Positions of another grid are resized, a classifier's head is left aside. tower and file: the settings that name the model
    and the file. Raises InputError where they cannot be had or do not fit.
    """
    from timm.models import eva, vision_transformer

    source, state = timm_state(model, weights, tower=tower, file=file)
    state = {name: value for name, value in state.items() if not name.startswith("head.")}
    own = vit.state_dict()
    # timm's filters, for positions of another grid and DINO's own names, would also take in other models', such as CLIP's.
    try:
        if isinstance(vit, vision_transformer.VisionTransformer) and (state.keys() == own.keys() or "mask_token" in state):
            state = vision_transformer.checkpoint_filter_fn(state, vit)
        elif isinstance(vit, eva.Eva) and (state.keys() == own.keys() or "storage_tokens" in state):
            with redirect_stdout(None):  # it prints that there is no bias
                state = eva.checkpoint_filter_fn(state, vit)
    except UNFIT as error:  # what it makes of shapes that it does not know
        raise InputError(f"{source} does not fit {model} ({_told(error)})") from error
    if wrong := differences(state, own):
        raise InputError(f"{source} does not fit {model}: {wrong}")
    vit.load_state_dict(state)


def _told(error: Exception) -> str:
    """The first sentence of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
