"""Pictures of studies: searches, robustness, explanations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mmemo.files import replacing
from mmemo.studies.conditions import CLEAN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study

    from mmemo.studies.explanations import Explanation

FRAME_SECONDS = 0.01
SMOOTHING_CELLS = 5  # of the picture of attributions


def draw_search(study: Study, importance: Mapping[str, float], path: Path) -> None:
    """Draws the scores of all trials, and the importance of each setting.

    Args:
        study: Optuna's study.
        importance: Setting -> share of the variance.
        path: PNG to write.
    """
    import optuna
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    states = {
        "finished": (optuna.trial.TrialState.COMPLETE, "#4477aa"), "pruned": (optuna.trial.TrialState.PRUNED, "#bbbbbb")
    }  # fmt: skip
    for label, (state, colour) in states.items():
        trials = [trial for trial in study.trials if trial.state == state and trial.value is not None]
        left.scatter(
            [trial.number for trial in trials], [100 * (trial.value or 0.0) for trial in trials], c=colour, label=label
        )
    left.set(xlabel="trial", ylabel="mean of inner folds, %", title="Trials")
    left.legend(frameon=False)
    names = list(importance)[::-1]
    right.barh([name.split(".")[-1] for name in names], [importance[name] for name in names], color="#4477aa")
    right.set(title="Importance", xlabel="share of variance explained")
    if not names:
        right.text(0.5, 0.5, "too few trials", ha="center", va="center", transform=right.transAxes)
    with replacing(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def draw_robustness(table: pd.DataFrame, path: Path) -> None:
    """Draws UAR against strength for noise, attacks and wrong words, and single values for the rest.

    Args:
        table: Table of :func:`robustness`.
        path: PNG to write.
    """
    from matplotlib.figure import Figure

    table = table.assign(kind=table["kind"].replace({"no words": "words"}))
    table.loc[table["condition"] == "no words", "strength"] = 1.0
    groups = [
        ("noise", ("white", "pink", "brown"), "signal to noise, dB"),
        ("attack on the waveform", ("fgsm", "pgd"), "signal to perturbation, dB"),
        ("words", ("words",), "wrong words, share"),
        ("channel", ("reverberation", "telephone", "mp3"), ""),
    ]
    groups = [
        (title, tuple(kind for kind in kinds if (table["kind"] == kind).any()), label) for title, kinds, label in groups
    ]
    shown = [group for group in groups if group[1]]
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.6), layout="constrained")
    clean = table[table["kind"] == CLEAN].iloc[0]
    for number, (title, kinds, label) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        axes.axhspan(100 * clean["uar_low"], 100 * clean["uar_high"], color="0.9")
        axes.axhline(100 * clean["uar"], color="0.5", linestyle="--", label="clean")
        for position, kind in enumerate(kinds):
            rows = table[table["kind"] == kind].sort_values("strength")
            if len(rows) == 0:
                continue
            spread = 100 * np.stack([rows["uar"] - rows["uar_low"], rows["uar_high"] - rows["uar"]]).clip(min=0)
            x = [position] if not label else rows["strength"]
            axes.errorbar(x, 100 * rows["uar"], spread, marker="o", capsize=3, label=kind)
        if label:
            axes.set_xlabel(label)
            axes.margins(x=0.08)
            strengths = sorted(table[table["kind"].isin(kinds)]["strength"].unique())
            axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
            if "dB" in label:
                axes.invert_xaxis()
        else:
            axes.set_xticks(range(len(kinds)), kinds)
        axes.set_title(title)
        axes.set_ylim(0, 100)
        axes.set_ylabel("UAR, %")
        if label:
            axes.legend(frameon=False, fontsize="small")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def draw_explanation(explanation: Explanation, path: Path, show_words: bool = True) -> Path:
    """Draws the spectrogram with its attributions, words, attention and gates.

    Args:
        explanation: Explanation of an utterance.
        path: PNG to write.
        show_words: Whether to show words.

    Raises:
        ValueError: The model has neither a spectrogram, words, gates nor attention.
    """
    from matplotlib.figure import Figure

    panels: dict[str, tuple[float, Callable[[Axes, Explanation], None]]] = {}
    if explanation.sound is not None:
        panels["sound"] = (2.6, _draw_sound)
    if explanation.attention:
        panels["attention"] = (1.2, _draw_attention)
    if show_words and explanation.words is not None and len(explanation.tokens) == len(explanation.words):
        panels["words"] = (1.6, _draw_words)
    if explanation.gates:
        panels["gates"] = (0.4 + 0.22 * len(explanation.gates), _draw_gates)
    if not panels:
        raise ValueError(f"{explanation.id}: the model has neither a spectrogram, words, gates nor attention to draw")
    heights = [height for height, _ in panels.values()]
    figure = Figure(figsize=(9, 0.7 + sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for (_, draw), axis in zip(panels.values(), axes, strict=True):
        draw(axis, explanation)
    weights = ", ".join(f"{name} {value:.2f}" for name, value in explanation.weights.items())
    figure.suptitle(
        f"{explanation.id}: {explanation.predicted} {100 * explanation.confidence:.0f} %"
        + (f", labelled {explanation.emotion}" if explanation.emotion else "")
        + (f"; weights: {weights}" if weights else "")
    )
    with replacing(path) as partial_path:
        figure.savefig(partial_path, dpi=110, format="png")
    return path


def _draw_sound(axis: Axes, explanation: Explanation) -> None:
    from scipy.ndimage import uniform_filter

    assert explanation.log_mel is not None
    extent = (0.0, len(explanation.log_mel) * FRAME_SECONDS, 0.0, float(explanation.log_mel.shape[1]))
    image: dict[str, Any] = {"origin": "lower", "aspect": "auto", "extent": extent, "alpha": 0.6}
    axis.imshow(explanation.log_mel.T, cmap="gray_r", **image)
    smooth = uniform_filter(explanation.sound, SMOOTHING_CELLS)
    limit = float(np.percentile(np.abs(smooth), 99.5)) or 1.0
    axis.imshow(smooth.T, cmap="RdBu_r", vmin=-limit, vmax=limit, **image)
    title = f"sound: red supports {explanation.predicted}, blue opposes it"
    axis.set(ylabel="mel band", xlabel="seconds", title=title)


def _draw_attention(axis: Axes, explanation: Explanation) -> None:
    for label, values in explanation.attention.items():
        axis.plot(np.linspace(0, 1, len(values)), values * len(values), lw=1.2, label=label)
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set(ylabel="attention", xlabel="share of the utterance", ylim=(0, None))


def _draw_words(axis: Axes, explanation: Explanation) -> None:
    values = explanation.words
    assert values is not None
    axis.bar(range(len(values)), values, color=["#cc3355" if value > 0 else "#4477aa" for value in values])
    axis.set_xticks(range(len(explanation.tokens)), explanation.tokens, rotation=45, ha="right", fontsize=8)
    axis.axhline(0, color="#999999", lw=0.6)
    axis.set(ylabel=f"supports {explanation.predicted}")


def _draw_gates(axis: Axes, explanation: Explanation) -> None:
    axis.barh(range(len(explanation.gates)), list(explanation.gates.values()), color="#4477aa")
    axis.set_yticks(range(len(explanation.gates)), list(explanation.gates), fontsize=7)
    axis.invert_yaxis()
    axis.set(xlim=(0, 1), xlabel="mean gate")
