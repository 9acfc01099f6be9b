"""Files that appear whole or not at all, whatever kills the process; their checksums and names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Gives a temporary path beside a file, which takes the file's place when the block ends well.

    Args:
        path: The file to write; its folder is made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Args:
        path: Of any size: a megabyte is read at a time.
    """
    found = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found.update(part)
    return found.hexdigest()


def printable(path: str | Path) -> str:
    """A file's name as text; bytes that are none are written as ``\\udce9``.

    Args:
        path: As the system gives it.
    """
    return str(path).encode(errors="backslashreplace").decode()
