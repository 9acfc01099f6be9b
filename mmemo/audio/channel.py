"""Effects of the recording channel: microphone, telephone line and codec.

They are imported from ``mmemo.audio.effects``, like all other effects.
"""

from __future__ import annotations

import io

import numpy as np

from mmemo.audio import dsp
from mmemo.audio.bounds import check_chance, check_range, check_setting
from mmemo.settings import SAMPLE_RATE


class Gain:
    """Changes the level.

    Args:
        decibels: Largest change up or down, in dB, >= 0.
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> changed = Gain(decibels=6.0).apply(np.ones(3, np.float32), np.random.default_rng(0))
        >>> bool(0.5 <= changed[0] <= 2.0), len(set(changed.tolist()))
        (True, 1)
    """

    def __init__(self, decibels: float = 8.0, chance: float = 0.5) -> None:
        self.decibels = check_setting(self, "decibels", decibels)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        gain_db = generator.uniform(-self.decibels, self.decibels)
        return (waveform * 10 ** (gain_db / 20)).astype(np.float32)


class Equaliser:
    """Changes the timbre as another microphone would: boosts or cuts seven bands of the spectrum.

    Args:
        decibels: Largest boost or cut of a band, in dB, >= 0.
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        >>> filtered = Equaliser(decibels=8.0).apply(noise, np.random.default_rng(0))
        >>> change_db = 20 * np.log10(np.abs(np.fft.rfft(filtered)) / np.abs(np.fft.rfft(noise)))
        >>> bool(np.ptp(np.median(change_db[:8_000].reshape(8, 1_000), axis=1)) > 3)  # dB between bands of 1 kHz
        True
    """

    def __init__(self, decibels: float = 8.0, chance: float = 0.3) -> None:
        self.decibels = check_setting(self, "decibels", decibels)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        gains = {"min_gain_db": -self.decibels, "max_gain_db": self.decibels}
        return dsp.apply_audiomentations("SevenBandParametricEQ", waveform, generator, **gains)


class Clipping:
    """Clips the loudest samples, as an overdriven microphone does.

    Args:
        max_percent: Largest percentage of samples that are clipped, in [0, 100).
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> ramp = np.linspace(-1, 1, 101, dtype=np.float32)
        >>> clipped = Clipping(max_percent=50.0).apply(ramp, np.random.default_rng(0))
        >>> bool(0.5 <= clipped.max() < 1), bool(clipped.max() == -clipped.min())
        (True, True)
    """

    def __init__(self, max_percent: float = 10.0, chance: float = 0.2) -> None:
        self.max_percent = check_setting(self, "max_percent", max_percent, below=100.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        limit = float(np.percentile(np.abs(waveform), 100 - generator.uniform(0, self.max_percent)))
        return np.clip(waveform, -limit, limit)


class Telephone:
    """Simulates a telephone line: 300 to 3400 Hz at 8 kHz in 8-bit mu-law (ITU-T G.711).

    Args:
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: ``chance`` is not a probability.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        >>> power = np.abs(np.fft.rfft(Telephone().apply(noise, np.random.default_rng(0)))) ** 2
        >>> bool(power[4_100:].sum() < 0.01 * power.sum())  # nothing is left above 4 kHz
        True
    """

    def __init__(self, chance: float = 0.2) -> None:
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        import soxr
        from scipy.signal import butter, sosfilt

        narrow = soxr.resample(waveform, SAMPLE_RATE, 8000)
        band = sosfilt(butter(4, (300, 3400), "bandpass", fs=8000, output="sos"), narrow)
        wide = soxr.resample(dsp.quantise_mu_law(band, 8).astype(np.float32), 8000, SAMPLE_RATE)
        return np.resize(np.pad(wide, (0, max(len(waveform) - len(wide), 0))), len(waveform)).astype(np.float32)


class MuLaw:
    """Quantises samples with mu-law companding, finer for quiet samples than for loud ones (ITU-T G.711).

    Args:
        bits: Bits per sample, 2 to 16; telephones use 8.
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> ramp = np.linspace(-1, 1, 1001, dtype=np.float32)
        >>> len(np.unique(MuLaw(bits=4).apply(ramp, np.random.default_rng(0))))
        16
    """

    def __init__(self, bits: int = 8, chance: float = 0.2) -> None:
        if not 2 <= bits <= 16:
            raise ValueError(f"MuLaw(bits={bits}), expected 2 to 16")
        self.bits = bits
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return dsp.quantise_mu_law(waveform, self.bits).astype(np.float32)


class Mp3:
    """Encodes the clip as MP3 and decodes it again (by libsndfile).

    Args:
        min_kbps: Lowest bit rate, in kbit/s, >= 8.
        max_kbps: Highest bit rate, in kbit/s, <= 160.
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> noise = 0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        >>> power = np.abs(np.fft.rfft(Mp3(min_kbps=16, max_kbps=16).apply(noise, np.random.default_rng(0)))) ** 2
        >>> bool(power[6_000:].sum() < 0.01 * power.sum())  # 16 kbit/s keep little above 6 kHz
        True
    """

    def __init__(self, min_kbps: float = 16.0, max_kbps: float = 48.0, chance: float = 0.2) -> None:
        self.min_kbps, self.max_kbps = check_range(self, "kbps", min_kbps, max_kbps, lowest=8.0, highest=160.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        import soundfile

        kbps = generator.uniform(self.min_kbps, self.max_kbps)
        level = (160 - kbps) / (160 - 8)  # libsndfile's scale: MPEG-2 at 16 kHz spans 8 to 160 kbit/s
        encoded = io.BytesIO()
        peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-9)
        soundfile.write(
            encoded, waveform / peak * 0.9, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III",
            bitrate_mode="CONSTANT", compression_level=level,
        )  # fmt: skip
        decoded, _ = soundfile.read(io.BytesIO(encoded.getvalue()), dtype="float32")
        decoded = np.pad(decoded, (0, max(len(waveform) - len(decoded), 0)))[: len(waveform)]
        return (decoded * peak / 0.9).astype(np.float32)
