"""Label maps for evaluation from a data set's official source, in the layout that the evaluator reads.

  coco            COCO-Stuff and COCO-Object maps of val2017 from COCO-Stuff's pixel maps; SOURCE holds val2017/*.png, the
                  unpacked stuffthingmaps_trainval2017.zip
  coco_panoptic   COCO-Object maps of val2017 from COCO's panoptic annotations, for want of the pixel maps: not the same
                  maps, and none for COCO-Stuff; SOURCE is panoptic_val2017.json, its folder of PNGs beside it
  context         Pascal Context maps and the lists train.txt and val.txt from the annotations of the Pascal in Detail
                  challenge; SOURCE is trainval_merged.json
  cityscapes      train-id maps from gtFine's label ids or polygons; SOURCE holds gtFine, the unpacked
                  gtFine_trainvaltest.zip

ROOT is the folder of all benchmarks (evaluate.root). A file that is there already is kept, so that a conversion which was
stopped resumes when started again. Photos are not copied: where they are missing, the last lines say where they belong.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from cluster.progress import Progress
from owseg import near_miss
from owseg.evaluation.check import check_benchmark
from owseg.evaluation.convert import Plan, remaining, run_job, write_file
from owseg.evaluation.convert_cityscapes import plan_cityscapes
from owseg.evaluation.convert_coco import plan_panoptic, plan_stuff
from owseg.evaluation.convert_context import plan_context
from owseg.evaluation.datasets import BENCHMARKS
from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.config import ConfigError
from pipelines.benchmark_check import print_reports

Planner = Callable[[Path, Path], Plan]

SETS: dict[str, tuple[Planner, tuple[str, ...]]] = {
    "coco": (plan_stuff, ("coco_object", "coco_stuff")),
    "coco_panoptic": (plan_panoptic, ("coco_object",)),
    "context": (plan_context, ("context60",)),
    "cityscapes": (plan_cityscapes, ("cityscapes",)),
}
"""Set → what plans its conversion, and benchmarks that read all its files."""


def convert(name: str, source: Path, root: Path) -> None:
    """Make the label maps of a set, and tell what is there now. Raises InputError that names what is missing or broken."""
    planner, benchmarks = SETS[name]
    plan = planner(source, root)
    todo = remaining(plan)
    kept = len(plan.jobs) - len(todo)
    with _workers(len(todo)) as pool:
        made = pool.map(partial(run_job, made_of=plan.set), todo, chunksize=4)
        with Progress(f"convert {name}", total=len(plan.jobs), unit="images", start=kept) as progress:
            for _ in made:
                progress.advance()
    for file, content in plan.lists.items():
        write_file(file, content.encode())
    print(f"{name}: label maps of {len(todo)} images written, of {kept} kept, under {root}")
    for split, official in plan.official.items():
        there = sum(job.split == split for job in plan.jobs)
        if there or split == "val":
            lacking = f", {official - there} not in {source}" if there < official else ""
            print(f"{name}: {split}: {there} of {official} images{lacking}")
    print_reports({benchmark: check_benchmark(BENCHMARKS[benchmark], root) for benchmark in benchmarks}, str(root))


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A process for each core; what waits is dropped when one fails. Ctrl-C is for the parent alone."""
    processes = max(1, min(jobs, os.cpu_count() or 1))
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(processes, mp_context=get_context("fork"), initializer=ignore)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    parser = Parser(usage=f"{command_name()} SET SOURCE ROOT", description=__doc__)
    for name, meaning in (("set", " or ".join(SETS)), ("source", "the official annotations"), ("root", "as evaluate.root")):
        parser.add_argument(name, metavar=name.upper(), help=meaning)
    return run_parsed(parser, argv, _run)


def _run(given: argparse.Namespace) -> None:
    if given.set not in SETS:
        raise ConfigError(f"unknown set '{given.set}'{near_miss(given.set, SETS)}; choose from {', '.join(SETS)}")
    convert(given.set, Path(given.source), Path(given.root))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
