"""Calibration to speakers: each speaker's statistics, from the features of unlabelled utterances."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.dataset import EmotionDataset
from mmemo.data.enrolment import EnrolledSpeaker
from mmemo.models.emotion_model import EmotionModel
from mmemo.training.attacks import Forward

log = logging.getLogger(__name__)

BATCH_SIZE = 64


@dataclass(frozen=True)
class SpeakerProfiles:
    """What calibrates a model to the speakers of a table.

    Args:
        speakers: The speakers, in order.
        speaker_of: Index of the speaker of each row of the manifest ``(row,)`` int64.
        statistics: Modality -> mean and deviation of each speaker ``(speaker, 2, layer, dim)``.
        offsets: Offsets of each speaker ``(speaker, num_classes + 1, score)``; None without a mixture.
    """

    speakers: Sequence[EnrolledSpeaker]
    speaker_of: Tensor
    statistics: dict[str, Tensor]
    offsets: Tensor | None = None

    def calibrated(self, batch: EmotionBatch) -> EmotionBatch:
        """Returns the batch with the statistics of its speakers.

        Args:
            batch: Utterances of the table, ``row (batch,)``.
        """
        index = self.speaker_of[batch.row.cpu()]
        fields = {f"{name}_speaker": values[index].to(batch.row.device) for name, values in self.statistics.items()}
        if self.offsets is not None:
            fields["speaker_offsets"] = self.offsets[index].to(batch.row.device)
        return batch._replace(**fields)

    @property
    def num_enrolled(self) -> np.ndarray:
        """Number of utterances that calibrate to the speaker of each row of the manifest ``(row,)``."""
        counts = np.array([len(speaker.enrolled) for speaker in self.speakers])
        return counts[self.speaker_of.numpy()]


class SpeakerCalibrated(LightningModule):
    """The part of a system that calibrates its model to the speakers of each stage.

    The training side calibrates to training speakers, the test side to test speakers. Labels are never read.
    """

    model: EmotionModel
    profiles: SpeakerProfiles | None = None

    @property
    def calibration(self) -> str:
        """How the last stage was calibrated, such as "calibrated on 20 unlabelled utterances of each speaker"."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.profiles is None or not isinstance(datamodule, EmotionDataModule):
            return ""
        return datamodule.enrolment.describe([len(speaker.enrolled) for speaker in self.profiles.speakers])

    def calibrate(self, rows: np.ndarray, fitting: bool = False) -> None:
        """Calibrates the model to the speakers of some rows; does nothing for a model without ``speaker_norm``.

        Args:
            rows: Manifest rows ``(num_rows,)``.
            fitting: Whether the training speakers define the population.
        """
        self.profiles = None
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.model.speaker_norms and isinstance(datamodule, EmotionDataModule):
            self.profiles = speaker_profiles(datamodule, self.model, self.forward, rows, fitting)

    def on_fit_start(self) -> None:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.model.speaker_norms and isinstance(datamodule, EmotionDataModule):
            table = datamodule.table
            self.calibrate(np.concatenate([table.train_rows, table.split.val]).astype(int), fitting=True)

    def on_validation_start(self) -> None:
        if self.trainer.state.fn == "validate":
            self.calibrate(self.trainer.datamodule.table.split.val)  # type: ignore[attr-defined]

    def on_test_start(self) -> None:
        self.calibrate(self.trainer.datamodule.table.split.test)  # type: ignore[attr-defined]

    def on_predict_start(self) -> None:
        self.calibrate(self.trainer.datamodule.predicted_rows)  # type: ignore[attr-defined]

    def on_after_batch_transfer(self, batch: EmotionBatch, dataloader_idx: int) -> EmotionBatch:
        return batch if self.profiles is None else self.profiles.calibrated(batch)


