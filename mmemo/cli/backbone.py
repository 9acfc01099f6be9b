"""`mmemo backbone`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(backbone, argv, "backbone")


def backbone(checkpoint: Path, out: Path = Path("backbone"), modality: Literal["audio", "text"] | None = None) -> int:
    """Saves a fine-tuned encoder as a model folder, from which another experiment starts with `model_id: OUT`.

    This is emotion-enhanced pretraining: tune an encoder on a large emotion corpus once, then use it anywhere.

    Args:
        checkpoint: Checkpoint of `mmemo fit` with an audio_finetuning or a text_finetuning.
        out: Folder to write; it must not hold a model yet.
        modality: Which encoder; needed where both were tuned.
    """
    from mmemo.training.finetuning import save_backbone
    from mmemo.training.system import load_model

    if (out / "config.json").exists():
        raise ValueError(f"{out} holds a model already; choose another --out, or delete it")
    model = load_model(checkpoint)
    tuned = [
        name for name in ("audio", "text") if getattr(model.encoder(name), "trained", None) is not None
    ]  # fmt: skip
    if modality is None and len(tuned) > 1:
        raise ValueError(f"{checkpoint}: both encoders were tuned; say which with --modality audio or --modality text")
    if not tuned:
        raise ValueError(f"{checkpoint}: no encoder was tuned in this run; set audio_finetuning or text_finetuning")
    chosen = modality or tuned[0]
    if chosen not in tuned:
        raise ValueError(f"{checkpoint}: its {chosen} encoder was not tuned, tuned were: {', '.join(tuned)}")
    print(f"Saved {save_backbone(model.encoder(chosen), out)}; use it with model_id: {out}")
    return 0
