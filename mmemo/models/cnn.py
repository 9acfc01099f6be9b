"""Convolutional networks that treat the log-mel spectrogram as an image, trained from scratch.

``precompute`` computes the spectrogram, which may be cached; ``forward`` is the network. Padding is reset to zero after
every convolution, and batch norm uses real frames only. In eval mode, neither padding nor batch mates change a feature;
in training, neither padding nor missing audio changes the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mmemo.models.log_mel import LogMel
from mmemo.models.pooling import MaskedBatchNorm

SPECTROGRAM_VERSION = 1
"""Part of every fingerprint; increment it when the values that ``precompute`` returns change."""


class LogMelEncoder(nn.Module):
    """Base class of the encoders that take the log-mel spectrogram; it implements ``precompute``.

    Args:
        dim: Size of the features that ``forward`` returns.
        num_mels: Number of mel bands between 0 and 8 kHz.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> log_mel ``(batch, 1, frame, num_mels)`` at 100 frames a second, mask ``(batch, frame)``
    """

    caches = True
    num_layers = 1
    differentiable = True

    def __init__(self, dim: int, num_mels: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_mels = num_mels
        self.log_mel = LogMel(num_mels)

    def fingerprint(self) -> str:
        """Returns a string of everything that the result of ``precompute`` depends on."""
        return f"log-mel-{SPECTROGRAM_VERSION}:{self.num_mels}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the log-mel spectrogram."""
        log_mel, frame_mask = self.log_mel(waveform, mask)
        return rearrange(log_mel, "batch frame mel -> batch 1 frame mel"), frame_mask


class MaskedStages(nn.Module):
    """Convolutional stages, each followed by max pooling over 2 frames and 2 bands, with padding kept at zero.

    Args:
        stages: Modules that take an image ``(batch, channel, time, band)`` and its mask, and return a non-negative
            image of the same time and band size, with padding at zero.

    Shape:
        image ``(batch, channel, time, band)``, mask ``(batch, time)`` bool
        -> image ``(batch, channel, time / 2^stages, band / 2^stages)`` with its mask, sizes rounded up
    """

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        multiple = 2 ** len(self.stages)
        image = nn.functional.pad(image, (0, -image.shape[3] % multiple, 0, -image.shape[2] % multiple))
        mask = nn.functional.pad(mask, (0, -mask.shape[1] % multiple))
        for stage in self.stages:
            image = nn.functional.max_pool2d(stage(image, mask), 2)
            mask = mask[:, ::2]  # a pooled frame is real if its first frame is
        return image, mask


class MaskedConv(nn.Module):
    """Convolution, batch norm and ReLU, with padding reset to zero.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels.
        kernel: Kernel size in frames and bands, odd.
        relu: Whether to apply the ReLU.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool -> ``(batch, channels, time, band)``
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = MaskedBatchNorm(channels, affine=True)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        features: Tensor = self.activation(self.norm(self.conv(image), mask[:, :, None]))
        return features


class MaskedSequential(nn.Module):
    """Applies modules in order, all with the same mask.

    Args:
        parts: Modules that take an image and its mask, and return an image.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool -> ``(batch, channels, time, band)``
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        for part in self.parts:
            image = part(image, mask)
        return image


