"""A small real name server for the tests: it answers from a table, over UDP."""

import ipaddress
import socket
import struct
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

_TYPES = {1: "A", 28: "AAAA"}
_CODES = {"FORMERR": 1, "SERVFAIL": 2, "NXDOMAIN": 3, "REFUSED": 5}

Answer = str | Sequence[str]
"""The addresses of a name (IPv4 and IPv6), an error such as "SERVFAIL", or "silence"."""


class NameServer:
    """The server in a thread. A name's n-th question of a type gets its n-th answer, further ones the last; others NXDOMAIN.

    `questions` counts what was asked, by name and type. Answers may not be kept: their time to live is 0.
    """

    def __init__(self, table: Mapping[str, Sequence[Answer]]) -> None:
        self.questions: Counter[tuple[str, str]] = Counter()
        self._table = table
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
            end.sendto(b"", self._socket.getsockname())
        self._thread.join(20)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(4096)
            if not question:
                return
            if (answer := self._answer(question)) is not None:
                self._socket.sendto(answer, sender)

    def _answer(self, question: bytes) -> bytes | None:
        labels, at = [], 12
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels).lower()
        (number,) = struct.unpack_from(">H", question, at + 1)
        kind = _TYPES.get(number, str(number))
        self.questions[name, kind] += 1
        answers = self._table.get(name, ["NXDOMAIN"])
        answer = answers[min(self.questions[name, kind], len(answers)) - 1]
        if answer == "silence":
            return None
        code = _CODES[answer] if isinstance(answer, str) else 0
        addresses = [] if isinstance(answer, str) else [ipaddress.ip_address(text).packed for text in answer]
        fitting = [packed for packed in addresses if len(packed) == (4 if kind == "A" else 16)]
        head = question[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(fitting), 0, 0) + question[12 : at + 5]
        return head + b"".join(struct.pack(">HHHIH", 0xC00C, number, 1, 0, len(packed)) + packed for packed in fitting)
