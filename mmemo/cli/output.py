"""Tables and lines of the verbs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 160  # columns of a file or pipe, so that tables are not cut


def console() -> Console:
    """Returns a console as wide as the terminal, or wide enough for a file or a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDE)


def print_line(line: str) -> None:
    """Prints a line without markup, wrapped by the terminal."""
    console().print(line, markup=False, highlight=False, soft_wrap=True)


def warn(verb: str, message: str) -> None:
    """Prints a message on standard error."""
    from mmemo.files import printable

    print(f"mmemo {verb}: {printable(message)}", file=sys.stderr)


def reject_option(verb: str, name: str, known: Sequence[str]) -> NoReturn:
    """Exits with code 2 for an option that does not exist, and names the likely one.

    Args:
        verb: Verb of the command line.
        name: The option, such as ``--foramt``.
        known: Options that exist.
    """
    near = get_close_matches(name, known, 1)
    guess = f" Did you mean {near[0]}?" if near else ""
    print(f"mmemo {verb}: unknown option {name}.{guess} See `mmemo {verb} --help`.", file=sys.stderr)
    raise SystemExit(2)


def parse_pairs(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """Returns ``KEY=VALUE`` words as a dictionary; values are read as YAML.

    Args:
        pairs: Words of an option.
        option: Its name, for the error message.

    Raises:
        ValueError: A word has no ``=``, or a value is not YAML.

    Example:
        >>> parse_pairs(["trainer.max_epochs=5", "data.split=mmemo.data.GroupKFold"], "--set")
        {'trainer.max_epochs': 5, 'data.split': 'mmemo.data.GroupKFold'}
    """
    result: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise ValueError(f"{option} {pair}: expected KEY=VALUE")
        try:
            result[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"{option} {pair}: the value is not valid YAML") from None
    return result
