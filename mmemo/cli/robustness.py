"""`mmemo robustness`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call_with_rest, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call_with_rest(robustness, argv, "robustness", as_positional=True)


def robustness(
    run: Path,
    kinds: list[str] | str | None = None,
    noise_db: list[float] | float = [20, 15, 10, 5, 0],  # noqa: B006
    attack_db: list[float] | float = [45, 35, 25],  # noqa: B006
    word_errors: list[float] | float = [0.1, 0.2, 0.4],  # noqa: B006
    pgd_steps: int = 20,
    checkpoint: str | None = None,
    folds: list[int] = [],  # noqa: B006
    bf16: bool = False,
    surrogate: Path | None = None,
    device: str | None = None,
    options: list[str] = [],  # noqa: B006
) -> int:
    """Says what a trained model still recognises in noise, in rooms, on the telephone, with wrong words, under attack.

    Writes RUN/robustness/robustness.csv, .json and .png: UAR with an interval over speakers, and the share of the
    answers that were correct and still are. Attacks see the whole model; transcripts stay as they are in noise. Started
    again, it goes on where it was; other kinds are added to the report.

    Args:
        run: Folder of `mmemo fit` or `mmemo crossval`.
        kinds: Only these of white, pink, brown, reverberation, telephone, mp3, fgsm, pgd, words, "no words"; all when
            not given.
        noise_db: Signal to noise ratios, in dB.
        attack_db: The same for attacks on the waveform.
        word_errors: Shares of the words that are wrong, in [0, 1).
        pgd_steps: Steps of projected gradient descent, 1 or more.
        checkpoint: best, last or a file; what the run was judged by when not given.
        folds: Which folds of a cross-validation; all when not given.
        bf16: Let attacks search in half precision, up to three times faster where the processor knows it; what they
            find is judged in full.
        surrogate: Another run, against whose model attacks are searched. If a model keeps much less of those than of
            its own, it hides its gradient rather than resists.
        device: cpu or cuda; a GPU if there is one when not given.
        options: Options of `mmemo fit`, such as --data.manifest OTHER.csv.
    """
    from rich.table import Table

    from mmemo.studies.robustness import conditions
    from mmemo.studies.robustness import robustness as measure

    kinds = [kinds] if isinstance(kinds, str) else kinds
    noise_db, attack_db, word_errors = (
        [one] if isinstance(one, int | float) else one for one in (noise_db, attack_db, word_errors)
    )
    for option, values in (("noise_db", noise_db), ("attack_db", attack_db), ("word_errors", word_errors)):
        if not values:
            raise ValueError(f"--{option} []: name at least one strength, or leave the kind out of --kinds")
    every = conditions(noise_db, attack_db, word_errors, pgd_steps)
    known = list(dict.fromkeys(one.kind for one in every if one.kind != "clean"))
    unknown = set(kinds or []) - {"clean", *known}
    if unknown:
        raise ValueError(f"--kinds {', '.join(sorted(unknown))}: expected some of {', '.join(known)}")
    chosen = [one for one in every if kinds is None or one.kind in kinds]
    result = measure(run, chosen, checkpoint, options, folds, half_precision=bf16, surrogate=surrogate, device=device)
    table = Table(title=f"{run}: {int(result.table['num_utterances'].iloc[0])} test utterances, per cent")
    for name in ("condition", "UAR", "95 % over speakers", "correct answers kept"):
        table.add_column(name, justify="left" if name == "condition" else "right")
    for row in result.table.itertuples():
        interval = (
            f"{100 * row.uar_low:.1f} to {100 * row.uar_high:.1f}" if row.uar_low == row.uar_low else "one speaker"
        )
        table.add_row(row.condition, f"{100 * row.uar:.1f}", interval, f"{100 * row.kept:.1f}")
    console = screen()
    console.print(table)
    for reason in dict.fromkeys(result.skipped.values()):
        names = [name for name, why in result.skipped.items() if why == reason]
        console.print(f"Left out ({reason}): {', '.join(names)}")
    if result.reads:
        console.print(
            "Noise changes the voice alone: the words stay those of the manifest, and wrong ones are conditions of "
            "their own"
        )
    console.print(f"Table, JSON and picture: {result.folder}")
    return 0
