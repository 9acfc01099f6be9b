"""``mmemo corpus``."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from mmemo.cli.output import parse_pairs
from mmemo.wording import counted

if TYPE_CHECKING:
    from mmemo.data.manifest import Manifest

Pairs = Annotated[list[str] | None, Parameter(consume_multiple=True)]
Name = Literal["ravdess", "emodb", "meld", "goemotions", "cremad", "table"]


def corpus(
    name: Name,
    root: Path,
    /,
    *,
    out: Path = Path("manifest.csv"),
    columns: Pairs = None,
    constants: Pairs = None,
    values: Pairs = None,
    channel: Literal["voice", "face", "both"] | None = None,
    labels: Literal["intended", "majority"] | None = None,
    trim_db: float | None = None,
    denoise: bool = False,
    loudness_lufs: float | None = None,
    cleaned: Path | None = None,
) -> int:
    """Turns a corpus on disk into a manifest, the table that everything else reads.

    Your own corpus needs no code: `mmemo corpus table my.csv --columns path=file emotion=label speaker=who`.

    Args:
        name: The corpus; `table` is any CSV of your own.
        root: Folder of the corpus; for `table`, the CSV file.
        out: Manifest to write, .csv or .parquet.
        columns: For `table`: manifest column and your column, such as path=file speaker=who.
        constants: For `table`: manifest column and one value for all rows, such as language=en.
        values: For `table`: your value and ours, such as emotion.joy=happiness emotion.angry=anger.
        channel: For `cremad`: whose votes are used, those of raters of the voice, the face or both. Defaults to voice.
        labels: For `cremad`: the emotion the actor was asked for, or the one most raters chose (none if they are tied).
            Defaults to intended.
        trim_db: Cut silence at both ends: everything this many dB below a clip's loudest moment, such as 35. The files
            stay unchanged; `start` and `end` mark the part that is kept.
        denoise: Reduce steady noise; the manifest then points to new files.
        loudness_lufs: Give every utterance this loudness in LUFS, such as -23; the manifest then points to new files.
        cleaned: Folder for the new files. Defaults to NAME_audio beside the manifest NAME.csv.
    """
    from mmemo.data.manifest import ManifestError

    options = _reader_options(name, root, columns, constants, values, channel, labels)
    if out.exists() and root.exists() and out.resolve() == root.resolve():
        raise ManifestError(f"--out {out}: would overwrite the input table; choose another file, such as manifest.csv")
    if cleaned is not None and not (denoise or loudness_lufs is not None):
        raise ValueError("--cleaned is for the files that --denoise or --loudness-lufs write; set one of them")
    replaces = out.exists()
    out.parent.mkdir(parents=True, exist_ok=True)  # paths in the manifest are relative to its folder
    manifest = _read(name, root, out, options)
    if trim_db is not None:
        _trim(manifest, trim_db)
    if denoise or loudness_lufs is not None:
        from mmemo.data.cleaning import write_cleaned

        target = cleaned or out.with_name(f"{out.stem}_audio")
        num_cleaned = write_cleaned(manifest, target.resolve(), denoise, loudness_lufs)
        paths = (utterance.path for utterance in manifest)
        manifest.frame["path"] = [None if path is None else _relative(path, out.parent) for path in paths]
        print(f"{target}: {num_cleaned} cleaned utterances")
    manifest.write(out)
    if replaces:
        print(f"mmemo corpus: {out} was replaced", file=sys.stderr)
    num_speakers = manifest.frame["speaker"].nunique()
    print(f"{out}: {counted(len(manifest), 'utterance')}, {counted(num_speakers, 'speaker')}; next: mmemo check {out}")
    return 0


def _reader_options(
    name: Name, root: Path, columns: Pairs, constants: Pairs, values: Pairs, channel: str | None, labels: str | None
) -> dict[str, Any]:
    """Checks options against the corpus, and returns those of its reader."""
    from mmemo.data.manifest import ManifestError

    if name != "table" and not root.is_dir():
        raise ManifestError(f"{root}: no such folder, expected the {name} corpus")
    if name != "table" and (columns or constants or values):
        raise ManifestError(f"--columns, --constants and --values are for `table`, not for {name}")
    if (channel or labels) and name != "cremad":
        raise ManifestError(f"--channel and --labels are for cremad, not for {name}")
    if name == "cremad":
        return {"channel": channel or "voice", "labels": labels or "intended"}
    if name != "table":
        return {}
    if not columns:
        raise ManifestError("`table` needs --columns, such as --columns path=file emotion=label speaker=who")
    mapped: dict[str, dict[str, str]] = {}
    for key, value in _texts(values or [], "--values").items():
        column, separator, old = key.partition(".")
        if not separator:
            raise ValueError(f"--values {key}: expected COLUMN.YOURS=OURS, such as emotion.joy=happiness")
        mapped.setdefault(column, {})[old] = value
    return {
        "columns": _texts(columns, "--columns"), "constants": _texts(constants or [], "--constants"), "values": mapped
    }  # fmt: skip


def _texts(pairs: list[str], option: str) -> dict[str, str]:
    return {key: str(value) for key, value in parse_pairs(pairs, option).items()}


def _read(name: Name, root: Path, out: Path, options: Mapping[str, Any]) -> Manifest:
    """Reads a corpus into the manifest that will be written to ``out``."""
    from importlib import import_module

    from mmemo.data.manifest import Manifest, ManifestError

    frame = getattr(import_module(f"mmemo.data.corpora.{name}"), name)(root, **options)
    if len(frame) == 0:
        raise ManifestError(f"{root}: holds no file of {name}")
    if "path" in frame:
        frame["path"] = [
            None if path is None or path != path else _relative(path, out.parent) for path in frame["path"]
        ]
    try:
        return Manifest(frame, out)
    except ManifestError as error:
        hint = "; --values emotion.angry=anger renames values" if name == "table" else ""
        problems = str(error).replace(f"{out} row", "row")
        raise ManifestError(f"{root} is not a valid manifest, so {out} was not written{hint}\n{problems}") from None


def _trim(manifest: Manifest, trim_db: float) -> None:
    """Sets ``start`` and ``end`` to the part of each utterance that is not silent."""
    from mmemo.audio.reader import AudioError, nonsilent_span, read_audio
    from mmemo.progress import track

    if trim_db <= 0:
        raise ValueError(f"--trim-db {trim_db}: expected dB below the loudest moment, above 0, such as 35")
    for row, utterance in enumerate(track(list(manifest), "Trimming silence")):
        if utterance.path is None:
            continue
        try:
            waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
        except AudioError:
            continue  # `mmemo check` lists it
        start, end = nonsilent_span(waveform, trim_db)
        offset = utterance.start or 0.0
        manifest.frame.loc[row, ["start", "end"]] = [round(offset + start, 4), round(offset + end, 4)]


def _relative(path: str | Path, folder: Path) -> str:
    return os.path.relpath(Path(path).resolve(), folder.resolve())
