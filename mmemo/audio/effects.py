"""What a recording may go through on its way: a room, a telephone, noise, a codec; each leaves the emotion as it is.

An effect is a small class with a ``chance`` to be used and a method ``change`` that takes a waveform and a generator;
its draws come from that generator alone. ``mmemo.data.WaveformAugmentation`` puts effects together; ``mmemo
robustness`` applies them one by one at a fixed strength.
"""

from __future__ import annotations

import io
import math
import random as global_random
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from mmemo.settings import SAMPLE_RATE

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".w64", ".caf")

SNR_DB = (-100.0, 200.0)
"""What is louder or fainter than that is a slip of the finger."""

_GLOBAL_STATE = threading.Lock()  # audiomentations draws from the global generators


class Effect(Protocol):
    """A change of a waveform."""

    chance: float

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Changes a waveform ``(samples,)`` float32 at 16 kHz; the given one stays as it is."""


def described(effect: Effect) -> str:
    """An effect's class and settings, which with the draws fix what it does."""
    getattr(effect, "files", None)  # found now, if it has a folder
    inner = {name: value for name, value in vars(effect).items() if not name.startswith("_")}
    listed = {
        name: [described(one) for one in value] if name == "effects" else value for name, value in inner.items()
    }  # fmt: skip
    return f"{type(effect).__name__}({', '.join(f'{name}={value!r}' for name, value in listed.items())})"


class OneOf:
    """One effect of several, all as likely.

    Args:
        effects: To choose from; their own chances do not count.
        chance: Of any to be used, in [0, 1].
    """

    def __init__(self, effects: list[Effect], chance: float = 0.5) -> None:
        self.effects = effects
        self.chance = checked_chance(self, chance)
        if not effects:
            raise ValueError("OneOf(effects=[]): name the effects to choose from")

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return self.effects[int(random.integers(len(self.effects)))].change(waveform, random)


class Noise:
    """Steady noise at a drawn distance below the voice.

    Args:
        colour: ``white`` has the same power at all frequencies, ``pink`` 3 dB less each octave, ``brown`` 6 dB.
        min_snr_db: Loudest noise: power of the whole clip over power of the noise, in dB.
        max_snr_db: Faintest noise, in dB.
        chance: Of being used, in [0, 1].
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
        self.min_snr_db, self.max_snr_db = checked_range(self, "snr_db", min_snr_db, max_snr_db, *SNR_DB)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        spectrum = np.fft.rfft(random.standard_normal(len(waveform)))
        frequency = np.maximum(np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE), 20.0)  # nobody hears what is below
        noise = np.fft.irfft(spectrum * frequency ** (_OCTAVE_DB[self.colour] / 20 / math.log10(2)), len(waveform))
        return _at_snr(waveform, noise, random.uniform(self.min_snr_db, self.max_snr_db))


_OCTAVE_DB = {"white": 0.0, "pink": -10 * math.log10(2), "brown": -20 * math.log10(2)}


class Background:
    """A stretch of a recording from a folder of noises, music or babble, mixed in below the voice.

    Args:
        folder: Folder of audio files, looked through to the bottom.
        min_snr_db: Loudest background: power of the whole clip over power of the background, in dB.
        max_snr_db: Faintest, in dB.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, folder: str, min_snr_db: float = 5.0, max_snr_db: float = 30.0, chance: float = 0.5) -> None:
        self.folder = folder
        self.min_snr_db, self.max_snr_db = checked_range(self, "snr_db", min_snr_db, max_snr_db, *SNR_DB)
        self.chance = checked_chance(self, chance)

    @cached_property
    def files(self) -> list[str]:
        """What is in the folder; looked up when first needed, so that a trained model can be used without it."""
        return _audio_files(self, self.folder)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        background = _drawn_file(self.files, random)
        first = int(random.integers(max(len(background) - len(waveform), 0) + 1))
        background = np.resize(background[first:], len(waveform))  # again from its start where it is too short
        return _at_snr(waveform, background, random.uniform(self.min_snr_db, self.max_snr_db))


class Reverb:
    """A synthetic room: noise that dies away exponentially after the direct sound (Polack 1988).

    Args:
        min_seconds: Shortest reverberation time, until the sound is 60 dB down, in seconds.
        max_seconds: Longest.
        direct_db: Energy of the direct sound over that of the reverberation, in dB; lower is further away.
        chance: Of being used, in [0, 1].
    """

    def __init__(
        self, min_seconds: float = 0.2, max_seconds: float = 0.8, direct_db: float = 3.0, chance: float = 0.3
    ) -> None:  # fmt: skip
        self.min_seconds, self.max_seconds = checked_range(self, "seconds", min_seconds, max_seconds, lowest=0.01)
        self.direct_db = checked_range(self, "direct_db", direct_db, direct_db, *SNR_DB)[0]
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        seconds = random.uniform(self.min_seconds, self.max_seconds)
        time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
        tail = random.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
        tail *= 10 ** (-self.direct_db / 20) / max(float(np.sqrt((tail**2).sum())), 1e-9)
        return _in_room(waveform, np.concatenate([[1.0], tail]))


