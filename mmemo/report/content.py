"""Content of a report, section by section; ``report.json`` has the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, Literal, TypeVar

from mmemo.evaluation.statistics import Interval, to_json_types
from mmemo.evaluation.subgroups import Group
from mmemo.report.reproduction import Provenance

ContentT = TypeVar("ContentT", covariant=True)
TestSpeakers = Literal["disjoint", "overlap", "unknown"]


@dataclass(frozen=True)
class Section(Generic[ContentT]):
    """Part of a report.

    Args:
        content: Results.
        svgs: Charts by name.
        warnings: Warnings about the whole report.
    """

    content: ContentT
    svgs: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DataSummary:
    """Test utterances and speakers.

    Args:
        num_utterances: Number of utterances.
        num_labelled: Number with a label that is one of the model's classes; None without classes.
        num_speakers: Number of speakers.
        num_without_speaker: Number of utterances without a speaker.
        hours: Total duration; None if the recordings are missing.
        seconds: Shortest, median and longest duration of an utterance; None if the recordings are missing.
        share_with_text: Share of utterances with a transcript, in [0, 1]; None without any.
        num_folds: Number of folds.
        num_speakers_per_fold: Number of test speakers in each fold; empty for more than 20 folds.
        seeds: Random seeds, if there are several.
        labels: Number of utterances with each label.
        columns: For gender, language and corpus the number of utterances with each value; for age its mean and range.
    """

    num_utterances: int
    num_labelled: int | None
    num_speakers: int
    num_without_speaker: int
    hours: float | None
    seconds: list[float] | None
    share_with_text: float | None
    num_folds: int
    num_speakers_per_fold: list[int]
    seeds: list[int]
    labels: dict[str, int]
    columns: dict[str, dict[str, float]]

    @property
    def num_unlabelled(self) -> int:
        """Number of utterances without a usable label; 0 for a model without classes."""
        return 0 if self.num_labelled is None else self.num_utterances - self.num_labelled


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class, in [0, 1].

    Args:
        name: Name of the class.
        num_utterances: Number of utterances with this label.
        recall: Recall.
        precision: Precision.
        f1: F1 score.
    """

    name: str
    num_utterances: int
    recall: Interval
    precision: Interval
    f1: Interval


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix.

    Args:
        classes: Names of the classes.
        counts: Number of utterances, true classes as rows; averaged over seeds.
    """

    classes: list[str]
    counts: list[list[float]]


@dataclass(frozen=True)
class SpeakerAccuracy:
    """Accuracy over speakers, in [0, 1]."""

    lowest: float
    median: float
    highest: float


@dataclass(frozen=True)
class FoldUar:
    """UAR of one fold (and seed)."""

    name: str
    uar: float


@dataclass(frozen=True)
class Areas:
    """Areas under curves, one class against the others.

    Args:
        roc: Area under the ROC curve.
        pr: Average precision.
    """

    roc: Interval
    pr: Interval


@dataclass(frozen=True)
class Classification:
    """Classification results.

    Args:
        metrics: UAR, accuracy and F1 scores.
        classes: Metrics of each class.
        confusion: Confusion matrix.
        detectable_difference: UAR difference between two groups this large that 80 % of studies detect; None for one
            speaker.
        speakers: Accuracy over speakers; None for one speaker.
        folds: UAR of each fold; None without folds.
        areas: Areas of each class that some but not all utterances have.
        mean_areas: Mean over these classes; None without any.
    """

    metrics: dict[str, Interval]
    classes: list[ClassMetrics]
    confusion: Confusion
    detectable_difference: float | None
    speakers: SpeakerAccuracy | None
    folds: list[FoldUar] | None
    areas: dict[str, Areas]
    mean_areas: Areas | None


@dataclass(frozen=True)
class CalibrationMetrics:
    """How well probabilities match outcomes.

    Args:
        ece: Expected calibration error.
        overconfidence: Mean confidence minus accuracy; negative if underconfident.
        brier: Brier score.
        log_loss: Mean negative log probability of the true class.
    """

    ece: float
    overconfidence: float
    brier: float
    log_loss: float


@dataclass(frozen=True)
class CalibrationSummary:
    """Calibration before and after scaling.

    Args:
        before: Of the model's own probabilities.
        after: After temperature scaling; None if there is nothing to fit it on.
        vector: After vector scaling; None if it was not fitted.
        method: How the temperature was fitted; None if it was not.
    """

    before: CalibrationMetrics
    after: CalibrationMetrics | None
    vector: CalibrationMetrics | None
    method: str | None


@dataclass(frozen=True)
class ThresholdResult:
    """Result of the confidence threshold that was chosen on inner folds.

    Args:
        answered: Share of utterances above the threshold.
        wrong: Error rate among these; None without any.
    """

    answered: float
    wrong: float | None


@dataclass(frozen=True)
class SelectiveSummary:
    """Selective prediction.

    Args:
        area: Area under the risk-coverage curve.
        risk: Error rate at some shares of answered utterances, such as ``80%``.
        at_threshold: Result of the threshold from inner folds; None if the run was not nested.
    """

    area: float
    risk: dict[str, float]
    at_threshold: ThresholdResult | None


@dataclass(frozen=True)
class ConformalSummary:
    """Conformal sets.

    Args:
        nominal: Nominal coverage.
        coverage: Share of sets that contain the true class.
        size: Mean number of classes in a set.
        coverage_low: 5th percentile of the coverage over splits of the speakers; None for sets from inner folds.
        coverage_high: 95th percentile.
    """

    nominal: float
    coverage: float
    size: float
    coverage_low: float | None = None
    coverage_high: float | None = None


@dataclass(frozen=True)
class Confidence:
    """Quality of the probabilities.

    Args:
        calibration: Calibration.
        selective: Selective prediction.
        conformal: Conformal sets fitted on other test speakers; None for fewer than four speakers.
        conformal_inner: Conformal sets fitted on inner folds, as stored in the predictions; None if there are none.
    """

    calibration: CalibrationSummary
    selective: SelectiveSummary
    conformal: ConformalSummary | None
    conformal_inner: ConformalSummary | None


@dataclass(frozen=True)
class DimensionMetrics:
    """Agreement with the ratings of one dimension.

    Args:
        ccc: Concordance correlation coefficient.
        mae: Mean absolute error.
    """

    ccc: Interval
    mae: Interval


@dataclass(frozen=True)
class SubgroupTable:
    """Groups of one column.

    Args:
        column: Name of the column.
        title: Title of the table.
        chart: Name of its chart.
        main_metric: Metric in the chart: ``uar`` or ``ccc``.
        metric_titles: Title of each metric in the table.
        classes: Class names; empty for dimensions.
        groups: Metrics of each group.
        gaps: Best group minus worst, for each metric.
        equalised_odds: Equalised-odds gap.
        warnings: Warnings about the groups.
    """

    column: str
    title: str
    chart: str
    main_metric: str
    metric_titles: Mapping[str, str]
    classes: list[str]
    groups: list[Group]
    gaps: dict[str, Interval]
    equalised_odds: Interval
    warnings: list[str]


@dataclass(frozen=True)
class FusionSummary:
    """Weights and gates of the fusion.

    Args:
        weights: Mean weight of each modality, by emotion; None if the run did not write them.
        gates: Rows of the gate table; None if the run did not write one.
    """

    weights: dict[str, dict[str, float]] | None
    gates: list[dict[str, Any]] | None


@dataclass(frozen=True)
class StudySummary:
    """Results of a clinical study; see :class:`~mmemo.evaluation.participants.ClinicalResult`.

    Args:
        name: Name of the study.
        outcome: Emotions that count.
        how: How utterances are combined: ``share``, ``mean`` or ``max``.
        num_participants: Number of participants.
        num_sessions: Number of visits.
        utterances_per_participant: Lowest and highest number.
        agreement: Agreement of predicted and true values.
        participants: Rows of the table of participants.
        changes: Rows of the table of changes.
        mean_change: Mean change between visits; None without changes.
        covariates: Rows of the table of covariates.
        missing: Number of utterances left out, for each reason.
        warnings: Warnings about the study.
    """

    name: str
    outcome: list[str]
    how: str
    num_participants: int
    num_sessions: int
    utterances_per_participant: list[int]
    agreement: dict[str, Interval]
    participants: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    mean_change: Interval | None
    covariates: list[dict[str, Any]]
    missing: dict[str, int]
    warnings: list[str]


@dataclass(frozen=True)
class SpeakerCalibration:
    """Calibration of the model to the test speakers.

    Args:
        num_enrolled: Fewest and most unlabelled utterances that calibrated to a speaker.
        calibrated: UAR.
        uncalibrated: UAR of the same model as for unknown speakers.
        num_speakers: Number of test speakers.
        num_better: Number of them whose accuracy is higher with calibration.
        num_worse: Number of them whose accuracy is lower.
    """

    num_enrolled: list[int]
    calibrated: Interval
    uncalibrated: Interval
    num_speakers: int
    num_better: int
    num_worse: int


@dataclass(frozen=True)
class ReportContent:
    """Everything that a report shows. Sections that do not apply to the run are None.

    Args:
        run: Name of the run or study.
        date: ISO date of the report.
        warnings: Warnings about the whole report.
        test_speakers: Whether training used test speakers: ``disjoint``, ``overlap`` or ``unknown``.
        data: Test data.
        classification: Classification results.
        confidence: Quality of the probabilities.
        modalities: UAR of each modality alone and of both.
        speaker_calibration: Results with and without calibration to the speakers.
        dimensions: Metrics of each dimension.
        subgroups: Groups of each column.
        fusion: Weights and gates of the fusion.
        robustness: Conditions of ``robustness.json``, unchanged.
        study: Results of a clinical study.
        reproduce: How to reproduce the run.
    """

    run: str
    date: str
    warnings: list[str]
    test_speakers: TestSpeakers
    data: DataSummary
    classification: Classification | None
    confidence: Confidence | None
    modalities: dict[str, Interval] | None
    speaker_calibration: SpeakerCalibration | None
    dimensions: dict[str, DimensionMetrics] | None
    subgroups: list[SubgroupTable]
    fusion: FusionSummary
    robustness: list[dict[str, Any]] | None
    study: StudySummary | None
    reproduce: Provenance

    @property
    def has_text_conditions(self) -> bool:
        """Whether the robustness conditions include wrong or missing words."""
        return any("words" in row["condition"] for row in self.robustness or [])

    def as_json(self) -> dict[str, Any]:
        """Content of ``report.json``: classification, confidence and fusion are at the top level, None is left out."""
        content = asdict(self)
        for name in ("classification", "confidence", "fusion"):
            content |= content.pop(name) or {}
        return {name: to_json_types(value) for name, value in content.items() if value is not None}
