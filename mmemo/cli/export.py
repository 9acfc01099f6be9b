"""`mmemo export`."""

from __future__ import annotations

import json
from pathlib import Path

from mmemo.cli.verb import call, screen


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(export, argv, "export")


def export(
    checkpoint: Path,
    *,
    out: Path,
    manifest: Path | None = None,
    clips: int = 100,
    audio_only: bool = False,
    license: str = "",
    training_data: str = "",
    limits: str = "",
) -> int:
    """Writes a checkpoint as a folder that runs without PyTorch: ONNX from waveform to probabilities, in fp32 and int8.

    Both files are checked on real clips against PyTorch: fp32 within 1e-4, int8 the same class on at least 98 %
    (of fewer than 50, but for one near tie). The folder also holds the weights as safetensors, the labels, a model
    card with the run's test figures, and an example of some 20 lines. `mmemo analyze --model OUT` uses it.

    Args:
        checkpoint: Of `mmemo fit`, such as RUN/checkpoints/best.ckpt.
        out: Folder to write.
        manifest: Whose clips the files are checked on; the run's own when not given.
        clips: How many of them, 1 or more.
        audio_only: Refuse a model that reads words too.
        license: For the model card.
        training_data: For the model card.
        limits: For the model card.
    """
    from rich.table import Table

    from mmemo.export.checkpoint import export_checkpoint
    from mmemo.export.runtime import CONFIG_FILE

    if clips < 1:
        raise ValueError(f"--clips {clips}: expected 1 or more")
    card = {"license": license, "training_data": training_data, "limits": limits}
    found = export_checkpoint(checkpoint, out, manifest, clips, audio_only, card)
    parity = found.parity
    table = Table(title=f"{out}: {found.num_parameters:,} parameters")
    for name in ("file", "kB", "against PyTorch"):
        table.add_column(name, justify="right" if name == "kB" else "left")
    said = {
        "model.onnx": f"largest difference {parity.largest_difference:.1e}",
        "model.int8.onnx": f"largest difference {parity.int8_largest_difference:.1e}"
        if parity.int8_agreement is None
        else f"same class on {100 * parity.int8_agreement:.1f} % of {parity.num_clips} clips",
    }
    for name, size in found.num_bytes.items():
        table.add_row(name, f"{size / 1000:.0f}", said.get(name, ""))
    console = screen()
    console.print(table)
    if not json.loads((out / CONFIG_FILE).read_text())["metrics"]:
        console.print(
            "The model card has no test figures: the run was not tested, or another checkpoint of it was; see "
            "`mmemo test --checkpoint` and `--ckpt_path`"
        )
    return 0
