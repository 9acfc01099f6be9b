"""Any CSV with a column map: a user's own corpus needs no code."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mmemo.data.manifest import COLUMNS, VOTES_PREFIX, ManifestError


def table(
    root: str | Path,
    columns: dict[str, str],
    constants: dict[str, str] | None = None,
    values: dict[str, dict[str, str]] | None = None,
) -> pd.DataFrame:
    """Reads a user's own table.

    Args:
        root: The CSV file; paths in it are relative to its folder.
        columns: Manifest column -> column of the CSV, such as ``path: file``. ``id`` defaults to the file name, or the
            row number if file names repeat. Other columns keep their names.
        constants: Manifest column -> one value for all rows, such as ``language: en``.
        values: Manifest column -> value in the CSV -> value in the manifest, such as ``emotion: {joy: happiness}``.

    Raises:
        ManifestError: The file is not a readable table, the CSV lacks a mapped column, or a mapped name is not a
            manifest column.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pd.DataFrame({"file": ["a.wav"], "mood": ["joy"]}).to_csv(f"{folder}/own.csv", index=False)
        ...     columns, values = {"path": "file", "emotion": "mood"}, {"emotion": {"joy": "happiness"}}
        ...     manifest = table(f"{folder}/own.csv", columns, constants={"language": "en"}, values=values)
        >>> manifest[["id", "emotion", "language"]].iloc[0].tolist()
        ['a', 'happiness', 'en']
    """
    root = Path(root)
    frame = _read_csv(root)
    _check_maps(root, frame, columns, constants or {})
    result = pd.DataFrame({name: frame[source] for name, source in columns.items()})
    for name in frame.columns.difference(list(columns.values()), sort=False):
        if name not in result:
            result[name] = frame[name]
    for name, value in (constants or {}).items():
        result[name] = value
    if "path" in result:
        result["path"] = [None if pd.isna(path) else str(root.parent / path) for path in result["path"]]
    for name, renamed in (values or {}).items():
        if name not in result:
            raise ManifestError(
                f"values {name}.…: expected a manifest column that columns maps, such as emotion; mapped are "
                f"{', '.join(columns)}"
            )
        result[name] = result[name].replace(renamed)
    if "id" not in result:
        stems = pd.Series([Path(path).stem for path in result["path"]]) if "path" in result else pd.Series(["", ""])
        result.insert(0, "id", stems if stems.is_unique else [f"row{number:07d}" for number in range(len(result))])
    return result


def _read_csv(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise ManifestError(f"{path}: no such file, expected a CSV table")
    try:
        header = path.read_text(encoding="utf-8-sig").partition("\n")[0]
        separator = max(",;\t|", key=header.count)
        return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""], sep=separator)
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ManifestError(f"{path}: not a readable UTF-8 table ({error})") from None


def _check_maps(root: Path, frame: pd.DataFrame, columns: dict[str, str], constants: dict[str, str]) -> None:
    for option, names in (("columns", columns), ("constants", constants)):
        unknown = sorted(name for name in set(names) - set(COLUMNS) if not name.startswith(VOTES_PREFIX))
        if unknown:
            raise ManifestError(
                f"{option} maps {unknown}, expected some of {', '.join(COLUMNS)}, {VOTES_PREFIX}EMOTION"
            )
    missing = sorted(set(columns.values()) - set(frame.columns))
    if missing:
        raise ManifestError(f"{root}: no column {missing}, found {list(frame.columns)}")
