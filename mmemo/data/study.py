"""What a health study asks of a model: an outcome of each participant, from several recordings and visits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class Study:
    """How utterances become figures of participants.

    Args:
        outcome: Emotions that count, such as ``[fear, sadness]``.
        how: A participant's value: ``share`` of the speaking time in which one of them is likeliest, ``mean`` of their
            probability over that time, or its ``max``.
        participant: Column that names participants; rows are grouped by it.
        visit: Column that names a participant's visits, in alphabetical order; none has one visit alone.
        covariates: Columns that are reported beside the outcome, such as ``[age, gender]``.
        name: Of the study, for reports.
    """

    outcome: list[str]
    how: Literal["share", "mean", "max"] = "share"
    participant: str = "speaker"
    visit: str | None = None
    covariates: list[str] = field(default_factory=list)
    name: str = "study"
