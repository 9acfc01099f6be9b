"""Features on disk, keyed by content."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from mmemo.files import replacing
from mmemo.settings import cache_folder

FINGERPRINT_FILE = "fingerprint.txt"


class FeatureCache:
    """Features on disk, one file per content, in half precision, read by memory map.

    Files appear whole or not at all, so several processes may share a cache, and any of them may be killed.

    Args:
        fingerprint: What the features depend on besides the content: model, layers, options.
        root: Folder of all feature caches. Defaults to ``features`` in ``MMEMO_CACHE``.
    """

    def __init__(self, fingerprint: str, root: Path | None = None) -> None:
        self.folder = (root or features_root()) / sha256(fingerprint.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        note = self.folder / FINGERPRINT_FILE
        if not note.exists():
            note.write_text(fingerprint)

    def path(self, content: str) -> Path:
        """Returns the file of a content's features, whether it exists or not."""
        return self.folder / content[:2] / f"{content}.npy"

    def __contains__(self, content: str) -> bool:
        return self.path(content).exists()

    def read(self, content: str) -> np.ndarray:
        """Returns features ``(layer, time, dim)``, memory-mapped copy-on-write."""
        return np.load(self.path(content), mmap_mode="c")

    def write(self, content: str, features: np.ndarray) -> None:
        """Stores features ``(layer, time, dim)``, in single precision if half precision overflows."""
        path = self.path(content)
        with np.errstate(over="ignore"):
            half = features.astype(np.float16)
        with replacing(path) as partial:
            np.save(partial, half if np.isfinite(half).all() else features.astype(np.float32))


@dataclass(frozen=True, slots=True)
class CacheSize:
    """Size of one feature cache on disk.

    Args:
        name: Folder of the cache.
        fingerprint: What the features depend on.
        num_files: Number of stored contents.
        num_bytes: Size on disk in bytes.
    """

    name: str
    fingerprint: str
    num_files: int
    num_bytes: int


def features_root() -> Path:
    """Returns the folder of all feature caches."""
    return cache_folder() / "features"


def cache_sizes(root: Path | None = None) -> list[CacheSize]:
    """Returns the size of each feature cache, largest first."""
    sizes = []
    for folder in sorted((root or features_root()).glob("*/")):
        files = [path.stat().st_size for path in folder.glob("*/*.npy")]
        note = folder / FINGERPRINT_FILE
        sizes.append(CacheSize(folder.name, note.read_text() if note.exists() else "", len(files), sum(files)))
    return sorted(sizes, key=lambda size: -size.num_bytes)


def clear_cache(name: str | None = None, root: Path | None = None) -> int:
    """Deletes one feature cache, or all.

    Args:
        name: Folder of the cache. Defaults to all.
        root: Folder of all feature caches.

    Returns:
        Number of bytes freed.

    Raises:
        ValueError: There is no cache of that name.
    """
    sizes = [size for size in cache_sizes(root) if name in (None, size.name)]
    if name is not None and not sizes:
        raise ValueError(f"no feature cache {name!r} in {root or features_root()}; `mmemo cache` lists them")
    for size in sizes:
        shutil.rmtree((root or features_root()) / size.name)
    return sum(size.num_bytes for size in sizes)
