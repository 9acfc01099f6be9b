"""Changes of a waveform that leave its emotion unchanged: noise, rooms, telephone lines, codecs, masks.

An effect is a small class with a probability ``chance`` and a method ``apply(waveform, generator)``; all its random
draws come from that generator. ``mmemo.data.WaveformAugmentation`` chains effects; ``mmemo robustness`` applies them
one at a time at a fixed strength.

Example:
    >>> waveform = np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
    >>> noisy = Noise("pink", min_snr_db=10, max_snr_db=10).apply(waveform, np.random.default_rng(1))
    >>> round(float(10 * np.log10(np.mean(waveform**2) / np.mean((noisy - waveform) ** 2))), 2)
    10.0
"""

from __future__ import annotations

import io
import math
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from mmemo.audio import dsp
from mmemo.audio.bounds import check_chance, check_range, check_setting
from mmemo.audio.folder import list_audio_files, read_random_file
from mmemo.settings import SAMPLE_RATE

SNR_DB = (-100.0, 200.0)
"""Accepted range of decibel settings; values outside are typing mistakes."""


class Effect(Protocol):
    """A random change of a waveform."""

    chance: float

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns a changed copy of a waveform ``(samples,)`` float32 at 16 kHz."""


def describe_effect(effect: Effect) -> str:
    """Returns an effect's class and settings; together with the generator they determine its result."""
    getattr(effect, "files", None)  # a cached property: lists the effect's folder, so that it is among the settings
    settings = {name: value for name, value in vars(effect).items() if not name.startswith("_")}
    listed = {
        name: [describe_effect(part) for part in value] if name == "effects" else value
        for name, value in settings.items()
    }
    return f"{type(effect).__name__}({', '.join(f'{name}={value!r}' for name, value in listed.items())})"


class OneOf:
    """Applies one of several effects, each equally likely.

    Args:
        effects: The effects to choose from; their own chances are ignored.
        chance: Probability of applying any of them, in [0, 1].

    Example:
        >>> effect = OneOf([Reverse(), Gain(6.0)], chance=1.0)
        >>> effect.apply(np.ones(3, np.float32), np.random.default_rng(0)).shape
        (3,)
    """

    def __init__(self, effects: list[Effect], chance: float = 0.5) -> None:
        self.effects = effects
        self.chance = check_chance(self, chance)
        if not effects:
            raise ValueError("OneOf(effects=[]): name the effects to choose from")

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return self.effects[int(generator.integers(len(self.effects)))].apply(waveform, generator)


class Noise:
    """Adds stationary noise at a random signal-to-noise ratio.

    Args:
        colour: Spectrum of the noise: ``white`` is flat, ``pink`` falls by 3 dB per octave, ``brown`` by 6 dB.
        min_snr_db: Lowest ratio of the clip's power to the noise's power, in dB.
        max_snr_db: Highest ratio, in dB.
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(
        self,
        colour: Literal["white", "pink", "brown"] = "white",
        min_snr_db: float = 5.0,
        max_snr_db: float = 30.0,
        chance: float = 0.5,
    ) -> None:
        if colour not in _OCTAVE_DB:
            raise ValueError(f"Noise(colour={colour!r}), expected one of {', '.join(_OCTAVE_DB)}")
        self.colour = colour
        self.min_snr_db, self.max_snr_db = check_range(self, "snr_db", min_snr_db, max_snr_db, *SNR_DB)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.rfft(generator.standard_normal(len(waveform)))
        frequency = np.maximum(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE), 20.0)  # below 20 Hz it is inaudible
        noise = np.fft.irfft(spectrum * frequency ** (_OCTAVE_DB[self.colour] / 20 / math.log10(2)), len(waveform))
        return dsp.mix_at_snr(waveform, noise, generator.uniform(self.min_snr_db, self.max_snr_db))


_OCTAVE_DB = {"white": 0.0, "pink": -10 * math.log10(2), "brown": -20 * math.log10(2)}


class Background:
    """Mixes in a random excerpt of a recording from a folder of noise, music or babble.

    Args:
        folder: Folder of audio files, searched recursively.
        min_snr_db: Lowest ratio of the clip's power to the background's power, in dB.
        max_snr_db: Highest ratio, in dB.
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, folder: str, min_snr_db: float = 5.0, max_snr_db: float = 30.0, chance: float = 0.5) -> None:
        self.folder = folder
        self.min_snr_db, self.max_snr_db = check_range(self, "snr_db", min_snr_db, max_snr_db, *SNR_DB)
        self.chance = check_chance(self, chance)

    @cached_property
    def files(self) -> list[str]:
        """Audio files in the folder, listed on first use, so that a trained model loads without the folder."""
        return list_audio_files(self, self.folder)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        background = read_random_file(self.files, generator)
        first = int(generator.integers(max(len(background) - len(waveform), 0) + 1))
        background = np.resize(background[first:], len(waveform))  # repeats it if it is too short
        return dsp.mix_at_snr(waveform, background, generator.uniform(self.min_snr_db, self.max_snr_db))


