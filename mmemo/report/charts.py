"""Charts of a report as inline SVG. Text stays text, and nothing is loaded from elsewhere."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from mmemo.evaluation.calibration import Reliability, RiskCoverage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.7  # inches; readable at the width of a phone
BLUE, RED, GREY = "#4477aa", "#cc3355", "#bbbbbb"
COLOURS = ["#4477aa", "#ee6677", "#228833", "#aa7700", "#66ccee", "#aa3377", "#777777", "#000000", "#99cc00", "#ff9900"]


class Curve(NamedTuple):
    """A curve with the area under it.

    Args:
        x: Horizontal values ``(point,)``.
        y: Vertical values ``(point,)``.
        area: Area under the curve.
    """

    x: np.ndarray
    y: np.ndarray
    area: float


def to_svg(figure: Figure, label: str) -> str:
    """Renders a matplotlib figure as an SVG element that fills the available width.

    Args:
        figure: The figure.
        label: Description for screen readers.
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
    prefix = f"g{zlib.crc32(body.encode()):08x}"  # makes ids unique on a page with several charts
    body = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    return f'{head} role="img" aria-label="{label}">{body}'


def _new_figure(height: float, width: float = WIDTH) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=8)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _spread_indices(length: int, num_points: int) -> np.ndarray:
    """Up to ``num_points`` evenly spaced indices."""
    return np.unique(np.linspace(0, length - 1, num_points).round().astype(int))


def confusion(counts: np.ndarray, classes: Sequence[str]) -> str:
    """Confusion matrix in per cent of each row.

    Args:
        counts: Number of utterances ``(true class, predicted class)``.
        classes: Class names.
    """
    total = counts.sum(1, keepdims=True)
    percent = 100 * counts / np.maximum(total, 1e-9)
    figure, axes = _new_figure(0.42 * len(classes) + 1.1)
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(classes)), classes, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), [f"{name} ({total[row, 0]:.0f})" for row, name in enumerate(classes)])
    axes.set(xlabel="predicted", ylabel="true (utterances)")
    for row, column in np.ndindex(*percent.shape):
        colour = "white" if percent[row, column] > 55 else "black"
        axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", fontsize=8, color=colour)
    return to_svg(figure, "Confusion matrix")


def roc_curves(curves: Mapping[str, Curve]) -> str:
    """ROC curves.

    Args:
        curves: True over false positive rate of each class.
    """
    figure, axes = _new_figure(3.6)
    _plot_curves(axes, curves, "lower right")
    axes.plot([0, 1], [0, 1], ls=":", color=GREY)
    axes.set(xlabel="false positive rate", ylabel="true positive rate")
    return to_svg(figure, "ROC curves")


def pr_curves(curves: Mapping[str, Curve]) -> str:
    """Precision-recall curves.

    Args:
        curves: Precision over recall of each class.
    """
    figure, axes = _new_figure(3.6)
    _plot_curves(axes, curves, "lower left")
    axes.set(xlabel="recall", ylabel="precision")
    return to_svg(figure, "Precision-recall curves")


def _plot_curves(axes: Axes, curves: Mapping[str, Curve], legend: Literal["lower left", "lower right"]) -> None:
    for number, (name, curve) in enumerate(curves.items()):
        points = _spread_indices(len(curve.x), 120)
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(curve.x[points], curve.y[points], lw=1.3, color=colour, label=f"{name} {curve.area:.2f}")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=7, loc=legend, title="area")


def reliability(diagrams: Mapping[str, Reliability]) -> str:
    """Reliability diagram: accuracy over confidence.

    Args:
        diagrams: One or two curves by name.
    """
    figure, axes = _new_figure(3.2)
    axes.plot([0, 1], [0, 1], ls=":", color=GREY)
    for (name, bins), colour in zip(diagrams.items(), (RED, BLUE), strict=False):
        label = f"{name}: {bins.ece:.3f}"
        axes.plot(bins.confidence, bins.accuracy, marker="o", ms=4, lw=1.3, color=colour, label=label)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=8, title="calibration error", loc="upper left")
    return to_svg(figure, "Reliability diagram")


