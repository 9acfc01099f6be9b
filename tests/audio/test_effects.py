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


def every_effect(folder: str) -> list[effects.Effect]:
    return [
        effects.Noise("white"), effects.Noise("pink"), effects.Noise("brown"), effects.Background(folder),
        effects.Reverb(), effects.RoomResponse(folder), effects.PitchShift(), effects.TimeStretch(),
        effects.TimeShift(), effects.Gain(), effects.Equaliser(), effects.Reverse(), effects.Clipping(),
        effects.Telephone(), effects.MuLaw(), effects.Mp3(), effects.TimeMask(), effects.FrequencyMask(),
        effects.VocalTract(), effects.OneOf([effects.Reverse(), effects.Gain()]),
    ]  # fmt: skip


def test_every_effect_changes_a_copy_by_draws_of_its_own(folder: str) -> None:
    waveform = clip()
    for effect in every_effect(folder):
        before = waveform.copy()
        global_random.seed(1)
        state = global_random.getstate()
        first, again = effect.change(waveform, RNG(3)), effect.change(waveform, RNG(3))
        np.testing.assert_array_equal(first, again, err_msg=str(effect))
        np.testing.assert_array_equal(waveform, before, err_msg=str(effect))
        assert global_random.getstate() == state
        assert first.dtype == np.float32, effect
        assert np.isfinite(first).all(), effect
        assert not np.array_equal(first, waveform), effect
        if not isinstance(effect, effects.TimeStretch):
            assert len(first) == len(waveform), effect
        short = effect.change(waveform[:400], RNG(3))  # 25 ms
        assert np.isfinite(short).all(), effect
    assert len({effects.described(effect) for effect in every_effect(folder)}) == len(every_effect(folder))


@pytest.mark.parametrize(("colour", "octave_db"), [("white", 0.0), ("pink", -3.01), ("brown", -6.02)])
def test_noise_has_its_colour_and_its_level(colour: str, octave_db: float) -> None:
    waveform = clip(4.0)
    noise = effects.Noise(colour, 10.0, 10.0).change(waveform, RNG(0)) - waveform  # type: ignore[arg-type]
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(noise**2)) == pytest.approx(10, abs=0.01)
    assert power_db(noise, 2000, 4000) - power_db(noise, 500, 1000) == pytest.approx(2 * octave_db, abs=0.8)


def test_background_comes_at_its_level(folder: str) -> None:
    waveform = clip(2.5)  # longer than the file
    background = effects.Background(folder, 5.0, 5.0).change(waveform, RNG(0)) - waveform
    assert 10 * np.log10(np.mean(waveform**2) / np.mean(background**2)) == pytest.approx(5, abs=0.01)


def test_a_room_rings_on_for_its_time() -> None:
    click = np.zeros(2 * SAMPLE_RATE, dtype=np.float32)
    click[0] = 1.0
    heard = effects.Reverb(0.5, 0.5).change(click, RNG(0))
    early = 10 * np.log10(np.mean(heard[800:1600] ** 2))  # 75 ms
    late = 10 * np.log10(np.mean(heard[4800:5600] ** 2))  # 325 ms: half of 60 dB down
    assert late - early == pytest.approx(-30, abs=2)


def test_a_telephone_keeps_its_band_alone() -> None:
    noise = (RNG(0).standard_normal(4 * SAMPLE_RATE) * 0.1).astype(np.float32)
    heard = effects.Telephone().change(noise, RNG(0))
    inside = power_db(heard, 800, 2500)
    assert power_db(heard, 0, 100) < inside - 25
    assert power_db(heard, 4500, 8000) < inside - 25


def test_mu_law_is_finer_for_faint_samples() -> None:
    ramp = np.linspace(-1, 1, 10001, dtype=np.float32)
    error = np.abs(effects.MuLaw(8).change(ramp, RNG(0)) - ramp)
    assert error[4950:5050].max() < error[:500].max() / 20
    assert len(np.unique(effects.MuLaw(4).change(ramp, RNG(0)))) == 16


def test_masks_take_out_a_stretch_or_a_band() -> None:
    noise = (RNG(0).standard_normal(SAMPLE_RATE) * 0.1).astype(np.float32)
    assert (effects.TimeMask(0.5).change(noise, RNG(1)) == 0).sum() > 100
    masked = effects.FrequencyMask(30).change(noise, RNG(1))
    lost = [power_db(noise, low, low + 200) - power_db(masked, low, low + 200) for low in range(0, 8000, 200)]
    assert max(lost) > 20
    assert min(lost) < 1


def test_a_longer_vocal_tract_moves_formants_and_leaves_pitch() -> None:
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    buzz = sum(np.cos(2 * np.pi * 120 * n * time) * np.exp(-(((120 * n - 1500) / 300) ** 2)) for n in range(1, 60))
    buzz = (buzz / np.abs(buzz).max()).astype(np.float32)
    assert isinstance(buzz, np.ndarray)
    moved = [effects.VocalTract(0.2).change(buzz, RNG(seed)) for seed in range(4)]
    frequency = np.fft.rfftfreq(len(buzz), 1 / SAMPLE_RATE)
    centres = []
    for one in moved:
        spectrum = np.abs(np.fft.rfft(one))
        centres.append((spectrum * frequency).sum() / spectrum.sum())
        peak = frequency[spectrum.argmax()]
        assert abs(peak / 120 - round(peak / 120)) < 0.02  # still a harmonic of 120 Hz
    assert max(centres) - min(centres) > 60


def test_bad_settings_are_told(tmp_path: Path) -> None:
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
