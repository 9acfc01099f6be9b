"""Exposure: the speakers and recordings that a model was trained on, stored as hashes and recognised elsewhere.

The leak guard uses it: a teacher must not have been trained on its student's test speakers. Hashes recognise a speaker
by name, by any shared recording, or by a file that another table cuts into other utterances.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmemo.data.manifest import Utterance
from mmemo.data.table import DataTable

CHUNK_BYTES = 1 << 16  # of a file's start, middle and end, which identify it


class Excerpt(NamedTuple):
    """A part of a file.

    Args:
        channel: Channel, counted from 0; None for all channels.
        start: In seconds.
        end: In seconds; infinite for the end of the file.
    """

    channel: int | None
    start: float
    end: float

    @staticmethod
    def of(utterance: Utterance) -> Excerpt:
        """Returns the part of its file that an utterance covers."""
        end = math.inf if utterance.end is None else utterance.end
        return Excerpt(utterance.channel, utterance.start or 0.0, end)

    def overlaps(self, other: Excerpt) -> bool:
        """Returns whether two excerpts are mostly the same, for example one trimmed version of the other.

        They share half of the longer one; if one is a whole file, half of the other.
        """
        if None not in (self.channel, other.channel) and self.channel != other.channel:
            return False
        shared = min(self.end, other.end) - max(self.start, other.start)
        lengths = (self.end - self.start, other.end - other.start)
        return shared > 0 and shared >= (min(lengths) if math.inf in lengths else max(lengths)) / 2


@dataclass(frozen=True)
class Exposure:
    """Speakers and recordings that a model was trained on. They can be recognised, but not read.

    Args:
        speakers: Hashes of speaker names.
        audio: Hashes of waveforms.
        files: Hash of a file -> excerpts of it.
    """

    speakers: frozenset[str] = frozenset()
    audio: frozenset[str] = frozenset()
    files: Mapping[str, Sequence[Excerpt]] = field(default_factory=dict)

    @staticmethod
    def of_training(table: DataTable, takes_audio: bool) -> Exposure:
        """Returns the exposure of a model that is trained on a table's training side.

        Args:
            table: Training data.
            takes_audio: Whether the model takes audio, and not only text.
        """
        rows = table.split.train
        speakers = frozenset(map(speaker_hash, table.manifest.frame["speaker"].iloc[rows].dropna().unique()))
        if not takes_audio:
            return Exposure(speakers)
        contents = table.contents
        utterances = list(table.manifest)
        files: dict[str, list[Excerpt]] = {}
        hashes: dict[Path, str] = {}
        for row in rows:
            path = utterances[row].path
            if contents[row] and path is not None:
                name = hashes[path] = hashes.get(path) or file_hash(path)
                files.setdefault(name, []).append(Excerpt.of(utterances[row]))
        return Exposure(speakers, frozenset(audio_hash(contents[row]) for row in rows if contents[row]), files)

    @staticmethod
    def read(checkpoint: Path | Mapping[str, Any]) -> Exposure:
        """Reads the exposure from a checkpoint or from its content."""
        content: Mapping[str, Any] = (
            torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
            if isinstance(checkpoint, Path)
            else checkpoint
        )
        stored = content.get("exposure", {})
        files = {
            name: [Excerpt(*excerpt) for excerpt in excerpts] for name, excerpts in stored.get("files", {}).items()
        }
        return Exposure(frozenset(stored.get("speakers", ())), frozenset(stored.get("audio", ())), files)

    def write(self, checkpoint: dict[str, Any]) -> None:
        """Stores the exposure in the content of a checkpoint."""
        checkpoint["exposure"] = {
            "speakers": sorted(self.speakers),
            "audio": sorted(self.audio),
            "files": {name: [tuple(excerpt) for excerpt in excerpts] for name, excerpts in self.files.items()},
        }

    def __or__(self, other: Exposure) -> Exposure:
        """Returns the union."""
        files = {
            name: list(dict.fromkeys([*self.files.get(name, ()), *other.files.get(name, ())]))
            for name in {**self.files, **other.files}
        }
        return Exposure(self.speakers | other.speakers, self.audio | other.audio, files)

    def matches(self, table: DataTable) -> np.ndarray:
        """Returns which rows of a table the model was exposed to ``(row,)`` bool.

        A row matches if its speaker was in the training set, by name or by any recording, or if the row is a part of a
        training file. A match by file counts only for the row: in a dialogue, another speaker may talk at that time.

        Args:
            table: With facts about its audio, if the exposure has any.
        """
        speakers = table.manifest.frame["speaker"]
        matched: np.ndarray = speakers.map(speaker_hash, na_action="ignore").isin(self.speakers).to_numpy(dtype=bool)
        contents = table.contents
        if self.audio:
            matched = matched | np.array([bool(content) and audio_hash(content) in self.audio for content in contents])
        matched = matched | speakers.isin(speakers[matched].dropna()).to_numpy(dtype=bool)
        if self.files:
            hashes: dict[Path, str] = {}
            for row, (utterance, content) in enumerate(zip(table.manifest, contents, strict=True)):
                path = utterance.path
                if matched[row] or not content or path is None:
                    continue
                name = hashes[path] = hashes.get(path) or file_hash(path)
                excerpt = Excerpt.of(utterance)
                matched[row] = any(excerpt.overlaps(other) for other in self.files.get(name, ()))
        return matched


def speaker_hash(name: object) -> str:
    """Returns a hash of a speaker's name."""
    return sha256(f"speaker {name}".encode()).hexdigest()[:16]


def audio_hash(content: str) -> str:
    """Returns a hash of a waveform's checksum."""
    return sha256(f"audio {content}".encode()).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """Returns a hash of a file's size and of 64 KiB at its start, middle and end."""
    digest = sha256()
    size = path.stat().st_size
    digest.update(f"file {size}".encode())
    with path.open("rb") as file:
        for offset in (0, max(size // 2 - CHUNK_BYTES // 2, 0), max(size - CHUNK_BYTES, 0)):
            file.seek(offset)
            digest.update(file.read(CHUNK_BYTES))
    return digest.hexdigest()[:16]
