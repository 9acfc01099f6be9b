"""`mmemo check`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(check, argv, "check")


def check(manifest: Path, picture: Path | None = None, leaks: bool = False, private: bool = False) -> int:
    """Validates a manifest, lists every broken recording and every leak, and draws its distributions.

    Exits with 1 when there is anything to mend.

    Args:
        manifest: CSV or Parquet file.
        leaks: Also say how well the speaker, the duration, the loudness, the sample rate, or where a file is, tells its
            label, with a red flag where a model could learn that instead of the emotion; takes some seconds.
        private: Name no files, as in a health study; so it is with MMEMO_OFFLINE=1.
        picture: PNG of label, duration and loudness distributions; beside the manifest when not given.
    """
    from rich.table import Table

    from mmemo.data.audio_facts import audio_facts
    from mmemo.data.checks import broken_audio, draw_distributions
    from mmemo.data.leaks import RED_FLAG, shared, side_doors
    from mmemo.data.manifest import read_manifest
    from mmemo.settings import is_offline

    private = private or is_offline()
    console = screen()
    loaded = read_manifest(manifest)
    utterances = list(loaded)
    facts = audio_facts(utterances)
    seconds = sum(fact.seconds for fact in facts if fact is not None)
    console.print(
        f"{manifest}: {len(loaded)} utterances, {loaded.frame['speaker'].nunique()} speakers, "
        f"{seconds / 3600:.2f} hours of audio, {int(loaded.frame['text'].notna().sum())} with words"
    )
    labels = Table("emotion", "utterances", "speakers")
    for name, rows in loaded.frame.fillna({"emotion": "(none)"}).groupby("emotion"):
        labels.add_row(str(name), str(len(rows)), str(rows["speaker"].nunique()))
    console.print(labels)
    broken, found = broken_audio(utterances, facts, private), shared(loaded, facts, private)
    for title, problems in (("broken audio", broken), ("leaks between splits", found)):
        if problems:
            console.print(f"[bold red]{len(problems)} {title}[/bold red]")
            for problem in problems:
                console.print(f"  {problem}", markup=False, soft_wrap=True)
    flagged = []
    if leaks:
        doors = side_doors(loaded, facts)
        flagged = [door.name for door in doors if door.flagged]
        audit = Table(
            "known alone", "UAR, %", "chance, %", "information, %", "judged on", "",
            title="Leak audit: how well each of these alone tells the emotion",
        )  # fmt: skip
        for door in doors:
            judged = "unseen speakers" if door.grouped else "other utterances"
            mark = "[bold red]RED FLAG[/bold red]" if door.flagged else ""
            audit.add_row(
                door.name, f"{100 * door.uar:.1f}", f"{100 * door.chance:.1f}", f"{100 * door.information:.0f}",
                judged, mark,
            )  # fmt: skip
        console.print(audit)
        if doors:
            console.print(
                "Information is how much less uncertain the emotion becomes (log loss against that of chance); a red "
                f"flag is {100 * RED_FLAG:.0f} % of the way from chance to certainty, in UAR or in information",
                soft_wrap=True,
            )
        else:
            console.print("Too few labelled utterances for a leak audit")
        for name in flagged:
            console.print(
                f"{name}: a model may learn it instead of the emotion. Balance the corpus, or divide it so that this "
                "does not help",
                soft_wrap=True,
            )
    target = picture or manifest.with_name(f"{manifest.stem}_check.png")
    draw_distributions(loaded, facts, target)
    console.print(f"Distributions: {target}", soft_wrap=True)
    if broken or found or flagged:
        advice = {
            "Replace broken recordings, or leave them out with data.broken_audio: skip": broken,
            "Put each speaker and recording on one side of the split column, or use mmemo.data.GroupKFold": found,
        }
        for line, present in advice.items():
            if present:
                console.print(f"To do: {line}.", soft_wrap=True)
        return 1
    console.print("No broken audio, no leaks" + (", no red flags" if leaks else ""))
    return 0
