"""Transcripts on disk, shared by concurrent processes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from mmemo.database import Database
from mmemo.settings import cache_folder

SCHEMA = """
CREATE TABLE IF NOT EXISTS transcripts (key TEXT PRIMARY KEY, transcript TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL)
"""


@dataclass(frozen=True, slots=True)
class Transcript:
    """Whisper's transcript of a clip.

    Args:
        text: Transcribed words; empty for silence, laughter or noise.
        language: Two-letter code, specified or detected.
        log_prob: Mean natural log-probability of a token, <= 0.
        no_speech_prob: Probability that the clip contains no speech, in [0, 1].
        fell_back: Whether decoding looped on the short context and was repeated on the full 30 s.
    """

    text: str
    language: str
    log_prob: float
    no_speech_prob: float
    fell_back: bool = False


class TranscriptCache:
    """Transcripts on disk, keyed by audio checksum and transcriber fingerprint.

    A process claims a clip before it transcribes it, so that concurrent processes share the work. Each process holds
    a file lock while it lives. The operating system releases the lock when the process dies for any reason, so the
    claims of a killed process expire at once.

    Args:
        fingerprint: Identifies the transcriber and its options.
        cache: Cache folder. Defaults to ``MMEMO_CACHE``.
    """

    def __init__(self, fingerprint: str, cache: Path | None = None) -> None:
        root = cache or cache_folder()
        self._database = Database(root / "transcripts.sqlite", SCHEMA)
        self._fingerprint = sha256(fingerprint.encode()).hexdigest()[:16]
        self._owners = root / "claims"
        self._owners.mkdir(exist_ok=True)
        self._owner = uuid4().hex
        self._lock = FileLock(self._owners / self._owner)
        self._lock.acquire()

    def _key(self, content: str) -> str:
        return f"{content}:{self._fingerprint}"

    def get(self, contents: Sequence[str]) -> dict[str, Transcript]:
        """Returns the cached transcripts, by audio checksum."""
        transcripts = {}
        with self._database.connect() as connection:
            for content in contents:
                query = "SELECT transcript FROM transcripts WHERE key = ?"
                row = connection.execute(query, (self._key(content),)).fetchone()
                if row:
                    transcripts[content] = Transcript(**json.loads(row[0]))
        return transcripts

    def claim(self, contents: Sequence[str]) -> list[str]:
        """Claims the clips that no process has transcribed or claimed, and returns their checksums."""
        claimed = []
        with self._database.connect() as connection:
            for content in contents:
                key = self._key(content)
                if connection.execute("SELECT 1 FROM transcripts WHERE key = ?", (key,)).fetchone():
                    continue
                claim = connection.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
                if claim and self._is_alive(claim[0]):
                    continue
                connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, self._owner))
                claimed.append(content)
        return claimed

    def put(self, transcripts: dict[str, Transcript]) -> None:
        """Stores transcripts by audio checksum and removes their claims."""
        with self._database.connect() as connection:
            for content, transcript in transcripts.items():
                row = (self._key(content), json.dumps(asdict(transcript)))
                connection.execute("INSERT OR REPLACE INTO transcripts VALUES (?, ?)", row)
                connection.execute("DELETE FROM claims WHERE key = ?", (self._key(content),))

    def _is_alive(self, owner: str) -> bool:
        path = self._owners / owner
        if owner == self._owner or not path.exists():
            return False  # our own claim, from a batch that failed, or a dead process that was cleaned up
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0.0)
        except Timeout:
            return True
        lock.release()
        path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Releases all claims."""
        self._lock.release()
        (self._owners / self._owner).unlink(missing_ok=True)
