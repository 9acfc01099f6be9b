"""Encoders, layer mixes, gates, fusions and heads: each an ordinary module, chosen by ``class_path``."""

from mmemo.models.audio_encoder import ASTAudioEncoder, HuggingFaceAudioEncoder, WhisperAudioEncoder
from mmemo.models.cnn import (
    ConvRecurrentEncoder,
    InceptionEncoder,
    ResNetEncoder,
    VGGEncoder,
    VGGishEncoder,
)
from mmemo.models.convnext import ConvNeXtEncoder
from mmemo.models.descriptors import AcousticDescriptors, EGeMAPS
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.fusion import (
    AttentionBottleneck,
    Concatenation,
    CrossModalAttention,
    GatedMultimodalUnit,
    LateFusion,
    LowRankFusion,
)
from mmemo.models.gates import FeatureGate, HardConcreteGate, ModalityGate, NoGate, VariableSelection
from mmemo.models.heads import ClassHead, DimensionHead, NoHead
from mmemo.models.layer_mix import LayerConcat, LayerMix
from mmemo.models.pooling import AttentiveStatisticsPooling, StatisticsPooling
from mmemo.models.text import HuggingFaceTextEncoder

__all__ = [
    "ASTAudioEncoder", "AcousticDescriptors", "AttentionBottleneck", "AttentiveStatisticsPooling", "ClassHead",
    "Concatenation", "ConvNeXtEncoder", "ConvRecurrentEncoder", "CrossModalAttention", "DimensionHead", "EGeMAPS",
    "EmotionModel", "EmotionOutput", "FeatureGate", "GatedMultimodalUnit", "HardConcreteGate",
    "HuggingFaceAudioEncoder", "HuggingFaceTextEncoder", "InceptionEncoder", "LateFusion", "LayerConcat",
    "LayerMix", "LowRankFusion", "ModalityGate", "NoGate", "NoHead", "ResNetEncoder", "StatisticsPooling",
    "VGGEncoder", "VGGishEncoder", "VariableSelection", "WhisperAudioEncoder",
]  # fmt: skip
