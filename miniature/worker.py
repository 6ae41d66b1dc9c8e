"""One drawing process of a build: `python -m miniature.worker JOB`, started by `miniature.world` alone.

JOB is JSON: the config, the folder, the part and the number of parts. Prints the captions and digests of the part as JSON,
or the OSError that it met.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from miniature.lifeline import exit_with_parent
from miniature.world import WorldConfig, draw_part


def main() -> None:
    """Draw one part."""
    exit_with_parent()
    job = json.loads(sys.argv[1])
    try:
        captions, digests = draw_part(WorldConfig(**job["config"]), Path(job["out"]), job["part"], job["parts"])
    except OSError as error:  # such as a full disk: for the parent to raise
        json.dump({"os_error": [error.errno, error.strerror, error.filename and str(error.filename)]}, sys.stdout)
        return
    json.dump([{index: asdict(caption) for index, caption in captions.items()}, digests], sys.stdout)


if __name__ == "__main__":
    main()
