"""Progress of long work: a bar in a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

LINE_SECONDS = 30.0  # between two lines where there is no terminal

Item = TypeVar("Item")
Advance = Callable[[float], None]
"""Takes the amount of work that has been done since the last call."""


@contextmanager
def progress(description: str, total: float | None, show: bool = True, unit: str = "") -> Iterator[Advance]:
    """Shows the progress of a block on standard error.

    Args:
        description: What is done.
        total: Amount of work; None if it is unknown.
        show: Whether to show anything.
        unit: Unit of the work, such as ``s``.

    Yields:
        A function that takes the amount of work done since its last call.

    Example:
        >>> with progress("Reading", total=2, show=False) as advance:
        ...     advance(1)
    """
    if not show or total == 0:
        yield lambda amount: None
    elif sys.stderr.isatty():
        with _bar(description, total, unit) as advance:
            yield advance
    else:
        yield _lines(description, total, unit)


def track(items: Iterable[Item], description: str, total: float | None = None, show: bool = True) -> Iterator[Item]:
    """Yields items and shows how many have been handled.

    Args:
        items: The items.
        description: What is done.
        total: Number of items. Defaults to their length, if they have one.
        show: Whether to show anything.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    with progress(description, total, show) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def _bar(description: str, total: float | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    of_total = "" if total is None else " of {task.total:.0f}"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}" + of_total + f" {unit}"),
    )
    remaining = TimeElapsedColumn() if total is None else TimeRemainingColumn()
    with Progress(*columns, remaining, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda amount: bar.advance(task, amount)


def _lines(description: str, total: float | None, unit: str) -> Advance:
    done, last = 0.0, time.monotonic()
    of_total = "" if total is None else f" of {total:.0f}"

    def advance(amount: float) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            print(f"{description}: {done:.0f}{of_total} {unit}".rstrip(), file=sys.stderr, flush=True)

    return advance
