"""Checkpoint -> trained model."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from mmemo.models.emotion_model import EmotionModel
from mmemo.training.checkpoint import check_checkpoint
from mmemo.training.recipe import build
from mmemo.training.system import EmotionSystem


def load_system(checkpoint: str | os.PathLike[str], model: EmotionModel | None = None) -> EmotionSystem:
    """Loads a trained system on the CPU, in eval mode.

    Args:
        checkpoint: ``.ckpt`` file.
        model: Untrained model of the same architecture, for a checkpoint that stores no settings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of mmemo, or it stores no settings and there is no ``model``.
    """
    path = check_checkpoint(Path(checkpoint))
    content = read_checkpoint(path)
    if model is not None:
        system = EmotionSystem(model)
    elif content.get("system") is None:
        raise ValueError(
            f"{path}: this checkpoint has no stored settings; build its parts from plain arguments before training, or "
            "pass the model to load_model"
        )
    else:
        system = build(EmotionSystem, content["system"])
    system.on_load_checkpoint(content)
    system.load_state_dict(content["state_dict"])
    return system.eval()


def load_model(checkpoint: str | os.PathLike[str], model: EmotionModel | None = None) -> EmotionModel:
    """Loads a trained model on the CPU, in eval mode.

    Args:
        checkpoint: ``.ckpt`` file of ``mmemo fit`` or ``Trainer.fit``.
        model: Untrained model of the same architecture, for a checkpoint that stores no settings.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of mmemo, or it stores no settings and there is no ``model``.

    Example:
        >>> import tempfile
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from pytorch_lightning import Trainer
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], audio_encoder=ConvNeXtEncoder(hidden_dim=8)))
        >>> trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
        >>> system.trainer = trainer  # as `trainer.fit` does
        >>> trainer.strategy.connect(system)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     trainer.save_checkpoint(f"{folder}/model.ckpt")
        ...     load_model(f"{folder}/model.ckpt").classes
        ('anger', 'sadness')
    """
    return load_system(checkpoint, model).model


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint without running any code that it may hold.

    Args:
        path: ``.ckpt`` file.

    Raises:
        ValueError: It is not a checkpoint of mmemo.
    """
    content: Any = None
    if zipfile.is_zipfile(path):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, KeyError, EOFError, RuntimeError):
            content = None
    if not isinstance(content, dict) or not {"state_dict", "classes"} <= content.keys():
        raise ValueError(
            f"{path}: not a checkpoint of `mmemo fit`, or an incomplete copy of one; expected RUN/checkpoints/best.ckpt"
        )
    return content