class VGGEncoder(LogMelEncoder):
    """Stacked 3 x 3 convolutions (Simonyan and Zisserman 2014, <https://arxiv.org/abs/1409.1556>) on log-mel.

    Args:
        channels: Channels of each stage: two convolutions, then pooling over 2 frames and 2 bands.
        num_mels: Number of mel bands between 0 and 8 kHz.
        dropout: Dropout probability, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask;
        time = frame / 2^stages, rounded up

    Example:
        >>> encoder = VGGEncoder(channels=[8, 16, 32])
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features, mask = encoder(log_mel, mask)
        >>> features.shape
        torch.Size([1, 1, 13, 32])
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256), num_mels: int = 64, dropout: float = 0.2) -> None:
        super().__init__(channels[-1], num_mels)
        self.arguments = {"channels": list(channels), "num_mels": num_mels, "dropout": dropout}
        pairs = zip([1, *channels[:-1]], channels, strict=True)  # (input, output)
        self.network = MaskedStages([self._stage(*pair) for pair in pairs])
        self.dropout = nn.Dropout(dropout)

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return MaskedSequential(MaskedConv(in_channels, channels), MaskedConv(channels, channels))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = self.network(features, mask)
        frames = reduce(image, "batch channel time band -> batch 1 time channel", "mean")
        return self.dropout(frames) * mask[:, None, :, None], mask


class ResNetEncoder(VGGEncoder):
    """Residual blocks (He et al. 2016, <https://arxiv.org/abs/1512.03385>) on log-mel.

    Args:
        channels: Channels of each stage: two residual blocks, then pooling over 2 frames and 2 bands.
        num_mels: Number of mel bands between 0 and 8 kHz.
        dropout: Dropout probability, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask;
        time = frame / 2^stages, rounded up

    Example:
        >>> encoder = ResNetEncoder(channels=[8, 16, 32])
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features, mask = encoder(log_mel, mask)
        >>> features.shape
        torch.Size([1, 1, 13, 32])
    """

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return MaskedSequential(ResidualBlock(in_channels, channels), ResidualBlock(channels, channels))


class ResidualBlock(nn.Module):
    """Two convolutions with a skip connection.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time, band)``, non-negative
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.residual = MaskedSequential(MaskedConv(in_channels, channels), MaskedConv(channels, channels, relu=False))
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.relu(self.skip(image) + self.residual(image, mask))


class InceptionEncoder(VGGEncoder):
    """Inception blocks (Szegedy et al. 2015, section 4, <https://arxiv.org/abs/1409.4842>) on log-mel.

    Args:
        channels: Channels of each stage, multiples of 4: one inception block, then pooling over 2 frames and 2 bands.
        num_mels: Number of mel bands between 0 and 8 kHz.
        dropout: Dropout probability, in [0, 1).

    Raises:
        ValueError: A number of channels is not a multiple of 4.

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask;
        time = frame / 2^stages, rounded up

    Example:
        >>> encoder = InceptionEncoder(channels=[8, 16, 32])
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features, mask = encoder(log_mel, mask)
        >>> features.shape
        torch.Size([1, 1, 13, 32])
    """

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return InceptionBlock(in_channels, channels)


