from __future__ import annotations

import numpy as np
import pytest
import torch

from mmemo.models.descriptors import BAND_EDGES, AcousticDescriptors, EGeMAPS
from tests.conftest import padded, tone


def measure(encoder: AcousticDescriptors, waveform: torch.Tensor) -> dict[str, np.ndarray]:
    """Returns the values over time of each descriptor, by name."""
    features, mask = encoder.precompute(waveform[None], torch.ones(1, len(waveform), dtype=torch.bool))
    assert mask.all()
    return dict(zip(encoder.feature_names, features[0, 0].T.numpy(), strict=True))


def test_descriptors_measure_what_their_names_say() -> None:
    encoder = AcousticDescriptors()
    middle = slice(10, -10)
    low, high = measure(encoder, tone(1.0, 110.0)), measure(encoder, tone(1.0, 220.0))
    assert np.median(high["f0/0"] - low["f0/0"]) == pytest.approx(12.0, abs=0.3), "an octave is twelve semitones"
    assert low["f0/1"][middle].mean() > 0.9
    noise = measure(encoder, 0.1 * torch.randn(16_000, generator=torch.Generator().manual_seed(0)))
    assert noise["f0/1"].mean() < 0.3, "noise has no pitch"
    assert noise["zero crossings/0"].mean() > 5 * low["zero crossings/0"].mean()
    loud = measure(encoder, 2 * tone(1.0, 110.0))
    np.testing.assert_allclose((loud["energy/0"] - low["energy/0"])[middle], np.log10(4), atol=0.01)
    shares = {
        number: measure(encoder, tone(1.0, 1500.0))[f"band energy/{number}"][middle].mean() for number in range(8)
    }
    assert max(shares, key=lambda number: shares[number]) == BAND_EDGES.index(1000), "1.5 kHz lies between 1 and 2"


def test_descriptors_are_finite_and_ignore_batch_mates() -> None:
    encoder = AcousticDescriptors().eval()
    assert encoder.dim == len(encoder.feature_names) == 51
    clips = [tone(0.6), tone(0.01), torch.zeros(4000), torch.zeros(0)]
    waveform, mask = padded(clips)
    features, feature_mask = encoder(*encoder.precompute(waveform, mask))
    assert features.isfinite().all()
    assert feature_mask.any(1).tolist() == [True, True, True, False]
    alone, _ = encoder(*encoder.precompute(clips[1][None], torch.ones(1, len(clips[1]), dtype=torch.bool)))
    torch.testing.assert_close(features[1, 0][feature_mask[1]], alone[0, 0])


def test_training_standardises_descriptors() -> None:
    encoder = AcousticDescriptors(f0=False)
    waveform, mask = padded([tone(0.8, 200.0), tone(0.5, 700.0), torch.randn(9000)])
    features, feature_mask = encoder(*encoder.precompute(waveform, mask))
    real = features[:, 0][feature_mask]
    torch.testing.assert_close(real.mean(0), torch.zeros(encoder.dim), atol=1e-3, rtol=0)


def test_egemaps_computes_88_functionals() -> None:
    pytest.importorskip("opensmile")
    encoder = EGeMAPS().eval()
    waveform, mask = padded([tone(1.0, 220.0), tone(0.05), torch.zeros(0)])
    features, feature_mask = encoder(*encoder.precompute(waveform, mask))
    assert features.shape == (3, 1, 1, 88)
    assert features.isfinite().all()
    assert feature_mask[:, 0].tolist() == [True, True, False]
    pitch = encoder.feature_names.index("egemaps/F0semitoneFrom27.5Hz_sma3nz_amean")
    assert float(features[0, 0, 0, pitch]) == pytest.approx(36.0, abs=0.5), "220 Hz is three octaves above 27.5 Hz"
