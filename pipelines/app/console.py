"""`owseg VERB ...`: the command that pip installs. It runs the same code as `python pipelines/VERB.py ...`."""

import runpy
import sys
from collections.abc import Sequence

from owseg import near_miss
from pipelines.app import help
from pipelines.app.outcome import DONE, USER_MISTAKE, explain, print_text
from pipelines.app.streams import complain, make_safe

VERBS = {
    "full": "links and captions in, the table of zero-shot mIoU out: all stages",
    "filter": "links in, the filtered corpus out",
    "download": "the corpus in, image shards out",
    "features": "image shards in, what frozen towers make of them out, for training to read",
    "train": "image shards in, trained methods out",
    "evaluate": "trained methods in, the table of zero-shot mIoU out",
    "segment": "photos or videos and labels in, segmented ones out",
    "app": "a page to try models on: drop a photo, name labels, see masks",
    "sweep": "a grid of settings times seeds, each a run of its own",
    "compare": "finished runs side by side: one page, and a table",
    "lineage": "who saw this image: its shard, steps and checkpoints; opt-outs",
    "status": "how a run is: stages, rates, time left, failures, disk",
    "prune": "room in the folders of runs: what no complete stage needs",
    "register": "a finished run in, its best method in MLflow's model registry",
    "convert": "official benchmark archives in, folders fit to be scored out",
    "export": "a trained model as others load it: transformers, open_clip, the authors' own; with a model card",
    "official": "published checkpoints into trained folders",
}
"""Each is a module of `pipelines`, whose own --help tells the rest."""
MODULES = {"app": "playground"}
"""Where the module has another name: `pipelines.app` is what verbs share."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb as a script runs; returns the exit code of one that does not exit by itself."""
    make_safe()
    verb, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if verb in ("-h", "--help"):
        print_text(_help())
        return DONE
    if verb not in VERBS:
        complain(f"error: unknown verb {verb!r}{near_miss(verb, VERBS)}; choose from {', '.join(VERBS)}")
        return USER_MISTAKE
    help.called_as = f"owseg {verb}"
    sys.argv = [verb, *rest]
    try:
        runpy.run_module(f"pipelines.{MODULES.get(verb, verb)}", run_name="__main__", alter_sys=True)
    except (ImportError, OSError, MemoryError) as error:  # met while the verb's own imports were read
        if (message := explain(error)) is None:
            raise
        complain(f"error: {message}")
        return USER_MISTAKE
    return DONE


def _help() -> str:
    verbs = "\n".join(f"  {verb:<10}{meaning}" for verb, meaning in VERBS.items())
    return f"usage: owseg VERB [--config FILE] [key=value ...]\n\n{verbs}\n\nowseg VERB --help tells what each takes."


if __name__ == "__main__":
    sys.exit(main())
