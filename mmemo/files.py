"""Files that appear whole or not at all, even if the process is killed; checksums and printable names."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside a file and renames it to the file when the block succeeds.

    Args:
        path: File to write. Its folder is created.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "notes.txt"
        >>> with replacing(target) as partial:
        ...     _ = partial.write_text("complete")
        >>> target.read_text()
        'complete'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Writes a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1))


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Writes a table atomically, as Parquet if the name ends in ``.parquet`` and as CSV otherwise."""
    path = Path(path)
    with replacing(path) as partial:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file of settings.

    Raises:
        ValueError: The file is not YAML, or not a mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}"
        raise ValueError(f"{path}{line}: not valid YAML ({error.problem})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected YAML with settings, as KEY: VALUE")
    return content


def checksum(path: str | Path) -> str:
    """Returns the SHA-256 of a file of any size, as hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def printable(name: str | Path) -> str:
    r"""Returns a file name that can be printed: bytes that are not valid text become ``\udce9`` and the like."""
    return str(name).encode(errors="backslashreplace").decode()