def speaker_profiles(
    datamodule: EmotionDataModule, model: EmotionModel, forward: Forward, rows: np.ndarray, fitting: bool = False
) -> SpeakerProfiles:
    """Returns what calibrates a model to the speakers of some rows.

    Args:
        datamodule: After its features were attached.
        model: Model that has a speaker normalisation.
        forward: Runs it on a batch.
        rows: Manifest rows ``(num_rows,)``.
        fitting: Whether the training speakers define the population.

    Raises:
        ValueError: No training speaker has two utterances.
    """
    table = datamodule.table
    speakers = datamodule.enrolment.choose(table, rows)
    asked = datamodule.enrolment.num_utterances
    few = [speaker.name for speaker in speakers if asked is not None and len(speaker.enrolled) < asked]
    if few:
        log.warning(
            "%s: %d of %d speakers have fewer than %d utterances, such as %s; all of theirs are used",
            table.name, len(few), len(speakers), asked, few[0],
        )  # fmt: skip
    features = _features(datamodule, model, speakers)
    if fitting:
        _fit_population(datamodule, model, speakers, features)
    speaker_of = torch.full((len(table.manifest),), -1)
    for index, speaker in enumerate(speakers):
        speaker_of[speaker.rows] = index
    statistics = {
        name: torch.stack([norm.profile(utterances).cpu() for utterances in features[name]])
        for name, norm in model.speaker_norms.items()
    }
    profiles = SpeakerProfiles(speakers, speaker_of, statistics)
    if model.speaker_mixture is None:
        return profiles
    calibrated, uncalibrated = _scores(datamodule, model, forward, profiles)
    adapted = map(model.speaker_mixture.adapt, calibrated, uncalibrated)
    offsets = torch.stack([values.cpu() for values in adapted])
    return SpeakerProfiles(speakers, speaker_of, statistics, offsets)


def _fit_population(
    datamodule: EmotionDataModule,
    model: EmotionModel,
    speakers: Sequence[EnrolledSpeaker],
    features: dict[str, list[list[Tensor]]],
) -> None:
    training = set(datamodule.table.split.train.tolist())
    for name, norm in model.speaker_norms.items():
        several = [
            utterances
            for speaker, utterances in zip(speakers, features[name], strict=True)
            if len(utterances) > 1 and int(speaker.rows[0]) in training
        ]
        if not several:
            raise ValueError(
                f"{datamodule.table.name}: no training speaker has two utterances or more, so speaker_norm has "
                "nothing to learn from; fill in the column speaker, or remove speaker_norm"
            )
        norm.fit_population(several)


def _batches(datamodule: EmotionDataModule, model: EmotionModel, rows: np.ndarray) -> Iterator[EmotionBatch]:
    """Yields rows in their order, unchanged views only, on the model's device."""
    device = next(iter(model.speaker_norms.values())).population.device
    dataset = EmotionDataset(rows, datamodule.table.targets, datamodule.sources)
    for first in range(0, len(rows), BATCH_SIZE):
        yield cast(EmotionBatch, move_data_to_device(dataset[range(first, min(first + BATCH_SIZE, len(rows)))], device))


def _features(
    datamodule: EmotionDataModule, model: EmotionModel, speakers: Sequence[EnrolledSpeaker]
) -> dict[str, list[list[Tensor]]]:
    """Returns modality -> speaker -> features ``(layer, time, dim)`` of each enrolled utterance that has audio."""
    rows = np.concatenate([speaker.enrolled for speaker in speakers]).astype(int)
    features_of: dict[str, list[Tensor]] = {name: [] for name in model.speaker_norms}
    with evaluating(model):
        for batch in _batches(datamodule, model, rows):
            for name in features_of:
                values, mask = getattr(batch, name), getattr(batch, f"{name}_mask")
                if values.ndim == 2:  # waveforms, not precomputed
                    values, mask = model.encoder(name).precompute(values, mask)
                values, mask = model.encoder(name)(values, mask)
                features_of[name] += [features[:, real] for features, real in zip(values, mask, strict=True)]
    bounds = np.cumsum([0, *(len(speaker.enrolled) for speaker in speakers)])
    spans = list(itertools.pairwise(bounds))
    return {
        name: [[features for features in values[first:last] if features.shape[1]] for first, last in spans]
        for name, values in features_of.items()
    }


def _scores(
    datamodule: EmotionDataModule, model: EmotionModel, forward: Forward, profiles: SpeakerProfiles
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns each speaker's class scores ``(utterance, num_classes)`` before the mixture, of enrolled utterances.

    Calibrated, and as for an unknown speaker.
    """
    rows = np.concatenate([speaker.enrolled for speaker in profiles.speakers]).astype(int)
    head = cast(nn.Module, model.head)
    with evaluating(model):
        pairs = [
            (head(forward(profiles.calibrated(batch)).embedding), head(forward(batch).embedding))
            for batch in _batches(datamodule, model, rows)
        ]
    counts = [len(speaker.enrolled) for speaker in profiles.speakers]
    none = torch.zeros(0, len(model.classes))
    calibrated = torch.cat([none, *(own for own, _ in pairs)]).split(counts)
    uncalibrated = torch.cat([none, *(unknown for _, unknown in pairs)]).split(counts)
    return list(calibrated), list(uncalibrated)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Runs a model in eval mode without gradients, and restores its mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
