"""What each recording of a manifest is (checksum, duration, problem): looked at once, then remembered."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields
from pathlib import Path

from rich.progress import Progress

from mmemo.audio.reader import AudioFacts, inspect_audio
from mmemo.data.manifest import Utterance
from mmemo.database import Store
from mmemo.settings import cache_folder

COLUMNS = ", ".join(field.name for field in fields(AudioFacts))
TABLE = "audio_facts_2"  # another number when another reader gives other facts
SCHEMA = f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, {COLUMNS})"
CHUNK = 64  # utterances looked at between two commits


def audio_facts(
    utterances: Sequence[Utterance], cache: Path | None = None, progress: bool = True
) -> list[AudioFacts | None]:
    """Inspects every utterance's audio; unchanged files are not read a second time.

    A file counts as unchanged while its path, size and modification time are. What could not be read is tried
    again: its mending (permissions, a mount) may leave no trace there.

    Args:
        utterances: Manifest rows.
        cache: Folder of the cache; ``MMEMO_CACHE`` when not given.
        progress: Whether to draw a progress bar.

    Returns:
        For each utterance its facts, or None where it has no audio.
    """
    store = Store((cache or cache_folder()) / "audio_facts.sqlite", SCHEMA)
    keys = [_key(utterance) for utterance in utterances]
    found: dict[str, AudioFacts] = {}
    wanted = [key for key in dict.fromkeys(keys) if key is not None]
    with store.connect() as connection:
        for part in _batched(wanted, CHUNK):
            query = f"SELECT key, {COLUMNS} FROM {TABLE} WHERE key IN ({','.join('?' * len(part))})"
            found.update({key: AudioFacts(*row) for key, *row in connection.execute(query, part)})

    by_key = dict(zip(keys, utterances, strict=True))
    unknown = [key for key in wanted if key not in found]
    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        Progress(transient=True, disable=not progress or not unknown) as bar,
    ):
        task = bar.add_task("Looking at the audio", total=len(unknown))
        for part in _batched(unknown, CHUNK):
            facts = list(threads.map(_inspect, (by_key[key] for key in part)))
            found.update(zip(part, facts, strict=True))
            marks = ",".join("?" * (len(fields(AudioFacts)) + 1))
            rows = [(key, *astuple(fact)) for key, fact in zip(part, facts, strict=True) if fact.content]
            with store.connect() as connection:
                connection.executemany(f"INSERT OR REPLACE INTO {TABLE} VALUES ({marks})", rows)
            bar.advance(task, len(part))
    return [None if key is None else found[key] for key in keys]


def _batched(items: list[str], size: int) -> list[list[str]]:
    return [items[first : first + size] for first in range(0, len(items), size)]


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
