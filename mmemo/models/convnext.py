"""A small network on log-mel for phones and browsers: few parameters, and nothing that ONNX or int8 cannot do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo.models.cnn import LogMelEncoder


class ConvNeXtEncoder(LogMelEncoder):
    """Two strided convolutions on the log-mel image, then the blocks of ConvNeXt over time (Liu et al. 2022,
    <https://arxiv.org/abs/2201.03545>, figure 4), with ReLU, which int8 likes better.

    Args:
        stem_channels: Channels of the two convolutions, each of which halves frames and bands.
        hidden_dim: Channels of the convolutions over time.
        num_blocks: Residual blocks.
        kernel: Frames of a block's kernel, odd; a frame is 40 ms there.
        expansion: How many times wider a block is inside.
        num_mels: Mel bands between 0 and 8 kHz.
        dropout: Share of features dropped in training, in [0, 1).
        num_stripes: Stretches of time, and as many of bands, that training blanks in each utterance (SpecAugment, Park
            et al. 2019, <https://arxiv.org/abs/1904.08779>), each up to a fifth as long as the whole.

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, frame / 4, hidden_dim)``, mask
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
        if len(stem_channels) != 2 or num_mels % 4 or kernel % 2 == 0:
            raise ValueError(
                f"ConvNeXtEncoder(stem_channels={list(stem_channels)}, num_mels={num_mels}, kernel={kernel}), "
                "expected two channels, a multiple of 4, an odd number"
            )
        self.num_stripes = num_stripes
        first, second = stem_channels
        self.stem = nn.ModuleList([StridedConv(1, first), StridedConv(first, second)])
        self.join = nn.Linear(second * num_mels // 4, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.blocks = nn.ModuleList([TimeBlock(hidden_dim, kernel, expansion, dropout) for _ in range(num_blocks)])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image = self._striped(features, mask) if self.training and self.num_stripes else features
        for conv in self.stem:
            image, mask = conv(image, mask)
        frames = self.norm(self.join(rearrange(image, "batch channel time band -> batch time (channel band)")))
        frames = frames * mask[..., None]
        for block in self.blocks:
            frames = block(frames, mask)
        return frames[:, None], mask

    def _striped(self, image: Tensor, mask: Tensor) -> Tensor:
        batch, _, time, band = image.shape
        kept = mask.new_ones(batch, time, band)
        for _ in range(self.num_stripes):
            for axis, lengths in ((1, mask.sum(1)), (2, mask.new_full((batch,), band, dtype=torch.long))):
                longest = lengths / 5
                width = torch.rand(batch, device=image.device) * longest
                start = torch.rand(batch, device=image.device) * (lengths - width)
                place = torch.arange(image.shape[axis + 1], device=image.device)
                inside = (place >= start[:, None]) & (place < (start + width)[:, None])
                kept &= ~(inside[:, :, None] if axis == 1 else inside[:, None, :])
        mean = (image * mask[:, None, :, None]).sum((1, 2, 3)) / (mask.sum(1) * band).clamp(min=1)
        return torch.where(kept[:, None], image, mean[:, None, None, None]) * mask[:, None, :, None]


class StridedConv(nn.Module):
    """Convolution of 3 x 3 that halves frames and bands, and ReLU.

    Args:
        in_channels: Channels before.
        channels: Channels after.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time / 2, band / 2)`` with its mask, rounded up; padding is zero
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        mask = mask[:, ::2]  # a frame is real when the one in its middle is
        return nn.functional.relu(self.conv(image)) * mask[:, None, :, None], mask


class TimeBlock(nn.Module):
    """Each channel along time, normalised, wider and narrower again at each frame, and the way around it all.

    Args:
        dim: Channels.
        kernel: Frames of the kernel, odd.
        expansion: How many times wider it is inside.
        dropout: Share of what it adds that is dropped in training.

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
        inner = self.norm(self.along(frames.transpose(1, 2)).transpose(1, 2))
        inner = self.narrow(nn.functional.relu(self.widen(inner)))
        return frames + self.dropout(inner) * mask[..., None]
