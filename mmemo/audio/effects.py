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

import math
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from mmemo.audio import dsp
from mmemo.audio.bounds import check_chance, check_range, check_setting
from mmemo.audio.channel import Clipping, Equaliser, Gain, Mp3, MuLaw, Telephone
from mmemo.audio.folder import list_audio_files, read_random_file
from mmemo.audio.masks import FrequencyMask, TimeMask
from mmemo.settings import SAMPLE_RATE

__all__ = [
    "SNR_DB", "Background", "Clipping", "Effect", "Equaliser", "FrequencyMask", "Gain", "Mp3", "MuLaw", "Noise",
    "OneOf", "PitchShift", "Reverb", "Reverse", "RoomResponse", "Telephone", "TimeMask", "TimeShift", "TimeStretch",
    "VocalTract", "describe_effect",
]  # fmt: skip

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

    Raises:
        ValueError: ``effects`` is empty, or ``chance`` is not a probability.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> that of the chosen effect

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

    Raises:
        ValueError: The colour is unknown, or a setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> clip = np.sin(np.arange(16_000) / 20).astype(np.float32)
        >>> noise = Noise("brown", min_snr_db=10, max_snr_db=10).apply(clip, np.random.default_rng(0)) - clip
        >>> print(f"{10 * np.log10(np.mean(clip**2) / np.mean(noise**2)):.1f} dB")
        10.0 dB
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

    Raises:
        ValueError: A setting is out of range, or the folder holds no audio when the effect is first applied.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> import soundfile, tempfile
        >>> clip = np.sin(np.arange(16_000) / 20).astype(np.float32)
        >>> rain = np.random.default_rng(0).uniform(-1, 1, 8_000)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(f"{folder}/rain.wav", rain, 16_000)
        ...     added = Background(folder, min_snr_db=5, max_snr_db=5).apply(clip, np.random.default_rng(0)) - clip
        >>> print(f"{10 * np.log10(np.mean(clip**2) / np.mean(added**2)):.1f} dB")
        5.0 dB
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

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> click = np.eye(1, 16_000, dtype=np.float32)[0]
        >>> echo = Reverb(min_seconds=0.5, max_seconds=0.5).apply(click, np.random.default_rng(0))[1:8_001]
        >>> energy = (echo**2).reshape(5, 1_600).sum(1)  # of each tenth of a second
        >>> bool((np.diff(10 * np.log10(energy)) < -10).all())  # 60 dB in 0.5 s: 12 dB each
        True
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

    Raises:
        ValueError: ``chance`` is not a probability, or the folder holds no audio when the effect is first applied.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> import soundfile, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(f"{folder}/hall.wav", np.array([0, 0, 0.8, 0, 0.4]), 16_000)  # sound and echo
        ...     room = RoomResponse(folder).apply(np.eye(1, 4, dtype=np.float32)[0], np.random.default_rng(0))
        >>> (room / room[0]).round(2).tolist()
        [1.0, 0.0, 0.5, 0.0]
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

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
        >>> shifted = PitchShift(semitones=3.0).apply(tone, np.random.default_rng(0))
        >>> pitch = np.abs(np.fft.rfft(shifted)).argmax()  # in Hz, since the clip lasts one second
        >>> len(shifted), bool(370 <= pitch <= 523), bool(pitch == 440)
        (16000, True, False)
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

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> ``(new_samples,)``

    Example:
        >>> tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000).astype(np.float32)
        >>> stretched = TimeStretch(share=0.15).apply(tone, np.random.default_rng(0))
        >>> 16_000 / 1.16 < len(stretched) < 16_000 / 0.84, len(stretched) == 16_000
        (True, False)
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

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> shifted = TimeShift(seconds=0.5).apply(np.ones(16_000, np.float32), np.random.default_rng(0))
        >>> len(shifted), bool(0 < (shifted == 0).sum() <= 8_000)
        (16000, True)
    """

    def __init__(self, seconds: float = 0.5, chance: float = 0.5) -> None:
        self.seconds = check_setting(self, "seconds", seconds)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        limits = {"min_shift": -self.seconds, "max_shift": self.seconds, "shift_unit": "seconds"}
        return dsp.apply_audiomentations("Shift", waveform, generator, **limits, rollover=False)


class Reverse:
    """Reverses the clip: loudness, pitch range and timbre stay, the words become unintelligible.

    Args:
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: ``chance`` is not a probability.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> Reverse().apply(np.array([1, 2, 3], np.float32), np.random.default_rng(0)).tolist()
        [3.0, 2.0, 1.0]
    """

    def __init__(self, chance: float = 0.1) -> None:
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return waveform[::-1].copy()


class VocalTract:
    """Moves formants as a shorter or longer vocal tract would, at constant pitch.

    Follows vocal tract length perturbation (Jaitly and Hinton 2013); differs in warping the spectral envelope and
    leaving the harmonics in place.

    Args:
        share: Largest relative change of formant frequencies, in [0, 1).
        chance: Probability of being applied, in [0, 1].

    Raises:
        ValueError: A setting is out of range.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> the same shape

    Example:
        >>> time = np.arange(16_000) / 16_000
        >>> voice = sum(np.sin(2 * np.pi * 150 * number * time) / number for number in range(1, 20)).astype(np.float32)
        >>> longer = VocalTract(share=0.1).apply(voice, np.random.default_rng(0))
        >>> print(np.abs(np.fft.rfft(longer)).argmax(), "Hz")  # the pitch stays
        150 Hz
    """

    def __init__(self, share: float = 0.1, chance: float = 0.5) -> None:
        self.share = check_setting(self, "share", share, below=1.0)
        self.chance = check_chance(self, chance)

    def apply(self, waveform: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        factor = 1 + generator.uniform(-self.share, self.share)
        return dsp.filter_spectrum(waveform, lambda spectrum: dsp.warp_envelope(spectrum, factor))
