"""mmemo recognises emotion from voice and words."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmemo.data.datamodule import EmotionDataModule
    from mmemo.export.analysis import analyze
    from mmemo.export.onnx import export_onnx
    from mmemo.models.emotion_model import EmotionModel
    from mmemo.training.system import EmotionSystem, load_model

__version__ = "0.1.0"

_ROOMS = {
    "EmotionModel": "mmemo.models.emotion_model",
    "EmotionSystem": "mmemo.training.system",
    "EmotionDataModule": "mmemo.data.datamodule",
    "load_model": "mmemo.training.system",
    "export_onnx": "mmemo.export.onnx",
    "analyze": "mmemo.export.analysis",
}
__all__ = ["EmotionDataModule", "EmotionModel", "EmotionSystem", "analyze", "export_onnx", "load_model"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that `mmemo --help` need not wait for PyTorch."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'mmemo' has no attribute {name!r}")
    return getattr(import_module(_ROOMS[name]), name)
