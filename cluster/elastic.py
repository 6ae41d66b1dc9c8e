"""A training on as many processes as there is room for: fewer go on where nodes are lost, more where some come.

Ray Train's own elastic policy looks at resources alone. A batch divides over some numbers of processes only, and a group that
is resized begins again from its last checkpoint, so this one grows right behind a checkpoint.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, ScalingDecision, ScalingPolicy

from cluster.capacity import room
from cluster.checkpoints import last


class ElasticPolicy(ScalingPolicy):  # type: ignore[misc]  # Ray publishes no types
    """Ray Train's controller asks it how many processes a worker group shall have."""

    def __init__(self, scaling_config: ScalingConfig, counts: Sequence[int], label: Mapping[str, str] | None, storage: Path):
        """counts: numbers of processes that the batches divide over; storage: Ray Train's checkpoints."""
        super().__init__(scaling_config)
        self.counts, self.label, self.storage = sorted(counts), label, storage
        self.seen: Path | None = None

    def make_decision_for_non_running_worker_group(self) -> ScalingDecision:
        """As many as there is room for; the fewest where there is none, which are waited for where the group starts."""
        self._maybe_send_resource_request()
        self.seen = last(self.storage)
        return self._resize(self._fitting() or self.counts[0])

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> ScalingDecision:
        """More where there is room for them and a checkpoint has just been written. What fails shrinks the group by itself."""
        self._maybe_send_resource_request()
        newest = last(self.storage)
        if newest == self.seen:
            return NoopDecision()
        self.seen = newest
        fitting = self._fitting()
        return self._resize(fitting) if fitting > worker_group_state.num_workers else NoopDecision()

    def _get_num_workers_for_resource_request(self) -> int:
        return self.counts[-1]

    def _fitting(self) -> int:
        import ray

        there = room(ray.nodes(), self.scaling_config._resources_per_worker_not_none, self.label)
        return max((count for count in self.counts if count <= there), default=0)

    def _resize(self, workers: int) -> ScalingDecision:
        return ResizeDecision(workers, self.scaling_config._resources_per_worker_not_none)


class Trainer(TorchTrainer):  # type: ignore[misc]  # Ray publishes no types
    """Ray Train's, on as many processes as `counts` has; several are elastic."""

    def __init__(self, *given: Any, counts: Sequence[int], storage: Path, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self._counts, self._storage = counts, storage

    def _initialize_and_run_controller(self, **given: Any) -> Any:
        if len(self._counts) > 1:
            label = self.scaling_config.label_selector
            given["scaling_policy"] = ElasticPolicy(self.scaling_config, self._counts, label, self._storage)
        return super()._initialize_and_run_controller(**given)

    def _register_sigint_handler(self, controller: Any) -> None:
        """None: Ray's handler aborts silently for up to minutes, and stays after the training, where it ignores Ctrl-C."""
