"""A small encoder on log-mel for phones and browsers: few parameters, only operations that ONNX and int8 support."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo.models.cnn import LogMelEncoder


class ConvNeXtEncoder(LogMelEncoder):
    """Two strided convolutions on the log-mel image, then ConvNeXt blocks over time.

    The blocks follow Liu et al. 2022, figure 4, <https://arxiv.org/abs/2201.03545>. They use ReLU instead of GELU,
    since ReLU quantises better to int8.

    Args:
        stem_channels: Channels of the two convolutions, each of which halves frames and bands.
        hidden_dim: Channels of the blocks.
        num_blocks: Number of residual blocks.
        kernel: Kernel size of a block in frames of 40 ms, odd.
        expansion: Ratio of a block's hidden size to ``hidden_dim``.
        num_mels: Number of mel bands between 0 and 8 kHz, a multiple of 4.
        dropout: Dropout probability, in [0, 1).
        num_stripes: Number of time intervals, and of frequency intervals, to mask in each training utterance
            (SpecAugment, Park et al. 2019, <https://arxiv.org/abs/1904.08779>). Each covers up to a fifth of its axis.

    Raises:
        ValueError: ``stem_channels``, ``num_mels`` or ``kernel`` does not fit the network.

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, frame / 4, hidden_dim)``, mask;
        frame / 4 is rounded up

    Example:
        >>> encoder = ConvNeXtEncoder(hidden_dim=32, num_blocks=2)
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features, mask = encoder(log_mel, mask)
        >>> features.shape
        torch.Size([1, 1, 25, 32])
    """

    def __init__(
        self,
        stem_channels: Sequence[int] = (16, 32),
        hidden_dim: int = 128,
        num_blocks: int = 4,
        kernel: int = 9,
        expansion: int = 2,
        num_mels: int = 64,
        dropout: float = 0.1,
        num_stripes: int = 2,
    ) -> None:
        super().__init__(hidden_dim, num_mels)
        self.arguments = {
            "stem_channels": list(stem_channels), "hidden_dim": hidden_dim, "num_blocks": num_blocks, "kernel": kernel,
            "expansion": expansion, "num_mels": num_mels, "dropout": dropout, "num_stripes": num_stripes,
        }  # fmt: skip
        if len(stem_channels) != 2 or num_mels % 4 or kernel % 2 == 0:
            raise ValueError(
                f"ConvNeXtEncoder(stem_channels={list(stem_channels)}, num_mels={num_mels}, kernel={kernel}), "
                "expected two stem_channels, num_mels a multiple of 4, and an odd kernel"
            )
        self.num_stripes = num_stripes
        first, second = stem_channels
        self.stem = nn.ModuleList([StridedConv(1, first), StridedConv(first, second)])
        self.join = nn.Linear(second * num_mels // 4, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.blocks = nn.ModuleList([TimeBlock(hidden_dim, kernel, expansion, dropout) for _ in range(num_blocks)])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = self._mask_stripes(features, mask) if self.training and self.num_stripes else features
        for conv in self.stem:
            image, mask = conv(image, mask)
        frames = self.norm(self.join(rearrange(image, "batch channel time band -> batch time (channel band)")))
        frames = frames * mask[..., None]
        for block in self.blocks:
            frames = block(frames, mask)
        return frames[:, None], mask

    def _mask_stripes(self, image: Tensor, mask: Tensor) -> Tensor:
        """Replaces random intervals of time and of frequency by the utterance's mean."""
        batch, _, time, band = image.shape
        kept = mask.new_ones(batch, time, band)
        for _ in range(self.num_stripes):
            for axis, lengths in ((1, mask.sum(1)), (2, mask.new_full((batch,), band, dtype=torch.long))):
                max_width = lengths / 5
                width = torch.rand(batch, device=image.device) * max_width
                start = torch.rand(batch, device=image.device) * (lengths - width)
                index = torch.arange(image.shape[axis + 1], device=image.device)
                inside = (index >= start[:, None]) & (index < (start + width)[:, None])
                kept &= ~(inside[:, :, None] if axis == 1 else inside[:, None, :])
        mean = (image * mask[:, None, :, None]).sum((1, 2, 3)) / (mask.sum(1) * band).clamp(min=1)
        return torch.where(kept[:, None], image, mean[:, None, None, None]) * mask[:, None, :, None]


class StridedConv(nn.Module):
    """3 x 3 convolution that halves frames and bands, then ReLU.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time / 2, band / 2)`` with its mask, sizes rounded up; padding is zero
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask[:, ::2]  # an output frame is real if the input frame at its centre is
        return nn.functional.relu(self.conv(image)) * mask[:, None, :, None], mask


class TimeBlock(nn.Module):
    """ConvNeXt block over time: depthwise convolution, layer norm and a two-layer network, with a skip connection.

    Args:
        dim: Number of channels.
        kernel: Kernel size in frames, odd.
        expansion: Ratio of the hidden size to ``dim``.
        dropout: Dropout probability of the residual, in [0, 1).

    Shape:
        frames ``(batch, time, dim)`` with padding at zero, mask ``(batch, time)`` bool -> the same
    """

    def __init__(self, dim: int, kernel: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.along = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.widen = nn.Linear(dim, dim * expansion)
        self.narrow = nn.Linear(dim * expansion, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        residual = self.norm(self.along(frames.transpose(1, 2)).transpose(1, 2))
        residual = self.narrow(nn.functional.relu(self.widen(residual)))
        output: Tensor = frames + self.dropout(residual) * mask[..., None]
        return output
