"""Prints how the demo's model did on the voice it never heard, and where everything is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

CLASSES = ("anger", "happiness", "neutral", "sadness")


def main(run: Path) -> None:
    """Prints the table."""
    console = Console()
    manifest = pd.read_csv(run / "manifest_transcribed.csv").set_index("id")
    predictions = pd.read_csv(run / "model" / "predictions.csv").set_index("id")
    test = manifest[manifest["split"] == "test"].index
    table = Table(
        "clip", "Whisper heard", "true", "predicted", *CLASSES, title="The test voice, which training never heard"
    )
    for name in test:
        row = predictions.loc[name]
        mark = "green" if row["emotion"] == row["predicted"] else "red"
        probs = (f"{100 * row[f'prob_{emotion}']:.0f} %" for emotion in CLASSES)
        table.add_row(name, manifest.loc[name, "text"], row["emotion"], f"[{mark}]{row['predicted']}[/{mark}]", *probs)
    console.print(table)
    metrics = json.loads((run / "model" / "test_metrics.json").read_text())["metrics"]
    for view, name in (
        ("test", "voice and words"),
        ("test_audio_only", "voice alone"),
        ("test_text_only", "words alone"),
    ):
        console.print(f"{name:<16} UAR {100 * metrics[f'{view}/uar']:.0f} %")
    console.print(
        "Eight synthetic clips show that it runs, not how good it is; benchmarks/README.md has real corpora.\n"
    )
    for what, path in (
        ("manifest with transcripts", "manifest_transcribed.csv"),
        ("distributions", "manifest_check.png"),
        ("checkpoint", "model/checkpoints/best.ckpt"),
        ("predictions", "model/predictions.csv"),
        ("test metrics", "model/test_metrics.json"),
        ("training curves", "model/metrics.csv, or: .venv/bin/tensorboard --logdir " + str(run / "model")),
    ):
        console.print(f"{what:<26}{run / path}", soft_wrap=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
