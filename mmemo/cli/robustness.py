"""``mmemo robustness``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from mmemo.cli.output import console, parse_pairs, print_line

if TYPE_CHECKING:
    from mmemo.studies.robustness import Robustness

Kind = Literal[
    "white", "pink", "brown", "reverberation", "telephone", "mp3", "fgsm", "pgd", "words", "no words"
]  # fmt: skip
Numbers = Annotated[list[float] | None, Parameter(consume_multiple=True)]


def robustness(
    run: Path,
    /,
    *,
    kinds: Annotated[list[Kind] | None, Parameter(consume_multiple=True)] = None,
    noise_db: Numbers = None,
    attack_db: Numbers = None,
    word_errors: Numbers = None,
    pgd_steps: int = 20,
    checkpoint: str | None = None,
    folds: Annotated[list[int] | None, Parameter(consume_multiple=True)] = None,
    bf16: bool = False,
    surrogate: Path | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    changes: Annotated[list[str] | None, Parameter(name="--set", consume_multiple=True)] = None,
) -> int:
    """Evaluates a trained model in noise, rooms and channels, with wrong words, and under attack.

    Writes RUN/robustness/robustness.csv, .json and .png: UAR with an interval over speakers, and the share of correct
    answers that stay correct. Attacks use the whole model. In noise the transcripts stay unchanged. Started again, it
    resumes; other kinds are added to the report.

    Args:
        run: Folder of `mmemo fit` or `mmemo crossval`.
        kinds: Kinds of conditions. Defaults to all.
        noise_db: Signal-to-noise ratios in dB. Defaults to 20 15 10 5 0.
        attack_db: Signal-to-perturbation ratios of attacks in dB. Defaults to 45 35 25.
        word_errors: Shares of wrong words, in [0, 1). Defaults to 0.1 0.2 0.4.
        pgd_steps: Steps of projected gradient descent, 1 or more.
        checkpoint: best, last or a file. Defaults to the run's own choice.
        folds: Folds of a cross-validation. Defaults to all.
        bf16: Search attacks in half precision, up to three times faster on some processors; they are evaluated in full
            precision.
        surrogate: Another run against whose model attacks are searched. A model that keeps much less of these than of
            its own attacks hides its gradient instead of being robust.
        device: Where the model runs. Defaults to a GPU if there is one.
        changes: Settings that replace those of the run, such as --set data.manifest=other.csv.
    """
    from mmemo.studies.conditions import conditions
    from mmemo.studies.robustness import FOLDER, RobustnessSettings
    from mmemo.studies.robustness import robustness as evaluate
    from mmemo.training.experiment_cli import read_runs

    every = conditions(noise_db or (20, 15, 10, 5, 0), attack_db or (45, 35, 25), word_errors or (0.1, 0.2, 0.4),
                       pgd_steps)  # fmt: skip
    chosen = [condition for condition in every if kinds is None or condition.kind in kinds]
    replaced = parse_pairs(changes or [], "--set")
    settings = RobustnessSettings(checkpoint, bf16, device)
    surrogates = [] if surrogate is None else read_runs(surrogate, folds or ())
    folder = run / FOLDER
    if surrogate is not None:
        folder /= f"from_{surrogate.name}"
    if folds:
        folder /= "folds_" + "_".join(map(str, folds))
    result = evaluate(read_runs(run, folds or (), replaced), chosen, folder, surrogates, settings)
    _print_result(run, result)
    return 0


def _print_result(run: Path, result: Robustness) -> None:
    from rich.table import Table

    table = Table(title=f"{run}: {int(result.table['num_utterances'].iloc[0])} test utterances, %")
    for name in ("condition", "UAR", "95 % over speakers", "correct answers kept"):
        table.add_column(name, justify="left" if name == "condition" else "right")
    for row in result.table.itertuples():
        has_interval = row.uar_low == row.uar_low
        interval = f"{100 * row.uar_low:.1f} to {100 * row.uar_high:.1f}" if has_interval else "one speaker"
        table.add_row(row.condition, f"{100 * row.uar:.1f}", interval, f"{100 * row.kept:.1f}")
    console().print(table)
    for reason in dict.fromkeys(result.skipped.values()):
        names = [name for name, why in result.skipped.items() if why == reason]
        print_line(f"Skipped ({reason}): {', '.join(names)}")
    if result.takes_text:
        print_line("Noise changes only the audio: transcripts are those of the manifest, and wrong words are conditions"
                   " of their own")  # fmt: skip
    print_line(f"Table, JSON and picture: {result.folder}")
