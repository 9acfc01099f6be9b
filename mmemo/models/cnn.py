"""Convolutional networks on the log-mel spectrogram taken as an image, trained from scratch or from VGGish's weights.

``precompute`` is the spectrogram, which may be cached; ``forward`` is the network. Padding is put back to zero after
every convolution, and batch norm counts real frames alone, so that in eval mode neither padding nor batch mates change
a feature, and in training no padding and no missing audio has a say in the statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from mmemo import pretrained
from mmemo.models.backbone import FrozenBackbone
from mmemo.models.log_mel import LogMel
from mmemo.models.pooling import MaskedBatchNorm
from mmemo.settings import SAMPLE_RATE

SPECTROGRAM_VERSION = 1
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""


class LogMelEncoder(nn.Module):
    """The half that all encoders on the log-mel spectrogram share: waveform -> frames of mel bands.

    Args:
        dim: Size of the features that ``forward`` gives.
        num_mels: Mel bands between 0 and 8 kHz.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> log_mel ``(batch, 1, frame, num_mels)`` at 100 frames a second, mask ``(batch, frame)``
    """

    caches = True
    num_layers = 1

    def __init__(self, dim: int, num_mels: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_mels = num_mels
        self.log_mel = LogMel(num_mels)

    def fingerprint(self) -> str:
        """All that ``precompute`` depends on."""
        return f"log-mel-{SPECTROGRAM_VERSION}:{self.num_mels}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel spectrogram of waveforms."""
        log_mel, frame_mask = self.log_mel(waveform, mask)
        return rearrange(log_mel, "batch frame mel -> batch 1 frame mel"), frame_mask


class MaskedStages(nn.Module):
    """Stages of convolutions, each followed by pooling over 2 frames and 2 bands, with padding kept at zero.

    Args:
        stages: From image ``(batch, channel, time, band)`` and mask to an image of the same size with other channels,
            never below 0, with padding at zero.

    Shape:
        image ``(batch, channel, time, band)``, mask ``(batch, time)`` bool
        -> image ``(batch, channel, time / 2^stages, band / 2^stages)`` with its mask, both rounded up
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
            mask = mask[:, ::2]  # a pooled frame is real when its first frame is
        return image, mask


class MaskedConv(nn.Module):
    """Convolution, batch norm and ReLU, with padding put back to zero.

    Args:
        in_channels: Channels before.
        channels: Channels after.
        kernel: Frames and bands of the kernel, odd.
        relu: Whether negative values become zero.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool -> ``(batch, channels, time, band)``
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = MaskedBatchNorm(channels, affine=True)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return self.activation(self.norm(self.conv(image), mask[:, :, None]))


class InTurn(nn.Module):
    """Modules of image and mask, one after the other.

    Args:
        parts: The modules.
    """

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        for part in self.parts:
            image = part(image, mask)
        return image


class VGGEncoder(LogMelEncoder):
    """Stacks of 3 x 3 convolutions (Simonyan and Zisserman 2014, <https://arxiv.org/abs/1409.1556>) on log-mel.

    Args:
        channels: Channels of each stage; a stage is two convolutions and a pooling over 2 frames and 2 bands.
        num_mels: Mel bands between 0 and 8 kHz.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask; the time
        axis is ``2^stages`` times coarser
    """

    def __init__(self, channels: Sequence[int] = (32, 64, 128, 256), num_mels: int = 64, dropout: float = 0.2) -> None:
        super().__init__(channels[-1], num_mels)
        sizes = zip([1, *channels[:-1]], channels, strict=True)
        self.network = MaskedStages([self._stage(before, after) for before, after in sizes])
        self.dropout = nn.Dropout(dropout)

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return InTurn(MaskedConv(in_channels, channels), MaskedConv(channels, channels))

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = self.network(features, mask)
        frames = reduce(image, "batch channel time band -> batch 1 time channel", "mean")
        return self.dropout(frames) * mask[:, None, :, None], mask


class ResNetEncoder(VGGEncoder):
    """Residual blocks (He et al. 2016, <https://arxiv.org/abs/1512.03385>) on log-mel.

    Args:
        channels: Channels of each stage; a stage is two residual blocks and a pooling over 2 frames and 2 bands.
        num_mels: Mel bands between 0 and 8 kHz.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask
    """

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return InTurn(ResidualBlock(in_channels, channels), ResidualBlock(channels, channels))


