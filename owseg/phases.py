"""Phases as data: what learns for how many steps, and under which schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from owseg import InputError
from owseg.augmentation import AugmentConfig
from owseg.optim import OptimConfig, lr_at


class Schedule(NamedTuple):
    """Steps under one schedule and one optimiser: a training of its own. Steps are counted from the first phase's first."""

    number: int
    """0 for the first, one more for each phase that has an `optim` of its own."""
    optim: OptimConfig
    key: str
    """Where `optim` stands in the method's settings."""
    start: int
    stop: int
    """Its steps are start..stop-1."""

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        return lr_at(self.optim, step - self.start, self.stop - self.start)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A part of training in which the same parameters learn."""

    steps: int
    """Optimiser steps of this phase."""
    train: tuple[str, ...]
    """Name prefixes of the parameters that learn; all others stay frozen."""
    partners: bool = False
    """Whether each image comes with another one that shares an entity with it."""
    optim: OptimConfig | None = None
    """If set, restarts schedule, optimiser state and epochs, keeping the weights; null continues the previous phase's."""
    augment: AugmentConfig | None = None
    """Augmentation of this phase; null = the method's."""

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.train:
            raise InputError("steps must be at least 1, and train must name a parameter prefix")


class ScheduledPhase(NamedTuple):
    """A phase in its place. Steps are counted from the first phase's first."""

    phase: Phase
    start: int
    stop: int
    """Its steps are start..stop-1."""
    schedule: Schedule
    """The training that it is part of, alone or with its neighbours."""


def scheduled_phases(phases: Sequence[Phase], optim: OptimConfig) -> list[ScheduledPhase]:
    """Phases in their places; `optim` is that of phases before the first one with its own. InputError where there is none."""
    if not phases:
        raise InputError("phases: there are none; give at least one")
    starts = [sum(phase.steps for phase in phases[:index]) for index in range(len(phases) + 1)]
    firsts = [index for index, phase in enumerate(phases) if index == 0 or phase.optim is not None]
    found = []
    for number, (first, after) in enumerate(pairwise([*firsts, len(phases)])):
        own = phases[first].optim
        schedule = Schedule(number, own or optim, f"phases.{first}.optim" if own else "optim", starts[first], starts[after])
        found += [ScheduledPhase(phases[index], starts[index], starts[index + 1], schedule) for index in range(first, after)]
    return found


def batch_sizes(phases: Sequence[Phase], optim: OptimConfig) -> list[int]:
    """The global batch of each phase."""
    return [scheduled.schedule.optim.batch_size for scheduled in scheduled_phases(phases, optim)]


def augmentations(phases: Sequence[Phase], augment: AugmentConfig) -> list[tuple[str, AugmentConfig]]:
    """Each phase's augmentation with its place in the method's settings; `augment` is that of phases without their own."""
    return [
        (f"phases.{number}.augment", phase.augment) if phase.augment else ("augment", augment)
        for number, phase in enumerate(phases)
    ]


def images_are_fixed(phases: Sequence[Phase], augment: AugmentConfig) -> bool:
    """Whether an image is seen the same way at each step, and alone."""
    kinds = {one for _, one in augmentations(phases, augment)}
    random = any(one.crop == "random" or one.rand_augment or one.erase for one in kinds)
    return len(kinds) == 1 and not random and not any(phase.partners for phase in phases)
