"""Definition of a clinical study: an outcome per participant, from several recordings and visits."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from mmemo.data.manifest import Manifest
from mmemo.data.splits import Split, check_speakers_disjoint
from mmemo.files import read_yaml

Aggregation = Literal["share", "mean", "max"]
AGGREGATIONS = get_args(Aggregation)


@dataclass
class ClinicalStudy:
    """How predictions for utterances become values of participants.

    Args:
        outcome: Emotions that count, such as ``[fear, sadness]``.
        how: A participant's value: ``share`` of the speaking time in which one of these emotions is most likely,
            ``mean`` of their probability over that time, or its ``max``.
        participant: Column that identifies participants.
        visit: Column that identifies a participant's visits, ordered alphabetically, with numbers in them by size.
            Defaults to a single visit.
        covariates: Columns to report beside the outcome, such as ``[age, gender]``.
        name: Name of the study, for reports.

    Example:
        >>> ClinicalStudy(outcome=["sadness"], visit="session", covariates=["age"]).columns
        ['speaker', 'session', 'age']
    """

    outcome: list[str]
    how: Aggregation = "share"
    participant: str = "speaker"
    visit: str | None = None
    covariates: list[str] = field(default_factory=list)
    name: str = "study"

    @property
    def columns(self) -> list[str]:
        """Columns that the study needs."""
        return [self.participant, *([self.visit] if self.visit else []), *self.covariates]

    def check(self, classes: Sequence[str], columns: Collection[str]) -> None:
        """Checks, before training, that the model and the manifest can answer the study.

        Args:
            classes: Emotions that the model predicts.
            columns: Non-empty columns of the manifest that a report may show.

        Raises:
            ValueError: An outcome is not a class, or a column is missing.
        """
        unknown = [name for name in self.outcome if name not in classes]
        if unknown or not self.outcome:
            raise ValueError(
                f"study.outcome names {', '.join(unknown) or 'no emotion'}; expected some of "
                f"{', '.join(classes) or 'the classes, but this model has none'}"
            )
        settings: dict[str, list[str | None]] = {
            "participant": [self.participant],
            "visit": [self.visit],
            "covariates": [*self.covariates],
        }
        for setting, names in settings.items():
            missing = [name for name in names if name is not None and name not in columns]
            if missing:
                raise ValueError(
                    f"study.{setting} names {', '.join(missing)}, expected a non-empty column that a report may show, "
                    f"such as {', '.join(columns)}"
                )

    def check_split(self, manifest: Manifest, split: Split, allow_overlap: bool = False) -> list[str]:
        """Checks that no participant is on two sides of a split.

        Args:
            manifest: The table.
            split: Row numbers.
            allow_overlap: Whether to warn instead of raising.

        Returns:
            Warnings that every result must carry.

        Raises:
            SplitError: A participant is on two sides.
        """
        if self.participant == "speaker":
            return []  # every experiment checks speakers itself
        return check_speakers_disjoint(manifest, split, allow_overlap, self.participant)


def read_clinical_study(path: Path) -> ClinicalStudy:
    """Reads a study from the ``study`` block of an experiment's YAML, or from a YAML with only the study's settings.

    Args:
        path: YAML file.

    Raises:
        ValueError: The file or the block is missing, or a setting is unknown or of the wrong type.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected a YAML with a block `study`")
    content = read_yaml(path)
    block = content.get("study", content if "outcome" in content else None)
    if not isinstance(block, dict):
        raise ValueError(f"{path}: has no block `study`, such as `study: {{outcome: [sadness]}}`")
    _check_settings(path, block)
    return ClinicalStudy(**block)


def _check_settings(path: Path, block: dict[str, Any]) -> None:
    names = [setting.name for setting in fields(ClinicalStudy)]
    unknown = [str(name) for name in block if name not in names]
    if unknown or "outcome" not in block:
        raise ValueError(
            f"{path}: study has {', '.join(unknown) or 'no outcome'}; expected outcome, and any of {', '.join(names)}"
        )
    if block.get("how", "share") not in AGGREGATIONS:
        raise ValueError(f"{path}: study.how {block['how']}: expected one of {', '.join(AGGREGATIONS)}")
    for name in ("outcome", "covariates"):
        value = block.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{path}: study.{name} {value!r}: expected a list of names, such as [{value}]")
    for name in ("participant", "visit", "name"):
        value = block.get(name, "")
        if not isinstance(value, str) and not (name == "visit" and value is None):
            raise ValueError(f"{path}: study.{name} {value!r}: expected a name")
