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
from .heads import ClassHead, DimensionHead, NoHead
from .huggingface import ASTAudioEncoder, HuggingFaceAudioEncoder
from .layer_mix import LayerConcat, LayerMix
from .pooling import AttentiveStatisticsPooling, StatisticsPooling
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
    "ModalityGate",
    "NoGate",
    "NoHead",
    "ResNetEncoder",
    "StatisticsPooling",
    "VGGEncoder",
    "VGGishEncoder",
    "VariableSelection",
    "WhisperAudioEncoder",
]
