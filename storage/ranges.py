"""A file in a store, read in ranges."""

import io
import os
from typing import Any

from storage.client import Store


class Ranges(io.RawIOBase):
    """What libraries take for a file that can be read in places."""

    def __init__(self, store: Store, name: str, size: int) -> None:
        self._store, self._object, self._size, self._place = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._place)
        content = self._store.get_range(self._object, self._place, left if size < 0 else min(size, left))
        self._place += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)
