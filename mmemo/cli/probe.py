"""``mmemo probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def probe(
    embeddings: Path, *, column: str = "speaker", side: Literal["train", "val", "test"] | None = None,
    num_folds: int = 5,
) -> int:  # fmt: skip
    """Measures how well a linear classifier predicts a column, such as the speaker, from the fused vectors.

    An accuracy close to that of the most frequent value means that little of it is left.

    Args:
        embeddings: File of `mmemo predict --embeddings`.
        column: Column to predict: speaker, emotion, corpus, gender, or any other of the manifest.
        side: Rows of this side of the split only. Defaults to all.
        num_folds: Folds of utterances, 2 or more.
    """
    if not embeddings.is_file():
        raise ValueError(f"{embeddings}: no such file; `mmemo predict --embeddings {embeddings}` writes it")
    if num_folds < 2:
        raise ValueError(f"--num-folds {num_folds}: expected 2 or more")
    if embeddings.suffix not in (".parquet", ".csv"):
        raise ValueError(f"{embeddings}: expected a .csv or .parquet file of `mmemo predict --embeddings`")
    import pandas as pd

    from mmemo.evaluation.probe import linear_probe

    text = {"speaker": str, "session": str}
    table = pd.read_parquet(embeddings) if embeddings.suffix == ".parquet" else pd.read_csv(embeddings, dtype=text)
    if "side" not in table:
        raise ValueError(f"{embeddings}: has no column side; expected a file of `mmemo predict --embeddings`")
    if side is not None:
        table = table[table["side"] == side]
    if len(table) == 0:
        raise ValueError(f"{embeddings}: no rows" + (f" on side {side}" if side else ""))
    try:
        result = linear_probe(table, column, num_folds)
    except ValueError as error:
        raise ValueError(f"{embeddings}: {error}") from None
    print(
        f"{column}: {100 * result.accuracy:.1f} % of {result.num_utterances} utterances correct among "
        f"{result.num_values} values; always choosing the most frequent gives {100 * result.majority:.1f} %"
    )
    return 0
