"""Gate values that `mmemo predict --gates` wrote, summarised as a table and a heat map."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

OPEN = 0.01
"""Gates above this value count as open."""


def read_gates(path: str | Path) -> pd.DataFrame:
    """Reads the gate values of every utterance.

    Args:
        path: ``.csv`` or ``.parquet`` file of ``mmemo predict --gates``.

    Returns:
        Columns ``id``, ``emotion`` and one for each gated feature, named ``modality/group/feature``.

    Raises:
        ValueError: The file is missing or contains no gate values.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `mmemo predict ... --gates {path}` writes it")
    table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    if not {"id", "emotion"} <= set(table) or not any(name.count("/") >= 2 for name in table):
        raise ValueError(f"{path}: not a file of gate values, expected columns id, emotion and modality/group/feature")
    return table


def gate_table(gates: pd.DataFrame) -> pd.DataFrame:
    """Mean gate of each modality and feature group, over all utterances and for each emotion.

    Args:
        gates: Gate values from :func:`read_gates`.

    Returns:
        One row per group, with columns ``modality``, ``group``, ``num_features``, ``mean``, ``open`` (share of gates
        above :data:`OPEN`), ``spread`` (standard deviation over utterances of their mean gate) and one for each
        emotion.

    Example:
        >>> gates = pd.DataFrame({"id": ["a", "b"], "emotion": ["anger", "fear"], "audio/mfcc/0": [0.2, 0.4]})
        >>> gate_table(gates)[["modality", "group", "mean", "anger", "fear"]].round(1).to_dict("records")
        [{'modality': 'audio', 'group': 'mfcc', 'mean': 0.3, 'anger': 0.2, 'fear': 0.4}]
    """
    names = [name for name in gates if name not in ("id", "emotion")]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rsplit("/", 1)[0], []).append(name)
    rows = []
    for prefix, members in groups.items():
        values = gates[members]
        means = values.mean(axis="columns")
        modality, _, group = prefix.partition("/")
        rows.append(
            {
                "modality": modality,
                "group": group,
                "num_features": len(members),
                "mean": means.mean(),
                "open": float((values > OPEN).to_numpy().mean()),
                "spread": means.std(ddof=0),
                **means.groupby(gates["emotion"]).mean().to_dict(),
            }
        )
    return pd.DataFrame(rows)


def draw_gates(table: pd.DataFrame, path: str | Path) -> Path:
    """Draws a heat map of a gate table, with groups as rows and emotions as columns.

    Args:
        table: Table from :func:`gate_table`.
        path: Image to write, .png, .svg or .pdf.

    Returns:
        The path that was written.

    Example:
        >>> import tempfile
        >>> gates = pd.DataFrame({"id": ["a", "b"], "emotion": ["anger", "fear"], "audio/mfcc/0": [0.2, 0.4]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     draw_gates(gate_table(gates), f"{folder}/gates.svg").read_text().startswith("<?xml")
        True
    """
    from matplotlib.figure import Figure

    from mmemo.files import replacing

    emotions = [name for name in table if name not in ("modality", "group", "num_features", "mean", "open", "spread")]
    values = table[["mean", *emotions]].to_numpy(dtype=float)
    figure = Figure(figsize=(2 + 0.7 * values.shape[1], 1 + 0.45 * len(table)))
    axes = figure.subplots()
    image = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_xticks(range(values.shape[1]), ["all", *emotions], rotation=40, ha="right")
    axes.set_yticks(range(len(table)), table["modality"] + "/" + table["group"])
    for row, column in ((row, column) for row in range(len(table)) for column in range(values.shape[1])):
        colour = "white" if values[row, column] < 0.6 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    figure.colorbar(image, ax=axes, label="mean gate")
    path = Path(path)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight", format=path.suffix.lstrip(".") or "png")
    return path