class RoomResponse:
    """A real room: the impulse response of a file from a folder.

    Args:
        folder: Folder of impulse responses, looked through to the bottom.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, folder: str, chance: float = 0.3) -> None:
        self.folder = folder
        self.chance = checked_chance(self, chance)

    @cached_property
    def files(self) -> list[str]:
        """What is in the folder; looked up when first needed, so that a trained model can be used without it."""
        return _audio_files(self, self.folder)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        response = _drawn_file(self.files, random)
        return _in_room(waveform, response[int(np.abs(response).argmax()) :])  # from the direct sound, so in time


class PitchShift:
    """Another pitch at the same tempo.

    Args:
        semitones: Up to this many, up or down, in [0, 24).
        chance: Of being used, in [0, 1].
    """

    def __init__(self, semitones: float = 3.0, chance: float = 0.5) -> None:
        self.semitones = checked(self, "semitones", semitones, below=24.0)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _by_library("PitchShift", waveform, random, min_semitones=-self.semitones, max_semitones=self.semitones)


class TimeStretch:
    """Another tempo at the same pitch; the clip becomes shorter or longer.

    Args:
        share: Up to this share faster or slower, in [0, 0.9).
        chance: Of being used, in [0, 1].
    """

    def __init__(self, share: float = 0.15, chance: float = 0.5) -> None:
        self.share = checked(self, "share", share, below=0.9)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        rates = {"min_rate": 1 - self.share, "max_rate": 1 + self.share}
        return _by_library("TimeStretch", waveform, random, **rates, leave_length_unchanged=False)


class TimeShift:
    """The clip earlier or later, with silence where nothing is left.

    Args:
        seconds: Up to this much, either way, 0 or more.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, seconds: float = 0.5, chance: float = 0.5) -> None:
        self.seconds = checked(self, "seconds", seconds)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        span = {"min_shift": -self.seconds, "max_shift": self.seconds, "shift_unit": "seconds"}
        return _by_library("Shift", waveform, random, **span, rollover=False)


class Gain:
    """Another loudness.

    Args:
        decibels: Up to this much louder or softer, in dB, 0 or more.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, decibels: float = 8.0, chance: float = 0.5) -> None:
        self.decibels = checked(self, "decibels", decibels)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        drawn = random.uniform(-self.decibels, self.decibels)
        return (waveform * 10 ** (drawn / 20)).astype(np.float32)


class Equaliser:
    """Another tone colour: seven bands of the spectrum raised or lowered, as microphones do.

    Args:
        decibels: Up to this much in each band, in dB, 0 or more.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, decibels: float = 8.0, chance: float = 0.3) -> None:
        self.decibels = checked(self, "decibels", decibels)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        gains = {"min_gain_db": -self.decibels, "max_gain_db": self.decibels}
        return _by_library("SevenBandParametricEQ", waveform, random, **gains)


class Reverse:
    """The clip backwards, which keeps its loudness, pitch range and tone but no word.

    Args:
        chance: Of being used, in [0, 1].
    """

    def __init__(self, chance: float = 0.1) -> None:
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return waveform[::-1].copy()


class Clipping:
    """A microphone driven too far: the loudest samples are cut off.

    Args:
        max_percent: At most this percentage of the samples is cut, in [0, 100).
        chance: Of being used, in [0, 1].
    """

    def __init__(self, max_percent: float = 10.0, chance: float = 0.2) -> None:
        self.max_percent = checked(self, "max_percent", max_percent, below=100.0)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        limit = float(np.percentile(np.abs(waveform), 100 - random.uniform(0, self.max_percent)))
        return np.clip(waveform, -limit, limit)


class Telephone:
    """A telephone line: 300 to 3400 Hz at 8 kHz, in the 8 bits of mu-law (ITU-T G.711).

    Args:
        chance: Of being used, in [0, 1].
    """

    def __init__(self, chance: float = 0.2) -> None:
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        import soxr
        from scipy.signal import butter, sosfilt

        narrow = soxr.resample(waveform, SAMPLE_RATE, 8000)
        band = sosfilt(butter(4, (300, 3400), "bandpass", fs=8000, output="sos"), narrow)
        wide = soxr.resample(_mu_law(band, 8).astype(np.float32), 8000, SAMPLE_RATE)
        return np.resize(np.pad(wide, (0, max(len(waveform) - len(wide), 0))), len(waveform)).astype(np.float32)


