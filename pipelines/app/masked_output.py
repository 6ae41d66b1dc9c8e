"""What is printed, by whomever: on the way to the terminal or the log secrets are masked, and copies go by their URLs.

The log of the run hears it, too.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

from cluster.run_log import heard
from filtering.secrets import masked
from storage.copies import with_urls


class MaskedStream:
    """A text stream that masks what is written, and names the URLs of what lies in object stores; all else is its own."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def write(self, text: str) -> int:
        self._stream.write(masked(with_urls(text)))
        heard(text, self._name)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def masked_output() -> Iterator[None]:
    """Within the block stdout and stderr of this process show no secrets."""
    streams = {"stdout": sys.stdout, "stderr": sys.stderr}
    out, err = (cast(TextIO, MaskedStream(stream, name)) for name, stream in streams.items())
    with redirect_stdout(out), redirect_stderr(err):
        yield
