"""Corpora, splits, waveforms, transcripts and batches."""

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import Manifest, ManifestError, Utterance, read_manifest
from mmemo.data.splits import FoldFile, GroupKFold, OfficialSplit

__all__ = [
    "EmotionBatch", "EmotionDataModule", "FoldFile", "GroupKFold", "Manifest", "ManifestError",
    "OfficialSplit", "Utterance", "read_manifest",
]  # fmt: skip
