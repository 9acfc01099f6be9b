"""A verb's function -> typed, explained command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def call(function: Callable[..., int], argv: list[str], verb: str) -> int:
    """Parses a verb's options from its function's signature and docstring, and calls it.

    Args:
        function: The verb; its docstring becomes the help.
        argv: Options, without the verb.
        verb: Its name.
    """
    from jsonargparse import auto_cli

    return call_result(auto_cli(function, args=argv, prog=f"mmemo {verb}"))


def call_result(result: Any) -> int:
    """Exit code of what a verb returned."""
    return int(result or 0)
