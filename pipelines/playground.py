"""A page on this machine to try models on: drop a photo, name labels, and see each method's masks side by side.

    owseg app RUN|CHECKPOINT ...      runs' folders, or what `segment --checkpoint` takes

Opacity and thresholds move without a model being run again; masks, legends and overlays can be saved. Nothing leaves the
machine, and what was dropped is deleted after an hour, or when the page is closed with Ctrl-C.
"""

import argparse
import ipaddress
import sys
import threading
from collections.abc import Sequence

from pipelines.app.arguments import Parser, command_name, run_parsed
from pipelines.app.models import add_device_option, add_encoder_options

HOST = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """The verb, with the exit codes of all verbs."""
    return run_parsed(_parser(), argv, run)


def run(arguments: argparse.Namespace) -> None:
    """Show the page until a signal ends it."""
    from pipelines.segmenting.page import served
    from pipelines.segmenting.playground import Playground

    encoder = {"encoder_model": arguments.encoder_model, "encoder_weights": arguments.encoder_weights}
    playground = Playground(arguments.sources, encoder, arguments.device)
    if not _is_loopback(arguments.host):
        print(f"warning: others can reach {arguments.host}, and the page asks for no password", file=sys.stderr, flush=True)
    with served(playground, host=arguments.host, port=arguments.port, open_browser=arguments.open) as address:
        print(f"playground: {address} ({', '.join(playground.choices)}); Ctrl-C ends it", flush=True)
        threading.Event().wait()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parser() -> Parser:
    parser = Parser(usage=f"{command_name()} RUN|CHECKPOINT... [option ...]", description=__doc__)
    add = parser.add_argument
    add("sources", nargs="+", metavar="RUN|CHECKPOINT", help="a run's folder, or what segment takes as --checkpoint")
    add(
        "--host", default=HOST, help="address to listen at; others than this machine's own are warned of (default: %(default)s)"
    )
    add("--port", type=int, default=0, help="port to listen at (default: the first that is free from 7860 on)")
    add("--open", action="store_true", help="open the page in the browser")
    add_encoder_options(parser)
    add_device_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
