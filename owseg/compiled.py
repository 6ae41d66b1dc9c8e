"""torch.compile for the blocks of transformers, one after the other: the same few graphs serve all blocks of a tower."""

from torch import nn

BLOCKS = ("ResidualAttentionBlock", "Block", "BertLayer", "DistilBertLayer", "TransformerBlock", "RobertaLayer")
"""Classes of open_clip, timm and transformers."""


def compile_blocks(method: nn.Module, backend: str = "inductor") -> int:
    """Have every transformer block's forward compiled where it is first run; returns how many there are.

    Blocks that are read otherwise than by their forward (TCL's value-only block) stay as they are.
    """
    blocks = [module for module in method.modules() if type(module).__name__ in BLOCKS]
    for block in blocks:
        block.compile(backend=backend)
    return len(blocks)
