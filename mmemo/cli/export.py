"""``mmemo export``."""

from __future__ import annotations

import json
from pathlib import Path

from mmemo.cli.output import console, print_line


def export(
    checkpoint: Path,
    /,
    *,
    out: Path,
    manifest: Path | None = None,
    clips: int = 100,
    audio_only: bool = False,
    license: str = "",
    training_data: str = "",
    limits: str = "",
) -> int:
    """Exports a checkpoint to a folder that runs without PyTorch: ONNX from waveform to probabilities, fp32 and int8.

    Both files are compared with PyTorch on real clips: fp32 within 1e-4, int8 with the same class on at least 98 % of
    them (of fewer than 50, on all but one near tie). The folder also holds the weights as safetensors, the labels, a
    model card with the run's test metrics, and a short example. `mmemo analyze --model OUT` uses it.

    Args:
        checkpoint: Checkpoint, such as RUN/checkpoints/best.ckpt.
        out: Folder to write.
        manifest: Manifest whose clips are compared. Defaults to the run's own.
        clips: Number of clips to compare, 1 or more.
        audio_only: Refuse a model with a text encoder.
        license: License for the model card.
        training_data: Training data for the model card.
        limits: Limits for the model card.
    """
    if clips < 1:
        raise ValueError(f"--clips {clips}: expected 1 or more")
    from rich.table import Table

    from mmemo.export.checkpoint import export_checkpoint
    from mmemo.export.runtime import CONFIG_FILE

    card = {"license": license, "training_data": training_data, "limits": limits}
    result = export_checkpoint(checkpoint, out, manifest, clips, audio_only, card)
    parity = result.parity
    table = Table(title=f"{out}: {result.num_parameters:,} parameters")
    for name in ("file", "kB", "compared with PyTorch"):
        table.add_column(name, justify="right" if name == "kB" else "left")
    comparison = {
        "model.onnx": f"largest difference {parity.largest_difference:.1e}",
        "model.int8.onnx": f"largest difference {parity.int8_largest_difference:.1e}"
        if parity.int8_agreement is None
        else f"same class on {100 * parity.int8_agreement:.1f} % of {parity.num_clips} clips",
    }
    for name, size in result.num_bytes.items():
        table.add_row(name, f"{size / 1000:.0f}", comparison.get(name, ""))
    console().print(table)
    config = json.loads((out / CONFIG_FILE).read_text())
    if "token_ids" in config["inputs"]:
        print_line("This model also takes text, so `mmemo analyze` cannot use it; `mmemo.Recognizer` can")
    if not config["metrics"]:
        print_line(
            "The model card has no test metrics: the run was not tested, or another of its checkpoints was; see "
            "`mmemo test --checkpoint` and `--ckpt_path`"
        )
    return 0