class MuLaw:
    """Few bits a sample, finer for faint samples than for loud ones (ITU-T G.711).

    Args:
        bits: 2 to 16; a telephone has 8.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, bits: int = 8, chance: float = 0.2) -> None:
        if not 2 <= bits <= 16:
            raise ValueError(f"MuLaw(bits={bits}), expected 2 to 16")
        self.bits = bits
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return _mu_law(waveform, self.bits).astype(np.float32)


class Mp3:
    """Coded as MP3 and back (by libsndfile).

    Args:
        min_kbps: Poorest bit rate, 8 or more, in kilobits a second.
        max_kbps: Best, 160 or less.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, min_kbps: float = 16.0, max_kbps: float = 48.0, chance: float = 0.2) -> None:
        self.min_kbps, self.max_kbps = checked_range(self, "kbps", min_kbps, max_kbps, lowest=8.0, highest=160.0)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        import soundfile

        level = (160 - random.uniform(self.min_kbps, self.max_kbps)) / (160 - 8)  # of MPEG-2's rates at 16 kHz
        coded = io.BytesIO()
        peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-9)
        soundfile.write(
            coded, waveform / peak * 0.9, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III",
            bitrate_mode="CONSTANT", compression_level=level,
        )  # fmt: skip
        decoded, _ = soundfile.read(io.BytesIO(coded.getvalue()), dtype="float32")
        decoded = np.pad(decoded, (0, max(len(waveform) - len(decoded), 0)))[: len(waveform)]
        return (decoded * peak / 0.9).astype(np.float32)


class TimeMask:
    """A stretch of silence, as where a connection drops (Park et al. 2019, SpecAugment,
    <https://arxiv.org/abs/1904.08779>).

    It is done to the waveform, so that every encoder can learn from it, features from the cache included.

    Args:
        share: At most this share of the clip, in [0, 1).
        chance: Of being used, in [0, 1].
    """

    def __init__(self, share: float = 0.15, chance: float = 0.5) -> None:
        self.share = checked(self, "share", share, below=1.0)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        length = int(random.uniform(0, self.share) * len(waveform))
        first = int(random.integers(len(waveform) - length + 1))
        changed = waveform.copy()
        changed[first : first + length] = 0.0
        return changed


class FrequencyMask:
    """A band of frequencies gone, up to so many mel bands of 80 (Park et al. 2019, SpecAugment,
    <https://arxiv.org/abs/1904.08779>); done to the waveform, as :class:`TimeMask` is.

    Args:
        num_mels: At most this many of 80 mel bands, 1 to 79.
        chance: Of being used, in [0, 1].
    """

    def __init__(self, num_mels: int = 15, chance: float = 0.5) -> None:
        if not 1 <= num_mels < 80:
            raise ValueError(f"FrequencyMask(num_mels={num_mels}), expected 1 to 79")
        self.num_mels = num_mels
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        import librosa

        edges = librosa.mel_frequencies(n_mels=82, fmin=0.0, fmax=SAMPLE_RATE / 2)
        width = int(random.integers(1, self.num_mels + 1))
        first = int(random.integers(80 - width + 1))
        frequency = np.fft.rfftfreq(_WINDOW, 1 / SAMPLE_RATE)
        keep = (frequency < edges[first]) | (frequency > edges[first + width + 1])
        return _by_spectrum(waveform, lambda spectrum: spectrum * keep[:, None])


