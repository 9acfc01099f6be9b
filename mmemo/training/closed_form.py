"""A head that is computed instead of trained: seconds for a corpus, with the same result every time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmemo.data.batch import EmotionBatch
from mmemo.labels import UNLABELLED
from mmemo.models.emotion_model import EmotionModel
from mmemo.models.heads import DiscriminantHead
from mmemo.training.speakers import evaluating
from mmemo.training.system import EmotionSystem


class ClosedFormSystem(EmotionSystem):
    """Computes a :class:`~mmemo.models.DiscriminantHead` on frozen features; nothing is trained by gradients.

    With a ``speaker_mixture``, the head is first computed without each group of training speakers in turn. The scores
    of the left-out speakers show how much speakers differ.

    Args:
        model: Model with a ``DiscriminantHead``; all its other parts are frozen.
        speaker_folds: Folds of the training speakers for the ``speaker_mixture``, 2 or more.
        balanced: Whether every class of every corpus has the same weight. By default every utterance has.

    Raises:
        ValueError: The head is another, or there are too few training speakers.

    Example:
        >>> from functools import partial
        >>> from mmemo.models import Concatenation, ConvNeXtEncoder, MeanPooling, NoGate, StatisticsEncoder
        >>> model = EmotionModel(
        ...     ["anger", "sadness"], StatisticsEncoder(ConvNeXtEncoder(hidden_dim=8)), gate=NoGate,
        ...     fusion=partial(Concatenation, pooling=MeanPooling), head=DiscriminantHead,
        ... )
        >>> ClosedFormSystem(model).speaker_folds
        5
    """

    def __init__(self, model: EmotionModel, speaker_folds: int = 5, balanced: bool = False) -> None:
        if not isinstance(model.head, DiscriminantHead):
            raise ValueError(
                f"ClosedFormSystem computes a DiscriminantHead, but the model has {type(model.head).__name__}; set "
                "head: mmemo.models.DiscriminantHead"
            )
        if speaker_folds < 2:
            raise ValueError(f"ClosedFormSystem(speaker_folds={speaker_folds}), expected 2 or more")
        super().__init__(model, one_cycle=False)
        self.speaker_folds = speaker_folds
        self.balanced = balanced
        self.automatic_optimization = False

    def on_train_start(self) -> None:
        """Computes the head, then the mixture."""
        assert self.datamodule is not None
        vectors, uncalibrated, rows = self._vectors()
        table = self.datamodule.table
        target = torch.from_numpy(table.targets.emotion[rows])
        weights = torch.from_numpy(self._weights(rows)).float()
        head, mixture = self.model.head, self.model.speaker_mixture
        assert isinstance(head, DiscriminantHead)
        if mixture is not None:
            speaker = self._speakers(rows)
            scores, unknown = torch.zeros(2, len(rows), len(self.model.classes))
            for group in range(self.speaker_folds):
                left_out = speaker % self.speaker_folds == group
                head.fit(vectors[~left_out], target[~left_out], weights[~left_out])
                scores[left_out], unknown[left_out] = head(vectors[left_out]), head(uncalibrated[left_out])
            mixture.fit(scores, target, speaker, weights, unknown)
        head.fit(vectors, target, weights)
        self.on_fit_start()  # the offsets of validation speakers depend on head and mixture

    def _vectors(self) -> tuple[Tensor, Tensor, np.ndarray]:
        """Returns the fused vectors ``(utterance, dim)`` of all views of the labelled training rows, and their rows.

        The vectors come calibrated, and as for unknown speakers.
        """
        assert self.datamodule is not None
        labelled = self.datamodule.table.targets.emotion != UNLABELLED
        train = self.datamodule.table.train_rows
        vectors, uncalibrated, rows = [], [], []
        with evaluating(self.model):
            for batch in self.datamodule.views_dataloader(train[labelled[train]]):
                uncalibrated.append(self(batch).embedding)
                vectors.append(self(self.on_after_batch_transfer(batch, 0)).embedding)
                rows.append(batch.row)
        return torch.cat(vectors), torch.cat(uncalibrated), torch.cat(rows).numpy()

    def _speakers(self, rows: np.ndarray) -> Tensor:
        """Returns the index of each row's speaker, in random order of the speakers ``(row,)``."""
        assert self.datamodule is not None
        speakers = self.datamodule.enrolment.choose(self.datamodule.table, np.unique(rows))
        if len(speakers) < self.speaker_folds:
            raise ValueError(
                f"{self.datamodule.table.name}: {len(speakers)} training speakers, but the speaker_mixture needs "
                f"{self.speaker_folds}; set model.init_args.speaker_folds: {max(len(speakers), 2)}, or remove "
                "speaker_mixture"
            )
        order = np.random.default_rng(0).permutation(len(speakers))
        index = {int(row): int(number) for number, speaker in zip(order, speakers, strict=True) for row in speaker.rows}
        return torch.tensor([index[int(row)] for row in rows])

    def _weights(self, rows: np.ndarray) -> np.ndarray:
        """Returns a weight per row ``(row,)``, with mean 1."""
        assert self.datamodule is not None
        if not self.balanced:
            return np.ones(len(rows))
        table = self.datamodule.table
        corpus = _corpora(table.manifest.frame["id"].iloc[rows].astype(str).tolist(), self.datamodule.corpora)
        keys = [*zip(corpus, table.targets.emotion[rows].tolist(), strict=True)]
        counts: dict[tuple[str, int], int] = {}
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
        num_classes = {name: sum(1 for other, _ in counts if other == name) for name in set(corpus)}
        weights = np.array([1 / (counts[key] * num_classes[key[0]]) for key in keys])
        return weights / weights.mean()

    def training_step(self, batch: EmotionBatch, batch_idx: int) -> None:  # type: ignore[override]
        """Changes nothing, since the head has been computed; Lightning writes checkpoints only after steps."""
        self.optimizers().step()  # type: ignore[union-attr]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=0.0)  # no parameter has a gradient


def _corpora(ids: Sequence[str], corpora: Sequence[object] | None) -> list[str]:
    """Returns the corpus of each id; ids of several corpora start with its name."""
    return [name.partition("/")[0] if corpora is not None else "" for name in ids]
