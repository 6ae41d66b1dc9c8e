"""How a training is spread over a machine's cores where the settings leave it open."""

import pytest

from cluster import InputError
from cluster.train_config import TrainConfig

AUTO = TrainConfig(workers=0, threads=0)


@pytest.mark.parametrize(
    ("batches", "cores", "workers", "threads"),
    [
        ([64], 1, 1, 1),
        ([64], 2, 2, 1),
        ([64], 3, 2, 1),
        ([64], 4, 4, 1),
        ([64], 16, 4, 4),  # 16 pairs each at least
        ([64, 48], 16, 2, 8),  # every phase's batch is shared out evenly
        ([64, 50], 2, 2, 1),
        ([8], 16, 1, 16),
        ([4096], 64, 64, 1),
    ],
)
def test_by_the_cores(batches: list[int], cores: int, workers: int, threads: int) -> None:
    spread = AUTO.spread(batches, cores)
    assert (spread.workers, spread.threads) == (workers, threads)
    assert all(size % workers == 0 for size in batches)


def test_what_is_given_stays() -> None:
    assert TrainConfig(workers=2, threads=3).spread([64], 16) == TrainConfig(workers=2, threads=3)
    assert TrainConfig(workers=0, threads=3).spread([64], 4).threads == 3
    assert TrainConfig(workers=2, threads=0).spread([64], 8).threads == 4


def test_gpus_are_counted_by_the_user() -> None:
    with pytest.raises(InputError, match="workers must be given with use_gpu"):
        TrainConfig(workers=0, use_gpu=True)
    with pytest.raises(InputError, match="threads must be at least 0"):
        TrainConfig(threads=-1)