def risk_coverage(curve: RiskCoverage) -> str:
    """Risk-coverage curve.

    Args:
        curve: The curve.
    """
    figure, axes = _new_figure(2.8)
    points = _spread_indices(len(curve.coverage), 200)
    axes.plot(100 * curve.coverage[points], 100 * curve.risk[points], color=BLUE, lw=1.5)
    axes.set(xlabel="utterances answered, %", ylabel="wrong answers, %", xlim=(0, 100))
    axes.set_ylim(bottom=0)
    return to_svg(figure, "Risk and coverage")


def intervals(
    rows: Sequence[tuple[str, float, float, float]], label: str, reference: float | None = None, scale: float = 100
) -> str:
    """Values with their intervals, one row each.

    Args:
        rows: Name, value, lower and upper limit.
        label: Label of the axis.
        reference: Position of a vertical reference line. Defaults to none.
        scale: Factor for all values: 100 for per cent.
    """
    figure, axes = _new_figure(0.3 * len(rows) + 0.8)
    for row, (_, value, low, high) in enumerate(rows):
        if np.isfinite([low, high]).all():
            axes.plot([scale * low, scale * high], [row, row], color=BLUE, lw=2)
        if np.isfinite(value):
            axes.plot(scale * value, row, "o", color=BLUE, ms=5)
    if reference is not None:
        axes.axvline(scale * reference, color=GREY, lw=1, ls=":")
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return to_svg(figure, label)


def bars(counts: Mapping[str, float], label: str) -> str:
    """Horizontal bars.

    Args:
        counts: Count of each name.
        label: Label of the axis.
    """
    figure, axes = _new_figure(0.26 * len(counts) + 0.7)
    axes.barh(range(len(counts)), list(counts.values()), color=BLUE)
    axes.set_yticks(range(len(counts)), list(counts))
    axes.invert_yaxis()
    axes.set(xlabel=label)
    return to_svg(figure, label)


def scatter(true: np.ndarray, predicted: np.ndarray, label: str) -> str:
    """Predicted over true values; of many values, 600 are shown.

    Args:
        true: True values ``(item,)``.
        predicted: Predicted values ``(item,)``.
        label: Name of the quantity.
    """
    figure, axes = _new_figure(3.4)
    limits = [float(np.nanmin([true, predicted])), float(np.nanmax([true, predicted]))]
    axes.plot(limits, limits, ls=":", color=GREY)
    points = np.linspace(0, len(true) - 1, min(len(true), 600)).round().astype(int)
    axes.plot(true[points], predicted[points], "o", ms=4, alpha=0.6, color=BLUE)
    axes.set(xlabel=f"true {label}", ylabel=f"predicted {label}")
    return to_svg(figure, f"Predicted and true {label}")


def changes(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Change of each participant between visits, in rising order.

    Args:
        rows: Participant, change, lower and upper limit. Without limits the row is grey; if they exclude zero, red.
    """
    ordered = sorted(rows, key=lambda row: row[1])
    figure, axes = _new_figure(0.2 * len(ordered) + 0.9)
    for row, (_, value, low, high) in enumerate(ordered):
        has_limits = np.isfinite([low, high]).all()
        colour = GREY if not has_limits else BLUE if low <= 0 <= high else RED
        axes.plot([low, high], [row, row], color=colour, lw=1.5)
        axes.plot(value, row, "o", color=colour, ms=4)
    axes.axvline(0, color=GREY, lw=1, ls=":")
    axes.set_yticks(range(len(ordered)), [row[0] for row in ordered], fontsize=7)
    axes.set(xlabel="change, last visit minus first")
    return to_svg(figure, "Change between visits")


def robustness(conditions: Sequence[Mapping[str, Any]]) -> str:
    """UAR of each condition.

    Args:
        conditions: Conditions of ``robustness.json``.
    """
    rows = [
        (str(row["condition"]), row["uar"], row.get("uar_low") or np.nan, row.get("uar_high") or np.nan)
        for row in conditions
    ]
    return intervals(rows, "UAR, %")
