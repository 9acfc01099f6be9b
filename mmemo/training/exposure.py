"""Whom a model has heard in training: what a checkpoint knows of speakers and recordings, and finds again elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import Utterance

CHUNK_BYTES = 1 << 16  # of a file's beginning, middle and end, which tell it from others


class Stretch(NamedTuple):
    """A piece of a file.

    Args:
        channel: Counting from 0; None is all of them.
        start: In seconds.
        end: In seconds; infinite where it is the file's.
    """

    channel: int | None
    start: float
    end: float

    @staticmethod
    def of(utterance: Utterance) -> Stretch:
        """Where an utterance is in its file."""
        end = math.inf if utterance.end is None else utterance.end
        return Stretch(utterance.channel, utterance.start or 0.0, end)

    def same(self, other: Stretch) -> bool:
        """Whether they share half of the longer, as when one was trimmed; of a whole file, half of the other."""
        if None not in (self.channel, other.channel) and self.channel != other.channel:
            return False
        shared = min(self.end, other.end) - max(self.start, other.start)
        lengths = (self.end - self.start, other.end - other.start)
        return shared > 0 and shared >= (min(lengths) if math.inf in lengths else max(lengths)) / 2


class Heard(NamedTuple):
    """Speakers and recordings of a training side, as marks from which they can be found again, but not read.

    Args:
        speakers: Marks of names.
        audio: Marks of what is heard.
        files: Mark of a file -> pieces of it that were heard, however they were cut.
    """

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()
    files: Mapping[str, Sequence[Stretch]] = {}

    @staticmethod
    def training(datamodule: EmotionDataModule, listens: bool) -> Heard:
        """Of a data module's training side.

        Args:
            datamodule: After its ``setup``.
            listens: Whether the model hears them, rather than reads alone.
        """
        rows = datamodule.split.train
        speakers = frozenset(map(speaker_mark, datamodule.manifest.frame["speaker"].iloc[rows].dropna().unique()))
        if not listens:
            return Heard(speakers)
        contents = datamodule.inspect_audio(progress=False)
        utterances = list(datamodule.manifest)
        files: dict[str, list[Stretch]] = {}
        marks: dict[Path, str] = {}
        for row in datamodule.split.train:  # now without those whose audio is broken
            path = utterances[row].path
            if contents[row] and path is not None:
                mark = marks[path] = marks.get(path) or file_mark(path)
                files.setdefault(mark, []).append(Stretch.of(utterances[row]))
        return Heard(speakers, frozenset(audio_mark(contents[row]) for row in rows if contents[row]), files)

    @staticmethod
    def read(checkpoint: Path | Mapping[str, Any]) -> Heard:
        """Of a checkpoint of ``mmemo fit``."""
        content: Mapping[str, Any] = (
            torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            if isinstance(checkpoint, Path)
            else checkpoint
        )
        files = {mark: [Stretch(*one) for one in found] for mark, found in content.get("heard_files", {}).items()}
        speakers, audio = (frozenset(content.get(name, ())) for name in ("heard_speakers", "heard_audio"))
        return Heard(speakers, audio, files)

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Puts it into a checkpoint."""
        checkpoint["heard_speakers"] = sorted(self.speakers)
        checkpoint["heard_audio"] = sorted(self.audio)
        checkpoint["heard_files"] = {mark: [tuple(one) for one in found] for mark, found in self.files.items()}

    def __or__(self, other: Heard) -> Heard:  # type: ignore[override]
        """Both together."""
        files = {
            mark: list(dict.fromkeys([*self.files.get(mark, ()), *other.files.get(mark, ())]))
            for mark in {**self.files, **other.files}
        }
        return Heard(self.speakers | other.speakers, self.audio | other.audio, files)

    def rows(self, datamodule: EmotionDataModule) -> np.ndarray:
        """Rows of a table whose speaker was heard, known by the name or by a recording of theirs, or which were heard
        themselves, cut otherwise.

        Args:
            datamodule: After its ``setup``.

        Shape:
            ``(row,)`` bool
        """
        speakers = datamodule.manifest.frame["speaker"]
        known = speakers.map(speaker_mark, na_action="ignore").isin(self.speakers).to_numpy(dtype=bool)
        if self.audio or self.files:
            contents = datamodule.inspect_audio(progress=False)
            known = known | [bool(content) and audio_mark(content) in self.audio for content in contents]
        theirs: np.ndarray = speakers.isin(speakers[known].dropna()).to_numpy(dtype=bool)
        known = known | theirs
        if self.files:  # row by row: in a dialogue somebody else may speak across an utterance
            marks: dict[Path, str] = {}
            for row, (utterance, content) in enumerate(zip(datamodule.manifest, contents, strict=True)):
                path = utterance.path
                if known[row] or not content or path is None:
                    continue
                mark = marks[path] = marks.get(path) or file_mark(path)
                known[row] = any(Stretch.of(utterance).same(one) for one in self.files.get(mark, ()))
        return cast(np.ndarray, known)


def speaker_mark(name: object) -> str:
    """A speaker's name as a checkpoint knows it: enough to find them again, not to read it.

    Args:
        name: As in the manifest.
    """
    return sha256(f"speaker {name}".encode()).hexdigest()[:16]


def audio_mark(content: str) -> str:
    """A recording as a checkpoint knows it.

    Args:
        content: Its checksum.
    """
    return sha256(f"audio {content}".encode()).hexdigest()[:16]


def file_mark(path: Path) -> str:
    """A file as a checkpoint knows it, by its size and 64 KiB of its beginning, middle and end.

    Args:
        path: Of any size.
    """
    found = sha256()
    size = path.stat().st_size
    found.update(f"file {size}".encode())
    with path.open("rb") as file:
        for place in (0, max(size // 2 - CHUNK_BYTES // 2, 0), max(size - CHUNK_BYTES, 0)):
            file.seek(place)
            found.update(file.read(CHUNK_BYTES))
    return found.hexdigest()[:16]
