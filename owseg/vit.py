"""Plain ViTs through timm: their architecture by name, and pretrained weights by tag or file."""

import logging
from pathlib import Path
from typing import Any

from owseg import InputError
from owseg.weights import not_finite, read_weights


def timm_vit(model: str, key: str, **arguments: Any) -> Any:
    """timm's model with random weights. Raises InputError, naming `key`, where it is not just patches, positions and blocks."""
    import timm
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    try:
        vit = timm.create_model(model, pretrained=False, **arguments)
    except Exception as error:  # what timm makes of a wrong name is RuntimeError, ValueError and more
        raise InputError(f"{key}: timm cannot build {model!r} ({_told(error)}); see timm.list_models('vit*')") from error
    plain = isinstance(vit, VisionTransformer) and isinstance(vit.patch_embed, PatchEmbed) and vit.pos_embed is not None
    if not plain or not all(isinstance(block, Block) for block in vit.blocks):
        raise InputError(f"{key}: {model} is no plain ViT; choose one such as vit_base_patch16_224.dino")
    return vit


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


def _told(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
