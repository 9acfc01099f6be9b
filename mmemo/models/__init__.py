"""Encoders, layer mixes, gates, fusions and heads: each an ordinary module, chosen by ``class_path``."""

from mmemo.models.audio_encoder import ASTAudioEncoder, HuggingFaceAudioEncoder, WhisperAudioEncoder
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
from mmemo.models.text_encoder import HuggingFaceTextEncoder

__all__ = [
    "ASTAudioEncoder", "AttentionBottleneck", "AttentiveStatisticsPooling", "ClassHead", "Concatenation",
    "CrossModalAttention", "DimensionHead", "EmotionModel", "EmotionOutput", "FeatureGate", "GatedMultimodalUnit",
    "HardConcreteGate", "HuggingFaceAudioEncoder", "HuggingFaceTextEncoder", "LateFusion", "LayerConcat", "LayerMix",
    "LowRankFusion", "ModalityGate", "NoGate", "NoHead", "StatisticsPooling", "VariableSelection",
    "WhisperAudioEncoder",
]  # fmt: skip