class ResidualBlock(nn.Module):
    """Two convolutions and the way around them.

    Args:
        in_channels: Channels before.
        channels: Channels after.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time, band)``, never below 0
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.residual = InTurn(MaskedConv(in_channels, channels), MaskedConv(channels, channels, relu=False))
        same = in_channels == channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, channels, 1, bias=False)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        return nn.functional.relu(self.skip(image) + self.residual(image, mask))


class InceptionEncoder(VGGEncoder):
    """Convolutions of several sizes side by side (Szegedy et al. 2015, section 4, <https://arxiv.org/abs/1409.4842>) on
    log-mel.

    Args:
        channels: Channels of each stage, multiples of 4; a stage is one inception block and a pooling over 2 frames
            and 2 bands.
        num_mels: Mel bands between 0 and 8 kHz.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, channels[-1])``, mask
    """

    def _stage(self, in_channels: int, channels: int) -> nn.Module:
        return InceptionBlock(in_channels, channels)


class InceptionBlock(nn.Module):
    """1 x 1, 3 x 3 and 5 x 5 convolutions and a pooling, a quarter of the channels each.

    Args:
        in_channels: Channels before.
        channels: Channels after, a multiple of 4.

    Shape:
        image ``(batch, in_channels, time, band)``, mask ``(batch, time)`` bool
        -> ``(batch, channels, time, band)``, never below 0
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 4:
            raise ValueError(f"InceptionEncoder(channels=[..., {channels}, ...]), expected multiples of 4")
        quarter = channels // 4
        self.branches = nn.ModuleList(
            [
                MaskedConv(in_channels, quarter, 1),
                InTurn(MaskedConv(in_channels, quarter, 1), MaskedConv(quarter, quarter, 3)),
                InTurn(MaskedConv(in_channels, quarter, 1), MaskedConv(quarter, quarter, 5)),
            ]
        )
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.pooled_branch = MaskedConv(in_channels, quarter, 1)

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        pooled = self.pooled_branch(self.pool(image), mask)
        return torch.cat([*(branch(image, mask) for branch in self.branches), pooled], dim=1)


