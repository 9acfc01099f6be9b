"""Explanations: integrated gradients over sound and words, gates and attention, and a deletion test of both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmemo.audio.reader import read_audio
from mmemo.data.batch import EmotionBatch, Example, collate
from mmemo.data.manifest import Utterance
from mmemo.files import write_json
from mmemo.labels import DIMENSIONS, UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.encoder import HasLogMel
from mmemo.models.pooling import AttentiveStatisticsPooling
from mmemo.progress import track
from mmemo.settings import is_offline
from mmemo.studies.charts import draw_explanation
from mmemo.training.attacks import Level, PerturbationPoint, evaluation_gradients
from mmemo.training.experiment import Experiment
from mmemo.training.forward import run_model
from mmemo.training.loading import load_model
from mmemo.training.run_folder import checkpoint_path

log = logging.getLogger(__name__)

FOLDER = "explanations"
SHARES = (0.05, 0.1, 0.2, 0.3)
"""Shares of an utterance that the deletion test removes."""
PATCH = (10, 8)
"""Frames and mel bands that it removes together; single cells would be an unnatural sound."""


@dataclass(frozen=True)
class Explanation:
    """Why a model predicts a class for an utterance.

    Args:
        id: Id of the utterance.
        emotion: Its label, if it has one.
        predicted: Most likely class, which is explained.
        confidence: Its probability.
        log_mel: Spectrogram ``(frame, mel)``; None for a model without one.
        sound: Attribution of each cell of the spectrogram ``(frame, mel)``; positive supports the class.
        tokens: Tokens of the transcript.
        words: Attribution of each token ``(token,)``.
        error: Level -> difference between the sum of attributions and the change of the score, as a share of it.
        gates: Modality and feature group -> mean gate.
        weights: Modality -> weight in the fusion; empty for a fusion without weights.
        attention: Name -> attention of each step ``(step,)``.
        deletion: Level -> share -> drop of the probability when the parts with the highest attribution are removed, and
            when as many random parts are removed.
    """

    id: str
    emotion: str | None
    predicted: str
    confidence: float
    log_mel: np.ndarray | None
    sound: np.ndarray | None
    tokens: list[str]
    words: np.ndarray | None
    error: dict[str, float]
    gates: dict[str, float]
    weights: dict[str, float]
    attention: dict[str, np.ndarray]
    deletion: dict[str, dict[float, tuple[float, float]]]


def explain_utterance(
    model: EmotionModel, utterance: Utterance, num_steps: int = 32, num_random: int = 5, seed: int = 0
) -> Explanation:
    """Explains the most likely class by integrated gradients over time and frequency, and over words.

    Follows Sundararajan et al. 2017, eq. 1, <https://arxiv.org/abs/1703.01365>. The baselines are silence and token
    embeddings of zero.

    Args:
        model: Model of classes, in eval mode.
        utterance: With audio or a transcript, as the model needs.
        num_steps: Steps of the path.
        num_random: Random deletions to compare with.
        seed: Seed of the random deletions.

    Raises:
        ValueError: The model has no classes, or the utterance has no input for it.
        ImportError: captum is not installed.
    """
    if model.head is None:
        raise ValueError("explanations are of classes, but this model predicts dimensions only")
    batch, tokens = _batch(model, utterance)
    forward = partial(run_model, model)
    with evaluation_gradients(model):
        output, attention = _output_with_attention(model, batch)
        assert output.logits is not None
        probs = output.logits.float().softmax(-1)[0]
        target = int(probs.argmax())
        log_mel = sound = words = None
        error: dict[str, float] = {}
        deletion: dict[str, dict[float, tuple[float, float]]] = {}
        for level in _levels(model, batch):
            point = PerturbationPoint(model, level, "explain")
            values, mask = point.values(forward, batch)
            path = _Path(point, batch, values, _baseline(level, values, mask), mask, target)
            attributions, error[level] = path.integrate(num_steps)
            deletion[level] = path.delete(attributions, num_random, np.random.default_rng(seed))
            if level == "log_mel":
                real = mask[0].cpu().numpy()
                log_mel, sound = values[0].cpu().numpy()[real], attributions[0].cpu().numpy()[real]
            else:
                words = attributions.sum(-1)[0].cpu().numpy()
    return Explanation(
        utterance.id, utterance.emotion, model.classes[target], float(probs[target]), log_mel, sound, tokens, words,
        error, _gate_means(model, output), _weights(model, output), attention, deletion,
    )  # fmt: skip


def _output_with_attention(model: EmotionModel, batch: EmotionBatch) -> tuple[EmotionOutput, dict[str, np.ndarray]]:
    attention: dict[str, np.ndarray] = {}
    handles = _record_pooling(model, attention)
    try:
        with torch.no_grad():
            output = run_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    names = list(model.modalities)
    for part in output.attention:
        if min(part.query, part.key) >= 0:
            attention[f"{names[part.query]} attends to {names[part.key]}"] = part.weights[0].mean(0).cpu().numpy()
    return output, attention


def _levels(model: EmotionModel, batch: EmotionBatch) -> list[Level]:
    """Returns the levels at which an utterance can be explained."""
    levels: list[Level] = []
    if batch.audio_mask is not None and batch.audio_mask.any() and _has_log_mel(model):
        levels.append("log_mel")
    if batch.text_mask is not None and batch.text_mask.any():
        levels.append("token_embeddings")
    return levels


def _batch(model: EmotionModel, utterance: Utterance) -> tuple[EmotionBatch, list[str]]:
    """Returns an utterance as a batch of raw inputs, and the tokens of its transcript."""
    tokens: list[str] = []
    encoder = model.encoder("text")
    waveform = text = None
    if model.takes_audio:
        waveform = torch.zeros(0)
        if utterance.path is not None:
            waveform = torch.from_numpy(read_audio(utterance.path, utterance.start, utterance.end, utterance.channel))
    if encoder is not None:
        text = encoder.tokenize(utterance.text)
        tokens = [str(token) for token in encoder.tokenizer.convert_ids_to_tokens(text.tolist())]
    if not any(values is not None and len(values) for values in (waveform, text)):
        raise ValueError(f"{utterance.id}: has no input for the model ({', '.join(model.modalities)})")
    nothing = torch.zeros(len(model.classes)), torch.full((len(DIMENSIONS),), torch.nan)
    example = Example(
        0,
        waveform if "audio" in model.modalities else None,
        waveform if "descriptors" in model.modalities else None,
        text,
        UNLABELLED,
        *nothing,
    )
    return collate([example]), tokens


def _has_log_mel(model: EmotionModel) -> bool:
    encoder = model.encoder("audio")
    return bool(encoder.differentiable) and isinstance(encoder, HasLogMel)


def _baseline(level: Level, values: Tensor, mask: Tensor) -> Tensor:
    """Returns silence, each mel band at its quietest, or token embeddings of zero."""
    if level == "token_embeddings":
        return torch.zeros_like(values)
    lowest = torch.where(mask[..., None], values, torch.inf).amin(dim=1, keepdim=True)
    return torch.where(mask[..., None], lowest.expand_as(values), values)


@dataclass(frozen=True)
class _Path:
    """The way from a baseline to an utterance, at one level of a model.

    Args:
        point: Where the model is perturbed.
        batch: The utterance.
        values: Its tensor at the point.
        baseline: Baseline of the same shape.
        mask: Mask of the tensor.
        target: Class that is explained.
    """

    point: PerturbationPoint
    batch: EmotionBatch
    values: Tensor
    baseline: Tensor
    mask: Tensor
    target: int

    def _logits(self, delta: Tensor) -> Tensor:
        forward = partial(run_model, self.point.model)
        return cast(Tensor, self.point.run(forward, self.batch, delta).logits)

    def _score(self, changed: Tensor) -> Tensor:
        return self._logits(changed - self.values)[:, self.target]

    def integrate(self, num_steps: int) -> tuple[Tensor, float]:
        """Returns the attributions of the class's logit, and the relative error of their sum.

        Raises:
            ImportError: captum is not installed.
        """
        try:
            from captum.attr import IntegratedGradients
        except ImportError:
            raise ImportError("explanations need captum: pip install 'mmemo[explain]'") from None

        attributions, gap = IntegratedGradients(self._score).attribute(
            self.values, self.baseline, n_steps=num_steps, internal_batch_size=1, return_convergence_delta=True
        )
        with torch.no_grad():
            change = float((self._score(self.values) - self._score(self.baseline)).abs())
        return attributions.detach(), float(gap.abs()) / max(change, 1e-6)

    def delete(
        self, attributions: Tensor, num_random: int, generator: np.random.Generator
    ) -> dict[float, tuple[float, float]]:
        """Returns the drop of the probability when parts are replaced by the utterance's mean.

        Parts are patches of a spectrogram, or single words. The first value is for the parts with the highest
        attribution, the second for random parts.
        """
        values = self.values
        size = PATCH if self.point.level == "log_mel" else (1, values.shape[2])
        steps = int(self.mask[0].sum())
        columns = -(-values.shape[2] // size[1])
        parts = [(row, column) for row in range(-(-steps // size[0])) for column in range(columns)]
        scores = [float(_part(attributions, part, size, steps).sum()) for part in parts]
        mean = values[0, :steps].mean(0)

        def probability(delta: Tensor) -> float:
            with torch.no_grad():
                return float(self._logits(delta).float().softmax(-1)[0, self.target])

        def drop(chosen: np.ndarray) -> float:
            delta = torch.zeros_like(values)
            for index in chosen:
                row, column = parts[index]
                bands = slice(column * size[1], (column + 1) * size[1])
                part = _part(delta, parts[index], size, steps)
                part += mean[bands] - _part(values, (row, column), size, steps)
            return before - probability(delta)

        before = probability(torch.zeros_like(values))
        order = np.argsort(-np.array(scores))
        drops = {}
        for share in SHARES:
            count = max(1, round(share * len(parts)))
            random = [drop(generator.permutation(len(parts))[:count]) for _ in range(num_random)]
            drops[share] = (drop(order[:count]), float(np.mean(random)))
        return drops


def _part(values: Tensor, part: tuple[int, int], size: tuple[int, int], steps: int) -> Tensor:
    """Returns a patch of the first utterance, as a view of the tensor."""
    row, column = part
    return values[0, row * size[0] : min((row + 1) * size[0], steps), column * size[1] : (column + 1) * size[1]]


def _record_pooling(model: EmotionModel, attention: dict[str, np.ndarray]) -> list[Any]:
    """Registers hooks that record the weights of attentive pooling, by modality."""
    names = list(model.modalities)
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, AttentiveStatisticsPooling):

            def record(part: Any, inputs: Any, output: Any, name: str = name) -> None:
                index = next((int(number) for number in reversed(name.split(".")) if number.isdecimal()), 0)
                label = f"pooling of {names[index]}" if index < len(names) else name
                attention[label] = part.attention(*inputs)[0].detach().cpu().numpy()

            handles.append(module.register_forward_hook(record))
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


@dataclass(frozen=True)
class Explanations:
    """Explanations of a run.

    Args:
        folder: Folder with a picture of each utterance and ``explanations.json``.
        utterances: One explanation per utterance.
        deletion: Level -> share -> mean drop of the probability: highest attributions, random parts.
    """

    folder: Path
    utterances: list[Explanation]
    deletion: dict[str, dict[float, tuple[float, float]]]


def explain(
    run: Experiment,
    folder: str | Path,
    ids: Sequence[str] = (),
    num_utterances: int = 8,
    checkpoint: str | None = None,
    show_words: bool | None = None,
    progress: bool = True,
) -> Explanations:
    """Explains test utterances of a trained run.

    Args:
        run: Experiment whose folder holds a checkpoint.
        folder: Folder for the results.
        ids: Utterances to explain. Defaults to some of every class.
        num_utterances: Number of utterances if there are no ids.
        checkpoint: ``best``, ``last`` or a file. Defaults to the experiment's own choice.
        show_words: Whether pictures and JSON show words. Defaults to False offline and in a study, else True.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: An id is not a test utterance of the run.
        FileNotFoundError: The run has no checkpoint.
    """
    folder = Path(folder)
    model = load_model(checkpoint_path(run.folder, checkpoint or run.checkpoint))
    if model.speaker_norms:
        log.warning("%s: explained as for an unknown speaker, without speaker calibration", run.folder)
    if show_words is None:
        show_words = not is_offline() and run.study is None
    table = run.data.prepare("test")
    test = table.manifest.subset(table.split.test)
    names = test.frame["id"].tolist()
    unknown = sorted(set(ids) - set(names))
    if unknown:
        raise ValueError(
            f"{', '.join(unknown[:5])}: not a test utterance of {run.folder}; expected ids such as "
            f"{', '.join(names[:3])}"
        )
    rows = [names.index(name) for name in ids] if ids else _some_of_each(test.frame, num_utterances)
    explanations = []
    for row in track(rows, "Explaining", show=progress):
        explanation = explain_utterance(model, test[row])
        name = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in explanation.id)
        draw_explanation(explanation, folder / f"{name}.png", show_words)
        explanations.append(explanation)
    deletion = _mean_deletion(explanations)
    content = {"deletion": deletion, "utterances": [_as_json(part, show_words) for part in explanations]}
    write_json(folder / "explanations.json", content)
    return Explanations(folder, explanations, deletion)


def _mean_deletion(explanations: Sequence[Explanation]) -> dict[str, dict[float, tuple[float, float]]]:
    result: dict[str, dict[float, tuple[float, float]]] = {}
    for level in sorted({level for explanation in explanations for level in explanation.deletion}):
        drops = [explanation.deletion[level] for explanation in explanations if level in explanation.deletion]
        result[level] = {
            share: (
                float(np.mean([drop[share][0] for drop in drops])),
                float(np.mean([drop[share][1] for drop in drops])),
            )
            for share in SHARES
        }
    return result


def _as_json(explanation: Explanation, show_words: bool) -> dict[str, Any]:
    attributions = None if explanation.words is None else explanation.words.tolist()
    return {
        "id": explanation.id, "emotion": explanation.emotion, "predicted": explanation.predicted,
        "confidence": explanation.confidence, "error": explanation.error, "gates": explanation.gates,
        "weights": explanation.weights, "deletion": explanation.deletion,
        **({"tokens": explanation.tokens, "words": attributions} if show_words else {}),
    }  # fmt: skip


def _some_of_each(frame: pd.DataFrame, count: int) -> list[int]:
    """Returns rows of all classes in turn, from as many speakers as possible."""
    rows: list[int] = []
    table = pd.DataFrame({"emotion": frame["emotion"].to_numpy(), "speaker": frame["speaker"].to_numpy(dtype=object)})
    table["turn"] = table.groupby(["emotion", "speaker"], dropna=False).cumcount()
    table["speaker_index"] = table["speaker"].astype("category").cat.codes
    num_speakers = table["speaker_index"].nunique()
    queues = []
    for index, (_, part) in enumerate(table.groupby("emotion")):
        rotated = (part["speaker_index"] - index) % num_speakers  # each class starts with another speaker
        queues.append(list(part.assign(speaker_index=rotated).sort_values(["turn", "speaker_index"]).index))
    while len(rows) < count and any(queues):
        rows += [queue.pop(0) for queue in queues if queue]
    return rows[:count] or list(range(min(count, len(frame))))
