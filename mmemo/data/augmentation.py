"""Training examples that were never recorded: changed waveforms, and words as Whisper might have misheard them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256

import numpy as np

from mmemo.audio.effects import Effect, Equaliser, Gain, Noise, OneOf, PitchShift, TimeStretch, checked, described

NUM_SOUNDALIKES = 5  # words that one may be misheard as


class WaveformAugmentation:
    """A chain of effects, drawn anew for each view of an utterance.

    The same seed, utterance and view always give the same waveform, on any machine, in any order and in any worker.

    Args:
        effects: What may happen to a waveform, in this order, each with its own chance; see ``mmemo.audio.effects``.
            When not given: pitch or tempo, loudness, tone colour and faint white noise.
        seed: Of all draws.
    """

    def __init__(self, effects: list[Effect] | None = None, seed: int = 0) -> None:
        if effects == []:
            raise ValueError("WaveformAugmentation(effects=[]) changes nothing; name effects, or leave it out")
        self.effects = effects if effects is not None else default_effects()
        self.seed = seed

    def fingerprint(self) -> str:
        """All that a view depends on besides the waveform."""
        return f"waveform-augmentation-2:{[described(effect) for effect in self.effects]}:{self.seed}"

    def __call__(self, waveform: np.ndarray, name: str, view: int) -> np.ndarray:
        """One view of an utterance.

        Args:
            waveform: ``(samples,)`` float32 at 16 kHz.
            name: Of the utterance, such as its checksum; together with seed and view it fixes all draws.
            view: 0 is the utterance itself.

        Returns:
            ``(samples,)`` float32, longer or shorter where the tempo changed.
        """
        return self.traced(waveform, name, view)[0]

    def traced(self, waveform: np.ndarray, name: str, view: int) -> tuple[np.ndarray, list[Effect]]:
        """One view of an utterance, and which of the effects it went through; arguments as for a call."""
        if view == 0:
            return waveform, []
        random = drawing(self.seed, name, view)
        used = []
        for effect in self.effects:
            if random.random() < effect.chance:
                waveform = effect.change(waveform, random)
                used.append(effect)
        return waveform, used


def default_effects() -> list[Effect]:
    """Another speaker and another microphone, as far as that leaves the emotion as it is."""
    return [
        OneOf([PitchShift(3.0), TimeStretch(0.15)], chance=0.9),
        Gain(8.0, chance=0.6),
        Equaliser(8.0, chance=0.3),
        Noise("white", min_snr_db=12.0, max_snr_db=37.0, chance=0.3),
    ]


class WordAugmentation:
    """Transcripts with the mistakes of a recogniser: words misheard, left out, or none at all.

    A word is misheard as one of those in the corpus that are spelled most like it, so any language will do.

    Args:
        error_rate: Share of the words that are wrong, in [0, 1).
        deletions: Share of the errors that leave a word out rather than replace it, in [0, 1].
        empty: Chance that no word at all is heard, in [0, 1].
        seed: Of all draws.
    """

    def __init__(self, error_rate: float = 0.15, deletions: float = 0.25, empty: float = 0.1, seed: int = 0) -> None:
        self.error_rate = checked(self, "error_rate", error_rate, below=1.0)
        for name, value in (("deletions", deletions), ("empty", empty)):
            if not 0 <= value <= 1:
                raise ValueError(f"WordAugmentation({name}={value:g}), expected 0 to 1")
        self.deletions = deletions
        self.empty = empty
        self.seed = seed

    def __call__(self, text: str, name: str, view: int, soundalikes: Soundalikes) -> str:
        """One view of a transcript.

        Args:
            text: As it was heard.
            name: Of the utterance; together with seed and view it fixes all draws.
            view: 0 is the transcript itself.
            soundalikes: What words are misheard as.
        """
        if view == 0:
            return text
        random = drawing(self.seed, name, view)
        if random.random() < self.empty:
            return ""
        heard = []
        for word in text.split():
            if random.random() >= self.error_rate:
                heard.append(word)
            elif random.random() >= self.deletions:
                others = soundalikes.of(word)
                heard.append(others[int(random.integers(len(others)))] if others else word)
        return " ".join(heard)


class Soundalikes:
    """The words of a corpus that are spelled most alike (by rapidfuzz).

    Args:
        texts: Transcripts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = sorted({bare(word) for text in texts for word in text.split()} - {""})
        self.of = lru_cache(maxsize=None)(self._of)

    def _of(self, word: str) -> list[str]:
        """Up to ``NUM_SOUNDALIKES`` other words, the likeliest first; none in a corpus of one word."""
        from rapidfuzz import process
        from rapidfuzz.distance import JaroWinkler

        found = process.extract(
            bare(word), self.words, scorer=JaroWinkler.normalized_similarity, limit=NUM_SOUNDALIKES + 1
        )
        return [other for other, _, _ in found if other != bare(word)][:NUM_SOUNDALIKES]

    def __getstate__(self) -> Mapping[str, object]:
        return {"words": self.words}

    def __setstate__(self, state: dict[str, list[str]]) -> None:  # workers fill caches of their own
        self.words = state["words"]
        self.of = lru_cache(maxsize=None)(self._of)


def bare(word: str) -> str:
    """A word in small letters without the punctuation around it."""
    return word.strip(".,;:!?\"'()[]-…“”‘’").lower()


def drawing(seed: int, name: str, view: int) -> np.random.Generator:
    """The generator of one view of one utterance.

    Args:
        seed: Of the augmentation.
        name: Of the utterance.
        view: Its number.
    """
    return np.random.default_rng(int(sha256(f"{seed}:{name}:{view}".encode()).hexdigest()[:16], 16))
