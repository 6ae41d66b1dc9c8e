"""Keeping Weights & Biases out of our processes.

timm (and with it open_clip) and img2dataset import wandb where it is installed, without need. It then makes two folders in the
temporary folder, which processes that are killed, as Ray's workers are, leave there for good.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

NAME = "wandb"


def without_wandb() -> None:
    """From now on `import wandb` gives an empty module in this process, unless it has been imported already."""
    if NAME not in sys.modules:
        empty = ModuleType(NAME)
        empty.__spec__ = ModuleSpec(NAME, None)  # transformers looks for it
        sys.modules[NAME] = empty
