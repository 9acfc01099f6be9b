"""Waveform -> cleaner waveform: noise reduction and loudness normalisation."""

from __future__ import annotations

import numpy as np

from mmemo.settings import SAMPLE_RATE

BLOCK_SECONDS = 0.4  # gating block of BS.1770


def reduce_noise(waveform: np.ndarray) -> np.ndarray:
    """Reduces stationary noise by spectral gating (noisereduce; Sainburg et al. 2020).

    Args:
        waveform: ``(samples,)`` float32 at 16 kHz.

    Returns:
        ``(samples,)`` float32, of the same length.
    """
    import noisereduce

    window = 1024  # noisereduce needs at least one FFT window of samples
    padded = np.pad(waveform, (0, max(window - len(waveform), 0)))
    reduced = noisereduce.reduce_noise(y=padded, sr=SAMPLE_RATE, stationary=True, prop_decrease=0.9, n_fft=window)
    return reduced[: len(waveform)].astype(np.float32)


def normalise_loudness(waveform: np.ndarray, lufs: float) -> np.ndarray:
    """Scales a waveform to a loudness (ITU-R BS.1770-4, by pyloudnorm) with its peak below full scale.

    Args:
        waveform: ``(samples,)`` float32 at 16 kHz; silence is returned unchanged.
        lufs: Target loudness in LUFS, < 0; broadcasting uses -23.

    Returns:
        ``(samples,)`` float32; quieter than the target if the peak would clip.
    """
    from pyloudnorm import Meter

    seconds = len(waveform) / SAMPLE_RATE
    meter = Meter(SAMPLE_RATE, block_size=min(BLOCK_SECONDS, seconds * 0.999))  # a clip must exceed its block
    measured = meter.integrated_loudness(waveform.astype(np.float64))
    if not np.isfinite(measured):
        return waveform
    gain = 10 ** ((lufs - measured) / 20)
    peak = float(np.abs(waveform).max(initial=0.0))
    return (waveform * min(gain, 0.99 / max(peak, 1e-9))).astype(np.float32)
