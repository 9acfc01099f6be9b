"""What a health study asks of a model: an outcome of each participant, from several recordings and visits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_args

import yaml

from mmemo.data.manifest import Manifest
from mmemo.data.splits import Split, check_speakers_disjoint

How = Literal["share", "mean", "max"]
HOW = get_args(How)


@dataclass
class Study:
    """How utterances become figures of participants.

    Args:
        outcome: Emotions that count, such as ``[fear, sadness]``.
        how: A participant's value: ``share`` of the speaking time in which one of them is likeliest, ``mean`` of their
            probability over that time, or its ``max``.
        participant: Column that names participants; rows are grouped by it.
        visit: Column that names a participant's visits, in alphabetical order, numbers in them by size; none has one
            visit alone.
        covariates: Columns that are reported beside the outcome, such as ``[age, gender]``.
        name: Of the study, for reports.
    """

    outcome: list[str]
    how: How = "share"
    participant: str = "speaker"
    visit: str | None = None
    covariates: list[str] = field(default_factory=list)
    name: str = "study"

    @property
    def columns(self) -> list[str]:
        """Columns that it names."""
        return [self.participant, *([self.visit] if self.visit else []), *self.covariates]

    def check(self, classes: Sequence[str], columns: Collection[str]) -> None:
        """Says, before anything is trained, what could not be answered afterwards.

        Args:
            classes: Emotions that the model tells apart.
            columns: Of the manifest, with values, that a report has.

        Raises:
            ValueError: An outcome that is no class, or a column that is not there.
        """
        unknown = [name for name in self.outcome if name not in classes]
        if unknown or not self.outcome:
            raise ValueError(
                f"study.outcome names {', '.join(unknown) or 'no emotion'}; expected some of "
                f"{', '.join(classes) or 'the classes, of which this model has none'}"
            )
        wanted: dict[str, list[str | None]] = {
            "participant": [self.participant],
            "visit": [self.visit],
            "covariates": [*self.covariates],
        }
        for what, names in wanted.items():
            absent = [name for name in names if name is not None and name not in columns]
            if absent:
                raise ValueError(
                    f"study.{what} names {', '.join(absent)}, which is no column with values that a report can show; "
                    f"the manifest has {', '.join(columns)}"
                )

    def check_split(self, manifest: Manifest, split: Split, allow_overlap: bool = False) -> list[str]:
        """Refuses a split in which a participant stands on two sides, whatever a speaker is there.

        Args:
            manifest: The table.
            split: Row numbers.
            allow_overlap: Whether to warn instead of refusing.

        Returns:
            Warnings that every result must carry.

        Raises:
            SplitError: A participant is on two sides.
        """
        if self.participant == "speaker":
            return []  # seen to for every experiment
        return check_speakers_disjoint(manifest, split, allow_overlap, self.participant)


def read_study(path: Path) -> Study:
    """The study of an experiment's YAML, or of one that holds nothing else.

    Args:
        path: File with a block ``study``, or with what would stand in it.

    Raises:
        ValueError: There is no such file or block, or a setting in it that a study does not have.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a YAML with a block `study`")
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no YAML ({str(error).splitlines()[0]})") from None
    block = content.get("study", content if "outcome" in content else None) if isinstance(content, dict) else None
    if not isinstance(block, dict):
        raise ValueError(f"{path}: has no block `study`, such as `study: {{outcome: [sadness]}}`")
    known = [one.name for one in fields(Study)]
    unknown = [str(name) for name in block if name not in known]
    if unknown or "outcome" not in block:
        raise ValueError(
            f"{path}: study has {', '.join(unknown) or 'no outcome'}; expected outcome, and any of {', '.join(known)}"
        )
    if block.get("how", "share") not in HOW:
        raise ValueError(f"{path}: study.how {block['how']}: expected one of {', '.join(HOW)}")
    for name in ("outcome", "covariates"):
        value = block.get(name, [])
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise ValueError(f"{path}: study.{name} {value!r}: expected a list of names, such as [{value}]")
    for name in ("participant", "visit", "name"):
        value = block.get(name, "")
        if not isinstance(value, str) and not (name == "visit" and value is None):
            raise ValueError(f"{path}: study.{name} {value!r}: expected a name")
    return Study(**block)
