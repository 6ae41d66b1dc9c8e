"""What a training step of each method takes at its paper's sizes: parameters, and operations counted on real tensors.

    python benchmarks/paper_steps.py [--methods tcl ovsegmentor vilseg talk2dino]

Counted, not timed: torch's flop counter over losses and backward of two pairs with random weights, blocks kept rather than run
again (a multiplication and an addition are two). TCL also reads every caption of the global batch with every image, so its
count has a part for each text. `benchmarks/scaling.py` and `benchmarks/cost_cards.py` build on these.
"""

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from ovsegmentor_step import read_captions, write_bert
from torch import Tensor

from owseg.data import Batch
from owseg.encoders import EncoderConfig, build_encoder
from owseg.fit import phase_groups
from owseg.flops import counted_flops
from owseg.method_config import TrainableConfig
from owseg.methods.ovsegmentor import OvSegmentorConfig
from owseg.methods.talk2dino import Talk2DinoConfig
from owseg.methods.tcl import TclConfig
from owseg.methods.tcl import method as tcl
from owseg.methods.vilseg import VilSegConfig
from owseg.phases import ScheduledPhase, scheduled_phases
from owseg.steady import total_of
from owseg.text import prompt_templates
from owseg.trainable import TrainableMethod, losses_of

METHODS = ("tcl", "ovsegmentor", "vilseg")
FURTHER = ("talk2dino",)
"""Counted where asked for: what it trains is too small to be spread over GPUs."""
MODEL = "ViT-B-16-quickgelu"
PAIRS = 2
MORE_TEXTS = 64
"""Beside the batch's own, where a method reads every text with every image."""


class PaperStep(NamedTuple):
    """A phase of a method, as its default config trains it."""

    method: str
    phase: int
    """Counted from 1."""
    steps: int
    batch: int
    """Pairs of a step, over all workers."""
    parameters: int
    """All, frozen ones too."""
    trained: int
    """Those that the phase trains: as many gradients are reduced."""
    flops_pair: float
    """Operations for a pair, forward and backward."""
    flops_text: float
    """Operations for a pair and each text of the global batch."""

    @property
    def flops(self) -> float:
        """Operations of a step, over all workers."""
        return self.batch * (self.flops_pair + self.flops_text * self.batch)


def paper_config(name: str, folder: Path) -> TrainableConfig:
    """A method's default config, its text tower's files in `folder`, with nothing run again in backward."""
    configs: dict[str, Callable[[], TrainableConfig]] = {
        "tcl": lambda: TclConfig(text_chunk=0, checkpoint_blocks=False),
        "ovsegmentor": lambda: OvSegmentorConfig(text_tower=str(folder)),
        "vilseg": VilSegConfig,
        "talk2dino": Talk2DinoConfig,
    }
    return configs[name]()


def pairs(method: TrainableMethod, config: TrainableConfig, scheduled: ScheduledPhase, count: int = PAIRS) -> Batch:
    """A batch of random pixels with real captions, of the phase's kind."""
    captions, entities = read_captions(count)
    size = (scheduled.phase.augment or config.augment).size
    random.seed(0)
    randoms = [random.Random(place) for place in range(len(captions))]
    texts = method.prepare(captions, entities, [names[0] for names in entities], randoms) if method.prepare else {}
    views = {}
    if isinstance(config, VilSegConfig):
        small = config.local_size
        views = {
            "global": torch.randn(count, 1, 3, size, size),
            "local": torch.randn(count, config.local_crops, 3, small, small),
        }
    image, partner = torch.randn(2, count, 3, size, size)
    partner = partner if scheduled.phase.partners else None
    return Batch(image, method.tokenize(captions), captions, [], texts, partner, views)


def counted(method: TrainableMethod, batch: Batch) -> int:
    """Operations of losses and backward."""
    method.zero_grad(set_to_none=True)
    with counted_flops() as count:
        total_of(losses_of(method, batch)).backward()  # type: ignore[no-untyped-call]
    return count.model


def counted_with_texts(method: TrainableMethod, batch: Batch) -> int:
    """The same where other workers have more texts."""
    width = method.projection.proj.shape[1]  # type: ignore[union-attr,index]
    others = torch.randn(MORE_TEXTS, width)  # type: ignore[arg-type]

    def joined(text: Tensor) -> Tensor:
        return torch.cat([text, others])

    with patch.object(tcl, "gather", joined):
        return counted(method, batch)


def paper_steps(name: str, config: TrainableConfig, method: TrainableMethod) -> list[PaperStep]:
    """Each phase of a method that is built already."""
    found = []
    groups = phase_groups(method, config.phases, config.optim)
    method.train()
    for number, (scheduled, learned) in enumerate(zip(scheduled_phases(config.phases, config.optim), groups, strict=True)):
        method.requires_grad_(False)
        trained = [parameter.requires_grad_() for group in learned for parameter in group.parameters.values()]
        batch = pairs(method, config, scheduled)
        own = counted(method, batch)
        more = counted_with_texts(method, batch) if name == "tcl" else own
        text = (more - own) / MORE_TEXTS / PAIRS
        found.append(
            PaperStep(
                method=name,
                phase=number + 1,
                steps=scheduled.phase.steps,
                batch=scheduled.schedule.optim.batch_size,
                parameters=sum(parameter.numel() for parameter in method.parameters()),
                trained=sum(parameter.numel() for parameter in trained),
                flops_pair=own / PAIRS - PAIRS * text,
                flops_text=text,
            )
        )
    return found


def paper_method(config: Any) -> TrainableMethod:
    """A method of `paper_config` with random weights, its text tower's files written anew."""
    captions, _ = read_captions(PAIRS)
    if isinstance(config, OvSegmentorConfig):
        write_bert(Path(config.text_tower), [*captions, *prompt_templates("imagenet80")])
    torch.manual_seed(0)
    method: TrainableMethod = config.build(build_encoder(EncoderConfig(model=MODEL)) if config.uses_clip else None)
    return method


def count_all(names: tuple[str, ...] = METHODS) -> list[PaperStep]:
    """All phases of the methods, at their papers' sizes; a minute on a CPU."""
    found = []
    with tempfile.TemporaryDirectory(prefix="owseg-bert-") as folder:
        for name in names:
            config = paper_config(name, Path(folder))
            found += paper_steps(name, config, paper_method(config))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=(*METHODS, *FURTHER), default=METHODS)
    options = parser.parse_args()
    print("| method | phase | steps of pairs | parameters | trained | GFLOP a pair | ... and text | PFLOP a step |")
    print("|---|---|---|---|---|---|---|---|")
    for step in count_all(tuple(options.methods)):
        print(
            f"| {step.method} | {step.phase} | {step.steps:,} of {step.batch:,} | {step.parameters / 1e6:.1f} M "
            f"| {step.trained / 1e6:.1f} M | {step.flops_pair / 1e9:.0f} | {step.flops_text / 1e9:.3f} "
            f"| {step.flops / 1e15:.3f} |"
        )


if __name__ == "__main__":
    main()
