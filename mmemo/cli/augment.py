"""``mmemo augment``."""

from __future__ import annotations

from pathlib import Path


def augment(
    audio: Path,
    /,
    *,
    config: Path | None = None,
    out: Path = Path("augment.html"),
    num_views: int = 3,
    background: str | None = None,
    rooms: str | None = None,
    text: str | None = None,
) -> int:
    """Writes one page to see and hear what each augmentation does to a clip.

    With --config, the page starts with views as that experiment trains on them.

    Args:
        audio: The clip.
        config: YAML of an experiment with a data.augmentation or a data.word_augmentation.
        out: Page to write; pictures and sound are inside it.
        num_views: Views of the config's own augmentation, 1 or more.
        background: Folder of background noises, to show Background too.
        rooms: Folder of room impulse responses, to show RoomResponse too.
        text: Transcript of the clip, to show the word_augmentation: the config's, or the default.
    """
    from mmemo.report.augmentation_page import write_page

    if num_views < 1:
        raise ValueError(f"--num-views {num_views}: expected 1 or more")
    if config is not None and not config.is_file():
        raise ValueError(f"{config}: no such file, expected the YAML of an experiment")
    count = write_page(audio, out, config, num_views, background, rooms, text)
    print(f"{count} versions of {audio.name}: {out}")
    return 0
