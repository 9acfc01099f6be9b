"""Waveform -> log-mel spectrogram, computed as in Whisper but without padding to 30 s."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from mmemo.settings import SAMPLE_RATE

WINDOW_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms, so 100 frames a second
DYNAMIC_RANGE_DB = 80.0  # values further below the maximum are clipped


class LogMel(nn.Module):
    """Log-mel spectrogram of Whisper (Radford et al. 2022, <https://arxiv.org/abs/2212.04356>, section 2.2).

    Whisper pads every clip with zeros to 30 s, then clips the spectrogram 8 decades below its maximum. Here each clip
    keeps its own length and its own maximum, so neither padding nor batch mates change a frame.

    Args:
        num_mels: Number of mel bands between 0 and 8 kHz.
        range_db: Dynamic range in dB, above 0; values further below the clip's maximum are clipped.

    Raises:
        ValueError: ``range_db`` is not above 0.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> log_mel ``(batch, frame, num_mels)`` in about [-1, 1.5], mask ``(batch, frame)``; padding is zero

    Example:
        >>> waveform = torch.randn(1, 16_000)
        >>> log_mel, mask = LogMel(num_mels=80)(waveform, torch.ones(1, 16_000, dtype=torch.bool))
        >>> log_mel.shape
        torch.Size([1, 100, 80])
    """

    def __init__(self, num_mels: int = 80, range_db: float = DYNAMIC_RANGE_DB) -> None:
        super().__init__()
        if not range_db > 0:
            raise ValueError(f"range_db={range_db:g}, expected a dynamic range in dB above 0")
        self.range_db = range_db
        filters = mel_filter_bank(
            num_frequency_bins=WINDOW_SAMPLES // 2 + 1,
            num_mel_filters=num_mels,
            min_frequency=0.0,
            max_frequency=SAMPLE_RATE / 2,
            sampling_rate=SAMPLE_RATE,
            norm="slaney",
            mel_scale="slaney",
        )
        self.filters: Tensor
        self.window: Tensor
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32), persistent=False)
        self.register_buffer("window", torch.hann_window(WINDOW_SAMPLES), persistent=False)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        half = WINDOW_SAMPLES // 2
        num_frames = -(-waveform.shape[1] // HOP_SAMPLES)
        waveform = torch.where(mask, waveform, 0.0)
        num_padding = max(num_frames * HOP_SAMPLES - waveform.shape[1], 0) + WINDOW_SAMPLES
        waveform = nn.functional.pad(waveform, (0, num_padding))
        reflection = waveform[:, 1 : half + 1].flip(1)  # Whisper's centred windows start before time 0
        samples = torch.cat([reflection, waveform], dim=1)[:, : (num_frames - 1) * HOP_SAMPLES + WINDOW_SAMPLES]
        spectrum = torch.stft(
            samples, WINDOW_SAMPLES, HOP_SAMPLES, window=self.window, center=False, return_complex=True
        )
        power = rearrange(spectrum.abs().square(), "batch bin frame -> batch frame bin")
        log_mel = (power @ self.filters).clamp(min=1e-10).log10()

        num_real_frames = -(-mask.sum(1) // HOP_SAMPLES)  # (batch,)
        frame_mask = torch.arange(num_frames, device=mask.device) < num_real_frames[:, None]
        maximum = log_mel.masked_fill(~frame_mask[..., None], -10.0).amax((1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, maximum - self.range_db / 10) + 4.0) / 4.0
        return torch.where(frame_mask[..., None], log_mel, 0.0), frame_mask
