"""Properties of each recording of a manifest (checksum, duration, problem): measured once, then cached."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from pathlib import Path

from mmemo.audio.reader import AudioFacts, inspect_audio
from mmemo.data.manifest import Utterance
from mmemo.database import Database
from mmemo.progress import progress as show_progress
from mmemo.settings import cache_folder

COLUMNS = ", ".join(field.name for field in fields(AudioFacts))
TABLE = "audio_facts_2"  # increase the number when the reader's results change
SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, {COLUMNS})"
CHUNK = 64  # utterances inspected between two commits


def audio_facts(
    utterances: Sequence[Utterance], cache: Path | None = None, progress: bool = True
) -> list[AudioFacts | None]:
    """Inspects every utterance's audio; unchanged files are not read again.

    A file counts as unchanged if its path, size and modification time are. Unreadable files are tried again each
    time, because a repair (permissions, a mount) may change none of the three.

    Args:
        utterances: Manifest rows.
        cache: Cache folder. Defaults to ``MMEMO_CACHE``.
        progress: Whether to draw a progress bar.

    Returns:
        The facts of each utterance, or None if it has no audio.
    """
    database = Database((cache or cache_folder()) / "audio_facts.sqlite", SCHEMA)
    keys = [_key(utterance) for utterance in utterances]
    unique_keys = [key for key in dict.fromkeys(keys) if key is not None]
    facts: dict[str, AudioFacts] = {}
    with database.connect() as connection:
        for chunk in _chunks(unique_keys, CHUNK):
            query = f"SELECT key, {COLUMNS} FROM {TABLE} WHERE key IN ({','.join('?' * len(chunk))})"
            facts.update({key: AudioFacts(*row) for key, *row in connection.execute(query, chunk)})

    by_key = dict(zip(keys, utterances, strict=True))
    pending = [key for key in unique_keys if key not in facts]
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        show_progress("Inspecting audio", len(pending), progress) as advance,
    ):
        for chunk in _chunks(pending, CHUNK):
            inspected = list(threads.map(_inspect, (by_key[key] for key in chunk)))
            facts.update(zip(chunk, inspected, strict=True))
            placeholders = ",".join("?" * (len(fields(AudioFacts)) + 1))
            rows = [(key, *astuple(fact)) for key, fact in zip(chunk, inspected, strict=True) if fact.content]
            with database.connect() as connection:
                connection.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES ({placeholders})", rows)
            advance(len(chunk))
    return [None if key is None else facts[key] for key in keys]


def _chunks(keys: list[str], size: int) -> list[list[str]]:
    return [keys[first : first + size] for first in range(0, len(keys), size)]


def _key(utterance: Utterance) -> str | None:
    if utterance.path is None:
        return None
    path = utterance.path.resolve()
    try:
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "unreadable"
    return f"{path}|{state}|{utterance.start}|{utterance.end}|{utterance.channel}"


def _inspect(utterance: Utterance) -> AudioFacts:
    assert utterance.path is not None
    return inspect_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
