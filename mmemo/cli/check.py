"""`mmemo check`."""

from __future__ import annotations

from pathlib import Path

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(check, argv, "check")


def check(manifest: Path, picture: Path | None = None) -> int:
    """Validates a manifest, lists every broken recording and every leak, and draws its distributions.

    Exits with 1 when there is anything to mend.

    Args:
        manifest: CSV or Parquet file.
        picture: PNG of label, duration and loudness distributions; beside the manifest when not given.
    """
    from rich.console import Console
    from rich.table import Table

    from mmemo.data.audio_facts import audio_facts
    from mmemo.data.checks import broken_audio, draw_distributions, leaks
    from mmemo.data.manifest import read_manifest

    console = Console()
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
    broken, found = broken_audio(utterances, facts), leaks(loaded, facts)
    for title, problems in (("broken audio", broken), ("leaks between splits", found)):
        if problems:
            console.print(f"[bold red]{len(problems)} {title}[/bold red]")
            for problem in problems:
                console.print(f"  {problem}", markup=False, soft_wrap=True)
    target = picture or manifest.with_name(f"{manifest.stem}_check.png")
    draw_distributions(loaded, facts, target)
    console.print(f"Distributions: {target}", soft_wrap=True)
    if broken or found:
        console.print(
            "Mend these." + (" Training leaves broken audio out with data.broken_audio: skip." if broken else "")
        )
        return 1
    console.print("No broken audio, no leaks")
    return 0
