"""Training examples that were never recorded: changed waveforms, and transcripts with recognition errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256

import numpy as np

from mmemo.audio.bounds import check_setting
from mmemo.audio.effects import Effect, Equaliser, Gain, Noise, OneOf, PitchShift, TimeStretch, describe_effect

NUM_SOUNDALIKES = 5  # candidates that may replace a word


class WaveformAugmentation:
    """A chain of effects, drawn anew for each view of an utterance.

    The same seed, utterance and view always give the same waveform, on any machine, in any order and in any worker.

    Args:
        effects: Effects to apply in this order, each with its own chance; see ``mmemo.audio.effects``. Defaults to
            pitch or tempo, level, timbre and faint white noise.
        seed: Seed of all random draws.

    Raises:
        ValueError: ``effects`` is an empty list.

    Shape:
        waveform ``(samples,)`` float32 at 16 kHz -> ``(new_samples,)`` float32

    Example:
        >>> augmentation = WaveformAugmentation([Noise("white", chance=1.0)])
        >>> waveform = np.ones(16_000, dtype=np.float32)
        >>> first, second = (augmentation(waveform, "clip1", view=number) for number in (1, 2))
        >>> bool((first == second).all()), bool((first == augmentation(waveform, "clip1", view=1)).all())
        (False, True)
    """

    def __init__(self, effects: list[Effect] | None = None, seed: int = 0) -> None:
        if effects == []:
            raise ValueError("WaveformAugmentation(effects=[]) changes nothing; name effects, or leave it out")
        self.effects = effects if effects is not None else default_effects()
        self.seed = seed

    def fingerprint(self) -> str:
        """Returns everything that a view depends on besides the waveform, as a cache key."""
        return f"waveform-augmentation-2:{[describe_effect(effect) for effect in self.effects]}:{self.seed}"

    def __call__(self, waveform: np.ndarray, name: str, view: int) -> np.ndarray:
        """Returns one view of an utterance.

        Args:
            waveform: ``(samples,)`` float32 at 16 kHz.
            name: Identifies the utterance, such as its checksum; with seed and view it determines all draws.
            view: Number of the view; 0 is the utterance itself.

        Returns:
            ``(samples,)`` float32, longer or shorter if the tempo changed.
        """
        return self.trace(waveform, name, view)[0]

    def trace(self, waveform: np.ndarray, name: str, view: int) -> tuple[np.ndarray, list[Effect]]:
        """Returns one view ``(samples,)`` of an utterance, and its effects; takes the arguments of a call."""
        if view == 0:
            return waveform, []
        generator = view_generator(self.seed, name, view)
        applied = []
        for effect in self.effects:
            if generator.random() < effect.chance:
                waveform = effect.apply(waveform, generator)
                applied.append(effect)
        return waveform, applied


def default_effects() -> list[Effect]:
    """Returns effects that imitate another speaker and microphone and preserve the emotion."""
    return [
        OneOf([PitchShift(3.0), TimeStretch(0.15)], chance=0.9),
        Gain(8.0, chance=0.6),
        Equaliser(8.0, chance=0.3),
        Noise("white", min_snr_db=12.0, max_snr_db=37.0, chance=0.3),
    ]


class WordAugmentation:
    """Adds the errors of a speech recogniser to transcripts: substituted words, deleted words, or an empty text.

    A word is replaced by one of the corpus's words with the most similar spelling, so it works for any language.

    Args:
        error_rate: Share of wrong words, in [0, 1).
        deletions: Share of the errors that delete a word instead of replacing it, in [0, 1].
        empty: Probability of an empty transcript, in [0, 1].
        seed: Seed of all random draws.

    Raises:
        ValueError: A rate is out of range.

    Example:
        >>> soundalikes = Soundalikes(["the cat sat on the mat"])
        >>> WordAugmentation(error_rate=0.0, empty=0.0)("the cat sat", "clip1", 1, soundalikes)
        'the cat sat'
    """

    def __init__(self, error_rate: float = 0.15, deletions: float = 0.25, empty: float = 0.1, seed: int = 0) -> None:
        self.error_rate = check_setting(self, "error_rate", error_rate, below=1.0)
        for name, value in (("deletions", deletions), ("empty", empty)):
            if not 0 <= value <= 1:
                raise ValueError(f"WordAugmentation({name}={value:g}), expected 0 to 1")
        self.deletions = deletions
        self.empty = empty
        self.seed = seed

    def __call__(self, text: str, name: str, view: int, soundalikes: Soundalikes) -> str:
        """Returns one view of a transcript.

        Args:
            text: The transcript.
            name: Identifies the utterance; with seed and view it determines all draws.
            view: Number of the view; 0 is the transcript itself.
            soundalikes: Candidates for substituted words.
        """
        if view == 0:
            return text
        generator = view_generator(self.seed, name, view)
        if generator.random() < self.empty:
            return ""
        recognised = []
        for word in text.split():
            if generator.random() >= self.error_rate:
                recognised.append(word)
            elif generator.random() >= self.deletions:
                candidates = soundalikes.similar_to(word)
                recognised.append(candidates[int(generator.integers(len(candidates)))] if candidates else word)
        return " ".join(recognised)


class Soundalikes:
    """The words of a corpus, searchable for the most similar spelling (Jaro-Winkler similarity, by rapidfuzz).

    Args:
        texts: Transcripts.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.words = sorted({normalise_word(word) for text in texts for word in text.split()} - {""})
        self.similar_to = lru_cache(maxsize=None)(self._similar_to)

    def _similar_to(self, word: str) -> list[str]:
        """Returns up to ``NUM_SOUNDALIKES`` other words, most similar first; empty if the corpus has only one word."""
        from rapidfuzz import process
        from rapidfuzz.distance import JaroWinkler

        word = normalise_word(word)
        similarity = JaroWinkler.normalized_similarity
        matches = process.extract(word, self.words, scorer=similarity, limit=NUM_SOUNDALIKES + 1)
        return [other for other, _, _ in matches if other != word][:NUM_SOUNDALIKES]

    def __getstate__(self) -> Mapping[str, object]:
        return {"words": self.words}

    def __setstate__(self, state: dict[str, list[str]]) -> None:  # each worker fills a cache of its own
        self.words = state["words"]
        self.similar_to = lru_cache(maxsize=None)(self._similar_to)


def normalise_word(word: str) -> str:
    """Returns a word in lower case without surrounding punctuation."""
    return word.strip(".,;:!?\"'()[]-…“”‘’").lower()


def view_generator(seed: int, name: str, view: int) -> np.random.Generator:
    """Returns the random generator of one view of one utterance.

    Args:
        seed: Seed of the augmentation.
        name: Identifies the utterance.
        view: Number of the view.
    """
    return np.random.default_rng(int(sha256(f"{seed}:{name}:{view}".encode()).hexdigest()[:16], 16))
