"""Changes of a waveform that leave its emotion as it is."""

from __future__ import annotations

import random
import threading
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from mmemo.pretrained import SAMPLE_RATE

_GLOBAL_STATE = threading.Lock()  # audiomentations draws from the global generators


class WaveformAugmentation:
    """Pitch, tempo, loudness, noise and tone colour, drawn anew for each view of an utterance (by audiomentations).

    The same seed, utterance and view always give the same waveform, on any machine and in any order.

    Args:
        semitones: Pitch is shifted by up to this many, up or down, 0 or more.
        stretch: Tempo changes by up to this share, in [0, 1).
        gain_db: Loudness changes by up to this much, in dB, 0 or more.
        snr_db: Noise is at least this far below the voice, in dB; none leaves noise out.
        equaliser_db: Seven bands of the spectrum are raised or lowered by up to this much, in dB, 0 or more.
        chance: Of each of these to be used, in [0, 1]; pitch and tempo are never changed both.
        seed: Of all draws.
    """

    def __init__(
        self,
        semitones: float = 3.0,
        stretch: float = 0.15,
        gain_db: float = 8.0,
        snr_db: float | None = 12.0,
        equaliser_db: float = 8.0,
        chance: float = 0.6,
        seed: int = 0,
    ) -> None:
        if semitones < 0 or not 0 <= stretch < 1 or gain_db < 0 or equaliser_db < 0 or not 0 <= chance <= 1:
            raise ValueError(
                f"WaveformAugmentation(semitones={semitones}, stretch={stretch}, gain_db={gain_db}, "
                f"equaliser_db={equaliser_db}, chance={chance}): expected 0 or more, a stretch in [0, 1) and a chance "
                "in [0, 1]"
            )
        self.semitones = semitones
        self.stretch = stretch
        self.gain_db = gain_db
        self.snr_db = snr_db
        self.equaliser_db = equaliser_db
        self.chance = chance
        self.seed = seed

    def fingerprint(self) -> str:
        """All that a view depends on besides the waveform."""
        settings = [self.semitones, self.stretch, self.gain_db, self.snr_db, self.equaliser_db, self.chance, self.seed]
        return f"waveform-augmentation-1:{settings}"

    @cached_property
    def _changes(self) -> Any:
        import audiomentations as effects

        voice = [
            effects.PitchShift(-self.semitones, self.semitones, p=1.0),
            effects.TimeStretch(1 - self.stretch, 1 + self.stretch, leave_length_unchanged=False, p=1.0),
        ]
        changes: list[Any] = [
            effects.OneOf(voice, p=min(1.5 * self.chance, 1.0)),
            effects.Gain(-self.gain_db, self.gain_db, p=self.chance),
            effects.SevenBandParametricEQ(-self.equaliser_db, self.equaliser_db, p=self.chance / 2),
        ]
        if self.snr_db is not None:
            changes.append(effects.AddGaussianSNR(self.snr_db, self.snr_db + 25, p=self.chance / 2))
        return effects.Compose(changes)

    def __call__(self, waveform: np.ndarray, name: str, view: int) -> np.ndarray:
        """One view of an utterance.

        Args:
            waveform: ``(samples,)`` float32 at 16 kHz.
            name: Of the utterance, such as its checksum; together with seed and view it fixes all draws.
            view: 0 is the utterance itself.

        Returns:
            ``(samples,)`` float32, longer or shorter where the tempo changed.
        """
        if view == 0:
            return waveform
        drawn = int(sha256(f"{self.seed}:{name}:{view}".encode()).hexdigest()[:8], 16)
        with _GLOBAL_STATE:
            before = random.getstate(), np.random.get_state()  # noqa: NPY002 - the library's own generator
            random.seed(drawn)
            np.random.seed(drawn)  # noqa: NPY002
            try:
                changed = self._changes(samples=waveform.copy(), sample_rate=SAMPLE_RATE)
            finally:
                random.setstate(before[0])
                np.random.set_state(before[1])  # noqa: NPY002
        return np.ascontiguousarray(changed, dtype=np.float32)
