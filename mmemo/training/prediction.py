"""Model outputs for many utterances -> tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mmemo.data.manifest import private_columns
from mmemo.data.table import DataTable
from mmemo.labels import DIMENSIONS
from mmemo.models.emotion_model import EmotionOutput

EMBEDDING = "embedding_"
"""Prefix of the columns that hold the fused vector."""


class Prediction(NamedTuple):
    """What the model predicts for a batch of utterances.

    Args:
        row: Manifest rows ``(batch,)``.
        probs: Class probabilities ``(batch, num_classes)``; None for a model of dimensions only.
        dimensions: Valence, arousal and dominance ``(batch, 3)``; None without a dimension head.
        audio_probs: Class probabilities from the audio only; None unless ``by_modality`` and the model has both.
        text_probs: Class probabilities from the text only; None likewise.
        modality_weights: Weight of each modality ``(batch, modality)``; None for a fusion without weights.
        gates: Gate of each feature of all modalities ``(batch, dim)``, in [0, 1].
        embedding: Fused vector ``(batch, dim)``.
        uncalibrated_probs: Class probabilities as for an unknown speaker; None unless the model is calibrated.
    """

    row: Tensor
    probs: Tensor | None
    dimensions: Tensor | None = None
    audio_probs: Tensor | None = None
    text_probs: Tensor | None = None
    modality_weights: Tensor | None = None
    gates: Tensor | None = None
    embedding: Tensor | None = None
    uncalibrated_probs: Tensor | None = None

    @staticmethod
    def of(row: Tensor, outputs: Mapping[str, EmotionOutput]) -> Prediction:
        """Returns the prediction for a batch.

        Args:
            row: Manifest rows ``(batch,)``.
            outputs: Condition (``""``, ``audio_only``, ``text_only``, ``uncalibrated``) -> output of the model.
        """
        probs = {
            condition: None if output.logits is None else output.logits.float().softmax(-1)
            for condition, output in outputs.items()
        }
        output = outputs[""]
        return Prediction(
            row=row,
            probs=probs[""],
            dimensions=output.dimensions,
            audio_probs=probs.get("audio_only"),
            text_probs=probs.get("text_only"),
            modality_weights=output.modality_weights,
            gates=torch.cat(output.gates, dim=-1),
            embedding=output.embedding,
            uncalibrated_probs=probs.get("uncalibrated"),
        )

    @staticmethod
    def joined(batches: Sequence[Prediction]) -> Prediction:
        """Returns the predictions of several batches as one, in the order of the manifest."""
        order = torch.cat([batch.row for batch in batches]).argsort()

        def join(values: Sequence[Tensor | None]) -> Tensor | None:
            present = [value for value in values if value is not None]
            return torch.cat(present)[order] if present else None

        fields = [join(values) for values in zip(*batches, strict=True)]
        row = fields[0]
        assert row is not None
        return Prediction(row, *fields[1:])


def prediction_table(
    table: DataTable,
    modalities: Sequence[str],
    prediction: Prediction,
    warnings: Sequence[str] = (),
    num_enrolled: np.ndarray | None = None,
) -> pd.DataFrame:
    """Returns one row per utterance: id, speaker, side, label, most likely class, and every predicted number.

    Args:
        table: Utterances that were predicted.
        modalities: Modalities of the model, in its order.
        prediction: For all of them.
        warnings: Warnings that every row carries.
        num_enrolled: Utterances that calibrated the model to the speaker of each manifest row ``(row,)``. Defaults to
            none, for a model that is not calibrated.
    """
    rows = table.manifest.frame.iloc[prediction.row.long().numpy()]
    result = rows[["id", "speaker", "emotion"]].reset_index(drop=True)
    sides = table.sides()
    result.insert(2, "side", [sides.get(row, "") for row in prediction.row.tolist()])
    if prediction.probs is not None:
        confidence, best = prediction.probs.max(1)
        result["predicted"] = [table.classes[index] for index in best.tolist()]
        result["confidence"] = confidence.numpy()
    if prediction.dimensions is not None:
        result[list(DIMENSIONS)] = rows[list(DIMENSIONS)].to_numpy()
    if num_enrolled is not None:
        result["enrolled_utterances"] = num_enrolled[prediction.row.long().numpy()]
    if warnings:
        result["warning"] = "; ".join(warnings)
    columns = _number_columns(table.classes, modalities, prediction)
    numbers = {name: values.float().numpy() for name, values in columns.items()}
    return pd.concat([result, pd.DataFrame(numbers)], axis="columns")


def _number_columns(classes: Sequence[str], modalities: Sequence[str], prediction: Prediction) -> dict[str, Tensor]:
    columns: dict[str, Tensor] = {}
    by_prefix = {
        "": prediction.probs, "audio_": prediction.audio_probs, "text_": prediction.text_probs,
        "uncalibrated_": prediction.uncalibrated_probs,
    }  # fmt: skip
    for prefix, probs in by_prefix.items():
        if probs is not None:
            columns |= {f"{prefix}prob_{name}": probs[:, index] for index, name in enumerate(classes)}
    if prediction.dimensions is not None:
        columns |= {f"predicted_{name}": prediction.dimensions[:, index] for index, name in enumerate(DIMENSIONS)}
    if prediction.modality_weights is not None:
        weights = prediction.modality_weights
        columns |= {f"weight_{name}": weights[:, index] for index, name in enumerate(modalities)}
    return columns


def embedding_table(table: DataTable, prediction: Prediction) -> pd.DataFrame:
    """Returns one row per utterance: manifest columns without transcript and file, side, fused vector.

    Args:
        table: Utterances that were predicted.
        prediction: For all of them.
    """
    assert prediction.embedding is not None
    frame = table.manifest.frame.iloc[prediction.row.long().numpy()].reset_index(drop=True)
    frame = frame.drop(columns=private_columns(table.manifest.frame)).dropna(axis="columns", how="all")
    sides = table.sides()
    vectors = prediction.embedding.float().numpy()
    numbers = pd.DataFrame(vectors, columns=[f"{EMBEDDING}{index}" for index in range(vectors.shape[1])])
    side = pd.Series([sides.get(row, "") for row in prediction.row.tolist()], name="side")
    return pd.concat([frame, side, numbers], axis="columns")


def gate_values(
    table: DataTable,
    prediction: Prediction,
    feature_names: Sequence[str],
    modalities: Sequence[str],
    layer_weights: dict[str, Tensor],
) -> pd.DataFrame:
    """Returns one row per utterance: id, label, the gate of every feature, modality and layer weights.

    Args:
        table: Utterances that were predicted.
        prediction: For all of them.
        feature_names: Name of each gated feature, ``modality/group/feature``.
        modalities: Modalities of the model, in its order.
        layer_weights: Name -> weight of each layer, a scalar ``()``.
    """
    assert prediction.gates is not None
    gates = pd.DataFrame(prediction.gates.float().numpy(), columns=list(feature_names))
    if prediction.modality_weights is not None:
        names = [f"{modality}/weight/0" for modality in modalities]
        gates = gates.join(pd.DataFrame(prediction.modality_weights.float().numpy(), columns=names))
    gates = gates.assign(**{name: float(weight) for name, weight in layer_weights.items()})
    ids = table.manifest.frame[["id", "emotion"]].iloc[prediction.row.long().numpy()].reset_index(drop=True)
    return pd.concat([ids, gates], axis="columns")
