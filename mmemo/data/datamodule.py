"""Manifest -> batches for training, validation, test and prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmemo.data.audio import AudioError, AudioFacts
from mmemo.data.audio_facts import audio_facts
from mmemo.data.batch import BucketSampler, EmotionBatch, Example, collate
from mmemo.data.manifest import MAX_SHOWN, SPLITS, Manifest, ManifestError, read_manifest
from mmemo.data.splits import OfficialSplit, Split, SplitError, Splitter, check_speakers_disjoint
from mmemo.labels import UNLABELLED

log = logging.getLogger(__name__)

Source = Callable[[int], Tensor]
"""Row of the manifest -> one modality of it; without time steps where it is missing."""


class EmotionDataModule(LightningDataModule):
    """Reads a manifest, divides it by speaker, and serves batches of like duration.

    What a batch holds of each modality (waveforms, token ids, or features from the cache) is decided by
    the sources that the system attaches with :meth:`attach`.

    Args:
        manifest: CSV or Parquet file with one row per utterance.
        classes: Emotion classes to tell apart, in the order of the model's outputs.
        split: How rows are divided into train, val and test.
        label_map: Renames emotions before anything else; ``null`` leaves the rows of that emotion out.
            Without it, a label that is not in ``classes`` is an error.
        batch_size: Utterances per optimiser step, over all processes.
        num_workers: Worker processes that read batches; 0 reads in the main one, fastest from the cache.
        broken_audio: What to do with audio that cannot be read or is silent: refuse to start, or leave
            those rows out with a warning.
        allow_speaker_overlap: Let a speaker stand on two sides of the split; every result will say so.
        predict_on: Rows that ``predict`` predicts: all of the manifest, or one side of the split.
        seed: Order of the training batches.

    Raises:
        ManifestError: A label outside ``classes``, or broken audio that is to be refused.
        SplitError: A speaker on two sides, or a split that cannot be made.
    """

    def __init__(
        self,
        manifest: str,
        classes: list[str],
        split: Splitter | None = None,
        label_map: dict[str, str | None] | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        broken_audio: Literal["refuse", "skip"] = "refuse",
        allow_speaker_overlap: bool = False,
        predict_on: Literal["all", "train", "val", "test"] = "all",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.manifest_path = Path(manifest)
        self.classes = tuple(classes)
        self.splitter = split or OfficialSplit()
        self.label_map = label_map or {}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.broken_audio = broken_audio
        self.allow_speaker_overlap = allow_speaker_overlap
        self.predict_on = predict_on
        self.seed = seed
        self.warnings: list[str] = []
        self._manifest: Manifest | None = None
        self._audio: Source | None = None
        self._text: Source | None = None
        self._durations: np.ndarray | None = None
        self._left_out: set[int] = set()

    @property
    def manifest(self) -> Manifest:
        """The table as it is used: labels mapped, rows left out that the settings say so of."""
        assert self._manifest is not None, "setup() comes first"
        return self._manifest

    def setup(self, stage: str) -> None:
        if self._manifest is None:
            self._manifest = self._mapped(read_manifest(self.manifest_path), fitting=stage == "fit")
            self.targets = self._targets(self._manifest)
        none = np.arange(0)
        try:
            self.split = self.splitter(self.manifest)
        except SplitError:
            if stage != "predict" or self.predict_on != "all":
                raise
            self.split = Split(none, none, none)  # another table than the one that was trained on
            return
        self.warnings = check_speakers_disjoint(self.manifest, self.split, self.allow_speaker_overlap)
        for warning in self.warnings:
            log.warning(warning)
        if stage == "fit":
            self._check_labels()

    def _mapped(self, manifest: Manifest, fitting: bool) -> Manifest:
        emotion = manifest.frame["emotion"]
        unknown = set(self.label_map) - set(emotion.dropna())
        if unknown and fitting:
            raise ManifestError(
                f"{manifest.path}: label_map names {sorted(unknown)}, found only {sorted(emotion.dropna().unique())}"
            )
        kept = np.flatnonzero(~emotion.isin([old for old, new in self.label_map.items() if new is None]).to_numpy())
        manifest = manifest.subset(kept)
        renamed = {old: new for old, new in self.label_map.items() if new is not None}
        manifest.frame["emotion"] = manifest.frame["emotion"].replace(renamed)
        return manifest

    def _targets(self, manifest: Manifest) -> np.ndarray:
        emotion = manifest.frame["emotion"]
        bad = emotion.notna() & ~emotion.isin(self.classes)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ManifestError(
                f"{manifest.path}: utterance {manifest.frame['id'].iat[row]!r} (and {int(bad.sum()) - 1} more) has "
                f"emotion {emotion.iat[row]!r}, expected one of data.classes={list(self.classes)}; add it there, or "
                f"map it with data.label_map ({emotion.iat[row]}: null leaves these rows out)"
            )
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers.get(name, UNLABELLED) for name in emotion], dtype=np.int64)

    def _check_labels(self) -> None:
        missing = [name for number, name in enumerate(self.classes)
                   if not (self.targets[self.split.train] == number).any()]  # fmt: skip
        if missing:
            raise ManifestError(
                f"{self.manifest_path}: no training row has emotion {', '.join(missing)}; "
                "take it out of data.classes, or use another split"
            )

    def inspect_audio(self, progress: bool = True) -> list[str]:
        """Looks at the audio of every row that is used; refuses broken ones, or leaves their rows out.

        Args:
            progress: Whether to draw a progress bar.

        Returns:
            Checksum of each row's audio, in the order of the manifest; empty where there is none.

        Raises:
            ManifestError: Audio is broken and ``broken_audio`` is ``refuse``.
        """
        utterances = list(self.manifest)
        facts = audio_facts(utterances, progress=progress)
        broken = [number for number, fact in enumerate(facts) if fact is not None and fact.problem]
        if broken:
            lines = [
                f"{utterances[number].id}: {utterances[number].path}: {facts[number].problem}"  # type: ignore[union-attr]
                for number in broken[:MAX_SHOWN]
            ]
            if len(broken) > MAX_SHOWN:
                lines.append(f"and {len(broken) - MAX_SHOWN} more")
            listed = "\n".join(lines)
            if self.broken_audio == "refuse":
                raise ManifestError(
                    f"{self.manifest_path}: {len(broken)} utterances have audio that cannot be used; mend them, or "
                    f"set data.broken_audio: skip to leave them out\n{listed}"
                )
            warning = f"{len(broken)} utterances with broken audio left out"
            log.warning("%s:\n%s", warning, listed)
            self.warnings.append(warning)
            bad = set(broken)
            self.split = Split(*(np.array([row for row in rows if row not in bad], dtype=int) for rows in self.split))
            self._left_out = bad
        self._refuse_shared_audio(facts)
        self._durations = np.array([0.0 if fact is None else fact.seconds for fact in facts])
        return ["" if fact is None or fact.problem else fact.content for fact in facts]

    def _refuse_shared_audio(self, facts: Sequence[AudioFacts | None]) -> None:
        """The same recording on two sides of the split is a leak, as the same speaker is."""
        sides: dict[str, str] = {}
        shared = []
        for name, rows in zip(SPLITS, self.split, strict=True):
            for row in rows:
                fact = facts[row]
                if fact is None or fact.problem:
                    continue
                if sides.setdefault(fact.content, name) != name:
                    shared.append(f"{self.manifest.frame['id'].iat[row]} ({sides[fact.content]} and {name})")
        if shared:
            problem = f"{len(shared)} recordings are on two sides of the split: {', '.join(shared[:5])}"
            if not self.allow_speaker_overlap:
                raise ManifestError(
                    f"{self.manifest_path}: {problem}; take the copies out, or set "
                    "data.allow_speaker_overlap: true and every result will say so"
                )
            self.warnings.append(problem)

    def sides(self) -> dict[int, str]:
        """Row -> which side of the split it is on; rows on none are left out."""
        return {int(row): name for name, rows in zip(SPLITS, self.split, strict=True) for row in rows}

    def attach(self, audio: Source | None, text: Source | None) -> None:
        """Sets where batches take each modality from.

        Args:
            audio: Row -> waveform or features; None for a model that does not listen.
            text: Row -> token ids or features; None for a model that does not read.
        """
        self._audio, self._text = audio, text

    @property
    def predicted_rows(self) -> np.ndarray:
        """Row numbers that ``predict`` predicts."""
        if self.predict_on != "all":
            return getattr(self.split, self.predict_on)
        left_out = self._left_out
        return np.array([row for row in range(len(self.manifest)) if row not in left_out], dtype=int)

    def train_dataloader(self) -> DataLoader[EmotionBatch]:
        labelled = self.split.train[self.targets[self.split.train] != UNLABELLED]
        return self._loader(labelled, shuffle=True)

    def val_dataloader(self) -> DataLoader[EmotionBatch] | list[DataLoader[EmotionBatch]]:
        return self._loader(self.split.val) if len(self.split.val) else []  # num_val_speakers: 0

    def test_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.split.test)

    def predict_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.predicted_rows)

    def _loader(self, rows: np.ndarray, shuffle: bool = False) -> DataLoader[EmotionBatch]:
        if len(rows) == 0:
            raise ManifestError(f"{self.manifest_path}: the split leaves no rows here; see data.split")
        trainer = self.trainer
        sampler = BucketSampler(
            self._lengths()[rows],
            self.batch_size,
            shuffle,
            self.seed,
            rank=trainer.global_rank if trainer else 0,
            num_processes=trainer.world_size if trainer else 1,
        )
        dataset = EmotionDataset(self.manifest, rows, self.targets, self._audio, self._text)
        return DataLoader(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler gives whole batches, the dataset pads them
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _lengths(self) -> np.ndarray:
        """Something that grows with the cost of a row: seconds of audio, else characters of text."""
        if self._durations is not None and self._durations.any():
            return self._durations
        return self.manifest.frame["text"].fillna("").str.len().to_numpy(dtype=float)


class EmotionDataset(Dataset[EmotionBatch]):
    """Batches by lists of positions among some rows of a manifest.

    Args:
        manifest: The table.
        rows: Which of its rows belong to this side of the split.
        targets: Class index of every row of the manifest.
        audio: Where audio comes from.
        text: Where text comes from.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        targets: np.ndarray,
        audio: Source | None,
        text: Source | None,
    ) -> None:
        self.manifest = manifest
        self.rows = rows
        self.targets = targets
        self.audio = audio
        self.text = text

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> EmotionBatch:
        return collate([self._example(int(self.rows[position])) for position in positions])

    def _example(self, row: int) -> Example:
        target = int(self.targets[row])
        audio = None
        if self.audio is not None:
            try:
                audio = self.audio(row)
            except AudioError as error:  # it was good at start-up: a file that went bad must not end the run
                log.warning("%s; this utterance is passed over", error)
                audio, target = torch.zeros(0), UNLABELLED
        text = None if self.text is None else self.text(row)
        return Example(row, audio, text, target)
