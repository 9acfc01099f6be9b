"""`mmemo cache`."""

from __future__ import annotations

from mmemo.cli.verb import call, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(cache, argv, "cache")


def cache(clear: str | None = None) -> int:
    """Shows how large the feature caches are; clears one, or all.

    The cache is in the folder MMEMO_CACHE, ~/.cache/mmemo when that is not set.

    Args:
        clear: Name of the feature cache to delete, or `all`. Transcripts and converted weights stay.
    """
    from rich.table import Table

    from mmemo.settings import cache_folder
    from mmemo.training.features import cache_sizes, clear_cache

    console = screen()
    if clear is not None:
        freed = clear_cache(None if clear == "all" else clear)
        console.print(f"Freed {freed / 1e6:.1f} MB")
        return 0
    table = Table("name", "files", "MB", "features of", title=f"Feature caches in {cache_folder()}")
    for size in cache_sizes():
        encoder, weights, rest = (*size.fingerprint.split(":", 2), "", "")[:3]
        features = f"{encoder} {weights[:8]} {rest}".strip()
        table.add_row(size.name, str(size.num_files), f"{size.num_bytes / 1e6:.1f}", features)
    console.print(table)
    for name in ("transcripts.sqlite", "audio_facts.sqlite"):
        path = cache_folder() / name
        if path.exists():
            console.print(f"{path}: {path.stat().st_size / 1e6:.1f} MB", soft_wrap=True)
    return 0
