"""Which unlabelled utterances of a speaker calibrate a model to that speaker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from mmemo.data.table import DataTable


class Enrolment:
    """Chooses the utterances that calibrate a model to their speaker; labels are never read.

    A speaker is the manifest's ``speaker``. Rows without one count as one speaker per recording and channel. Utterances
    on different sides of the split never calibrate each other.

    Args:
        num_utterances: Utterances of each speaker. Defaults to all of them.
        order: Take the ``first`` ones of the manifest, or ``random`` ones.
        by: Calibrate to a ``speaker``, or to each ``session`` of a speaker on its own.
        seed: Seed of random choices.

    Raises:
        ValueError: The number is negative.

    Example:
        >>> Enrolment(num_utterances=20, order="random").describe([20, 20])
        'calibrated on 20 unlabelled utterances of each speaker, drawn at random'
    """

    def __init__(
        self,
        num_utterances: int | None = None,
        order: Literal["first", "random"] = "first",
        by: Literal["speaker", "session"] = "speaker",
        seed: int = 0,
    ) -> None:
        if num_utterances is not None and num_utterances < 0:
            raise ValueError(f"Enrolment(num_utterances={num_utterances}), expected 0 or more, or null for all")
        self.num_utterances = num_utterances
        self.order = order
        self.by = by
        self.seed = seed

    def choose(self, table: DataTable, rows: np.ndarray) -> list[EnrolledSpeaker]:
        """Returns the speakers of some rows, each with the utterances that calibrate to it.

        Args:
            table: The utterances.
            rows: Manifest rows that belong to the speakers ``(num_rows,)``.
        """
        sides = table.sides()
        frame = table.manifest.frame
        groups: dict[tuple[object, ...], list[int]] = {}
        for row in rows.tolist():
            speaker, session, path, channel = frame.loc[frame.index[row], ["speaker", "session", "path", "channel"]]
            name = f"{path} {'' if pd.isna(channel) else int(channel)}".strip() if pd.isna(speaker) else str(speaker)
            groups.setdefault((name, str(session) if self.by == "session" else "", sides.get(row)), []).append(row)
        return [
            EnrolledSpeaker(str(name), np.array(group), self._draw(np.array(group), number))
            for number, ((name, *_), group) in enumerate(groups.items())
        ]

    def _draw(self, rows: np.ndarray, number: int) -> np.ndarray:
        if self.num_utterances is None or self.num_utterances >= len(rows):
            return rows
        if self.order == "first":
            return rows[: self.num_utterances]
        generator = np.random.default_rng([self.seed, number])
        return np.sort(generator.choice(rows, self.num_utterances, replace=False))

    def describe(self, counts: list[int]) -> str:
        """Returns what a result says about its calibration.

        Args:
            counts: Number of enrolled utterances of each speaker.
        """
        if not counts or max(counts) == 0:
            return "not calibrated to the speakers"
        fewest, most = min(counts), max(counts)
        number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        chosen = "" if self.num_utterances is None else ", the first" if self.order == "first" else ", drawn at random"
        noun = "utterance" if most == 1 else "utterances"
        return f"calibrated on {number} unlabelled {noun} of each {self.by}{chosen}"


@dataclass(frozen=True)
class EnrolledSpeaker:
    """A speaker and the utterances that calibrate to it.

    Args:
        name: Name of the speaker, or path of its recording.
        rows: Manifest rows of the speaker ``(num_rows,)``.
        enrolled: Those of them that calibrate ``(num_enrolled,)``.
    """

    name: str
    rows: np.ndarray
    enrolled: np.ndarray
