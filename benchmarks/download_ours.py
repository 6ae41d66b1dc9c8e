"""The download stage as the verb runs it, in a process of its own, for the benchmarks to measure and to kill.

    python benchmarks/download_ours.py SPEC.json

SPEC.json holds {"corpus": folder, "out": folder, "settings": `filtering.images.download.DownloadConfig`'s, "cpus": for Ray, or
0 to run in this process without Ray}. Prints one line of JSON: the stage's result, and "ray_seconds", Ray's start.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from filtering import InputError
from filtering.images.download import DownloadConfig, download_corpus
from filtering.shards import Runner, run_local
from pipelines.app.config import from_dict


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    began = time.monotonic()
    run = _on_ray(spec["cpus"]) if spec["cpus"] else run_local
    ray_seconds = time.monotonic() - began if spec["cpus"] else 0.0
    config: Any = from_dict(DownloadConfig, spec["settings"])
    try:
        result = download_corpus(config, Path(spec["corpus"]), Path(spec["out"]), run=run)
    except InputError as error:
        sys.exit(str(error))
    if spec["cpus"]:
        from cluster.session import close_session

        close_session()
    print(json.dumps({**result, "ray_seconds": ray_seconds}), flush=True)


def _on_ray(cpus: int) -> Runner:
    """The runner of the verbs, with Ray started before it is needed: to tell that time apart."""
    from cluster.data import run_on_ray
    from cluster.session import SessionConfig, ensure_session

    config = SessionConfig(num_cpus=cpus)
    ensure_session(config)
    return run_on_ray(config)


if __name__ == "__main__":
    main()
