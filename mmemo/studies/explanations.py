"""Which sounds and words an answer rests on: integrated gradients, gates and attention, and whether they are right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmemo.audio.reader import read_audio
from mmemo.data.batch import EmotionBatch, Example, collate
from mmemo.data.manifest import Utterance
from mmemo.files import replacing, write_text
from mmemo.labels import DIMENSIONS, UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.pooling import AttentiveStatisticsPooling
from mmemo.settings import is_offline
from mmemo.studies.robustness import checkpoint_of, members_of
from mmemo.training.attacks import Entry, Level, undisturbed
from mmemo.training.experiment import experiment_of
from mmemo.training.system import load_model

FOLDER = "explanations"
FRAME_SECONDS = 0.01
SHARES = (0.05, 0.1, 0.2, 0.3)
"""Shares of an utterance that the deletion test takes away."""
PATCH = (10, 8)
"""Frames and mel bands that it takes away at once: single cells would sound like nothing on earth."""


class Explanation(NamedTuple):
    """Why a model says what it says of one utterance.

    Args:
        id: Of the utterance.
        emotion: Its label, if it has one.
        predicted: The likeliest class, which is explained.
        confidence: Its probability.
        log_mel: What is heard ``(frame, mel)``; None for a model without a spectrogram.
        heard: How much each place of it speaks for the class ``(frame, mel)``; negative against it.
        words: Pieces of the transcript.
        read: How much each speaks for the class.
        error: How far attributions are from adding up to the change of the score, as a share of it.
        gates: Modality and feature group -> mean gate.
        weights: Modality -> how far it was believed; empty for a fusion that does not weigh them.
        attention: Name -> share of each step ``(step,)``.
        deletion: What is taken away -> share -> fall of the probability when the parts marked most go, and when as many
            others go.
    """

    id: str
    emotion: str | None
    predicted: str
    confidence: float
    log_mel: np.ndarray | None
    heard: np.ndarray | None
    words: list[str]
    read: np.ndarray | None
    error: dict[str, float]
    gates: dict[str, float]
    weights: dict[str, float]
    attention: dict[str, np.ndarray]
    deletion: dict[str, dict[float, tuple[float, float]]]


def explain(
    model: EmotionModel, utterance: Utterance, num_steps: int = 32, num_random: int = 5, seed: int = 0
) -> Explanation:
    """Integrated gradients of the likeliest class over time and frequency, and over words (Sundararajan et al. 2017,
    eq. 1, <https://arxiv.org/abs/1703.01365>), from silence, and from words that say nothing.

    Args:
        model: Of classes, in eval mode.
        utterance: With audio or words, as the model takes them.
        num_steps: Of the path.
        num_random: Random deletions that those of the marked parts are compared with.
        seed: Of the random deletions.

    Raises:
        ValueError: The model has no classes, or the utterance has nothing it takes.
    """
    if model.head is None:
        raise ValueError("explanations are of classes, and this model predicts dimensions alone")
    batch, words = _batch(model, utterance)

    def forward(one: EmotionBatch) -> EmotionOutput:
        output: EmotionOutput = model(
            one.audio, one.audio_mask, one.text, one.text_mask, one.descriptors, one.descriptors_mask
        )
        return output

    with undisturbed(model):
        attention: dict[str, np.ndarray] = {}
        handles = _watch(model, attention)
        with torch.no_grad():
            output = forward(batch)
        for handle in handles:
            handle.remove()
        names = list(model.modalities)
        for one in output.attention:
            if min(one.query, one.key) >= 0:
                attention[f"{names[one.query]} attends to {names[one.key]}"] = one.weights[0].mean(0).cpu().numpy()
        assert output.logits is not None
        probs = output.logits.float().softmax(-1)[0]
        place = int(probs.argmax())
        log_mel = heard = read = None
        error: dict[str, float] = {}
        deletion: dict[str, dict[float, tuple[float, float]]] = {}
        levels: list[Level] = []
        if batch.audio_mask is not None and batch.audio_mask.any() and _has_log_mel(model):
            levels.append("log_mel")
        if batch.text_mask is not None and batch.text_mask.any():
            levels.append("token_embeddings")
        for level in levels:
            entry = Entry(model, level, "explain")
            values, mask = entry.values(forward, batch)
            baseline = _baseline(level, values, mask)
            found, share = _integrated(entry, forward, batch, values, baseline, place, num_steps)
            error[level] = share
            cells = found if level == "log_mel" else found.sum(-1)
            deletion[level] = _deletion(
                entry, forward, batch, values, found, mask, place, num_random, np.random.default_rng(seed)
            )
            if level == "log_mel":
                real = mask[0].cpu().numpy()
                log_mel, heard = values[0].cpu().numpy()[real], cells[0].cpu().numpy()[real]
            else:
                read = cells[0].cpu().numpy()
    return Explanation(
        utterance.id, utterance.emotion, model.classes[place], float(probs[place]), log_mel, heard, words, read, error,
        _gate_means(model, output), _weights(model, output), attention, deletion,
    )  # fmt: skip


def _batch(model: EmotionModel, utterance: Utterance) -> tuple[EmotionBatch, list[str]]:
    """One raw utterance, and its words as the model reads them."""
    words: list[str] = []
    reader = model.encoder("text")
    waveform = text = None
    if {"audio", "descriptors"} & set(model.modalities):
        waveform = torch.zeros(0)
        if utterance.path is not None:
            waveform = torch.from_numpy(read_audio(utterance.path, utterance.start, utterance.end, utterance.channel))
    if reader is not None:
        text = reader.tokenize(utterance.text)
        words = [str(one) for one in reader.tokenizer.convert_ids_to_tokens(text.tolist())]
    if not any(one is not None and len(one) for one in (waveform, text)):
        raise ValueError(f"{utterance.id}: has nothing of what the model takes ({', '.join(model.modalities)})")
    nothing = torch.zeros(len(model.classes)), torch.full((len(DIMENSIONS),), torch.nan)
    example = Example(
        0,
        waveform if "audio" in model.modalities else None,
        waveform if "descriptors" in model.modalities else None,
        text,
        UNLABELLED,
        *nothing,
    )
    return collate([example]), words


def _has_log_mel(model: EmotionModel) -> bool:
    encoder = model.encoder("audio")
    return isinstance(getattr(encoder, "log_mel", None), torch.nn.Module) and getattr(encoder, "differentiable", True)


def _baseline(level: Level, values: Tensor, mask: Tensor) -> Tensor:
    """Silence: each mel band at its quietest; or words that say nothing: embeddings of zero."""
    if level == "token_embeddings":
        return torch.zeros_like(values)
    lowest = torch.where(mask[..., None], values, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(mask[..., None], lowest.expand_as(values), values)


def _integrated(
    entry: Entry, forward: Any, batch: EmotionBatch, values: Tensor, baseline: Tensor, place: int, num_steps: int
) -> tuple[Tensor, float]:
    """Attributions of the class's logit, and how far they are from adding up."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        raise ImportError("explanations need captum: pip install 'mmemo[explain]'") from None

    def score(changed: Tensor) -> Tensor:
        return cast(Tensor, entry.run(forward, batch, changed - values).logits)[:, place]

    method = IntegratedGradients(score)
    found, gap = method.attribute(
        values, baseline, n_steps=num_steps, internal_batch_size=1, return_convergence_delta=True
    )
    with torch.no_grad():
        change = float((score(values) - score(baseline)).abs())
    return found.detach(), float(gap.abs()) / max(change, 1e-6)


def _deletion(
    entry: Entry,
    forward: Any,
    batch: EmotionBatch,
    values: Tensor,
    found: Tensor,
    mask: Tensor,
    place: int,
    num_random: int,
    random: np.random.Generator,
) -> dict[float, tuple[float, float]]:
    """Fall of the probability when parts are replaced by the utterance's mean: the marked ones, and as many others.

    Parts are patches of a spectrogram, or single words.
    """
    size = PATCH if entry.level == "log_mel" else (1, values.shape[2])
    steps = int(mask[0].sum())
    across = -(-values.shape[2] // size[1])
    parts = [(row, column) for row in range(-(-steps // size[0])) for column in range(across)]
    marks = [float(_part(found, part, size, steps).sum()) for part in parts]
    mean = values[0, :steps].mean(0)

    def probability(output: EmotionOutput) -> float:
        return float(cast(Tensor, output.logits).float().softmax(-1)[0, place])

    def fall(chosen: np.ndarray) -> float:
        delta = torch.zeros_like(values)
        for number in chosen:
            (row, column) = parts[number]
            bands = slice(column * size[1], (column + 1) * size[1])
            part = _part(delta, parts[number], size, steps)
            part += mean[bands] - _part(values, (row, column), size, steps)
        with torch.no_grad():
            return before - probability(entry.run(forward, batch, delta))

    with torch.no_grad():
        before = probability(forward(batch))
    order = np.argsort(-np.array(marks))
    falls = {}
    for share in SHARES:
        count = max(1, round(share * len(parts)))
        others = [fall(random.permutation(len(parts))[:count]) for _ in range(num_random)]
        falls[share] = (fall(order[:count]), float(np.mean(others)))
    return falls


def _part(values: Tensor, part: tuple[int, int], size: tuple[int, int], steps: int) -> Tensor:
    """A patch of the first utterance, as a view."""
    row, column = part
    return values[0, row * size[0] : min((row + 1) * size[0], steps), column * size[1] : (column + 1) * size[1]]


def _watch(model: EmotionModel, attention: dict[str, np.ndarray]) -> list[Any]:
    """Notes what attention pooling attends to, modality by modality."""
    names = list(model.modalities)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, AttentiveStatisticsPooling):

            def note(part: Any, inputs: Any, output: Any, name: str = name) -> None:
                place = next((int(one) for one in reversed(name.split(".")) if one.isdecimal()), 0)
                label = f"pooling of {names[place]}" if place < len(names) else name
                attention[label] = part.attention(*inputs)[0].detach().cpu().numpy()

            handles.append(module.register_forward_hook(note))
    return handles


def _gate_means(model: EmotionModel, output: EmotionOutput) -> dict[str, float]:
    groups: dict[str, list[float]] = {}
    for name, value in zip(model.feature_names, torch.cat(output.gates, dim=-1)[0].tolist(), strict=True):
        groups.setdefault(name.rsplit("/", 1)[0], []).append(value)
    return {name: float(np.mean(values)) for name, values in groups.items()}


def _weights(model: EmotionModel, output: EmotionOutput) -> dict[str, float]:
    if output.modality_weights is None:
        return {}
    return dict(zip(model.modalities, output.modality_weights[0].tolist(), strict=True))


class Explained(NamedTuple):
    """Explanations of a run.

    Args:
        folder: With a picture of each utterance and ``explanations.json``.
        found: Of each utterance.
        deletion: What is taken away -> share -> mean fall of the probability: marked parts, others.
    """

    folder: Path
    found: list[Explanation]
    deletion: dict[str, dict[float, tuple[float, float]]]


def explain_run(
    run: Path,
    ids: Sequence[str] = (),
    num_utterances: int = 8,
    checkpoint: str | None = None,
    fold: int | None = None,
    words: bool | None = None,
    overrides: Sequence[str] = (),
    progress: bool = True,
) -> Explained:
    """Explains test utterances of a run.

    Args:
        run: Folder of ``mmemo fit`` or ``mmemo crossval``.
        ids: Which utterances; some of every class when not given.
        num_utterances: How many, when no ids are given.
        checkpoint: ``best``, ``last`` or a file; that of the run's config when not given.
        fold: Of a cross-validation; the first when not given.
        words: Whether pictures and JSON show words; not offline, and not in a study, when not given.
        overrides: Options of ``mmemo fit`` that win over the run's config.
        progress: Whether to draw a progress bar.

    Raises:
        ValueError: An id that is no test utterance of that run.
    """
    from rich.progress import track

    members = members_of(run, [fold] if fold is not None else [])
    member = members[0]
    experiment = experiment_of(member, overrides)
    model = load_model(checkpoint_of(member, checkpoint or experiment.config.checkpoint)).eval()
    if words is None:
        words = not is_offline() and experiment.config.study is None
    datamodule = experiment.datamodule
    datamodule.setup("test")
    test = datamodule.manifest.subset(datamodule.split.test)
    names = test.frame["id"].tolist()
    unknown = sorted(set(ids) - set(names))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:5])}: no test utterance of {member}; expected ids such as {', '.join(names[:3])}"
        )
    rows = [names.index(name) for name in ids] if ids else _some_of_each(test.frame, num_utterances)
    folder = run / FOLDER
    found = []
    for row in track(rows, "Explaining", transient=True, disable=not progress):
        one = explain(model, test[row])
        draw(one, folder / f"{''.join(c if c.isalnum() or c in '-_.' else '_' for c in one.id)}.png", words)
        found.append(one)
    deletion = {
        level: {
            share: tuple(float(np.mean([one.deletion[level][share][part] for one in found if level in one.deletion]))
                         for part in (0, 1))
            for share in SHARES
        }
        for level in sorted({level for one in found for level in one.deletion})
    }  # fmt: skip
    content = {
        "deletion": deletion,
        "utterances": [
            {
                "id": one.id, "emotion": one.emotion, "predicted": one.predicted, "confidence": one.confidence,
                "error": one.error, "gates": one.gates, "weights": one.weights, "deletion": one.deletion,
                **({"words": one.words, "read": None if one.read is None else one.read.tolist()} if words else {}),
            }
            for one in found
        ],
    }  # fmt: skip
    write_text(folder / "explanations.json", json.dumps(content, indent=1))
    return Explained(folder, found, cast(Any, deletion))


