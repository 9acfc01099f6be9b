"""A fine-tuned encoder as a model folder, which other experiments load like any pretrained model."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from mmemo import pretrained
from mmemo.training.finetuning import check_pretrained
from mmemo.training.low_rank import LowRankLinear, replace_modules


def save_backbone(encoder: nn.Module, folder: Path) -> Path:
    """Writes an encoder with its trained blocks as a model folder, which another experiment uses as ``model_id``.

    LoRA's updates are added to their matrices, and LowRank's factors are multiplied.

    Args:
        encoder: Encoder of a trained model.
        folder: Folder for ``config.json``, ``model.safetensors`` and the model's other files.

    Raises:
        ValueError: The encoder is not a pretrained one, or none of its blocks was trained.
    """
    encoder = check_pretrained("save_backbone", encoder)
    if encoder.trained is None:
        raise ValueError(
            f"{encoder.model_id} was frozen in this run, so there is nothing new to save; train it with "
            "audio_finetuning or text_finetuning"
        )
    merged = copy.deepcopy(encoder.trained_blocks)
    for part in merged.modules():
        if isinstance(part, LoraLayer):
            part.merge()
    replace_modules(merged, LowRankLinear, lambda part: part.product)
    model = encoder.whole_model(_merged_names(merged.state_dict()))
    source = pretrained.resolve(encoder.model_id)
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.suffix in (".json", ".txt", ".model") and not path.name.endswith(".index.json"):
            shutil.copy(path, folder / path.name)  # tokenizer, preprocessor, generation settings
    model.save_pretrained(folder)
    return folder


def _merged_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}
