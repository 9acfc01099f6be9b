from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mmemo.models.vggish import VGGish, VGGishEncoder
from mmemo.pretrained import PretrainedError
from tests.conftest import tone
from tests.models.sequences import encode


def test_published_vggish_weights_load_and_others_are_rejected(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VGGish()
    layers = {name.rsplit(".", 1)[0] for name in network.state_dict()}
    published = {f"features.{n}" for n in (0, 3, 6, 8, 11, 13)} | {f"embeddings.{n}" for n in (0, 2, 4)}
    assert layers == published, "torchvggish's names"
    assert sum(parameter.numel() for parameter in network.parameters()) == 72_141_184
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    frozen = VGGishEncoder(str(tmp_path / "vggish.pth"))
    assert list(frozen.parameters()) == []
    clip = tone(1.5)[None]
    features, mask = encode(frozen, clip, torch.ones_like(clip, dtype=torch.bool))
    assert features.shape == (1, 1, 2, 128)
    tuned = VGGishEncoder(str(tmp_path / "vggish.pth"), frozen=False)
    torch.testing.assert_close(encode(tuned, clip, torch.ones_like(clip, dtype=torch.bool))[0], features)
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights of another architecture, expected VGGish"):
        encode(VGGishEncoder(str(tmp_path / "other.pth")), clip, mask.new_ones(clip.shape))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(PretrainedError, match="not a weights file"):
        VGGishEncoder(str(tmp_path / "text.pth"), frozen=False)
    with pytest.raises(ValueError, match="frozen: false"):
        VGGishEncoder()


def test_vggish_spectrogram_is_the_published_one() -> None:
    """Compares with a direct computation in float64: 25 ms periodic Hann window, 512-point FFT, magnitude, HTK mel."""
    clip = tone(0.96 + 0.015).double().numpy()
    frames = np.stack([clip[start : start + 400] for start in range(0, 96 * 160, 160)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(frames * window, 512))
    bins, edges = np.linspace(0, 8000, 257), np.linspace(*(1127 * np.log(1 + np.array([125, 7500]) / 700)), 66)
    mel = 1127 * np.log(1 + bins / 700)
    weights = np.stack(
        [
            np.clip(np.minimum((mel - low) / (mid - low), (high - mel) / (high - mid)), 0, None)
            for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False)
        ]
    )
    weights[:, 0] = 0
    expected = np.log(magnitude @ weights.T + 0.01)
    encoder = VGGishEncoder(frozen=False)
    waveform = torch.from_numpy(clip).float()[None]
    log_mel, _ = encoder.precompute(waveform, torch.ones_like(waveform, dtype=torch.bool))
    np.testing.assert_allclose(log_mel[0, 0, :96].numpy(), expected, atol=2e-3)
