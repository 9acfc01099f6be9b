"""A report's content as text: a summary in plain words, the page, a LaTeX table."""

from __future__ import annotations

import math
from importlib import resources
from typing import Any

from mmemo.evaluation.statistics import Interval

NAMES = {"uar": "UAR", "accuracy": "accuracy", "macro_f1": "macro F1", "weighted_f1": "weighted F1"}


def summary(content: dict[str, Any]) -> list[str]:
    """In plain words, for somebody who reads nothing else.

    Args:
        content: Figures of a report.
    """
    data, found = content["data"], []
    hours = data["hours"] or 0
    heard = f", {hours:.1f} hours" if hours >= 1 else f", {60 * hours:.0f} minutes" if hours else ""
    tested = f"Judged on {data['num_utterances']:,} utterances of {data['num_speakers']} speakers{heard}"
    leaky = any("not separated" in one or "on two sides" in one for one in content["warnings"])
    known = bool(content["reproduce"]["config"])
    found.append(
        f"{tested}; SOME OF THEM ALSO TRAINED THE MODEL."
        if leaky
        else f"{tested}; none of them had a part in training the model that judged them."
        if known
        else f"{tested}; whether the model was trained on them is not known."
    )
    if "metrics" in content:
        uar: Interval = content["metrics"]["uar"]
        chance = 1 / max(len([one for one in content["classes"] if one["num_utterances"]]), 1)
        line = (
            f"It recognises {100 * uar.value:.0f} % of each emotion on average; guessing: {round(100 * chance, 1):g} %."
        )
        if not math.isnan(uar.low):
            line += (
                f" For other speakers like these it likely lies between {100 * uar.low:.0f} and {100 * uar.high:.0f} %."
            )
        found.append(line)
        ranked = sorted(
            (one for one in content["classes"] if one["num_utterances"]), key=lambda one: one["recall"].value
        )
        if len(ranked) > 2:
            found.append(
                f"It is best at {ranked[-1]['name']} ({100 * ranked[-1]['recall'].value:.0f} %) and worst at "
                f"{ranked[0]['name']} ({100 * ranked[0]['recall'].value:.0f} %)."
            )
        before, after = content["calibration"]["before"], content["calibration"]["after"]
        lean = before["lean"]
        how = "too sure of itself" if lean > 0.02 else "too little sure" if lean < -0.02 else "about as sure as right"
        found.append(
            f"It is {how}: its confidence is off by {100 * before['ece']:.0f} points on average"
            + (f"; calibrated, by {100 * after['ece']:.0f}." if after else ".")
        )
    for part in content["subgroups"]:
        gap = part["gaps"].get(part["main"])
        if gap is not None and gap.low > 0 and part["column"] not in ("length", "noise"):
            apart = f"{100 * gap.value:.0f} points" if part["main"] == "uar" else f"{gap.value:.2f} of mean CCC"
            low = f"{100 * gap.low:.0f} points" if part["main"] == "uar" else f"{gap.low:.2f}"
            found.append(
                f"It may not serve all alike: the best and the worst group of {part['column']} are {apart} apart here, "
                f"and likely at least {low} apart among other speakers like these."
            )
    for name, one in content.get("dimensions", {}).items():
        found.append(
            f"Its {name} agrees with the raters' by a CCC of {one['ccc'].value:.2f} (1 is perfect, 0 is none)."
        )
    if "study" in content:
        study = content["study"]
        agreement = study["agreement"].get("CCC")
        outcome = " or ".join(study["outcome"])
        found.append(
            f"{study['num_participants']} participants: the {study['how']} of {outcome} "
            + (
                f"agrees with the labels by a CCC of {agreement.value:.2f}."
                if agreement
                else "was estimated; there are no labels to compare with."
            )
        )
    return found


def html_page(content: dict[str, Any], pictures: dict[str, Any]) -> str:
    """The report, with nothing outside it.

    Args:
        content: Its figures.
        pictures: Name -> SVG.
    """
    from markupsafe import Markup

    page: str = template("report.html.jinja").render(
        **content, names=NAMES, pictures={name: Markup(one) for name, one in pictures.items()}
    )
    return page


def latex_table(content: dict[str, Any]) -> str:
    """Metrics and classes as one table.

    Args:
        content: Figures of a report.
    """

    def cell(value: Interval) -> str:
        ends = "" if math.isnan(value.low) else f" [{100 * value.low:.1f}, {100 * value.high:.1f}]"
        return "--" if math.isnan(value.value) else f"{100 * value.value:.1f}{ends}"

    def escaped(text: str) -> str:
        return "".join({"_": r"\_", "&": r"\&", "%": r"\%", "#": r"\#"}.get(one, one) for one in text)

    lines = [
        "% needs booktabs; intervals: 95 %, resampled by speaker",
        r"\begin{tabular}{lrrr}", r"\toprule",
    ]  # fmt: skip
    if "metrics" in content:
        lines += [r"class & recall & precision & F1 \\", r"\midrule"]
        for one in content["classes"]:
            cells = " & ".join(cell(one[name]) for name in ("recall", "precision", "f1"))
            lines.append(rf"{escaped(one['name'])} & {cells} \\")
        lines.append(r"\midrule")
        for name, value in content["metrics"].items():
            lines.append(rf"\multicolumn{{3}}{{l}}{{{NAMES[name]}}} & {cell(value)} \\")
    for name, one in content.get("dimensions", {}).items():
        value = one["ccc"]
        ends = "" if math.isnan(value.low) else f" [{value.low:.3f}, {value.high:.3f}]"
        lines.append(rf"\multicolumn{{3}}{{l}}{{CCC of {name}}} & {value.value:.3f}{ends} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def template(name: str) -> Any:
    """One of the texts that wait for figures.

    Args:
        name: File of the folder ``templates``.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=name.endswith(".html.jinja"), trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["percent"] = _percent
    environment.filters["number"] = _number
    return environment.from_string((resources.files("mmemo.report") / "templates" / name).read_text())


def _percent(value: Any) -> str:
    if isinstance(value, Interval):
        return value.percent()
    return "n/a" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _number(value: Any, digits: int = 3) -> str:
    if isinstance(value, Interval):
        return value.number(digits)
    return "n/a" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}f}"
