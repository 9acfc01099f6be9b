"""Waveform -> hidden states of wav2vec 2.0, HuBERT, WavLM, data2vec and the Audio Spectrogram Transformer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmemo import pretrained
from mmemo.models.pretrained_encoder import PretrainedEncoder, load_partial, shifted
from mmemo.settings import SAMPLE_RATE

AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974  # of AST's log-mel values, as published
AST_WINDOW_SAMPLES = 400  # 25 ms, the shortest input that has a frame


class HuggingFaceAudioEncoder(PretrainedEncoder):
    """wav2vec 2.0, HuBERT, WavLM or data2vec from a local folder or the hub.

    See Baevski et al. 2020, <https://arxiv.org/abs/2006.11477>, Hsu et al. 2021, <https://arxiv.org/abs/2106.07447>,
    Chen et al. 2021, <https://arxiv.org/abs/2110.13900>, and Baevski et al. 2022, <https://arxiv.org/abs/2202.03555>.

    The encoder is frozen unless a fine-tuning strategy trains some of its blocks. The convolutions below the first
    block always stay frozen, as in the papers. Up to the line, utterances run one by one: the group norm of the base
    models spans the whole clip, so padding would change their features.

    Args:
        model_id: Local folder or Hugging Face id.
        layers: Hidden states to return, 0 (before the first block) to the number of blocks. Defaults to all.

    Raises:
        ValueError: The model belongs to another family.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at about 50 frames per second, mask ``(batch, time)``

    Example:
        >>> import tempfile
        >>> from transformers import Wav2Vec2Config, Wav2Vec2Model
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        >>> with tempfile.TemporaryDirectory() as folder:  # or a folder with published weights
        ...     Wav2Vec2Model(Wav2Vec2Config(**sizes)).save_pretrained(folder)
        ...     encoder = HuggingFaceAudioEncoder(folder, layers=[0, 2])
        ...     features, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features.shape
        torch.Size([1, 2, 49, 16])
    """

    kind = "huggingface-audio"
    lowest_block = 1

    def __init__(self, model_id: str, layers: list[int] | None = None) -> None:
        config = pretrained.load_config(model_id)
        if "conv_stride" not in config:
            raise ValueError(
                f"{model_id} is a {config['model_type']} model, expected wav2vec2, hubert, wavlm or "
                "data2vec-audio; use WhisperAudioEncoder or ASTAudioEncoder"
            )
        super().__init__(model_id, config["num_hidden_layers"], layers, config["hidden_size"])
        self.normalise = bool(_preprocessor(model_id).get("do_normalize", True))
        self.min_samples = _receptive_field(config["conv_kernel"], config["conv_stride"])
        if config["model_type"] == "wavlm":  # its attention reads the projections' weights directly
            self.replaceable = ("intermediate_dense", "output_dense")

    def options(self) -> str:
        return f"{self.kept_states}:{self.normalise}"

    def load_blocks(self, first: int, last: int) -> nn.Module:
        model = cast(Any, pretrained.load_encoder(self.model_id))
        return self._frozen(model, last) if first == 0 else self._trainable(model.encoder, first, last)

    def _frozen(self, model: Any, last: int) -> nn.Module:
        if last < self.num_blocks:
            del model.encoder.layers[max(last, 1) :]
            if getattr(model.config, "do_stable_layer_norm", False):
                model.encoder.layer_norm = nn.Identity()  # it belongs after the very last block, which was cut off
        return cast(nn.Module, model)

    def _trainable(self, encoder: Any, first: int, last: int) -> nn.Module:
        position_bias = getattr(encoder.layers[0].attention, "rel_attn_embed", None)  # WavLM keeps it in block 1
        del encoder.layers[last:]
        del encoder.layers[: first - 1]
        if position_bias is not None and first > 1:
            encoder.layers[0].attention.rel_attn_embed = position_bias.requires_grad_(False)
        encoder.pos_conv_embed = _NoPositions()  # hidden state 0 already includes the positions
        is_stable = bool(getattr(encoder.config, "do_stable_layer_norm", False))
        if not is_stable or last < self.num_blocks:
            encoder.layer_norm = nn.Identity()
        encoder.config.layerdrop = 0.0  # a dropped block would omit a hidden state
        return cast(nn.Module, encoder)

    def blocks_of(self, module: nn.Module) -> dict[int, nn.Module]:
        encoder = cast(Any, module)
        blocks: dict[int, nn.Module] = dict(enumerate(encoder.layers, self.frozen_below))
        blocks[self.layers[-1]] = nn.ModuleList([blocks[self.layers[-1]], encoder.layer_norm])
        return blocks

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        state = {
            shifted(name, "layers.", self.frozen_below - 1): tensor
            for name, tensor in trained.items()
            if self.frozen_below == 1 or "rel_attn_embed" not in name  # WavLM's positions belong to block 1
        }
        return load_partial(pretrained.load_encoder(self.model_id), state, "encoder.")

    def run(
        self, module: nn.Module, inputs: Tensor, mask: Tensor, first: int, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        if first == 0:
            return self._run_one_by_one(module, inputs, mask, states)
        computed = dict(enumerate(_hidden_states(module, inputs, mask), first - 1))
        chosen = torch.stack([computed[state].float() for state in states], dim=1)
        return chosen * mask[:, None, :, None], mask

    def _run_one_by_one(
        self, model: Any, waveform: Tensor, mask: Tensor, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        features = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            if length == 0:
                features.append(waveform.new_zeros(0, len(states), self.dim))
                continue
            samples = samples[:length]
            if self.normalise:
                samples = (samples - samples.mean()) / (samples.var(unbiased=False) + 1e-7).sqrt()
            samples = nn.functional.pad(samples, (0, max(self.min_samples - length, 0)))
            computed = model(samples[None], output_hidden_states=True).hidden_states
            chosen = torch.stack([computed[state][0] for state in states])
            features.append(rearrange(chosen, "layer time dim -> time layer dim"))
        return pad_features(features)


def _hidden_states(encoder: Any, hidden: Tensor, mask: Tensor) -> list[Tensor]:
    """Returns the input and the output of every block; the last one with the norm that follows it."""
    states = [hidden]

    def keep(block: nn.Module, inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    attended = mask.clone()
    attended[:, 0] |= ~mask.any(1)  # an utterance without audio attends to one zero frame, or attention would be NaN
    handles = [block.register_forward_hook(keep) for block in encoder.layers]
    try:
        last = encoder(hidden.clone(), attention_mask=attended).last_hidden_state
    finally:
        for handle in handles:
            handle.remove()
    return [*states[:-1], last]


class _NoPositions(nn.Module):
    """Replaces a positional embedding by zeros."""

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.zeros_like(hidden)


class ASTAudioEncoder(PretrainedEncoder):
    """Audio Spectrogram Transformer (Gong et al. 2021, <https://arxiv.org/abs/2104.01778>).

    AST was trained on a fixed number of frames (1024, 10.24 s) and attends to padding too. Each clip is therefore
    padded to that length, whatever its batch mates are; longer clips are encoded in windows. The patches of one time
    step are averaged over frequency. The encoder is frozen unless a fine-tuning strategy trains some of its blocks; it
    then runs whole in every step, since its patches are too many to cache.

    Args:
        model_id: Local folder or Hugging Face id.
        layers: Hidden states to return, 0 (patch embeddings) to the number of blocks. Defaults to all.

    Raises:
        ValueError: The model is not an AST.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at about 10 frames per second, mask ``(batch, time)``

    Example:
        >>> import tempfile
        >>> from transformers import ASTConfig, ASTModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        >>> with tempfile.TemporaryDirectory() as folder:  # or a folder with published weights
        ...     ASTModel(ASTConfig(**sizes, max_length=128)).save_pretrained(folder)
        ...     encoder = ASTAudioEncoder(folder, layers=[2])
        ...     features, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features.shape  # the padding to 1.28 s is cut off again
        torch.Size([1, 1, 10, 16])
    """

    kind = "ast"
    splits = False
    differentiable = False  # its spectrogram is computed by NumPy

    def __init__(self, model_id: str, layers: list[int] | None = None) -> None:
        config = pretrained.load_config(model_id)
        if config["model_type"] != "audio-spectrogram-transformer":
            raise ValueError(f"{model_id} is a {config['model_type']} model, expected an AST")
        super().__init__(model_id, config["num_hidden_layers"], layers, config["hidden_size"])
        self.window_frames: int = config["max_length"]
        self.time_stride: int = config["time_stride"]
        self.num_mels: int = config["num_mel_bins"]
        self.patches_per_step: int = (config["num_mel_bins"] - config["patch_size"]) // config["frequency_stride"] + 1

    def options(self) -> str:
        return str(self.layers)

    def load_blocks(self, first: int, last: int) -> nn.Module:
        model = cast(Any, pretrained.load_encoder(self.model_id))
        last = self.layers[-1]
        if last < self.num_blocks:
            del _ast_blocks(model)[max(last, 1) :]
        model.layernorm.requires_grad_(False)  # it follows the last hidden state, so nothing uses it
        return cast(nn.Module, model)

    def blocks_of(self, module: nn.Module) -> dict[int, nn.Module]:
        return dict(enumerate(_ast_blocks(module), 1))

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        return load_partial(pretrained.load_encoder(self.model_id), trained, "")

    def pack(self, inputs: Tensor) -> Tensor:
        return rearrange(inputs, "batch samples -> batch 1 samples 1")

    def unpack(self, features: Tensor) -> Tensor:
        return features[:, 0, :, 0]

    def run(
        self, module: nn.Module, inputs: Tensor, mask: Tensor, first: int, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        from transformers import ASTFeatureExtractor

        settings = cast("dict[str, Any]", _preprocessor(self.model_id))
        extractor = ASTFeatureExtractor(
            num_mel_bins=self.num_mels,
            max_length=self.window_frames,
            mean=settings.get("mean", AUDIOSET_MEAN),
            std=settings.get("std", AUDIOSET_STD),
        )
        window = self.window_frames * SAMPLE_RATE // 100  # samples; AST's frames are 10 ms apart
        features = []
        for samples, length in zip(inputs, mask.sum(1).tolist(), strict=True):
            steps = [inputs.new_zeros(0, len(states), self.dim)]
            for part in samples[:length].split(window) if length else ():
                part = nn.functional.pad(part, (0, max(AST_WINDOW_SAMPLES - len(part), 0)))
                array = part.detach().cpu().numpy().astype(np.float32)
                spectrogram = extractor(array, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values
                computed = module(spectrogram.to(inputs), output_hidden_states=True).hidden_states
                chosen = torch.stack([computed[state][0, 2:] for state in states])  # without the two class tokens
                step = chosen.unflatten(1, (self.patches_per_step, -1)).mean(1)  # (layer, time, dim)
                num_steps = -(-len(part) // (SAMPLE_RATE // 100 * self.time_stride))
                steps.append(rearrange(step, "layer time dim -> time layer dim")[:num_steps])
            features.append(torch.cat(steps))
        return pad_features(features)


def _ast_blocks(model: Any) -> nn.ModuleList:
    layers: nn.ModuleList = getattr(model, "layers", None) or model.encoder.layer
    return layers


def _preprocessor(model_id: str) -> dict[str, object]:
    path = pretrained.resolve(model_id) / "preprocessor_config.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _receptive_field(kernels: Sequence[int], strides: Sequence[int]) -> int:
    field, jump = 1, 1
    for kernel, stride in zip(kernels, strides, strict=True):
        field += (kernel - 1) * jump
        jump *= stride
    return field


def pad_features(features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads features to a batch that is at least one frame long.

    Shape:
        list of ``(time, layer, dim)`` -> ``(batch, layer, time, dim)``, mask ``(batch, time)`` bool
    """
    lengths = torch.tensor([len(item) for item in features], device=features[0].device)
    padded = nn.utils.rnn.pad_sequence(list(features), batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros(len(features), 1, *padded.shape[2:])
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return rearrange(padded, "batch time layer dim -> batch layer time dim"), mask