class ConvRecurrentEncoder(LogMelEncoder):
    """Convolutions on log-mel, then a recurrent network in both directions over time; the fusion's attention pooling
    makes it the deep convolutional-recurrent network of Huang and Narayanan 2017, <https://arxiv.org/abs/1706.02901>.

    Args:
        channels: Channels of each convolutional stage, which pools over 2 frames and 2 bands.
        hidden_dim: State size of the recurrent network in each direction.
        num_recurrent: Recurrent layers, at least 1.
        cell: ``lstm``, or ``gru``, which has a quarter fewer weights, and which PyTorch cannot write as ONNX.
        num_mels: Mel bands between 0 and 8 kHz.
        dropout: Share of features dropped in training, in [0, 1).

    Shape:
        log_mel ``(batch, 1, frame, num_mels)``, mask -> features ``(batch, 1, time, 2 * hidden_dim)``, mask; the time
        axis is ``2^stages`` times coarser
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
        if cell not in self.CELLS:
            raise ValueError(f"ConvRecurrentEncoder(cell={cell!r}), expected one of {', '.join(self.CELLS)}")
        sizes = zip([1, *channels[:-1]], channels, strict=True)
        self.network = MaskedStages([MaskedConv(before, after) for before, after in sizes])
        bands = math.ceil(num_mels / 2 ** len(channels))
        self.dropout = nn.Dropout(dropout)
        dims = [bands * channels[-1], *[2 * hidden_dim] * (num_recurrent - 1)]
        self.recurrent = nn.ModuleList([BothDirections(self.CELLS[cell], dim, hidden_dim) for dim in dims])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = self.network(features, mask)
        frames = self.dropout(rearrange(image, "batch channel time band -> batch time (channel band)"))
        for layer in self.recurrent:
            frames = layer(frames, mask)
        return self.dropout(frames)[:, None], mask


class BothDirections(nn.Module):
    """A recurrent layer from the first frame to the last real one, and one back (Schuster and Paliwal 1997,
    <https://doi.org/10.1109/78.650093>); sequences are turned round, not packed, which ONNX has no words for.

    Args:
        cell: ``nn.GRU`` or ``nn.LSTM``.
        dim: Of the frames.
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
        place = mask.cumsum(1) - 1
        turned = torch.where(mask, mask.sum(1, keepdim=True) - 1 - place, 0)[..., None]
        states = self.onward(frames)[0]
        back = self.back(_at(frames, turned))[0]
        return torch.cat([states, _at(back, turned)], dim=-1) * mask[..., None]


def _at(frames: Tensor, places: Tensor) -> Tensor:
    """Frames ``(batch, time, dim)`` in the order of places ``(batch, time, 1)``."""
    return frames.gather(1, places.expand(-1, -1, frames.shape[2]))


class VGGishEncoder(nn.Module):
    """VGGish (Hershey et al. 2017, <https://arxiv.org/abs/1609.09430>): one vector for each 0.96 s.

    Published weights are read from a local file, such as torchvggish's ``vggish-10086976.pth``. Frozen, they are no
    part of a checkpoint and their output is cached; else the network is trained, from these weights or from scratch.
    The last window is filled with silence.

    Args:
        weights: ``.safetensors``, ``.pth`` or ``.pt`` file with the published names (``features.0.weight``, ...);
            random weights when not given.
        frozen: Whether the network stays as it is; random weights must be trained.

    Raises:
        ValueError: Random weights are to be frozen, or the file is of another architecture.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, window, 128)``, mask ``(batch, window)``
    """

    caches = True
    num_layers = 1
    dim = 128
    WINDOW = 96  # frames of 10 ms

    def __init__(self, weights: str | None = None, frozen: bool = True) -> None:
        super().__init__()
        if frozen and weights is None:
            raise ValueError("VGGishEncoder: name a file of weights, or set frozen: false to train it from scratch")
        self.weights = weights
        self.frozen = frozen
        self.trained = None if frozen else self._load()
        self._backbone = FrozenBackbone(self._load)
        self.filters: Tensor
        self.register_buffer("filters", torch.tensor(_vggish_filters(), dtype=torch.float32), persistent=False)

    def _load(self) -> nn.Module:
        network = VGGish()
        if self.weights is not None:
            state = pretrained.load_state(self.weights)
            own = network.state_dict()
            missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
            if missing:
                raise ValueError(
                    f"{self.weights}: weights of another architecture, expected VGGish; {missing[0]} of "
                    f"{tuple(own[missing[0]].shape)} is not there"
                )
            network.load_state_dict({name: state[name] for name in own})
        return network

    def fingerprint(self) -> str:
        """All that ``precompute`` depends on."""
        weights = pretrained.file_fingerprint(self.weights) if self.frozen and self.weights else "log-mel"
        return f"vggish-{SPECTROGRAM_VERSION}:{weights}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel windows of 0.96 s, through the network where it is frozen."""
        log_mel, mask = self._log_mel(waveform, mask)
        if not self.frozen:
            return rearrange(log_mel, "batch frame mel -> batch 1 frame mel"), mask
        return self._embed(self._backbone.on(waveform.device), log_mel, mask)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (features, mask) if self.trained is None else self._embed(self.trained, features[:, 0], mask)

    def _log_mel(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hop, window = SAMPLE_RATE // 100, SAMPLE_RATE // 40
        num_windows = -(-waveform.shape[1] // (self.WINDOW * hop))
        samples = max(num_windows, 1) * self.WINDOW * hop + window - hop
        padded = nn.functional.pad(torch.where(mask, waveform, 0.0), (0, samples - waveform.shape[1]))
        hann = torch.hann_window(window, device=waveform.device)
        # torch centres a short window in a longer transform; the 56 zeros shift it to where VGGish has it.
        padded = nn.functional.pad(padded, ((512 - window) // 2, (512 - window) // 2))
        spectrum = torch.stft(padded, 512, hop, window, hann, center=False, return_complex=True)
        mel = rearrange(spectrum.abs(), "batch bin frame -> batch frame bin") @ self.filters
        frames = -(-mask.sum(1) // (self.WINDOW * hop)) * self.WINDOW
        log_mel = (mel + 0.01).log()[:, : max(num_windows, 1) * self.WINDOW]
        return log_mel, torch.arange(log_mel.shape[1], device=mask.device) < frames[:, None]

    def _embed(self, network: nn.Module, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        missing = -log_mel.shape[1] % self.WINDOW
        log_mel = nn.functional.pad(log_mel, (0, 0, 0, missing))
        mask = nn.functional.pad(mask, (0, missing))
        windows = rearrange(log_mel, "batch (window frame) mel -> (batch window) 1 frame mel", frame=self.WINDOW)
        embedded = rearrange(network(windows), "(batch window) dim -> batch 1 window dim", batch=len(log_mel))
        window_mask = mask[:, :: self.WINDOW]
        return embedded * window_mask[:, None, :, None], window_mask


class VGGish(nn.Module):
    """The network itself, with the names of the published weights.

    Shape:
        log_mel ``(window, 1, 96, 64)`` -> ``(window, 128)``
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 1
        for channels in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool"):
            if isinstance(channels, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
                in_channels = channels
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 128), nn.ReLU()
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        image = self.features(log_mel)
        # The published weights expect the axes in TensorFlow's order.
        return self.embeddings(rearrange(image, "window channel time band -> window (time band channel)"))


def _vggish_filters() -> list[list[float]]:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        257, 64, 125.0, 7500.0, SAMPLE_RATE, norm=None, mel_scale="htk", triangularize_in_mel_space=True
    )
    return filters.tolist()
