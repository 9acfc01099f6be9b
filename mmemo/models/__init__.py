"""Encoders, layer mixes, gates, fusions and heads: each an ordinary module, chosen by ``class_path``."""

from mmemo.models.audio_encoder import ASTAudioEncoder, HuggingFaceAudioEncoder, WhisperAudioEncoder
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.fusion import Concatenation, CrossModalAttention
from mmemo.models.gates import FeatureGate, NoGate
from mmemo.models.heads import ClassHead
from mmemo.models.layer_mix import LayerConcat, LayerMix
from mmemo.models.pooling import AttentiveStatisticsPooling, StatisticsPooling
from mmemo.models.text_encoder import HuggingFaceTextEncoder

__all__ = [
    "ASTAudioEncoder", "AttentiveStatisticsPooling", "ClassHead", "Concatenation", "CrossModalAttention",
    "EmotionModel", "EmotionOutput", "FeatureGate", "HuggingFaceAudioEncoder", "HuggingFaceTextEncoder",
    "LayerConcat", "LayerMix", "NoGate", "StatisticsPooling", "WhisperAudioEncoder",
]  # fmt: skip
