"""``mmemo cache``."""

from __future__ import annotations

from mmemo.cli.output import console, print_line


def cache(*, clear: str | None = None) -> int:
    """Shows the size of the feature caches, or clears them.

    The cache is in the folder MMEMO_CACHE, ~/.cache/mmemo by default.

    Args:
        clear: Name of the feature cache to delete, or `all`. Transcripts and converted weights are kept.
    """
    from rich.table import Table

    from mmemo.settings import cache_folder
    from mmemo.training.feature_cache import cache_sizes, clear_cache

    if clear is not None:
        freed = clear_cache(None if clear == "all" else clear)
        print_line(f"Freed {freed / 1e6:.1f} MB")
        return 0
    table = Table("name", "files", "MB", "features of", title=f"Feature caches in {cache_folder()}")
    for size in cache_sizes():
        encoder, weights, options = (*size.fingerprint.split(":", 2), "", "")[:3]
        features = f"{encoder} {weights[:8]} {options}".strip()
        table.add_row(size.name, str(size.num_files), f"{size.num_bytes / 1e6:.1f}", features)
    console().print(table)
    for name in ("transcripts.sqlite", "audio_facts.sqlite"):
        path = cache_folder() / name
        if path.exists():
            print_line(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0
