from .augmentation import WaveformAugmentation, WordAugmentation
from .batch import EmotionBatch
from .datamodule import EmotionDataModule
from .enrolment import Enrolment
from .manifest import Manifest, ManifestError, Utterance, read_manifest
from .splits import FoldFile, GroupKFold, InnerFolds, LeaveOneGroupOut, OfficialSplit
from .table import Corpus

__all__ = [
    "Corpus",
    "EmotionBatch",
    "EmotionDataModule",
    "Enrolment",
    "FoldFile",
    "GroupKFold",
    "InnerFolds",
    "LeaveOneGroupOut",
    "Manifest",
    "ManifestError",
    "OfficialSplit",
    "Utterance",
    "WaveformAugmentation",
    "WordAugmentation",
    "read_manifest",
]
