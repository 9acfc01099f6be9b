"""Pictures of a report as inline SVG: text stays text, and nothing is loaded from anywhere."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmemo.evaluation.calibration import Reliability, RiskCoverage

WIDTH = 4.7  # inches: about as wide as a telephone at the size it is drawn for
BLUE, RED, GREY = "#4477aa", "#cc3355", "#bbbbbb"
COLOURS = ["#4477aa", "#ee6677", "#228833", "#aa7700", "#66ccee", "#aa3377", "#777777", "#000000", "#99cc00", "#ff9900"]


def svg(figure: Any, label: str) -> str:
    """A matplotlib figure as an SVG element that fills the width it is given.

    Args:
        figure: Drawn.
        label: What a screen reader says of it.
    """
    import matplotlib

    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.family": "sans-serif"}):
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, body = text.split(">", 1)
    head = re.sub(r'(width|height)="[\d.]+pt"', "", head)
    head = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", head)
    body = re.sub(r"\sxlink:href=", " href=", body)
    prefix = f"g{zlib.crc32(body.encode()):08x}"
    body = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', body)  # several pictures share a page
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    return f'{head} role="img" aria-label="{label}">{body}'


def _figure(height: float, width: float = WIDTH) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Which class is taken for which: per cent of each row.

    Args:
        counts: ``(true class, predicted class)``.
        classes: Their names.
    """
    total = counts.sum(1, keepdims=True)
    share = 100 * counts / np.maximum(total, 1e-9)
    figure, axes = _figure(0.42 * len(classes) + 1.1)
    axes.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), [f"{name} ({total[row, 0]:.0f})" for row, name in enumerate(classes)])
    axes.set(xlabel="said", ylabel="true (utterances)")
    for row, column in np.ndindex(*share.shape):
        shade = "white" if share[row, column] > 55 else "black"
        axes.text(column, row, f"{share[row, column]:.0f}", ha="center", va="center", fontsize=8, color=shade)
    return svg(figure, "Confusion matrix")


def curves(lines: Mapping[str, tuple[np.ndarray, np.ndarray, float]], kind: str) -> str:
    """ROC or precision-recall curves.

    Args:
        lines: Class -> x, y, area.
        kind: ``ROC`` or ``Precision-recall``.
    """
    figure, axes = _figure(3.6)
    for number, (name, (across, up, area)) in enumerate(lines.items()):
        places = np.unique(np.linspace(0, len(across) - 1, 120).round().astype(int))
        axes.plot(across[places], up[places], lw=1.3, color=COLOURS[number % len(COLOURS)], label=f"{name} {area:.2f}")
    if kind == "ROC":
        axes.plot([0, 1], [0, 1], ls=":", color=GREY)
        axes.set(xlabel="false alarms", ylabel="found")
    else:
        axes.set(xlabel="found (recall)", ylabel="right of what is said (precision)")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=7, loc="lower right" if kind == "ROC" else "lower left", title="area")
    return svg(figure, f"{kind} curves")


def reliability(found: Mapping[str, Reliability]) -> str:
    """Confidence against accuracy.

    Args:
        found: Such as ``before`` and ``after`` calibration.
    """
    figure, axes = _figure(3.2)
    axes.plot([0, 1], [0, 1], ls=":", color=GREY)
    for (name, one), colour in zip(found.items(), (RED, BLUE), strict=False):
        axes.plot(one.confidence, one.accuracy, marker="o", ms=4, lw=1.3, color=colour, label=f"{name}: {one.ece:.3f}")
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8, title="calibration error", loc="upper left")
    return svg(figure, "Reliability diagram")


def risk_coverage(found: RiskCoverage) -> str:
    """How often answers are wrong when only the surest are given.

    Args:
        found: The curve.
    """
    figure, axes = _figure(2.8)
    places = np.unique(np.linspace(0, len(found.coverage) - 1, 200).round().astype(int))
    axes.plot(100 * found.coverage[places], 100 * found.risk[places], color=BLUE, lw=1.5)
    axes.set(xlabel="utterances answered, %", ylabel="wrong answers, %", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    return svg(figure, "Risk and coverage")


def intervals(
    rows: Sequence[tuple[str, float, float, float]], label: str, reference: float | None = None, scale: float = 100
) -> str:
    """Figures with their intervals, one below the other.

    Args:
        rows: Name, value, low, high.
        label: Of the axis.
        reference: Where a thin line stands.
        scale: What all are multiplied by: 100 for per cent.
    """
    figure, axes = _figure(0.3 * len(rows) + 0.8)
    for place, (_, value, low, high) in enumerate(rows):
        if np.isfinite([low, high]).all():
            axes.plot([scale * low, scale * high], [place, place], color=BLUE, lw=2)
        if np.isfinite(value):
            axes.plot(scale * value, place, "o", color=BLUE, ms=5)
    if reference is not None:
        axes.axvline(scale * reference, color=GREY, lw=1, ls=":")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return svg(figure, label)


def bars(counts: Mapping[str, float], label: str) -> str:
    """Counts as bars.

    Args:
        counts: Name -> number.
        label: Of the axis.
    """
    figure, axes = _figure(0.26 * len(counts) + 0.7)
    axes.barh(range(len(counts)), list(counts.values()), color=BLUE)
    axes.set_yticks(range(len(counts)), list(counts))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return svg(figure, label)


def scatter(true: np.ndarray, predicted: np.ndarray, label: str) -> str:
    """Predicted against true values.

    Args:
        true: Values.
        predicted: As many.
        label: What they are.
    """
    figure, axes = _figure(3.4)
    ends = [float(np.nanmin([true, predicted])), float(np.nanmax([true, predicted]))]
    axes.plot(ends, ends, ls=":", color=GREY)
    some = np.linspace(0, len(true) - 1, min(len(true), 600)).round().astype(int)
    axes.plot(true[some], predicted[some], "o", ms=4, alpha=0.6, color=BLUE)
    axes.set(xlabel=f"true {label}", ylabel=f"predicted {label}")
    return svg(figure, f"Predicted and true {label}")


def changes(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Each participant's change between visits, smallest first.

    Args:
        rows: Participant, change, low, high.
    """
    ordered = sorted(rows, key=lambda row: row[1])
    figure, axes = _figure(0.2 * len(ordered) + 0.9)
    for place, (_, value, low, high) in enumerate(ordered):
        known = np.isfinite([low, high]).all()
        colour = GREY if not known else BLUE if low <= 0 <= high else RED
        axes.plot([low, high], [place, place], color=colour, lw=1.5)
        axes.plot(value, place, "o", color=colour, ms=4)
    axes.axvline(0, color=GREY, lw=1, ls=":")
    axes.set_yticks(range(len(ordered)), [row[0] for row in ordered], fontsize=7)
    axes.set(xlabel="change, last visit less first")
    return svg(figure, "Change between visits")


def robustness(rows: Sequence[Mapping[str, Any]]) -> str:
    """UAR of every condition, from noise to attacks.

    Args:
        rows: Of ``robustness.json``.
    """
    found = [
        (str(row["condition"]), row["uar"], row.get("uar_low") or np.nan, row.get("uar_high") or np.nan) for row in rows
    ]
    return intervals(found, "UAR, %")
