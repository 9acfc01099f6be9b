"""Corpora, splits, waveforms, transcripts and batches."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmemo.data.augmentation import WaveformAugmentation, WordAugmentation
    from mmemo.data.batch import EmotionBatch
    from mmemo.data.datamodule import Corpus, EmotionDataModule
    from mmemo.data.manifest import Manifest, ManifestError, Utterance, read_manifest
    from mmemo.data.splits import FoldFile, GroupKFold, InnerFolds, LeaveOneGroupOut, OfficialSplit

_ROOMS = {
    "Corpus": "datamodule",
    "EmotionBatch": "batch",
    "EmotionDataModule": "datamodule",
    "FoldFile": "splits",
    "GroupKFold": "splits",
    "InnerFolds": "splits",
    "LeaveOneGroupOut": "splits",
    "Manifest": "manifest",
    "ManifestError": "manifest",
    "OfficialSplit": "splits",
    "Utterance": "manifest",
    "WaveformAugmentation": "augmentation",
    "WordAugmentation": "augmentation",
    "read_manifest": "manifest",
}
__all__ = [
    "Corpus", "EmotionBatch", "EmotionDataModule", "FoldFile", "GroupKFold", "InnerFolds", "LeaveOneGroupOut",
    "Manifest", "ManifestError", "OfficialSplit", "Utterance", "WaveformAugmentation", "WordAugmentation",
    "read_manifest",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used: a verb that only reads a table need not load PyTorch."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'mmemo.data' has no attribute {name!r}")
    return getattr(import_module(f"mmemo.data.{_ROOMS[name]}"), name)
