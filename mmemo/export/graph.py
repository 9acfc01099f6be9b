"""Modules that ONNX can represent: a log-mel without complex numbers, and a model from waveform to probabilities."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from mmemo.models.emotion_model import EmotionModel
from mmemo.models.log_mel import HOP_SAMPLES, WINDOW_SAMPLES, LogMel

_INNER, _OUTER = 16, 25  # sizes of the two Fourier transforms that make up the one over a window
assert _INNER * _OUTER == WINDOW_SAMPLES


class PlainLogMel(nn.Module):
    """Computes :class:`LogMel` with real additions and multiplications only, which every ONNX runtime supports.

    The Fourier transform of 400 samples is split into 25 transforms of 16 and then 16 of 25 (Cooley and Tukey 1965,
    <https://doi.org/10.1090/S0025-5718-1965-0178586-1>). That takes a third of the operations of one matrix product,
    and a few kilobytes of constants instead of 1.3 megabytes.

    Args:
        log_mel: Module to replace.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> log_mel ``(batch, frame, num_mels)``, mask ``(batch, frame)``; padding is zero

    Example:
        >>> waveform, mask = torch.randn(2, 16_000), torch.ones(2, 16_000, dtype=torch.bool)
        >>> features, frame_mask = PlainLogMel(LogMel(num_mels=40))(waveform, mask)
        >>> features.shape, frame_mask.shape
        (torch.Size([2, 100, 40]), torch.Size([2, 100]))
    """

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.range_db = log_mel.range_db
        self.window: Tensor
        self.inner_cos: Tensor
        self.inner_sin: Tensor
        self.twiddle_cos: Tensor
        self.twiddle_sin: Tensor
        self.outer_cos: Tensor
        self.outer_sin: Tensor
        self.filters: Tensor
        n = torch.arange(WINDOW_SAMPLES, dtype=torch.float64)
        window = (0.5 - 0.5 * torch.cos(2 * math.pi * n / WINDOW_SAMPLES)).view(_INNER, _OUTER)
        inner = 2 * math.pi * torch.outer(torch.arange(_INNER), torch.arange(_INNER)) / _INNER
        twiddle = 2 * math.pi * torch.outer(torch.arange(_INNER), torch.arange(_OUTER)) / WINDOW_SAMPLES
        outer = 2 * math.pi * torch.outer(torch.arange(_OUTER), torch.arange(_OUTER)) / _OUTER
        for name, values in {
            "window": window, "inner_cos": inner.cos(), "inner_sin": -inner.sin(), "twiddle_cos": twiddle.cos(),
            "twiddle_sin": -twiddle.sin(), "outer_cos": outer.cos(), "outer_sin": -outer.sin(),
            "filters": log_mel.filters.double().T,
        }.items():  # fmt: skip
            self.register_buffer(name, values.float(), persistent=False)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        half, unit = WINDOW_SAMPLES // 2, HOP_SAMPLES // 2
        batch, num_samples = waveform.shape
        num_frames = (num_samples + HOP_SAMPLES - 1) // HOP_SAMPLES
        waveform = waveform * mask
        padded = nn.functional.pad(waveform, (0, WINDOW_SAMPLES + 2 * HOP_SAMPLES))
        samples = torch.cat([padded[:, 1 : half + 1].flip(1), padded], dim=1)
        # A window of 400 samples is five units of 80, and each window starts two units after the previous one.
        units = samples[:, : (num_frames * 2 + 3) * unit].reshape(batch, num_frames * 2 + 3, unit)
        frames = torch.cat([units[:, first : first + 2 * num_frames : 2] for first in range(5)], dim=-1)
        frames = frames.reshape(batch, num_frames, _INNER, _OUTER) * self.window  # sample 25 a + b is at (a, b)
        real, imaginary = self.inner_cos @ frames, self.inner_sin @ frames  # (batch, frame, c, b)
        real, imaginary = (
            real * self.twiddle_cos - imaginary * self.twiddle_sin,
            real * self.twiddle_sin + imaginary * self.twiddle_cos,
        )
        real, imaginary = real.transpose(2, 3), imaginary.transpose(2, 3)  # (batch, frame, b, c)
        spectrum_real = self.outer_cos @ real - self.outer_sin @ imaginary  # (batch, frame, d, c): bin 16 d + c
        spectrum_imaginary = self.outer_cos @ imaginary + self.outer_sin @ real
        power = (spectrum_real.square() + spectrum_imaginary.square()).reshape(batch, num_frames, WINDOW_SAMPLES)
        mel = (self.filters @ power[:, :, : half + 1].transpose(1, 2)).transpose(1, 2)
        log_mel = mel.clamp(min=1e-10).log() / math.log(10)
        frame_mask = torch.arange(num_frames, device=mask.device) < (
            (mask.sum(1, keepdim=True) + HOP_SAMPLES - 1) // HOP_SAMPLES
        )
        loudest = torch.where(frame_mask[..., None], log_mel, -10.0).amax((1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, loudest - self.range_db / 10) + 4.0) / 4.0
        return torch.where(frame_mask[..., None], log_mel, 0.0), frame_mask


class WaveformModel(nn.Module):
    """Wraps a model with the signature of its ONNX graph: padded tensors and lengths in, a tuple of tensors out.

    Encoders of the Whisper family accept up to 30 s; all others accept any length.

    Args:
        model: Trained model.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz and lengths ``(batch,)`` in samples, if the model takes audio;
        token_ids ``(batch, token)`` and token_lengths ``(batch,)``, if it takes text
        -> the tensors named in ``output_names``, batch first
    """

    def __init__(self, model: EmotionModel) -> None:
        super().__init__()
        self.model = model
        self.frozen = nn.ModuleList(frozen_backbones(model))
        self.takes_audio = bool({"audio", "descriptors"} & set(model.modalities))
        self.takes_text = "text" in model.modalities
        self.input_names = [*(["waveform", "lengths"] if self.takes_audio else [])]
        self.input_names += ["token_ids", "token_lengths"] if self.takes_text else []
        self.output_names = ["probabilities", "logits"] if model.head is not None else []
        self.output_names += ["dimensions"] if model.dimension_head is not None else []
        self.output_names += ["embedding"]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        named = dict(zip(self.input_names, inputs, strict=True))
        audio = audio_mask = text = text_mask = None
        if self.takes_audio:
            audio = named["waveform"]
            audio_mask = torch.arange(audio.shape[1], device=audio.device) < named["lengths"][:, None]
        if self.takes_text:
            text = named["token_ids"]
            text_mask = torch.arange(text.shape[1], device=text.device) < named["token_lengths"][:, None]
        modalities = self.model.modalities
        output = self.model(
            audio if "audio" in modalities else None, audio_mask, text, text_mask,
            audio if "descriptors" in modalities else None, audio_mask,
        )  # fmt: skip
        outputs = [] if output.logits is None else [output.logits.softmax(-1), output.logits]
        outputs += [] if output.dimensions is None else [output.dimensions]
        return (*outputs, output.embedding)


def frozen_backbones(model: EmotionModel) -> list[nn.Module]:
    """Returns the pretrained modules that a model uses but does not count among its own parameters.

    Args:
        model: Model whose encoders may hold frozen backbones.
    """
    backbones: list[Any] = [getattr(module, "_backbone", None) for module in model.modules()]
    return [backbone.on(torch.device("cpu")) for backbone in backbones if backbone is not None]


def make_exportable(model: EmotionModel) -> EmotionModel:
    """Returns a copy that uses only operations of ONNX: no complex numbers and no fused attention kernels.

    Args:
        model: Trained model; not changed.
    """
    model = copy.deepcopy(model)
    for root in (model, *frozen_backbones(model)):
        for module in root.modules():
            config: Any = getattr(module, "config", None)
            if hasattr(config, "_attn_implementation"):
                config._attn_implementation = "eager"
            for name, child in list(module.named_children()):
                if isinstance(child, LogMel):
                    setattr(module, name, PlainLogMel(child))
    return model
