"""Manifest -> batches for training, validation, test and prediction."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from pytorch_lightning import LightningDataModule
from torch.utils.data import DataLoader

from mmemo.data.audio_facts import audio_facts
from mmemo.data.augmentation import WaveformAugmentation, WordAugmentation
from mmemo.data.batch import BucketSampler, EmotionBatch
from mmemo.data.dataset import EmotionDataset, Sources
from mmemo.data.enrolment import Enrolment
from mmemo.data.manifest import Manifest, ManifestError
from mmemo.data.splits import OfficialSplit, Split, SplitError, Splitter, check_speakers_disjoint
from mmemo.data.table import (
    Corpus,
    DataTable,
    Requirements,
    check_labels,
    check_not_empty,
    check_unlabelled,
    encode_targets,
    hide_labels,
    read_corpora,
    select_rows,
    with_audio,
)
from mmemo.labels import UNLABELLED

log = logging.getLogger(__name__)

VIEWS_BATCH = 64  # views encoded at once when all views of each utterance are needed


@runtime_checkable
class DataConsumer(Protocol):
    """A module that declares what it needs from the data, such as ``EmotionSystem``."""

    @property
    def requirements(self) -> Requirements:
        """Labels and modalities that it needs."""


class EmotionDataModule(LightningDataModule):
    """Reads a manifest, splits it by speaker, and serves batches of similar duration.

    ``setup`` builds an immutable :class:`~mmemo.data.table.DataTable` from the settings and from what the model needs.
    The training system then attaches the sources of each modality: waveforms, token ids, or cached features.

    Args:
        classes: Emotion classes in the order of the model's outputs; empty for a model of valence, arousal and
            dominance only.
        manifest: CSV or Parquet file with one row per utterance.
        corpora: Several manifests to use together, each with its own label map; replaces ``manifest``.
        split: How rows are divided into train, val and test. Defaults to ``OfficialSplit``, the manifest's own column.
        label_map: Renames emotions before anything else; ``null`` drops the rows of that emotion. A label that is not
            in ``classes`` afterwards is an error.
        only: Column -> allowed values, such as ``role: [participant]`` or ``channel: [0]``; other rows are left out.
        batch_size: Utterances per optimizer step, over all processes.
        num_workers: Worker processes that read batches; 0 reads in the main process, which is fastest from the cache.
        balanced: Draw each class equally often in training, repeating rare utterances. By default each utterance is
            drawn once per epoch.
        augmentation: Changes training waveforms, such as ``mmemo.data.WaveformAugmentation``.
        word_augmentation: Changes training transcripts, such as ``mmemo.data.WordAugmentation``.
        num_views: Views of each training utterance: the utterance itself, and augmented ones. With cached features the
            views are fixed, and each costs encoding time and cache space; otherwise each step draws a new one.
            Defaults to 4 with augmentation and 1 without.
        test_views: Views of each test or predicted utterance, whose probabilities are averaged.
        broken_audio: Refuse to start if audio is unreadable or silent, or skip those rows with a warning.
        empty_rows: Refuse to start if an utterance has no input for the model, or keep it and predict without input.
        allow_speaker_overlap: Allow a speaker on two sides of the split; every result then carries a warning.
        predict_on: Rows that ``predict`` predicts: all of them, or one side of the split.
        enrolment: Utterances that calibrate a model with a ``speaker_norm`` to each speaker. Defaults to all
            utterances of the speaker; their labels are not read.
        seed: Seed of the order of training batches.

    Raises:
        ManifestError: In ``setup``: a label outside ``classes``, or broken audio.
        SplitError: In ``setup``: a speaker on two sides, or a split that cannot be made.

    Example:
        >>> datamodule = EmotionDataModule(classes=["anger", "sadness"], manifest="clips.csv", batch_size=16)
        >>> datamodule.num_views
        1
    """

    def __init__(
        self,
        classes: list[str],
        manifest: str | None = None,
        corpora: list[Corpus] | None = None,
        split: Splitter | None = None,
        label_map: dict[str, str | None] | None = None,
        only: dict[str, list[str | int]] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        balanced: bool = False,
        augmentation: WaveformAugmentation | None = None,
        word_augmentation: WordAugmentation | None = None,
        num_views: int | None = None,
        test_views: int = 1,
        broken_audio: Literal["refuse", "skip"] = "refuse",
        empty_rows: Literal["refuse", "keep"] = "refuse",
        allow_speaker_overlap: bool = False,
        predict_on: Literal["all", "train", "val", "test"] = "all",
        enrolment: Enrolment | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_views is None:
            num_views = 1 if augmentation is None and word_augmentation is None else 4
        self.classes = tuple(classes)
        self.manifest = None if manifest is None else str(manifest)
        self.corpora = corpora
        self.split: Splitter = split or OfficialSplit()
        self.label_map = label_map or {}
        self.only = only or {}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.balanced = balanced
        self.augmentation = augmentation
        self.word_augmentation = word_augmentation
        self.num_views = num_views
        self.test_views = test_views
        self.broken_audio = broken_audio
        self.empty_rows = empty_rows
        self.allow_speaker_overlap = allow_speaker_overlap
        self.predict_on = predict_on
        self.enrolment = enrolment or Enrolment()
        self.seed = seed
        self._check_settings()
        self._manifest: Manifest | None = None
        self._table: DataTable | None = None
        self._sources = Sources()

    def _check_settings(self) -> None:
        """Raises ValueError for settings that contradict each other."""
        if self.batch_size < 1:
            raise ValueError(f"data.batch_size={self.batch_size}, expected 1 or more")
        augments = self.augmentation is not None or self.word_augmentation is not None
        if min(self.num_views, self.test_views) < 1:
            raise ValueError(f"data.num_views={self.num_views}, data.test_views={self.test_views}, expected 1 or more")
        if self.augmentation is None and (self.test_views > 1 or (self.num_views > 1 and not augments)):
            raise ValueError(
                f"data.num_views={self.num_views}, data.test_views={self.test_views} need a data.augmentation, such as "
                "mmemo.data.WaveformAugmentation"
            )
        if self.num_views == 1 and augments and self.test_views == 1:
            raise ValueError(
                "data.num_views: 1 uses only the unchanged utterance, so data.augmentation and data.word_augmentation "
                "have no effect; set it to 2 or more, or remove them"
            )
        if bool(self.manifest) == bool(self.corpora):
            raise ValueError(
                "data needs either a manifest or corpora (data.corpora: null removes the corpora of a YAML)"
            )
        if self.balanced and not self.classes:
            raise ValueError("data.balanced: true draws classes equally often, but data.classes is empty")

    @property
    def all_corpora(self) -> list[Corpus]:
        """The corpora, also if there is only a manifest."""
        return self.corpora or [Corpus(str(self.manifest))]

    @property
    def manifest_paths(self) -> list[Path]:
        """Files that the rows come from."""
        return [Path(corpus.manifest) for corpus in self.all_corpora]

    @property
    def table(self) -> DataTable:
        """The utterances, labels and split, as ``setup`` built them."""
        assert self._table is not None, "setup() comes first"
        return self._table

    def with_split(self, split: Splitter) -> EmotionDataModule:
        """Returns a copy with another split, for a fold of a cross-validation."""
        changed = copy.copy(self)
        changed.split = split
        changed._table = None
        changed._sources = Sources()
        return changed

    def read(self, fitting: bool = False) -> Manifest:
        """Returns the manifest with mapped labels and selected rows. Reads the files only once.

        Args:
            fitting: Whether a label map that names an unknown label is an error.
        """
        if self._manifest is None:
            mapped = read_corpora(self.all_corpora, self.label_map, self.corpora is not None, fitting)
            self._manifest = select_rows(mapped, self.only)
        return self._manifest

    def prepare(
        self, stage: str, requirements: Requirements | None = None, inspect_audio: bool = True
    ) -> DataTable:  # fmt: skip
        """Builds the table without keeping it.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            requirements: What the model needs. Without it, labels and audio are not checked.
            inspect_audio: Whether to inspect the recordings that the model needs, which decodes each of them.

        Raises:
            ManifestError: The manifest or its audio does not fit the settings or the model.
            SplitError: The split cannot be made, or a speaker is on two sides.
        """
        fitting = stage == "fit"
        manifest = self.read(fitting)
        wants_votes = requirements is not None and "votes" in requirements.labels
        targets = encode_targets(manifest, self.classes, wants_votes, fitting)
        split, warnings = self._split(manifest, stage)
        targets = hide_labels(manifest, targets, split, self.all_corpora)
        table = DataTable(manifest, self.classes, targets, split, split.train, warnings=tuple(warnings))
        if fitting and self.augmentation is not None:
            self.augmentation.fingerprint()  # raises if a folder of noises does not exist
        if requirements is None:
            return table
        if fitting:
            check_unlabelled(table, self.all_corpora, requirements)
            check_labels(table, requirements.labels)
        if self.empty_rows == "refuse":
            rows = self._rows_to_predict(table) if stage == "predict" else np.concatenate(list(split)).astype(int)
            check_not_empty(table, rows, requirements)
        if fitting and not requirements.unlabelled:
            present = table.targets.present()
            is_labelled = np.any([present[kind] for kind in requirements.labels], axis=0)
            table = DataTable(
                manifest, self.classes, targets, split, split.train[is_labelled[split.train]], (), table.warnings
            )
        if inspect_audio and (requirements.audio or requirements.facts):
            facts = self._inspect_audio(manifest)
            table = with_audio(table, facts, self.broken_audio, self.allow_speaker_overlap)
        return table

    def setup(self, stage: str, requirements: Requirements | None = None) -> None:
        """Builds the table; the trainer calls this.

        Args:
            stage: ``fit``, ``validate``, ``test`` or ``predict``.
            requirements: What the model needs. Defaults to those of the trainer's module.
        """
        module = self.trainer.lightning_module if self.trainer is not None else None
        if requirements is None and isinstance(module, DataConsumer):
            requirements = module.requirements
        self._table = self.prepare(stage, requirements)
        for warning in self._table.warnings:
            log.warning(warning)

    def _split(self, manifest: Manifest, stage: str) -> tuple[Split, list[str]]:
        """Splits the manifest; an unsplittable one can still be predicted as a whole."""
        try:
            split = self.split(manifest)
        except SplitError:
            if stage != "predict" or self.predict_on != "all":
                raise
            empty = np.arange(0)
            return Split(empty, empty, empty), []
        return split, check_speakers_disjoint(manifest, split, self.allow_speaker_overlap)

    def _inspect_audio(self, manifest: Manifest) -> list[Any]:
        """Returns facts about each row's audio. Under several processes, each inspects its share first."""
        utterances = list(manifest)
        trainer = self.trainer
        show_progress = trainer is None or trainer.is_global_zero
        if trainer is not None and trainer.world_size > 1:
            audio_facts(utterances[trainer.global_rank :: trainer.world_size], progress=show_progress)
            trainer.strategy.barrier("audio has been inspected")
        return audio_facts(utterances, progress=show_progress)

    def _rows_to_predict(self, table: DataTable) -> np.ndarray:
        return table.usable_rows if self.predict_on == "all" else getattr(table.split, self.predict_on)

    @property
    def predicted_rows(self) -> np.ndarray:
        """Rows that ``predict`` predicts ``(num_rows,)``."""
        return self._rows_to_predict(self.table)

    def attach(self, sources: Sources) -> None:
        """Sets where batches take each modality from.

        Args:
            sources: One source per modality.
        """
        self._sources = sources

    @property
    def sources(self) -> Sources:
        """Where batches take each modality from."""
        return self._sources

    def train_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.table.train_rows, training=True)

    def val_dataloader(self) -> DataLoader[EmotionBatch] | list[DataLoader[EmotionBatch]]:
        rows = self.table.split.val
        return self._loader(rows) if len(rows) else []  # num_val_speakers: 0

    def test_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.table.split.test, views=self.test_views)

    def predict_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.predicted_rows, views=self.test_views)

    def views_dataloader(self, rows: np.ndarray) -> DataLoader[EmotionBatch]:
        """Returns every view of some training rows, the views of an utterance one after the other.

        Args:
            rows: Manifest rows ``(row,)`` int64.
        """
        return self._loader(rows, views=self.num_views, batch_size=max(1, VIEWS_BATCH // self.num_views))

    def _loader(
        self, rows: np.ndarray, training: bool = False, views: int = 1, batch_size: int | None = None
    ) -> DataLoader[EmotionBatch]:
        table = self.table
        if len(rows) == 0:
            raise ManifestError(f"{table.name}: the split leaves no rows here; see data.split")
        trainer = self.trainer if batch_size is None else None
        sampler = BucketSampler(
            table.lengths[rows],
            batch_size or self.batch_size,
            training,
            self.seed,
            rank=trainer.global_rank if trainer else 0,
            num_processes=trainer.world_size if trainer else 1,
            weights=self._class_weights(rows) if training and self.balanced else None,
        )
        dataset = EmotionDataset(rows, table.targets, self._sources, self.num_views if training else 1, views)
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches, and the dataset pads them
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _class_weights(self, rows: np.ndarray) -> Sequence[float]:
        """Returns a sampling weight per row with which all classes are drawn equally often."""
        counts = self.table.class_counts.numpy()
        emotion = self.table.targets.emotion[rows]
        weights = 1 / np.maximum(counts, 1)
        return np.where(emotion == UNLABELLED, 1 / counts.mean(), weights[np.maximum(emotion, 0)]).tolist()
