"""VGGish, on its own log-mel spectrogram, with published or random weights."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo import pretrained
from mmemo.models.cnn import SPECTROGRAM_VERSION
from mmemo.models.pretrained_encoder import FrozenBackbone
from mmemo.settings import SAMPLE_RATE


class VGGishEncoder(nn.Module):
    """VGGish (Hershey et al. 2017, <https://arxiv.org/abs/1609.09430>): one vector per 0.96 s window.

    Published weights are read from a local file, such as torchvggish's ``vggish-10086976.pth``. A frozen network is not
    saved in checkpoints, and its output is cached. Otherwise it is trained, from these weights or from scratch. The
    last window is padded with silence.

    Args:
        weights: ``.safetensors``, ``.pth`` or ``.pt`` file with the published names (``features.0.weight``, ...).
            Defaults to random weights.
        frozen: Whether to keep the weights fixed; random weights must be trained.

    Raises:
        ValueError: ``frozen`` is set without ``weights``, or the file holds weights of another architecture.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, window, 128)``, mask ``(batch, window)``

    Example:
        >>> encoder = VGGishEncoder(frozen=False).eval()
        >>> log_mel, mask = encoder.precompute(torch.randn(1, 32_000), torch.ones(1, 32_000, dtype=torch.bool))
        >>> log_mel.shape  # three windows of 96 frames
        torch.Size([1, 1, 288, 64])
        >>> encoder(log_mel, mask)[0].shape
        torch.Size([1, 1, 3, 128])
    """

    caches = True
    num_layers = 1
    dim = 128
    WINDOW_FRAMES = 96  # of 10 ms

    def __init__(self, weights: str | None = None, frozen: bool = True) -> None:
        super().__init__()
        if frozen and weights is None:
            raise ValueError("VGGishEncoder: set weights to a file, or frozen: false to train from scratch")
        self.weights = weights
        self.frozen = frozen
        self.trained = None if frozen else self._load()
        self._backbone = FrozenBackbone(self._load)
        self.filters: Tensor
        self.register_buffer("filters", torch.tensor(_mel_filters(), dtype=torch.float32), persistent=False)

    def _load(self) -> nn.Module:
        network = VGGish()
        if self.weights is not None:
            state = pretrained.load_state(self.weights)
            expected = network.state_dict()
            missing = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
            if missing:
                raise ValueError(
                    f"{self.weights}: weights of another architecture, expected VGGish; {missing[0]} of shape "
                    f"{tuple(expected[missing[0]].shape)} is missing"
                )
            network.load_state_dict({name: state[name] for name in expected})
        return network

    def fingerprint(self) -> str:
        """Returns a string of everything that the result of ``precompute`` depends on."""
        weights = pretrained.file_fingerprint(self.weights) if self.frozen and self.weights else "log-mel"
        return f"vggish-{SPECTROGRAM_VERSION}:{weights}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the embeddings if the network is frozen, else the log-mel spectrogram that it takes."""
        log_mel, mask = self._log_mel(waveform, mask)
        if not self.frozen:
            return rearrange(log_mel, "batch frame mel -> batch 1 frame mel"), mask
        return self._embed(self._backbone.on(waveform.device), log_mel, mask)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return (features, mask) if self.trained is None else self._embed(self.trained, features[:, 0], mask)

    def _log_mel(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hop, window = SAMPLE_RATE // 100, SAMPLE_RATE // 40  # 10 ms and 25 ms, in samples
        num_windows = -(-waveform.shape[1] // (self.WINDOW_FRAMES * hop))
        samples = max(num_windows, 1) * self.WINDOW_FRAMES * hop + window - hop
        padded = nn.functional.pad(torch.where(mask, waveform, 0.0), (0, samples - waveform.shape[1]))
        hann = torch.hann_window(window, device=waveform.device)
        # torch.stft centres a window in a longer FFT, VGGish puts it first; 56 zeros at the start compensate.
        padded = nn.functional.pad(padded, ((512 - window) // 2, (512 - window) // 2))
        spectrum = torch.stft(padded, 512, hop, window, hann, center=False, return_complex=True)
        mel = rearrange(spectrum.abs(), "batch bin frame -> batch frame bin") @ self.filters
        num_real_frames = -(-mask.sum(1) // (self.WINDOW_FRAMES * hop)) * self.WINDOW_FRAMES
        log_mel = (mel + 0.01).log()[:, : max(num_windows, 1) * self.WINDOW_FRAMES]
        return log_mel, torch.arange(log_mel.shape[1], device=mask.device) < num_real_frames[:, None]

    def _embed(self, network: nn.Module, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        num_padding = -log_mel.shape[1] % self.WINDOW_FRAMES
        log_mel = nn.functional.pad(log_mel, (0, 0, 0, num_padding))
        mask = nn.functional.pad(mask, (0, num_padding))
        windows = rearrange(log_mel, "batch (window frame) mel -> (batch window) 1 frame mel", frame=self.WINDOW_FRAMES)
        embedded = rearrange(network(windows), "(batch window) dim -> batch 1 window dim", batch=len(log_mel))
        window_mask = mask[:, :: self.WINDOW_FRAMES]
        return embedded * window_mask[:, None, :, None], window_mask


class VGGish(nn.Module):
    """The VGGish network, with the parameter names of the published weights.

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
        # The published weights expect TensorFlow's order of axes.
        embeddings: Tensor = self.embeddings(rearrange(image, "window channel time band -> window (time band channel)"))
        return embeddings


def _mel_filters() -> list[list[float]]:
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        257, 64, 125.0, 7500.0, SAMPLE_RATE, norm=None, mel_scale="htk", triangularize_in_mel_space=True
    )
    rows: list[list[float]] = filters.tolist()
    return rows
