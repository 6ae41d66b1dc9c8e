"""A node that is to be taken back: a checkpoint at once, so that next to nothing is lost with it."""

import ray.train


class Notice:
    """Whether Ray has heard, since it last said so, that nodes of this training are to be taken back.

    Called after every step on all ranks, it asks after each `every` of them, as asking is a collective of Ray Train.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.known: set[str] = set()

    def __call__(self, step: int) -> bool:
        if step % self.every:
            return False
        info = ray.train.get_preemption_info()
        nodes = set(info.preempted_node_ids) if info is not None else set()
        new = nodes - self.known
        self.known |= nodes
        return bool(new)