class VocalTract:
    """Formants up or down as in a shorter or longer vocal tract, at the same pitch (after Jaitly and Hinton 2013,
    vocal tract length perturbation; the spectrum's envelope is moved, not its harmonics).

    Args:
        share: Frequencies change by up to this share, in [0, 1).
        chance: Of being used, in [0, 1].
    """

    def __init__(self, share: float = 0.1, chance: float = 0.5) -> None:
        self.share = checked(self, "share", share, below=1.0)
        self.chance = checked_chance(self, chance)

    def change(self, waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
        factor = 1 + random.uniform(-self.share, self.share)

        def warp(spectrum: np.ndarray) -> np.ndarray:
            log_power = np.log(np.abs(spectrum) + 1e-6)
            cepstrum = np.fft.irfft(log_power, axis=0)
            cepstrum[_ENVELOPE_SAMPLES : len(cepstrum) - _ENVELOPE_SAMPLES + 1] = 0.0  # what is left is the envelope
            envelope = np.fft.rfft(cepstrum, axis=0).real
            bins = np.arange(len(envelope))
            moved = np.clip(bins / factor, 0, len(bins) - 1)
            below = np.floor(moved).astype(int)
            above = np.minimum(below + 1, len(bins) - 1)
            weight = (moved - below)[:, None]
            warped = envelope[below] * (1 - weight) + envelope[above] * weight
            return spectrum * np.exp(np.clip(warped - envelope, -5, 5))

        return _by_spectrum(waveform, warp)


_WINDOW = 512  # 32 ms
_ENVELOPE_SAMPLES = 32  # 2 ms of cepstrum: formants, but no harmonics of a voice below 500 Hz


def _by_spectrum(waveform: np.ndarray, change: Any) -> np.ndarray:
    import librosa

    padded = np.pad(waveform, (0, max(_WINDOW - len(waveform), 0)))
    spectrum = change(librosa.stft(padded, n_fft=_WINDOW, hop_length=_WINDOW // 4))
    changed = librosa.istft(spectrum, n_fft=_WINDOW, hop_length=_WINDOW // 4, length=len(padded))
    return changed[: len(waveform)].astype(np.float32)


def _at_snr(waveform: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    power, noise_power = float(np.mean(waveform**2)), float(np.mean(noise**2))
    scale = math.sqrt(power / max(noise_power, 1e-20) * 10 ** (-snr_db / 10))
    return (waveform + scale * noise).astype(np.float32)


def _in_room(waveform: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolved with a room's response, as long and as loud as before."""
    from scipy.signal import fftconvolve

    heard = fftconvolve(waveform, response)[: len(waveform)]
    before, after = float(np.mean(waveform**2)), float(np.mean(heard**2))
    return (heard * math.sqrt(before / max(after, 1e-20))).astype(np.float32)


def _mu_law(waveform: np.ndarray, bits: int) -> np.ndarray:
    mu = 2**bits - 1
    peak = max(float(np.abs(waveform).max(initial=0.0)), 1e-9)
    squeezed = np.sign(waveform) * np.log1p(mu * np.abs(waveform) / peak) / math.log1p(mu)
    levels = np.round((squeezed + 1) / 2 * mu) / mu * 2 - 1
    return np.sign(levels) * np.expm1(np.abs(levels) * math.log1p(mu)) / mu * peak


def _audio_files(effect: object, folder: str) -> list[str]:
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.suffix.lower() in AUDIO_SUFFIXES]
    if not paths:
        raise ValueError(
            f"{type(effect).__name__}(folder={folder!r}): no audio there, expected a folder of "
            f"{', '.join(AUDIO_SUFFIXES)} files"
        )
    return [f"{path}:{path.stat().st_size}" for path in paths]  # the size, so that another file is another setting


def _drawn_file(files: Sequence[str], random: np.random.Generator) -> np.ndarray:
    from mmemo.audio.reader import read_audio

    return read_audio(Path(files[int(random.integers(len(files)))].rsplit(":", 1)[0]))


def _by_library(name: str, waveform: np.ndarray, random: np.random.Generator, **settings: Any) -> np.ndarray:
    """An effect of audiomentations, whose draws are fixed by ours."""
    import audiomentations

    seed = int(random.integers(2**31))
    with _GLOBAL_STATE:
        before = global_random.getstate(), np.random.get_state()  # noqa: NPY002 - the library's own generator
        global_random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            change = getattr(audiomentations, name)(**settings, p=1.0)
            return np.ascontiguousarray(change(samples=waveform.copy(), sample_rate=SAMPLE_RATE), dtype=np.float32)
        finally:
            global_random.setstate(before[0])
            np.random.set_state(before[1])  # noqa: NPY002


def checked(effect: object, name: str, value: float, below: float = math.inf) -> float:
    """A setting that is 0 or more and below a bound; else a ValueError that names it."""
    if not 0 <= value < below:
        expected = "0 or more" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"{type(effect).__name__}({name}={value:g}), expected {expected}")
    return value


def checked_chance(effect: object, chance: float) -> float:
    """A probability; else a ValueError that names the effect."""
    if not 0 <= chance <= 1:
        raise ValueError(f"{type(effect).__name__}(chance={chance:g}), expected 0 to 1")
    return chance


def checked_range(
    effect: object, name: str, low: float, high: float, lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    """Two ends in order and within bounds; else a ValueError that names them."""
    if not lowest <= low <= high <= highest or not math.isfinite(low) or not math.isfinite(high):
        bounds = "" if lowest == -math.inf else f", {lowest:g}" + ("" if highest == math.inf else f" to {highest:g}")
        raise ValueError(
            f"{type(effect).__name__}(min_{name}={low:g}, max_{name}={high:g}), expected numbers, the lower one first"
            f"{bounds and f', within{bounds[1:]}'}"
        )
    return float(low), float(high)
