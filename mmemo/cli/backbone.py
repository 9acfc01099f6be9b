"""``mmemo backbone``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def backbone(
    checkpoint: Path, *, out: Path = Path("backbone"), modality: Literal["audio", "text"] | None = None
) -> int:  # fmt: skip
    """Saves a fine-tuned encoder as a model folder; another experiment uses it with `model_id: OUT`.

    Fine-tune an encoder on a large emotion corpus once, then reuse it.

    Args:
        checkpoint: Checkpoint of a run with an audio_finetuning or a text_finetuning.
        out: Folder to write; it must not hold a model yet.
        modality: Which encoder; required if both were fine-tuned.
    """
    if (out / "config.json").exists():
        raise ValueError(f"{out} already holds a model; choose another --out, or delete it")
    from mmemo.models.pretrained_encoder import PretrainedEncoder
    from mmemo.training.backbone import save_backbone
    from mmemo.training.loading import load_model

    model = load_model(checkpoint)
    encoders = {name: model.encoder(name) for name in ("audio", "text")}
    tuned = [
        name
        for name, encoder in encoders.items()
        if isinstance(encoder, PretrainedEncoder) and encoder.trained is not None
    ]
    if modality is None and len(tuned) > 1:
        raise ValueError(f"{checkpoint}: both encoders were fine-tuned; choose --modality audio or --modality text")
    if not tuned:
        raise ValueError(
            f"{checkpoint}: no encoder was fine-tuned in this run; set audio_finetuning or text_finetuning"
        )
    chosen = modality or tuned[0]
    if chosen not in tuned:
        raise ValueError(f"{checkpoint}: its {chosen} encoder was not fine-tuned, only {', '.join(tuned)}")
    print(f"Saved {save_backbone(encoders[chosen], out)}; use it with model_id: {out}")
    return 0
