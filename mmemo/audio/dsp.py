"""Signal processing that several effects share: mixing, convolution, companding, spectral filters."""

from __future__ import annotations

import math
import random as global_random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from mmemo.settings import SAMPLE_RATE

STFT_WINDOW = 512  # samples: 32 ms
ENVELOPE_SAMPLES = 32  # 2 ms of cepstrum: keeps formants, excludes the harmonics of voices below 500 Hz

_GLOBAL_STATE = threading.Lock()  # audiomentations draws from the global generators


def mix_at_snr(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Adds noise at a signal-to-noise ratio, measured over the whole clip.

    Args:
        waveform: ``(samples,)``.
        noise: ``(samples,)``, of the same length.
        snr_db: Power of the waveform over power of the added noise, in dB.
    """
    power, noise_power = float(np.mean(waveform**2)), float(np.mean(noise**2))
    scale = math.sqrt(power / max(noise_power, 1e-20) * 10 ** (-snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def convolve_with_room(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolves a waveform with a room impulse response; length and power stay the same.

    Args:
        waveform: ``(samples,)``.
        response: Impulse response ``(response_samples,)``.
    """
    from scipy.signal import fftconvolve

    reverberant = fftconvolve(waveform, response)[: len(waveform)]
    before, after = float(np.mean(waveform**2)), float(np.mean(reverberant**2))
    return (reverberant * math.sqrt(before / max(after, 1e-20))).astype(np.float32)


def quantise_mu_law(waveform: np.ndarray, bits: int) -> np.ndarray:
    """Quantises a waveform in the mu-law domain and expands it again (ITU-T G.711).

    Args:
        waveform: ``(samples,)``.
        bits: Bits per sample; mu is ``2**bits - 1``.
    """
    mu = 2**bits - 1
    peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-9)
    compressed = np.sign(waveform) * np.log1p(mu * np.abs(waveform) / peak) / math.log1p(mu)
    levels = np.round((compressed + 1) / 2 * mu) / mu * 2 - 1
    return np.sign(levels) * np.expm1(np.abs(levels) * math.log1p(mu)) / mu * peak


def filter_spectrum(waveform: np.ndarray, transform: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Applies a function to the short-time spectrum of a waveform.

    Args:
        waveform: ``(samples,)`` at 16 kHz.
        transform: Takes and returns a complex spectrogram ``(frequency, frame)``.
    """
    import librosa

    padded = np.pad(waveform, (0, max(STFT_WINDOW - len(waveform), 0)))
    spectrum = transform(librosa.stft(padded, n_fft=STFT_WINDOW, hop_length=STFT_WINDOW // 4))
    filtered = librosa.istft(spectrum, n_fft=STFT_WINDOW, hop_length=STFT_WINDOW // 4, length=len(padded))
    return filtered[: len(waveform)].astype(np.float32)


def warp_envelope(spectrum: np.ndarray, factor: float) -> np.ndarray:
    """Stretches the spectral envelope along the frequency axis; harmonics stay in place.

    Args:
        spectrum: Complex spectrogram ``(frequency, frame)``.
        factor: Frequency of a formant after warping over its frequency before.
    """
    cepstrum = np.fft.irfft(np.log(np.abs(spectrum) + 1e-6), axis=0)
    cepstrum[ENVELOPE_SAMPLES : len(cepstrum) - ENVELOPE_SAMPLES + 1] = 0.0  # low quefrencies are the envelope
    envelope = np.fft.rfft(cepstrum, axis=0).real
    bins = np.arange(len(envelope))
    source = np.clip(bins / factor, 0, len(bins) - 1)
    below = np.floor(source).astype(int)
    above = np.minimum(below + 1, len(bins) - 1)
    weight = (source - below)[:, None]
    warped = envelope[below] * (1 - weight) + envelope[above] * weight
    return spectrum * np.exp(np.clip(warped - envelope, -5, 5))


def apply_audiomentations(
    name: str, waveform: np.ndarray, generator: np.random.Generator, **settings: Any
) -> np.ndarray:
    """Applies a transform of audiomentations whose random draws depend on ``generator`` alone.

    Args:
        name: Class in ``audiomentations``.
        waveform: ``(samples,)`` float32 at 16 kHz.
        generator: Seeds the global generators that audiomentations draws from; their state is restored.
        settings: Constructor arguments of the class.
    """
    import audiomentations

    seed = int(generator.integers(2**31))
    with _GLOBAL_STATE:
        state = global_random.getstate(), np.random.get_state()  # noqa: NPY002 - the library's own generator
        global_random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            transform = getattr(audiomentations, name)(**settings, p=1.0)
            return np.ascontiguousarray(transform(samples=waveform.copy(), sample_rate=SAMPLE_RATE), dtype=np.float32)
        finally:
            global_random.setstate(state[0])
            np.random.set_state(state[1])  # noqa: NPY002
