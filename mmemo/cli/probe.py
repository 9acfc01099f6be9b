"""`mmemo probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(probe, argv, "probe")


def probe(
    embeddings: Path, column: str = "speaker", side: Literal["train", "val", "test"] | None = None, num_folds: int = 5
) -> int:
    """Says how well a linear classifier reads a column, such as the speaker, from a model's fused vectors.

    Little above the most frequent value means that little of it is left.

    Args:
        embeddings: File of `mmemo predict --embeddings`.
        column: What is to be read: speaker, emotion, corpus, gender, or any other of the manifest.
        side: Only the rows of this side of the split; all when not given.
        num_folds: Folds of utterances, 2 or more.
    """
    import pandas as pd

    from mmemo.evaluation.probe import linear_probe

    if not embeddings.is_file():
        raise ValueError(f"{embeddings}: no such file; `mmemo predict --embeddings {embeddings}` writes it")
    if num_folds < 2:
        raise ValueError(f"--num_folds {num_folds}: expected 2 or more")
    if embeddings.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{embeddings}: expected a .csv or .parquet file of `mmemo predict --embeddings`")
    text = {"speaker": str, "session": str}
    table = pd.read_parquet(embeddings) if embeddings.suffix == ".parquet" else pd.read_csv(embeddings, dtype=text)
    if "side" not in table:
        raise ValueError(f"{embeddings}: has no column side, so it is not of `mmemo predict --embeddings`")
    if side is not None:
        table = table[table["side"] == side]
    if len(table) == 0:
        raise ValueError(f"{embeddings}: no rows" + (f" on side {side}" if side else ""))
    try:
        found = linear_probe(table, column, num_folds)
    except ValueError as error:
        raise ValueError(f"{embeddings}: {error}") from None
    print(
        f"{column}: {100 * found.accuracy:.1f} % of {found.num_utterances} utterances right among {found.num_values} "
        f"values; the most frequent alone is {100 * found.majority:.1f} %"
    )
    return 0
