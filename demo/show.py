"""Prints the demo's predictions for the test voices, their metrics, the timeline of one clip, and what to try next."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from mmemo.cli.app import main as mmemo

CLIP = Path("demo/clips/ada_anger_1.flac")
CONDITIONS = {"test": "audio and text", "test_audio_only": "audio only", "test_text_only": "text only"}
NEXT = (
    "mmemo report runs/demo/model",
    "mmemo analyze YOUR_RECORDING.wav --out emotions",
    "mmemo crossval --config configs/demo.yaml --set data.split=mmemo.data.LeaveOneGroupOut",
)


def main(run: Path) -> None:
    """Prints everything.

    Args:
        run: Folder of the demo.
    """
    console = Console(width=min(80, shutil.get_terminal_size().columns))
    manifest = pd.read_csv(run / "manifest_transcribed.csv").set_index("id")
    predictions = pd.read_csv(run / "model" / "predictions.csv").set_index("id")
    test = manifest[manifest["split"] == "test"].index
    table = Table(title="Test voices, none of which was in the training data")
    table.add_column("transcript by Whisper", overflow="ellipsis", no_wrap=True, width=38)
    table.add_column("label", no_wrap=True)
    table.add_column("predicted", no_wrap=True)
    table.add_column("prob.", justify="right", no_wrap=True)
    for name in test:
        row = predictions.loc[name]
        mark = "green" if row["emotion"] == row["predicted"] else "red"
        probability = f"{100 * row['prob_' + row['predicted']]:.0f} %"
        text = str(manifest.loc[name, "text"])
        table.add_row(text, row["emotion"], f"[{mark}]{row['predicted']}[/{mark}]", probability)
    console.print(table)
    metrics = json.loads((run / "model" / "test_metrics.json").read_text())["metrics"]
    for condition, name in CONDITIONS.items():
        console.print(f"{name:<16} UAR {100 * metrics[f'{condition}/uar']:3.0f} %   (chance: 25 %)", highlight=False)
    console.print(
        f"{len(test)} synthetic clips show that everything runs, not how accurate it is.\n"
        "benchmarks/README.md has results on real corpora.\n"
    )
    console.print(f"[bold]Timeline of {CLIP}[/bold], by the model that ships with mmemo:")
    sys.stdout.flush()
    mmemo(["analyze", str(CLIP), "--out", str(run / "timeline")])
    console.print(f"Picture: {run / 'timeline' / CLIP.name}.png", highlight=False, soft_wrap=True)
    console.print(f"Manifest, checkpoints, predictions, metrics: {run}\n", highlight=False, soft_wrap=True)
    console.print("Try next, after `. .venv/bin/activate`:", highlight=False)
    for command in NEXT:
        console.print(f"  {command}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
