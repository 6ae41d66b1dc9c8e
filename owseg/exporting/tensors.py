"""open_clip's names of a CLIP's tensors, and transformers' for the same."""

from collections.abc import Iterator, Mapping

from torch import Tensor

IN_BLOCKS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TEXT = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
VISION = {
    "class_embedding": "embeddings.class_embedding",
    "positional_embedding": "embeddings.position_embedding.weight",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",  # as transformers spells it
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}


def text_tower(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CLIP text tower's tensors by transformers' names, without its projection. Raises KeyError for any other tensor."""
    return _renamed(state, TEXT)


def clip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A whole CLIP's tensors by the names of transformers' CLIPModel. Raises KeyError for a tensor that has no place there."""
    visual = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    text = {name: tensor for name, tensor in state.items() if not name.startswith("visual.")}
    found = {"logit_scale": text.pop("logit_scale")}
    # open_clip multiplies with its projections from the right.
    found["visual_projection.weight"] = visual.pop("proj").T
    found["text_projection.weight"] = text.pop("text_projection").T
    found |= {f"vision_model.{name}": tensor for name, tensor in _renamed(visual, VISION).items()}
    found |= {f"text_model.{name}": tensor for name, tensor in text_tower(text).items()}
    return {name: tensor.contiguous().clone() for name, tensor in found.items()}


def _renamed(state: Mapping[str, Tensor], outside: Mapping[str, str]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("transformer.resblocks."):
            _, _, number, inside = name.split(".", 3)
            found |= {f"encoder.layers.{number}.{theirs}": part for theirs, part in _in_block(inside, tensor)}
        else:
            found[outside[name]] = tensor
    return found


def _in_block(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """transformers' names in a block for a tensor there; queries, keys and values are apart."""
    part, _, kind = name.rpartition(".")
    if name.startswith("attn.in_proj_"):
        for which, rows in zip("qkv", tensor.chunk(3), strict=True):
            yield f"self_attn.{which}_proj.{kind.removeprefix('in_proj_')}", rows.clone()
    else:
        yield f"{IN_BLOCKS[part]}.{kind}", tensor
