from __future__ import annotations

import numpy as np
import pytest

from mmemo.audio.cleaning import normalise_loudness, reduce_noise
from mmemo.settings import SAMPLE_RATE
from tests.conftest import tone

pytest.importorskip("noisereduce", reason="pip install mmemo[cleaning]")


def test_noise_is_reduced_and_the_signal_stays() -> None:
    signal = np.zeros(3 * SAMPLE_RATE, dtype=np.float32)
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    chirp = 0.3 * np.sin(2 * np.pi * (300 + 1000 * time) * time)  # a steady tone would count as noise
    signal[SAMPLE_RATE : 2 * SAMPLE_RATE] = chirp
    noise = (0.02 * np.random.default_rng(0).standard_normal(len(signal))).astype(np.float32)
    reduced = reduce_noise(signal + noise)
    quiet, loud = slice(0, SAMPLE_RATE // 2), slice(SAMPLE_RATE + 4000, 2 * SAMPLE_RATE - 4000)
    noise_left = np.mean(reduced[quiet] ** 2) / np.mean(noise[quiet] ** 2)
    signal_left = np.mean(reduced[loud] ** 2) / np.mean(signal[loud] ** 2)
    assert noise_left < 0.1
    assert signal_left > 5 * noise_left


@pytest.mark.parametrize("seconds", [0.2, 2.0])
def test_loudness_equals_the_target(seconds: float) -> None:
    from pyloudnorm import Meter

    normalised = normalise_loudness(tone(seconds).numpy() * 0.01, -30.0)
    meter = Meter(SAMPLE_RATE, block_size=min(0.4, seconds * 0.999))
    assert meter.integrated_loudness(normalised.astype(float)) == pytest.approx(-30, abs=0.3)
    assert np.abs(normalise_loudness(tone(seconds).numpy(), -1.0)).max() < 1.0
    silence = np.zeros(SAMPLE_RATE, dtype=np.float32)
    np.testing.assert_array_equal(normalise_loudness(silence, -23.0), silence)


@pytest.mark.parametrize("samples", [1, 10, 200, 1100])
def test_noise_reduction_keeps_the_length_of_short_clips(samples: int) -> None:
    assert reduce_noise(tone(1.0).numpy()[:samples]).shape == (samples,)
