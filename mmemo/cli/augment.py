"""`mmemo augment`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(augment, argv, "augment")


def augment(
    audio: Path,
    config: Path | None = None,
    out: Path = Path("augment.html"),
    num_views: int = 3,
    background: str | None = None,
    rooms: str | None = None,
    text: str | None = None,
) -> int:
    """Draws one page on which every augmentation can be seen and heard on one clip.

    With --config, the page begins with views as that experiment trains on them.

    Args:
        audio: The clip.
        config: YAML of an experiment with a data.augmentation or a data.word_augmentation.
        out: Page to write; it holds pictures and sound and needs nothing else.
        num_views: Views of the config's own augmentation, 1 or more.
        background: Folder of background noises, to show Background too.
        rooms: Folder of room impulse responses, to show RoomResponse too.
        text: The words of the clip, to show how a word_augmentation mishears them: the config's, or the usual one.
    """
    from mmemo.report.augmentation_page import write_page

    if num_views < 1:
        raise ValueError(f"--num_views {num_views}: expected 1 or more")
    if config is not None and not config.is_file():
        raise ValueError(f"{config}: no such file, expected the YAML of an experiment")
    shown = write_page(audio, out, config, num_views, background, rooms, text)
    print(f"{shown} versions of {audio.name}, to be seen and heard: {out}")
    return 0