class Reverb:
    """Adds the reverberation of a synthetic room: exponentially decaying noise after the direct sound (Polack 1988).

    Args:
        min_seconds: Shortest reverberation time (T60, the time to decay by 60 dB), in seconds.
        max_seconds: Longest reverberation time, in seconds.
        direct_db: Direct-to-reverberant energy ratio, in dB; lower is a more distant speaker.
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(
        self, min_seconds: float = 0.2, max_seconds: float = 0.8, direct_db: float = 3.0, chance: float = 0.3
    ) -> None:  # fmt: skip
        self.min_seconds, self.max_seconds = check_range(self, "seconds", min_seconds, max_seconds, lowest=0.01)
        self.direct_db = check_range(self, "direct_db", direct_db, direct_db, *SNR_DB)[0]
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        seconds = generator.uniform(self.min_seconds, self.max_seconds)
        time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tail = generator.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
        tail *= 10 ** (-self.direct_db / 20) / max(float(np.sqrt((tail**2).sum())), 1e-9)
        return dsp.convolve_with_room(waveform, np.concatenate([[1.0], tail]))


class RoomResponse:
    """Adds the reverberation of a real room: a random impulse response from a folder.

    Args:
        folder: Folder of impulse responses, searched recursively.
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, folder: str, chance: float = 0.3) -> None:
        self.folder = folder
        self.chance = check_chance(self, chance)

    @cached_property
    def files(self) -> list[str]:
        """Audio files in the folder, listed on first use, so that a trained model loads without the folder."""
        return list_audio_files(self, self.folder)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        response = read_random_file(self.files, generator)
        direct = int(np.abs(response).argmax())  # starting at the direct sound adds no delay
        return dsp.convolve_with_room(waveform, response[direct:])


class PitchShift:
    """Shifts the pitch at constant tempo.

    Args:
        semitones: Largest shift up or down, in semitones, in [0, 24).
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, semitones: float = 3.0, chance: float = 0.5) -> None:
        self.semitones = check_setting(self, "semitones", semitones, below=24.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        limits = {"min_semitones": -self.semitones, "max_semitones": self.semitones}
        return dsp.apply_audiomentations("PitchShift", waveform, generator, **limits)


class TimeStretch:
    """Changes the tempo at constant pitch; the clip becomes shorter or longer.

    Args:
        share: Largest relative change of tempo, in [0, 0.9).
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, share: float = 0.15, chance: float = 0.5) -> None:
        self.share = check_setting(self, "share", share, below=0.9)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        rates = {"min_rate": 1 - self.share, "max_rate": 1 + self.share}
        return dsp.apply_audiomentations("TimeStretch", waveform, generator, **rates, leave_length_unchanged=False)


class TimeShift:
    """Shifts the clip in time and fills the gap with silence.

    Args:
        seconds: Largest shift in either direction, in seconds, >= 0.
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, seconds: float = 0.5, chance: float = 0.5) -> None:
        self.seconds = check_setting(self, "seconds", seconds)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        limits = {"min_shift": -self.seconds, "max_shift": self.seconds, "shift_unit": "seconds"}
        return dsp.apply_audiomentations("Shift", waveform, generator, **limits, rollover=False)


class Gain:
    """Changes the level.

    Args:
        decibels: Largest change up or down, in dB, >= 0.
        chance: Probability of being applied, in [0, 1].
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
    """

    def __init__(self, decibels: float = 8.0, chance: float = 0.3) -> None:
        self.decibels = check_setting(self, "decibels", decibels)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        gains = {"min_gain_db": -self.decibels, "max_gain_db": self.decibels}
        return dsp.apply_audiomentations("SevenBandParametricEQ", waveform, generator, **gains)


class Reverse:
    """Reverses the clip: loudness, pitch range and timbre stay, the words become unintelligible.

    Args:
        chance: Probability of being applied, in [0, 1].

    Example:
        >>> Reverse().apply(np.array([1, 2, 3], np.float32), np.random.default_rng(0)).tolist()
        [3.0, 2.0, 1.0]
    """

    def __init__(self, chance: float = 0.1) -> None:
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return waveform[::-1].copy()


class Clipping:
    """Clips the loudest samples, as an overdriven microphone does.

    Args:
        max_percent: Largest percentage of samples that are clipped, in [0, 100).
        chance: Probability of being applied, in [0, 1].
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


class TimeMask:
    """Silences a random interval, as a dropped connection does (Park et al. 2019, SpecAugment,
    <https://arxiv.org/abs/1904.08779>).

    The mask is applied to the waveform, so it works with every encoder and with cached features.

    Args:
        share: Largest masked share of the clip, in [0, 1).
        chance: Probability of being applied, in [0, 1].

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


class VocalTract:
    """Moves formants as a shorter or longer vocal tract would, at constant pitch.

    Follows vocal tract length perturbation (Jaitly and Hinton 2013); differs in warping the spectral envelope and
    leaving the harmonics in place.

    Args:
        share: Largest relative change of formant frequencies, in [0, 1).
        chance: Probability of being applied, in [0, 1].
    """

    def __init__(self, share: float = 0.1, chance: float = 0.5) -> None:
        self.share = check_setting(self, "share", share, below=1.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        factor = 1 + generator.uniform(-self.share, self.share)
        return dsp.filter_spectrum(waveform, lambda spectrum: dsp.warp_envelope(spectrum, factor))
