"""Effects that remove an interval of time or of frequency.

They are imported from ``mmemo.audio.effects``, like all other effects.
"""

from __future__ import annotations

import numpy as np

from mmemo.audio import dsp
from mmemo.audio.bounds import check_chance, check_setting
from mmemo.settings import SAMPLE_RATE


class TimeMask:
    """Silences a random interval, as a dropped connection does (Park et al. 2019, SpecAugment,
    <https://arxiv.org/abs/1904.08779>).

    The mask is applied to the waveform, so it works with every encoder and with cached features.

    Args:
        share: Largest masked share of the clip, in [0, 1).
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> masked = TimeMask(share=0.5).apply(np.ones(100, np.float32), np.random.default_rng(0))
        >>> bool(0 < (masked == 0).sum() <= 50)
        True
    """

    def __init__(self, share: float = 0.15, chance: float = 0.5) -> None:
        self.share = check_setting(self, "share", share, below=1.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        length = int(generator.uniform(0, self.share) * len(waveform))
        first = int(generator.integers(len(waveform) - length + 1))
        masked = waveform.copy()
        masked[first : first + length] = 0.0
        return masked


class FrequencyMask:
    """Removes a random band of frequencies (Park et al. 2019, SpecAugment, <https://arxiv.org/abs/1904.08779>).

    The mask is applied to the waveform, as in :class:`TimeMask`.

    Args:
        num_mels: Largest width of the band, in mel bands of 80, 1 to 79.
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        >>> masked = FrequencyMask(num_mels=30).apply(noise, np.random.default_rng(0))
        >>> before, after = (np.abs(np.fft.rfft(clip))[:8_000].reshape(80, 100).mean(1) for clip in (noise, masked))
        >>> bool(0 < (after < 0.1 * before).sum() < 80)  # bands of 100 Hz that are gone
        True
    """

    def __init__(self, num_mels: int = 15, chance: float = 0.5) -> None:
        if not 1 <= num_mels < 80:
            raise ValueError(f"FrequencyMask(num_mels={num_mels}), expected 1 to 79")
        self.num_mels = num_mels
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        import librosa

        edges = librosa.mel_frequencies(n_mels=82, fmin=0.0, fmax=SAMPLE_RATE / 2)
        width = int(generator.integers(1, self.num_mels + 1))
        first = int(generator.integers(80 - width + 1))
        frequency = np.fft.rfftfreq(dsp.STFT_WINDOW, 1 / SAMPLE_RATE)
        keep = (frequency < edges[first]) | (frequency > edges[first + width + 1])
        return dsp.filter_spectrum(waveform, lambda spectrum: spectrum * keep[:, None])
