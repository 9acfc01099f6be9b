"""`mmemo corpus`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(corpus, argv, "corpus")


def corpus(
    name: Literal["ravdess", "emodb", "meld", "goemotions", "cremad", "table"],
    root: Path,
    out: Path = Path("manifest.csv"),
    columns: dict[str, str] | None = None,
    constants: dict[str, str] | None = None,
    values: dict[str, dict[str, str]] | None = None,
    channel: Literal["voice", "face", "both"] | None = None,
    labels: Literal["intended", "majority"] | None = None,
    trim_db: float | None = None,
    denoise: bool = False,
    loudness_lufs: float | None = None,
    cleaned: Path | None = None,
) -> int:
    """Turns a corpus on disk into a manifest, the one table that everything else reads.

    A corpus of your own needs no code: `mmemo corpus table my.csv --columns '{path: file, emotion: label,
    speaker: who}'`.

    Args:
        name: The corpus; `table` is any CSV of your own.
        root: Folder of the corpus; for `table`, the CSV file.
        out: Manifest to write, .csv or .parquet.
        columns: For `table`: manifest column -> your column.
        constants: For `table`: manifest column -> one value for all rows.
        values: For `table`: manifest column -> your value -> ours, such as '{emotion: {joy: happiness}}'.
        channel: For `cremad`: what the raters whose votes are read were given; voice when not named.
        labels: For `cremad`: whether the emotion is the one the actor was asked for (when not named) or the one most
            raters heard, none where they are tied.
        trim_db: Cut silence at both ends: what is this many dB below a clip's loudest moment, such as 35. The files
            stay as they are; `start` and `end` say where the sound is.
        denoise: Reduce steady noise; the manifest then points to new files.
        loudness_lufs: Make every utterance this loud, in LUFS, such as -23; the manifest then points to new files.
        cleaned: Folder for the new files; OUT without its ending and with `_audio` when not given.
    """
    from importlib import import_module

    from mmemo.data.manifest import Manifest, ManifestError

    if name != "table" and not root.is_dir():
        raise ManifestError(f"{root}: no such folder, expected the {name} corpus")
    if name != "table" and (columns or constants or values):
        raise ManifestError(f"--columns, --constants and --values are for `table`, not for {name}")
    if (channel or labels) and name != "cremad":
        raise ManifestError(f"--channel and --labels are for cremad, not for {name}")
    if name == "table" and not columns:
        raise ManifestError("`table` needs --columns, such as '{path: file, emotion: label, speaker: who}'")
    if out.exists() and root.exists() and out.resolve() == root.resolve():
        raise ManifestError(f"--out {out}: is the table that is read; name another file, such as manifest.csv")
    replaced = out.exists()
    read = getattr(import_module(f"mmemo.data.corpora.{name}"), name)
    options: dict[str, dict[str, Any]] = {
        "table": {"columns": columns, "constants": constants, "values": values},
        "cremad": {"channel": channel or "voice", "labels": labels or "intended"},
    }
    frame = read(root, **options.get(name, {}))
    if len(frame) == 0:
        raise ManifestError(f"{root}: no file of {name} found there")
    out.parent.mkdir(parents=True, exist_ok=True)  # paths beside it are looked up from there
    here = out.parent.resolve()
    if "path" in frame:
        frame["path"] = [
            None if path != path or path is None else _relative(Path(path), here) for path in frame["path"]
        ]
    try:
        manifest = Manifest(frame, out)
    except ManifestError as error:
        said = "; --values '{emotion: {angry: anger}}' renames values" if name == "table" else ""
        raise ManifestError(
            f"{root} makes no manifest, and {out} was not written{said}\n" + str(error).replace(f"{out} row", "row")
        ) from None
    if trim_db is not None:
        _trim(manifest, trim_db)
    if cleaned is not None and not (denoise or loudness_lufs is not None):
        raise ValueError("--cleaned is for the files that --denoise or --loudness_lufs write; give one of them")
    if denoise or loudness_lufs is not None:
        from mmemo.data.cleaning import write_cleaned

        folder = cleaned or out.with_name(f"{out.stem}_audio")
        num_cleaned = write_cleaned(manifest, folder.resolve(), denoise, loudness_lufs)
        manifest.frame["path"] = [
            None if utterance.path is None else _relative(Path(utterance.path), here) for utterance in manifest
        ]
        print(f"{folder}: {num_cleaned} cleaned utterances")
    manifest.write(out)
    speakers = manifest.frame["speaker"].nunique()
    if replaced:
        print(f"mmemo corpus: {out} was there already and has been replaced", file=sys.stderr)
    print(f"{out}: {len(manifest)} utterances, {speakers} speakers; next: mmemo check {out}")
    return 0


def _trim(manifest: Any, trim_db: float) -> None:
    from rich.progress import track

    from mmemo.audio.reader import AudioError, read_audio, voiced_span

    if trim_db <= 0:
        raise ValueError(f"--trim_db {trim_db}: expected dB below the loudest moment, above 0, such as 35")
    for row, utterance in enumerate(track(list(manifest), "Trimming silence", transient=True)):
        if utterance.path is None:
            continue
        try:
            waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
        except AudioError:
            continue  # `mmemo check` lists it
        start, end = voiced_span(waveform, trim_db)
        offset = utterance.start or 0.0
        manifest.frame.loc[row, ["start", "end"]] = [round(offset + start, 4), round(offset + end, 4)]


def _relative(path: Path, folder: Path) -> str:
    import os

    return os.path.relpath(path.resolve(), folder)
