"""What the gates kept: values that `mmemo predict --gates` wrote, as a table and a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

OPEN = 0.01  # a gate below this lets nothing through worth the name


def read_gates(path: str | Path) -> pd.DataFrame:
    """Gate values of every utterance.

    Args:
        path: ``.csv`` or ``.parquet`` file of ``mmemo predict --gates``.

    Returns:
        Columns ``id``, ``emotion`` and one for each gated feature, called ``modality/group/feature``.

    Raises:
        ValueError: The file is not one of gates.
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
        gates: As :func:`read_gates` gives them.

    Returns:
        One row per group, with columns ``modality``, ``group``, ``num_features``, ``mean``, ``open`` (share of gates
        that let anything through), ``spread`` (deviation over utterances of their mean) and one for each emotion.
    """
    names = [name for name in gates if name not in ("id", "emotion")]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rsplit("/", 1)[0], []).append(name)
    rows = []
    for group, members in groups.items():
        values = gates[members]
        means = values.mean(axis="columns")
        modality, _, part = group.partition("/")
        rows.append(
            {
                "modality": modality,
                "group": part,
                "num_features": len(members),
                "mean": means.mean(),
                "open": float((values > OPEN).to_numpy().mean()),
                "spread": means.std(ddof=0),
                **means.groupby(gates["emotion"]).mean().to_dict(),
            }
        )
    return pd.DataFrame(rows)


def draw_gates(table: pd.DataFrame, path: str | Path) -> Path:
    """Draws a gate table: groups down, emotions across, darker where more is let through.

    Args:
        table: As :func:`gate_table` gives it.
        path: Picture to write, .png, .svg or .pdf.
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
        shade = "white" if values[row, column] < 0.6 else "black"
        axes.text(column, row, f"{values[row, column]:.2f}", ha="center", va="center", color=shade, fontsize=8)
    figure.colorbar(image, ax=axes, label="mean gate")
    path = Path(path)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, bbox_inches="tight", format=path.suffix.lstrip(".") or "png")
    return path
