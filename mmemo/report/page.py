"""Renders a report: a summary in plain language, the HTML page, LaTeX tables, and Markdown documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

import pandas as pd

from mmemo.evaluation.statistics import Interval
from mmemo.report.content import (
    Classification,
    Confidence,
    ReportContent,
    SpeakerCalibration,
    StudySummary,
    SubgroupTable,
)
from mmemo.wording import counted

if TYPE_CHECKING:
    from jinja2 import Template

METRIC_NAMES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}
TEST_SPEAKERS = {
    "disjoint": "none of these speakers were used in training.",
    "overlap": "SOME OF THESE SPEAKERS WERE ALSO USED IN TRAINING.",
    "unknown": "whether these speakers were used in training is unknown.",
}


def summary(report: ReportContent) -> list[str]:
    """Summarises a report in plain language, one paragraph per entry.

    Args:
        report: Content of the report.
    """
    lines = [_summarise_data(report)]
    if report.classification is not None:
        lines += _summarise_classes(report.classification)
    if report.speaker_calibration is not None:
        lines.append(_summarise_speaker_calibration(report.speaker_calibration))
    if report.confidence is not None:
        lines.append(_summarise_confidence(report.confidence))
    lines += filter(None, map(_summarise_gap, report.subgroups))
    lines += [
        f"Its predicted {name} agrees with the ratings with a CCC of {metrics.ccc.value:.2f} (1 is perfect, 0 is none)."
        for name, metrics in (report.dimensions or {}).items()
    ]
    if report.study is not None:
        lines.append(_summarise_study(report.study))
    return lines


def _summarise_data(report: ReportContent) -> str:
    data = report.data
    hours = data.hours or 0
    duration = f", {hours:.1f} hours" if hours >= 1 else f", {60 * hours:.0f} minutes" if hours else ""
    tested = (
        f"Evaluated on {counted(data.num_utterances, 'utterance')} of {counted(data.num_speakers, 'speaker')}{duration}"
    )
    return f"{tested}; {TEST_SPEAKERS[report.test_speakers]}"


def _summarise_classes(results: Classification) -> list[str]:
    uar = results.metrics["uar"]
    ranked = sorted((row for row in results.classes if row.num_utterances), key=lambda row: row.recall.value)
    chance = 1 / max(len(ranked), 1)
    line = f"It recognises {100 * uar.value:.0f} % of each emotion on average; chance is {round(100 * chance, 1):g} %."
    if not math.isnan(uar.low):
        line += f" For similar new speakers it likely lies between {100 * uar.low:.0f} and {100 * uar.high:.0f} %."
    if len(ranked) < 3:
        return [line]
    worst, best = ranked[0], ranked[-1]
    return [
        line,
        f"It is best at {best.name} ({100 * best.recall.value:.0f} %) and worst at "
        f"{worst.name} ({100 * worst.recall.value:.0f} %).",
    ]


def _summarise_speaker_calibration(results: SpeakerCalibration) -> str:
    fewest, most = results.num_enrolled
    if most == 0:
        return "It was not calibrated to the test speakers."
    number = counted(most, "unlabelled utterance")
    number = number if fewest == most else f"{fewest:,} to {number}"
    return (
        f"It was calibrated on {number} of each test speaker, without their labels. Without calibration it recognises "
        f"{100 * results.uncalibrated.value:.0f} %; with it, {results.num_better} of "
        f"{counted(results.num_speakers, 'speaker')} are recognised better and {results.num_worse} worse."
    )


def _summarise_confidence(results: Confidence) -> str:
    before, after = results.calibration.before, results.calibration.after
    if before.overconfidence > 0.02:
        kind = "It is overconfident"
    elif before.overconfidence < -0.02:
        kind = "It is underconfident"
    else:
        kind = "Its mean confidence is within 2 points of its accuracy"
    line = f"{kind}; its calibration error is {100 * before.ece:.0f} points"
    return line + (f", and {100 * after.ece:.0f} after temperature scaling." if after is not None else ".")


def _summarise_gap(table: SubgroupTable) -> str | None:
    gap = table.gaps.get(table.main_metric)
    if gap is None or not gap.low > 0 or table.column in ("length", "noise"):
        return None
    if table.main_metric == "uar":
        value, low = f"{100 * gap.value:.0f} points", f"{100 * gap.low:.0f} points"
    else:
        value, low = f"{gap.value:.2f} of mean CCC", f"{gap.low:.2f}"
    return (
        f"It may not work equally well for everyone: the best and the worst group of {table.column} differ by {value} "
        f"here, and for similar new speakers likely by at least {low}."
    )


def _summarise_study(study: StudySummary) -> str:
    agreement = study.agreement.get("CCC")
    line = f"{counted(study.num_participants, 'participant')}: the {study.how} of {' or '.join(study.outcome)} "
    if agreement is None:
        return line + "was estimated; there are no labels to compare it with."
    return line + f"agrees with the labels with a CCC of {agreement.value:.2f}."


def html_page(report: ReportContent, lines: list[str], svgs: Mapping[str, str]) -> str:
    """Renders the page, which loads nothing from elsewhere.

    Args:
        report: Content of the report.
        lines: Its summary.
        svgs: Charts by name.
    """
    from markupsafe import Markup

    markup = {name: Markup(svg) for name, svg in svgs.items()}
    return template("report.html.jinja").render(report=report, summary=lines, metric_names=METRIC_NAMES, svgs=markup)


def latex_tables(report: ReportContent) -> str:
    """Renders metrics as LaTeX tables: one of the whole test set, and one of the classes.

    Args:
        report: Content of the report.
    """
    rows = []
    tables = []
    if report.classification is not None:
        results = report.classification
        rows += [(f"{METRIC_NAMES[name]}, %", _limits(value, 100, 1)) for name, value in results.metrics.items()]
        classes = [
            (row.name, *(_limits(value, 100, 1) for value in (row.recall, row.precision, row.f1)))
            for row in results.classes
        ]
        tables.append(_latex(pd.DataFrame(classes, columns=["class", "recall, %", "precision, %", "F1, %"])))
    rows += [(f"CCC of {name}", _limits(metrics.ccc, 1, 3)) for name, metrics in (report.dimensions or {}).items()]
    tables.insert(0, _latex(pd.DataFrame(rows, columns=["metric", "value"])))
    return "\n".join(["% needs booktabs; 95 % intervals over speakers", *tables])


def _limits(value: Interval, scale: float, digits: int) -> str:
    if math.isnan(value.value):
        return "--"
    limits = "" if math.isnan(value.low) else f" [{scale * value.low:.{digits}f}, {scale * value.high:.{digits}f}]"
    return f"{scale * value.value:.{digits}f}{limits}"


def _latex(table: pd.DataFrame) -> str:
    style = table.style.format(escape="latex").format_index(escape="latex", axis="columns").hide(axis="index")
    latex: str = style.to_latex(hrules=True, column_format="l" + "r" * (table.shape[1] - 1))
    return latex


def template(name: str) -> Template:
    """Loads a template with the filters ``percent`` and ``number``.

    Args:
        name: File in the folder ``templates``.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=name.endswith(".html.jinja"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    return environment.from_string((resources.files("mmemo.report") / "templates" / name).read_text())


def _percent(value: Interval | float | None) -> str:
    if isinstance(value, Interval):
        return value.percent()
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: Interval | float | None, digits: int = 3) -> str:
    if isinstance(value, Interval):
        return value.number(digits)
    return "n/a" if value is None or math.isnan(value) else f"{value:.{digits}f}"
