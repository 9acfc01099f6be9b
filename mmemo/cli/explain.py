"""`mmemo explain`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call_with_rest, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_rest(explain, argv, "explain", as_positional=True)


def explain(
    run: Path,
    ids: list[str] | str = [],  # noqa: B006
    number: int = 8,
    checkpoint: str | None = None,
    fold: int | None = None,
    words: bool | None = None,
    options: list[str] = [],  # noqa: B006
) -> int:
    """Draws which sounds and words an answer rests on, with gates and attention, and tests that it does rest on them.

    Writes RUN/explanations: a picture of each utterance, and a JSON file. The deletion test takes away what is marked
    most, and as much that is not: the probability must fall further.

    Args:
        run: Folder of `mmemo fit` or `mmemo crossval`.
        ids: Which test utterances; some of every class when not given.
        number: How many, when no ids are given.
        checkpoint: best, last or a file; what the run was judged by when not given.
        fold: Of a cross-validation; the first when not given.
        words: Whether pictures show words; not offline, and not in a study, when not given.
        options: Options of `mmemo fit`, such as --data.manifest OTHER.csv.
    """
    from rich.table import Table

    from mmemo.studies.explanations import explain_run

    if number < 1:
        raise ValueError(f"--number {number}: expected 1 or more")
    found = explain_run(run, [ids] if isinstance(ids, str) else ids, number, checkpoint, fold, words, options)
    console = screen()
    table = Table(title="Deletion test: fall of the probability, points")
    for name in ("what", "taken away", "marked most", "random"):
        table.add_column(name, justify="left" if name == "what" else "right")
    for level, shares in found.deletion.items():
        for share, (marked, others) in shares.items():
            what = "sound" if level == "log_mel" else "words"
            table.add_row(what, f"{100 * share:.0f} %", f"{100 * marked:.1f}", f"{100 * others:.1f}")
    console.print(table)
    console.print(f"{len(found.found)} utterances: {found.folder}", soft_wrap=True)
    return 0
