from __future__ import annotations

import random as global_random
from pathlib import Path

import numpy as np
import pytest
import soundfile

from mmemo.audio import effects
from mmemo.settings import SAMPLE_RATE
from tests.conftest import tone

RNG = np.random.default_rng


def clip(seconds: float = 1.0) -> np.ndarray:
    noise = RNG(0).standard_normal(int(seconds * SAMPLE_RATE)).astype(np.float32)
    return tone(seconds).numpy() * np.linspace(0.2, 1.0, int(seconds * SAMPLE_RATE), dtype=np.float32) + 0.01 * noise


def power_db(waveform: np.ndarray, low: float, high: float) -> float:
    spectrum = np.abs(np.fft.rfft(waveform)) ** 2
    frequency = np.fft.rfftfreq(len(waveform), 1 / SAMPLE_RATE)
    return float(10 * np.log10(spectrum[(frequency >= low) & (frequency < high)].mean() + 1e-12))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    soundfile.write(tmp_path / "a.wav", RNG(1).standard_normal(SAMPLE_RATE) * 0.1, SAMPLE_RATE)
    return str(tmp_path)


def all_effects(folder: str) -> list[effects.Effect]:
    return [
        effects.Noise("white"), effects.Noise("pink"), effects.Noise("brown"), effects.Background(folder),
        effects.Reverb(), effects.RoomResponse(folder), effects.PitchShift(), effects.TimeStretch(),
        effects.TimeShift(), effects.Gain(), effects.Equaliser(), effects.Reverse(), effects.Clipping(),
        effects.Telephone(), effects.MuLaw(), effects.Mp3(), effects.TimeMask(), effects.FrequencyMask(),
        effects.VocalTract(), effects.OneOf([effects.Reverse(), effects.Gain()]),
    ]  # fmt: skip


def test_every_effect_changes_a_copy_and_draws_from_its_generator_alone(folder: str) -> None:
    waveform = clip()
    for effect in all_effects(folder):
        before = waveform.copy()
        global_random.seed(1)
        state = global_random.getstate()
        first, again = effect.apply(waveform, RNG(3)), effect.apply(waveform, RNG(3))
        np.testing.assert_array_equal(first, again, err_msg=str(effect))
        np.testing.assert_array_equal(waveform, before, err_msg=str(effect))
        assert global_random.getstate() == state
        assert first.dtype == np.float32, effect
        assert np.isfinite(first).all(), effect
        assert not np.array_equal(first, waveform), effect
        if not isinstance(effect, effects.TimeStretch):
            assert len(first) == len(waveform), effect
        short = effect.apply(waveform[:400], RNG(3))  # 25 ms
        assert np.isfinite(short).all(), effect
    assert len({effects.describe_effect(effect) for effect in all_effects(folder)}) == len(all_effects(folder))


@pytest.mark.parametrize(("colour", "octave_db"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_noise_has_its_spectrum_and_level(colour: str, octave_db: float) -> None:
    waveform = clip(4.0)
    noise = effects.Noise(colour, 10.0, 10.0).apply(waveform, RNG(0)) - waveform  # type: ignore[arg-type]
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.01)
    assert power_db(noise, 2000, 4000) - power_db(noise, 500, 1000) == pytest.approx(2 * octave_db, abs=0.8)


def test_background_has_the_requested_level(folder: str) -> None:
    waveform = clip(2.5)  # longer than the file
    background = effects.Background(folder, 5.0, 5.0).apply(waveform, RNG(0)) - waveform
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(background**2)) == pytest.approx(5, abs=0.01)


def test_reverberation_decays_in_the_requested_time() -> None:
    click = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    click[0] = 1.0
    reverberant = effects.Reverb(0.5, 0.5).apply(click, RNG(0))
    early = 10 * np.log10(np.mean(reverberant[800:1600] ** 2))  # 75 ms
    late = 10 * np.log10(np.mean(reverberant[4800:5600] ** 2))  # 325 ms: half of the decay by 60 dB
    assert late - early == pytest.approx(-30, abs=2)


def test_telephone_removes_frequencies_outside_its_band() -> None:
    noise = (RNG(0).standard_normal(4 * SAMPLE_RATE) * 0.1).astype(np.float32)
    filtered = effects.Telephone().apply(noise, RNG(0))
    inside = power_db(filtered, 800, 2500)
    assert power_db(filtered, 0, 100) < inside - 25
    assert power_db(filtered, 4500, 8000) < inside - 25


def test_mu_law_is_finer_for_quiet_samples() -> None:
    ramp = np.linspace(-1, 1, 10001, dtype=np.float32)
    error = np.abs(effects.MuLaw(8).apply(ramp, RNG(0)) - ramp)
    assert error[4950:5050].max() < error[:500].max() / 20
    assert len(np.unique(effects.MuLaw(4).apply(ramp, RNG(0)))) == 16


def test_masks_remove_an_interval_or_a_band() -> None:
    noise = (RNG(0).standard_normal(SAMPLE_RATE) * 0.1).astype(np.float32)
    assert (effects.TimeMask(0.5).apply(noise, RNG(1)) == 0).sum() > 100
    masked = effects.FrequencyMask(30).apply(noise, RNG(1))
    loss_db = [power_db(noise, low, low + 200) - power_db(masked, low, low + 200) for low in range(0, 8000, 200)]
    assert max(loss_db) > 20
    assert min(loss_db) < 1


def test_vocal_tract_moves_formants_and_preserves_pitch() -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.cos(2 * np.pi * 120 * n * time) * np.exp(-(((120 * n - 1500) / 300) ** 2)) for n in range(1, 60))
    buzz = (buzz / np.abs(buzz).max()).astype(np.float32)
    assert isinstance(buzz, np.ndarray)
    warped = [effects.VocalTract(0.2).apply(buzz, RNG(seed)) for seed in range(4)]
    frequency = np.fft.rfftfreq(len(buzz), 1 / SAMPLE_RATE)
    centres = []
    for waveform in warped:
        spectrum = np.abs(np.fft.rfft(waveform))
        centres.append((spectrum * frequency).sum() / spectrum.sum())
        peak = frequency[spectrum.argmax()]
        assert abs(peak / 120 - round(peak / 120)) < 0.02  # still a harmonic of 120 Hz
    assert max(centres) - min(centres) > 60


def test_invalid_settings_are_rejected(tmp_path: Path) -> None:
    for build, message in (
        (lambda: effects.TimeStretch(1.5), r"TimeStretch\(share=1\.5\), expected in \[0, 0.9\)"),
        (lambda: effects.Noise("white", 30, 5), r"min_snr_db=30, max_snr_db=5.*lower one first"),
        (lambda: effects.Noise("white", float("nan"), 5), "expected numbers"),
        (lambda: effects.Noise("red"), "white, pink, brown"),  # type: ignore[arg-type]
        (lambda: effects.Gain(chance=2), "chance=2"),
        (lambda: effects.Background(str(tmp_path)).files, "no audio there"),
        (lambda: effects.TimeStretch(0.95), "expected in"),
        (lambda: effects.PitchShift(30), "expected in"),
        (lambda: effects.Reverb(direct_db=float("nan")), "expected numbers"),
        (lambda: effects.Noise(min_snr_db=-2000, max_snr_db=-2000), "expected numbers"),
        (lambda: effects.Mp3(4, 48), "within 8 to 160"),
        (lambda: effects.OneOf([]), "name the effects"),
        (lambda: effects.MuLaw(1), "2 to 16"),
        (lambda: effects.FrequencyMask(0), "1 to 79"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
