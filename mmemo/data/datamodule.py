"""Manifest -> batches for training, validation, test and prediction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmemo.audio.reader import AudioError, AudioFacts
from mmemo.data.audio_facts import audio_facts
from mmemo.data.augmentation import Soundalikes, WaveformAugmentation, WordAugmentation
from mmemo.data.batch import BucketSampler, EmotionBatch, Example, collate
from mmemo.data.checks import broken_audio
from mmemo.data.manifest import MAX_SHOWN, SPLITS, Manifest, ManifestError, join_manifests, read_manifest
from mmemo.data.ratings import mapped_votes, vote_shares, voted_emotions
from mmemo.data.splits import OfficialSplit, Split, SplitError, Splitter, check_speakers_disjoint
from mmemo.labels import DIMENSIONS, UNLABELLED
from mmemo.settings import is_offline

log = logging.getLogger(__name__)

Source = Callable[[int, int], Tensor]
"""Row of the manifest, and which view of it -> one modality; without time steps where it is missing."""


@dataclass
class Corpus:
    """One of several corpora that are trained together.

    Args:
        manifest: CSV or Parquet file with one row per utterance.
        label_map: As for the whole; used on this corpus alone, and first.
        name: Stands before its ids and speakers, and in the column ``corpus``; the file's name when not given.
        unlabelled: Hides the labels of its training rows, which then serve what needs none: a teacher
            (``mmemo.training.DistillationSystem``), or a hook such as ``mmemo.training.DomainAdversarial``; its other
            rows are judged as ever.
    """

    manifest: str
    label_map: dict[str, str | None] = field(default_factory=dict)
    name: str | None = None
    unlabelled: bool = False


class EmotionDataModule(LightningDataModule):
    """Reads a manifest, divides it by speaker, and serves batches of like duration.

    What a batch holds of each modality (waveforms, token ids, or features from the cache) is decided by
    the sources that the system attaches with :meth:`attach`.

    Args:
        classes: Emotion classes to tell apart, in the order of the model's outputs; none for a model of
            valence, arousal and dominance alone.
        manifest: CSV or Parquet file with one row per utterance.
        corpora: Several manifests to be trained together, each with its own label map, in the place of one.
        split: How rows are divided into train, val and test.
        label_map: Renames emotions before anything else; ``null`` leaves the rows of that emotion out.
            Without it, a label that is not in ``classes`` is an error.
        only: Column -> values; rows with another value, or none, are left out, such as ``role: [participant]`` in
            recordings of interviews, or ``channel: [0]``.
        batch_size: Utterances per optimiser step, over all processes.
        num_workers: Worker processes that read batches; 0 reads in the main one, fastest from the cache.
        balanced: Training draws each class equally often, with rare utterances coming again and again; else every
            utterance comes once per epoch.
        augmentation: Changes training waveforms, such as ``mmemo.data.WaveformAugmentation``.
        word_augmentation: Changes training transcripts, such as ``mmemo.data.WordAugmentation``.
        num_views: Versions of each training utterance: itself, and others that the augmentation made. Where features
            are cached these are fixed, and each costs cache and encoding time; else every step draws a new one. 4 when
            not given, 1 without augmentation.
        test_views: Versions of each test or predicted utterance, whose probabilities are averaged.
        broken_audio: What to do with audio that cannot be read or is silent: refuse to start, or leave
            those rows out with a warning.
        empty_rows: What to do with an utterance that has nothing the model takes, such as one without words in a
            model that only reads: refuse to start, or keep it, to be predicted from nothing.
        allow_speaker_overlap: Let a speaker stand on two sides of the split; every result will say so.
        predict_on: Rows that ``predict`` predicts: all of the manifest, or one side of the split.
        seed: Order of the training batches.

    Raises:
        ManifestError: A label outside ``classes``, or broken audio that is to be refused.
        SplitError: A speaker on two sides, or a split that cannot be made.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_views is None:
            num_views = 1 if augmentation is None and word_augmentation is None else 4
        if min(num_views, test_views) < 1:
            raise ValueError(f"data.num_views={num_views}, data.test_views={test_views}, expected 1 or more")
        if augmentation is None and (test_views > 1 or (num_views > 1 and word_augmentation is None)):
            raise ValueError(
                f"data.num_views={num_views}, data.test_views={test_views} need a data.augmentation that makes the "
                "views, such as mmemo.data.WaveformAugmentation"
            )
        if num_views == 1 and (augmentation is not None or word_augmentation is not None) and test_views == 1:
            raise ValueError(
                "data.num_views: 1 keeps every utterance as it is, so data.augmentation and data.word_augmentation "
                "change nothing; give it 2 or more, or leave them out"
            )
        if bool(manifest) == bool(corpora):
            raise ValueError(
                "data needs a manifest, or corpora to be trained together; give it one of the two "
                "(--data.corpora null takes back those of a YAML)"
            )
        self._single = bool(manifest)
        self.corpora = corpora or [Corpus(cast(str, manifest))]
        self.classes = tuple(classes)
        self.splitter = split or OfficialSplit()
        self.label_map = label_map or {}
        self.only = only or {}
        self.batch_size = batch_size
        self.num_workers = num_workers
        if balanced and not classes:
            raise ValueError("data.balanced: true draws classes equally often, but data.classes is empty")
        self.balanced = balanced
        self.augmentation = augmentation
        self.word_augmentation = word_augmentation
        self.num_views = num_views
        self.test_views = test_views
        self.broken_audio = broken_audio
        self.empty_rows = empty_rows
        self.allow_speaker_overlap = allow_speaker_overlap
        self.predict_on = predict_on
        self.seed = seed
        self.warnings: list[str] = []
        self.reads: tuple[str, ...] = ("emotion",)
        self._keeps_unlabelled = False
        self._manifest: Manifest | None = None
        self._sources = Sources()
        self._durations: np.ndarray | None = None
        self._left_out: set[int] = set()

    @property
    def manifest_paths(self) -> list[Path]:
        """Files that the rows come from."""
        return [Path(corpus.manifest) for corpus in self.corpora]

    @property
    def manifest_path(self) -> Path:
        """What errors call the table."""
        return Path(" + ".join(str(path) for path in self.manifest_paths))

    @property
    def manifest(self) -> Manifest:
        """The table as it is used: labels mapped, rows left out that the settings say so of."""
        assert self._manifest is not None, "setup() comes first"
        return self._manifest

    def setup(self, stage: str) -> None:
        if self._manifest is None:
            fitting = stage == "fit"
            manifest = self._chosen(self._mapped(self._read(fitting), self.label_map, "data.label_map", fitting))
            self._manifest = manifest
            self.targets = self._targets(manifest)
            self.dimensions = manifest.frame[list(DIMENSIONS)].to_numpy(dtype=np.float32)
            self.votes = np.zeros((len(manifest), len(self.classes)), dtype=np.float32)
        none = np.arange(0)
        try:
            self.split = self.splitter(self.manifest)
        except SplitError:
            if stage != "predict" or self.predict_on != "all":
                raise
            self.split = Split(none, none, none)  # another table than the one that was trained on
            return
        self._hide_labels()
        if stage == "fit":
            self._warn_of_unused()
            if self.augmentation is not None:
                self.augmentation.fingerprint()  # a folder of noises that is not there is told now
        self.warnings = check_speakers_disjoint(self.manifest, self.split, self.allow_speaker_overlap)
        for warning in self.warnings:
            log.warning(warning)

    def _warn_of_unused(self) -> None:
        """An unlabelled corpus is for training: rows without a side would be left out without a word."""
        for corpus in self.corpora:
            name = corpus.name or Path(corpus.manifest).stem
            if corpus.unlabelled and "corpus" in self.manifest.frame:
                rows = np.flatnonzero(self.manifest.frame["corpus"] == name)
                if not np.isin(rows, self.split.train).any():
                    raise ManifestError(
                        f"{corpus.manifest}: unlabelled is true, but the split puts none of its {len(rows)} rows on "
                        "the training side; give them split train in the manifest (--constants '{split: train}')"
                    )

    def _hide_labels(self) -> None:
        """Takes the labels off the training rows of corpora that are ``unlabelled``."""
        names = [corpus.name or Path(corpus.manifest).stem for corpus in self.corpora if corpus.unlabelled]
        if names:
            corpus = self.manifest.frame.get("corpus", pd.Series(names[0], index=self.manifest.frame.index))
            hidden = np.intersect1d(self.split.train, np.flatnonzero(corpus.isin(names)))
            self.targets[hidden] = UNLABELLED
            self.votes[hidden] = 0.0
            self.dimensions[hidden] = np.nan

    def _read(self, fitting: bool) -> Manifest:
        if self._single:
            return read_manifest(self.corpora[0].manifest)
        tables: dict[str, Manifest] = {}
        for corpus in self.corpora:
            path = Path(corpus.manifest)
            name = corpus.name or path.stem
            if name in tables:
                raise ManifestError(f"data.corpora has two corpora called {name!r}; give one another name")
            setting = f"label_map of corpus {name!r}"
            tables[name] = self._mapped(read_manifest(path), corpus.label_map, setting, fitting)
        return join_manifests(tables)

    def _chosen(self, manifest: Manifest) -> Manifest:
        """Rows that ``only`` names."""
        for column, values in self.only.items():
            if column not in manifest.frame:
                raise ManifestError(f"{self.manifest_path}: data.only names column {column!r}, which is not there")
            given = manifest.frame[column]
            wanted = {float(one) if pd.api.types.is_numeric_dtype(given) else str(one) for one in values}
            kept = np.flatnonzero(given.isin(wanted).fillna(False).to_numpy(dtype=bool))
            if not len(kept):
                found = ", ".join(map(str, given.dropna().unique()[:8]))
                raise ManifestError(
                    f"{self.manifest_path}: data.only leaves no row: {column} is never {values}, found {found}"
                )
            manifest = manifest.subset(kept)
        return manifest

    def _mapped(
        self, manifest: Manifest, label_map: Mapping[str, str | None], setting: str, fitting: bool
    ) -> Manifest:  # fmt: skip
        emotion = manifest.frame["emotion"]
        known = set(emotion.dropna()) | set(voted_emotions(manifest.frame))
        unknown = set(label_map) - known
        if unknown and fitting:
            raise ManifestError(f"{manifest.path}: {setting} names {sorted(unknown)}, found only {sorted(known)}")
        dropped = [old for old, new in label_map.items() if new is None]
        out = emotion.isin(dropped)
        if dropped and fitting:
            log.warning("%s: %s leaves %d rows out: %s", manifest.path, setting, int(out.sum()), ", ".join(dropped))
        manifest = manifest.subset(np.flatnonzero(~out.to_numpy()))
        renamed = {old: new for old, new in label_map.items() if new is not None}
        manifest.frame["emotion"] = manifest.frame["emotion"].replace(renamed)
        manifest.frame = mapped_votes(manifest.frame, label_map)
        return manifest

    def _targets(self, manifest: Manifest) -> np.ndarray:
        emotion = manifest.frame["emotion"]
        if not self.classes:
            return np.full(len(manifest), UNLABELLED, dtype=np.int64)
        bad = emotion.notna() & ~emotion.isin(self.classes)
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            near = get_close_matches(emotion.iat[row], self.classes, n=1, cutoff=0.75)
            meant = f"did you mean {emotion.iat[row]!r} by {near[0]!r}? Otherwise " if near else ""
            raise ManifestError(
                f"{manifest.path}: utterance {manifest.frame['id'].iat[row]!r} (and {int(bad.sum()) - 1} more) has "
                f"emotion {emotion.iat[row]!r}, expected one of data.classes={list(self.classes)}; {meant}add it "
                f"there, or map it with data.label_map ({emotion.iat[row]}: null leaves these rows out)"
            )
        numbers = {name: number for number, name in enumerate(self.classes)}
        return np.array([numbers.get(name, UNLABELLED) for name in emotion], dtype=np.int64)

    def use_labels(self, reads: Sequence[str], fitting: bool, unlabelled: bool = False) -> None:
        """Says which labels the loss reads; training rows with none of them are left out, unless asked for.

        Args:
            reads: Some of ``emotion``, ``votes``, ``dimensions``.
            fitting: Whether this is for training, which needs them.
            unlabelled: Whether training learns from rows with none of them too.

        Raises:
            ManifestError: No training row has one of the labels or classes, or some rows have labels of a kind alone
                that the loss does not read.
        """
        self.reads = tuple(reads)
        self._keeps_unlabelled = unlabelled
        if "votes" in reads:
            try:
                self.votes = vote_shares(self.manifest.frame, self.classes)
            except ValueError as error:
                if fitting:  # a table without votes can still be judged and predicted
                    raise ManifestError(f"{self.manifest_path}: {error}") from None
        self._hide_labels()
        hidden = [corpus.manifest for corpus in self.corpora if corpus.unlabelled]
        if fitting and hidden and not unlabelled:
            raise ManifestError(
                f"{hidden[0]}: unlabelled is true, but nothing learns from rows without a label; add a hook such as "
                "mmemo.training.DomainAdversarial or VirtualAdversarial, distil a teacher, or leave the corpus out"
            )
        if fitting and len(hidden) == len(self.corpora):
            raise ManifestError(
                f"{self.manifest_path}: every corpus is unlabelled, so there is nothing to learn emotions from; give "
                "one of them its labels (unlabelled: false)"
            )
        if fitting:
            self._check_labels()

    def _check_labels(self) -> None:
        train = self.split.train
        has = {kind: present[train] for kind, present in self._labelled().items()}
        for kind in self.reads:
            if not has[kind].any():
                raise ManifestError(f"{self.manifest_path}: the loss reads {kind}, but no training row has any")
        read = np.any([has[kind] for kind in self.reads], axis=0)
        for kind in ("emotion", "dimensions"):
            unread = has[kind] & ~read
            if kind not in self.reads and unread.any():
                known = "valence, arousal or dominance" if kind == "dimensions" else "an emotion"
                first = self.manifest.frame["id"].iat[train[np.flatnonzero(unread)[0]]]
                raise ManifestError(
                    f"{self.manifest_path}: utterance {first!r} (and {int(unread.sum()) - 1} more) has {known} and no "
                    f"{' or '.join(self.reads)}, which is all the loss reads; join losses of both with "
                    "mmemo.losses.WeightedSum, or take these rows out"
                )
        shown = set(self.targets[train])
        if "votes" in self.reads:
            shown |= set(np.flatnonzero(self.votes[train].sum(0)))
        missing = [name for number, name in enumerate(self.classes) if number not in shown]
        if missing and set(self.reads) & {"emotion", "votes"}:
            raise ManifestError(
                f"{self.manifest_path}: no training row has emotion {', '.join(missing)}; "
                "take it out of data.classes, or use another split"
            )

    def _labelled(self) -> dict[str, np.ndarray]:
        """Kind of label -> which rows have it ``(row,)``."""
        return {
            "emotion": self.targets != UNLABELLED,
            "votes": self.votes.sum(1) > 0,
            "dimensions": np.isfinite(self.dimensions).any(1),
        }

    def class_counts(self) -> Tensor:
        """Training rows of each class ``(num_classes,)``."""
        targets = self.targets[self.split.train]
        return torch.from_numpy(np.bincount(targets[targets != UNLABELLED], minlength=len(self.classes)))

    def refuse_empty(self, audio: bool, text: bool, predicting: bool = False) -> None:
        """Refuses utterances that have nothing the model takes, unless ``empty_rows`` keeps them.

        Args:
            audio: Whether the model listens.
            text: Whether it reads.
            predicting: Whether ``predicted_rows`` are meant, rather than the rows of the split.

        Raises:
            ManifestError: Naming them.
        """
        has = np.zeros(len(self.manifest), dtype=bool)
        if audio:
            has |= self.manifest.frame["path"].notna().to_numpy(dtype=bool)
        if text:
            has |= (self.manifest.frame["text"].fillna("").str.strip() != "").to_numpy(dtype=bool)
        used = self.predicted_rows if predicting else np.concatenate([np.asarray(side, int) for side in self.split])
        empty = used[~has[used]]
        if len(empty) and self.empty_rows == "refuse":
            names = ", ".join(repr(name) for name in self.manifest.frame["id"].iloc[empty[:5]])
            takes = " and ".join(["audio"] * audio + ["words"] * text)
            raise ManifestError(
                f"{self.manifest_path}: {len(empty)} utterances have nothing of what the model takes ({takes}): "
                f"{names}; take them out, or set data.empty_rows: keep to predict them from nothing"
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
            lines = broken_audio(utterances, facts, private=is_offline())[:MAX_SHOWN]
            if len(broken) > MAX_SHOWN:
                lines.append(f"and {len(broken) - MAX_SHOWN} more")
            listed = "\n".join(lines)
            if self.broken_audio == "refuse":
                raise ManifestError(
                    f"{self.manifest_path}: {len(broken)} utterances have audio that cannot be used; mend them, or "
                    f"set data.broken_audio: skip to leave them out\n{listed}"
                )
            warning = f"{len(broken)} utterances with broken audio left out"
            if warning not in self.warnings:  # what is inspected again is not told again
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

    def soundalikes(self, fitting: bool = False) -> Soundalikes:
        """What words are misheard as: the like of them in the table.

        Args:
            fitting: Whether this is for training, which must not see the words of other rows.
        """
        texts = self.manifest.frame["text"].fillna("")
        return Soundalikes((texts.iloc[self.split.train] if fitting else texts).tolist())

    def attach(self, sources: Sources) -> None:
        """Sets where batches take each modality from.

        Args:
            sources: Row and view -> waveform, token ids or features, for each modality.
        """
        self._sources = sources

    @property
    def sources(self) -> Sources:
        """Where batches take each modality from."""
        return self._sources

    @property
    def predicted_rows(self) -> np.ndarray:
        """Row numbers that ``predict`` predicts."""
        if self.predict_on != "all":
            return getattr(self.split, self.predict_on)
        left_out = self._left_out
        return np.array([row for row in range(len(self.manifest)) if row not in left_out], dtype=int)

    def train_dataloader(self) -> DataLoader[EmotionBatch]:
        labelled = np.any([self._labelled()[kind] for kind in self.reads], axis=0) | self._keeps_unlabelled
        return self._loader(self.split.train[labelled[self.split.train]], training=True)

    def val_dataloader(self) -> DataLoader[EmotionBatch] | list[DataLoader[EmotionBatch]]:
        return self._loader(self.split.val) if len(self.split.val) else []  # num_val_speakers: 0

    def test_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.split.test, views=self.test_views)

    def predict_dataloader(self) -> DataLoader[EmotionBatch]:
        return self._loader(self.predicted_rows, views=self.test_views)

    def views_dataloader(self, rows: np.ndarray) -> DataLoader[EmotionBatch]:
        """Every version of training rows, those of an utterance one after the other.

        Args:
            rows: Of the manifest.
        """
        return self._loader(rows, views=self.num_views, batch_size=max(1, 64 // self.num_views))

    def _loader(
        self, rows: np.ndarray, training: bool = False, views: int = 1, batch_size: int | None = None
    ) -> DataLoader[EmotionBatch]:
        if len(rows) == 0:
            raise ManifestError(f"{self.manifest_path}: the split leaves no rows here; see data.split")
        trainer = self.trainer
        weights = None
        if training and self.balanced:
            counts = self.class_counts().numpy()
            targets = self.targets[rows]
            shares = 1 / np.maximum(counts, 1)
            weights = np.where(targets == UNLABELLED, 1 / counts.mean(), shares[np.maximum(targets, 0)]).tolist()
        sampler = BucketSampler(
            self._lengths()[rows],
            batch_size or self.batch_size,
            training,
            self.seed,
            rank=trainer.global_rank if trainer and not batch_size else 0,
            num_processes=trainer.world_size if trainer and not batch_size else 1,
            weights=weights,
        )
        labels = Labels(self.targets, self.votes, self.dimensions)
        dataset = EmotionDataset(rows, labels, self._sources, self.num_views if training else 1, views)
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


class Sources(NamedTuple):
    """Where batches take each modality from; None for one that the model does not have.

    Args:
        audio: Row and view -> waveform or features.
        descriptors: Row and view -> waveform or features for the second encoder of the waveform.
        text: Row and view -> token ids or features.
    """

    audio: Source | None = None
    descriptors: Source | None = None
    text: Source | None = None


class Labels(NamedTuple):
    """What is true of every row of a manifest.

    Args:
        targets: Class indices ``(row,)``, ``labels.UNLABELLED`` where there is no label.
        votes: Share of the votes of each class ``(row, num_classes)``; zeros where nobody voted.
        dimensions: Valence, arousal, dominance ``(row, 3)``, NaN where there is no label.
    """

    targets: np.ndarray
    votes: np.ndarray
    dimensions: np.ndarray


class EmotionDataset(Dataset[EmotionBatch]):
    """Batches by lists of positions among some rows of a manifest.

    Args:
        rows: Which of its rows belong to this side of the split.
        labels: Of every row of the manifest.
        sources: Where each modality comes from.
        num_views: How many versions of each utterance there are; one is drawn each time.
        repeats: How many versions of each utterance come one after the other, from the utterance itself.
    """

    def __init__(
        self, rows: np.ndarray, labels: Labels, sources: Sources, num_views: int = 1, repeats: int = 1
    ) -> None:  # fmt: skip
        self.rows = rows
        self.labels = labels
        self.sources = sources
        self.num_views = num_views
        self.repeats = repeats

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, positions: Sequence[int]) -> EmotionBatch:
        rows = [int(self.rows[position]) for position in positions]
        if self.num_views > 1:
            return collate([self._example(row, int(torch.randint(self.num_views, ()))) for row in rows])
        return collate([self._example(row, view) for row in rows for view in range(self.repeats)])

    def _example(self, row: int, view: int) -> Example:
        audio, heard = self._heard(self.sources.audio, row, view)
        descriptors, described = self._heard(self.sources.descriptors, row, view)
        text = None if self.sources.text is None else self.sources.text(row, view)
        if not (heard and described):  # nothing is learned from audio that is not there
            votes = torch.zeros(self.labels.votes.shape[1])
            dimensions = torch.full((self.labels.dimensions.shape[1],), torch.nan)
            return Example(row, audio, descriptors, text, UNLABELLED, votes, dimensions, view)
        target = int(self.labels.targets[row])
        votes, dimensions = torch.tensor(self.labels.votes[row]), torch.tensor(self.labels.dimensions[row])
        return Example(row, audio, descriptors, text, target, votes, dimensions, view)

    @staticmethod
    def _heard(source: Source | None, row: int, view: int) -> tuple[Tensor | None, bool]:
        """What a source gives, and whether it could be read; nothing where it could not."""
        if source is None:
            return None, True
        try:
            return source(row, view), True
        except AudioError as error:  # it was good at start-up: a file that went bad must not end the run
            log.warning("%s; this utterance is passed over", error)
            return torch.zeros(0), False
