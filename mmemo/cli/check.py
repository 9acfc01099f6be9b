"""``mmemo check``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmemo.cli.output import console, print_line
from mmemo.wording import counted

if TYPE_CHECKING:
    from mmemo.data.leaks import Shortcut


def check(manifest: Path, *, picture: Path | None = None, leaks: bool = False, private: bool = False) -> int:
    """Validates a manifest, lists every broken recording and every leak, and draws its distributions.

    Exits with 1 if anything needs to be fixed.

    Args:
        manifest: CSV or Parquet file.
        picture: PNG of label, duration and loudness distributions. Defaults to a file beside the manifest.
        leaks: Also measure how well the speaker, the duration, the loudness, the sampling rate and the file's folder
            predict the label, with a red flag if a model could learn that instead of the emotion. Takes some seconds.
        private: Name no files, as in a clinical study; always on with MMEMO_OFFLINE=1.
    """
    from rich.table import Table

    from mmemo.data.audio_facts import audio_facts
    from mmemo.data.checks import draw_distributions, list_broken_audio
    from mmemo.data.leaks import shared_between_splits, shortcuts
    from mmemo.data.manifest import read_manifest
    from mmemo.settings import is_offline

    private = private or is_offline()
    loaded = read_manifest(manifest)
    utterances = list(loaded)
    facts = audio_facts(utterances)
    seconds = sum(fact.seconds for fact in facts if fact is not None)
    print_line(
        f"{manifest}: {counted(len(loaded), 'utterance')}, {counted(loaded.frame['speaker'].nunique(), 'speaker')}, "
        f"{seconds / 3600:.2f} hours of audio, {int(loaded.frame['text'].notna().sum())} with text"
    )
    labels = Table("emotion", "utterances", "speakers")
    for name, rows in loaded.frame.fillna({"emotion": "(none)"}).groupby("emotion"):
        labels.add_row(str(name), str(len(rows)), str(rows["speaker"].nunique()))
    console().print(labels)
    broken = list_broken_audio(utterances, facts, private)
    shared = shared_between_splits(loaded, facts, private)
    for title, problems in (("broken audio", broken), ("overlap between splits", shared)):
        if problems:
            console().print(f"[bold red]{len(problems)} {title}[/bold red]")
            for problem in problems:
                print_line(f"  {problem}")
    flagged = _print_shortcuts(shortcuts(loaded, facts)) if leaks else []
    target = picture or manifest.with_name(f"{manifest.stem}_check.png")
    draw_distributions(loaded, facts, target)
    print_line(f"Distributions: {target}")
    if broken:
        print_line("To do: replace broken recordings, or leave them out with data.broken_audio: skip.")
    if shared:
        print_line(
            "To do: put each speaker and recording on one side of the split column, or use mmemo.data.GroupKFold."
        )
    if broken or shared or flagged:
        return 1
    audit = ", no shortcuts to the label" if leaks else "; --leaks also looks for shortcuts to the label"
    print_line("No broken audio, no speaker or recording on two sides of a split" + audit)
    return 0


def _print_shortcuts(shortcuts: Sequence[Shortcut]) -> list[str]:
    """Prints the leak audit; returns the names of the flagged shortcuts."""
    from rich.table import Table

    from mmemo.data.leaks import FLAG_THRESHOLD

    if not shortcuts:
        print_line("Too few labelled utterances for a leak audit")
        return []
    audit = Table(
        "known alone", "UAR, %", "chance, %", "information, %", "tested on", "",
        title="Leak audit: how well each of these alone predicts the emotion",
    )  # fmt: skip
    for shortcut in shortcuts:
        audit.add_row(
            shortcut.name, f"{100 * shortcut.uar:.1f}", f"{100 * shortcut.chance:.1f}",
            f"{100 * shortcut.information:.0f}",
            "unseen speakers" if shortcut.speaker_disjoint else "other utterances",
            "[bold red]RED FLAG[/bold red]" if shortcut.flagged else "",
        )  # fmt: skip
    console().print(audit)
    print_line(
        "Information is the reduction of the log loss relative to chance. A red flag is "
        f"{100 * FLAG_THRESHOLD:.0f} % of the way from chance to certainty, in UAR or in information."
    )
    flagged = [shortcut.name for shortcut in shortcuts if shortcut.flagged]
    for name in flagged:
        print_line(
            f"{name}: a model may learn it instead of the emotion. Balance the corpus, or split it so that this does "
            "not help."
        )
    return flagged