class InceptionBlock(nn.Module):
    """Parallel 1 x 1, 3 x 3 and 5 x 5 convolutions and average pooling, each with a quarter of the channels.

    Args:
        in_channels: Number of input channels.
        channels: Number of output channels, a multiple of 4.

    Raises:
        ValueError: ``channels`` is not a multiple of 4.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time, band)``, non-negative
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"InceptionEncoder(channels=[..., {channels}, ...]), expected multiples of 4")
        quarter = channels // 4
        self.branches = nn.ModuleList(
            [
                MaskedConv(in_channels, quarter, 1),
                MaskedSequential(MaskedConv(in_channels, quarter, 1), MaskedConv(quarter, quarter, 3)),
                MaskedSequential(MaskedConv(in_channels, quarter, 1), MaskedConv(quarter, quarter, 5)),
            ]
        )
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.pooled_branch = MaskedConv(in_channels, quarter, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        pooled = self.pooled_branch(self.pool(image), mask)
        return torch.cat([*(branch(image, mask) for branch in self.branches), pooled], dim=1)


class ConvRecurrentEncoder(LogMelEncoder):
    """Convolutions on log-mel, then a bidirectional recurrent network over time.

    With attention pooling in the fusion, this is the deep convolutional-recurrent network of Huang and Narayanan 2017,
    <https://arxiv.org/abs/1706.02901>.

    Args:
        channels: Channels of each stage: one convolution, then pooling over 2 frames and 2 bands.
        hidden_dim: State size of the recurrent network in each direction.
        num_recurrent: Number of recurrent layers, at least 1.
        cell: ``lstm`` or ``gru``. A GRU has a quarter fewer weights, but PyTorch cannot export it to ONNX.
        num_mels: Number of mel bands between 0 and 8 kHz.
        dropout: Dropout probability, in [0, 1).

    Raises:
        ValueError: ``cell`` is unknown, or there is no recurrent layer.

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, 2 * hidden_dim)``, mask;
        time = frame / 2^stages, rounded up

    Example:
        >>> encoder = ConvRecurrentEncoder(channels=[8, 16], hidden_dim=12)
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 16_000), torch.ones(1, 16_000, dtype=torch.bool))
        >>> features, mask = encoder(log_mel, mask)
        >>> features.shape
        torch.Size([1, 1, 25, 24])
    """

    CELLS: ClassVar[dict[str, type[nn.GRU | nn.LSTM]]] = {"gru": nn.GRU, "lstm": nn.LSTM}

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 64),
        hidden_dim: int = 128,
        num_recurrent: int = 1,
        cell: str = "lstm",
        num_mels: int = 64,
        dropout: float = 0.2,
    ) -> None:
        super().__init__(2 * hidden_dim, num_mels)
        self.arguments = {
            "channels": list(channels), "hidden_dim": hidden_dim, "num_recurrent": num_recurrent, "cell": cell,
            "num_mels": num_mels, "dropout": dropout,
        }  # fmt: skip
        if num_recurrent < 1:
            raise ValueError(f"ConvRecurrentEncoder(num_recurrent={num_recurrent}), expected 1 or more")
        if cell not in self.CELLS:
            raise ValueError(f"ConvRecurrentEncoder(cell={cell!r}), expected one of {', '.join(self.CELLS)}")
        pairs = zip([1, *channels[:-1]], channels, strict=True)  # (input, output)
        self.network = MaskedStages([MaskedConv(*pair) for pair in pairs])
        bands = math.ceil(num_mels / 2 ** len(channels))
        self.dropout = nn.Dropout(dropout)
        dims = [bands * channels[-1], *[2 * hidden_dim] * (num_recurrent - 1)]
        self.recurrent = nn.ModuleList([BidirectionalRNN(self.CELLS[cell], dim, hidden_dim) for dim in dims])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = self.network(features, mask)
        frames = self.dropout(rearrange(image, "batch channel time band -> batch time (channel band)"))
        for layer in self.recurrent:
            frames = layer(frames, mask)
        return self.dropout(frames)[:, None], mask


class BidirectionalRNN(nn.Module):
    """A bidirectional recurrent layer that skips padding.

    Follows Schuster and Paliwal 1997, <https://doi.org/10.1109/78.650093>. The backward pass runs over reversed
    sequences instead of packed ones, which cannot be exported to ONNX.

    Args:
        cell: ``nn.GRU`` or ``nn.LSTM``.
        dim: Size of the frames.
        hidden_dim: State size in each direction.

    Shape:
        frames ``(batch, time, dim)``, mask ``(batch, time)`` bool, real frames first
        -> ``(batch, time, 2 * hidden_dim)`` with padding at zero
    """

    def __init__(self, cell: type[nn.GRU | nn.LSTM], dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.onward = cell(dim, hidden_dim, batch_first=True)
        self.back = cell(dim, hidden_dim, batch_first=True)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        index = mask.cumsum(1) - 1
        reversed_index = torch.where(mask, mask.sum(1, keepdim=True) - 1 - index, 0)[..., None]  # its own inverse
        forward_states = self.onward(frames)[0]
        backward_states = self.back(_reorder(frames, reversed_index))[0]
        return torch.cat([forward_states, _reorder(backward_states, reversed_index)], dim=-1) * mask[..., None]


def _reorder(frames: Tensor, index: Tensor) -> Tensor:
    """Frames ``(batch, time, dim)`` in the order of ``index`` ``(batch, time, 1)``."""
    return frames.gather(1, index.expand(-1, -1, frames.shape[2]))