def _some_of_each(frame: pd.DataFrame, number: int) -> list[int]:
    """Rows of as many classes as there are, in turn, and each time of another speaker."""
    rows: list[int] = []
    table = pd.DataFrame({"emotion": frame["emotion"].to_numpy(), "speaker": frame["speaker"].to_numpy(dtype=object)})
    table["turn"] = table.groupby(["emotion", "speaker"], dropna=False).cumcount()
    table["place"] = table["speaker"].astype("category").cat.codes
    num_speakers = table["place"].nunique()
    queues = []
    for place, (_, part) in enumerate(table.groupby("emotion")):
        rotated = (part["place"] - place) % num_speakers  # each class begins with another speaker
        queues.append(list(part.assign(place=rotated).sort_values(["turn", "place"]).index))
    while len(rows) < number and any(queues):
        rows += [queue.pop(0) for queue in queues if queue]
    return rows[:number] or list(range(min(number, len(frame))))


def draw(one: Explanation, path: Path, words: bool = True) -> Path:
    """Spectrogram with what speaks for the answer and against it, words, attention, gates and weights.

    Args:
        one: Explained.
        path: Picture to write, .png.
        words: Whether to show words.
    """
    from matplotlib.figure import Figure

    shown_words = words and one.read is not None and len(one.words) == len(one.read)
    panels = (["heard"] if one.heard is not None else []) + (["attention"] if one.attention else [])
    panels += (["words"] if shown_words else []) + (["gates"] if one.gates else [])
    if not panels:
        raise ValueError(f"{one.id}: the model has neither a spectrogram, words, gates nor attention to draw")
    heights = {"heard": 2.6, "attention": 1.2, "words": 1.6, "gates": 0.4 + 0.22 * len(one.gates)}
    figure = Figure(figsize=(9, 0.7 + sum(heights[name] for name in panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[heights[name] for name in panels])[:, 0]
    for name, axis in zip(panels, axes, strict=True):
        if name == "heard":
            assert one.log_mel is not None
            assert one.heard is not None
            seconds = len(one.log_mel) * FRAME_SECONDS
            extent = (0.0, seconds, 0.0, float(one.log_mel.shape[1]))
            axis.imshow(one.log_mel.T, origin="lower", aspect="auto", cmap="gray_r", extent=extent, alpha=0.6)
            smooth = _smoothed(one.heard)
            limit = float(np.percentile(np.abs(smooth), 99.5)) or 1.0
            axis.imshow(
                smooth.T,
                origin="lower",
                aspect="auto",
                cmap="RdBu_r",
                extent=extent,
                vmin=-limit,
                vmax=limit,
                alpha=0.6,
            )
            axis.set(
                ylabel="mel band", xlabel="seconds", title=f"heard: red speaks for {one.predicted}, blue against it"
            )
        elif name == "attention":
            for label, values in one.attention.items():
                axis.plot(np.linspace(0, 1, len(values)), values * len(values), lw=1.2, label=label)
            axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
            axis.set(ylabel="attention", xlabel="share of the utterance", ylim=(0, None))
        elif name == "words":
            assert one.read is not None
            colours = ["#cc3355" if value > 0 else "#4477aa" for value in one.read]
            axis.bar(range(len(one.read)), one.read, color=colours)
            axis.set_xticks(range(len(one.words)), one.words, rotation=45, ha="right", fontsize=8)
            axis.axhline(0, color="#999999", lw=0.6)
            axis.set(ylabel=f"speaks for {one.predicted}")
        else:
            axis.barh(range(len(one.gates)), list(one.gates.values()), color="#4477aa")
            axis.set_yticks(range(len(one.gates)), list(one.gates), fontsize=7)
            axis.invert_yaxis()
            axis.set(xlim=(0, 1), xlabel="mean gate")
    believed = ", ".join(f"{name} {value:.2f}" for name, value in one.weights.items())
    figure.suptitle(
        f"{one.id}: {one.predicted} {100 * one.confidence:.0f} %"
        + (f", labelled {one.emotion}" if one.emotion else "")
        + (f"; believed: {believed}" if believed else "")
    )
    with replacing(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
    return path


def _smoothed(values: np.ndarray, size: int = 5) -> np.ndarray:
    from scipy.ndimage import uniform_filter

    return cast(np.ndarray, uniform_filter(values, size))
