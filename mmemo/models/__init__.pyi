from .cnn import ConvRecurrentEncoder, InceptionEncoder, ResNetEncoder, VGGEncoder
from .convnext import ConvNeXtEncoder
from .descriptors import AcousticDescriptors, EGeMAPS
from .emotion_model import EmotionModel, EmotionOutput
from .fusion import (
    AttentionBottleneck,
    Concatenation,
    CrossModalAttention,
    GatedMultimodalUnit,
    LateFusion,
    LowRankFusion,
)
from .gates import FeatureGate, HardConcreteGate, ModalityGate, NoGate, VariableSelection
from .heads import ClassHead, DimensionHead, DiscriminantHead, NoHead
from .huggingface import ASTAudioEncoder, HuggingFaceAudioEncoder
from .layer_mix import LayerConcat, LayerMix
from .pooling import AttentiveStatisticsPooling, MeanPooling, StatisticsPooling
from .speaker_mixture import SpeakerMixture
from .speaker_norm import SpeakerNorm, StatisticsEncoder
from .text import HuggingFaceTextEncoder
from .vggish import VGGishEncoder
from .whisper import WhisperAudioEncoder

__all__ = [
    "ASTAudioEncoder",
    "AcousticDescriptors",
    "AttentionBottleneck",
    "AttentiveStatisticsPooling",
    "ClassHead",
    "Concatenation",
    "ConvNeXtEncoder",
    "ConvRecurrentEncoder",
    "CrossModalAttention",
    "DimensionHead",
    "DiscriminantHead",
    "EGeMAPS",
    "EmotionModel",
    "EmotionOutput",
    "FeatureGate",
    "GatedMultimodalUnit",
    "HardConcreteGate",
    "HuggingFaceAudioEncoder",
    "HuggingFaceTextEncoder",
    "InceptionEncoder",
    "LateFusion",
    "LayerConcat",
    "LayerMix",
    "LowRankFusion",
    "MeanPooling",
    "ModalityGate",
    "NoGate",
    "NoHead",
    "ResNetEncoder",
    "SpeakerMixture",
    "SpeakerNorm",
    "StatisticsEncoder",
    "StatisticsPooling",
    "VGGEncoder",
    "VGGishEncoder",
    "VariableSelection",
    "WhisperAudioEncoder",
]
