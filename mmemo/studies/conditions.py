"""Conditions under which a model is evaluated: noise, rooms, channels, attacks, wrong words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmemo.audio.effects import Effect, Mp3, Noise, Reverb, Telephone, describe_effect
from mmemo.data.augmentation import Soundalikes, WordAugmentation, view_generator
from mmemo.models.emotion_model import EmotionModel
from mmemo.training.attacks import FGSM, PGD, Attack, PerturbationPoint
from mmemo.training.features import Waveforms

CLEAN = "clean"
REVERB_SECONDS = 0.6  # a large living room
MP3_KBPS = 16.0


class Condition(NamedTuple):
    """One way in which an utterance reaches the model.

    Args:
        kind: Kind, such as ``white``, ``telephone``, ``pgd`` or ``words``.
        strength: Signal-to-noise ratio in dB, or share of wrong words; NaN for a kind with a single strength.
        effect: Changes the waveform.
        attack: Perturbs the waveform against the model.
        words: Changes the transcript; ``empty=1`` removes it.
    """

    kind: str
    strength: float = float("nan")
    effect: Effect | None = None
    attack: Attack | None = None
    words: WordAugmentation | None = None

    @property
    def name(self) -> str:
        """Kind and strength."""
        if np.isnan(self.strength):
            return self.kind
        return f"{self.kind} {100 * self.strength:g} %" if self.kind == "words" else f"{self.kind} {self.strength:g} dB"

    @property
    def settings(self) -> str:
        """All settings of the condition."""
        parts = [describe_effect(part) for part in (self.effect, self.attack, self.words) if part is not None]  # type: ignore[arg-type]
        return " ".join(parts)


def conditions(
    noise_db: Sequence[float] = (20, 15, 10, 5, 0),
    attack_db: Sequence[float] = (45, 35, 25),
    word_errors: Sequence[float] = (0.1, 0.2, 0.4),
    pgd_steps: int = 20,
) -> list[Condition]:
    """Returns all conditions of the robustness report.

    Args:
        noise_db: Signal-to-noise ratios of white, pink and brown noise, in dB.
        attack_db: Signal-to-perturbation ratios of attacks on the waveform, in dB.
        word_errors: Shares of wrong words, in (0, 1).
        pgd_steps: Steps of projected gradient descent.

    Example:
        >>> [condition.name for condition in conditions(noise_db=[10])][:2]
        ['clean', 'white 10 dB']
    """
    result = [Condition(CLEAN)]
    for colour in ("white", "pink", "brown"):
        result += [Condition(colour, snr, Noise(colour, snr, snr)) for snr in noise_db]  # type: ignore[arg-type]
    result.append(Condition("reverberation", effect=Reverb(REVERB_SECONDS, REVERB_SECONDS)))
    result.append(Condition("telephone", effect=Telephone()))
    result.append(Condition("mp3", effect=Mp3(MP3_KBPS, MP3_KBPS)))
    result += [Condition("fgsm", snr, attack=FGSM("waveform", snr)) for snr in attack_db]
    result += [Condition("pgd", snr, attack=PGD("waveform", snr, steps=pgd_steps)) for snr in attack_db]
    result += [Condition("words", rate, words=WordAugmentation(rate, empty=0.0)) for rate in word_errors]
    result.append(Condition("no words", words=WordAugmentation(0.0, empty=1.0)))
    return result


def reason_to_skip(model: EmotionModel, condition: Condition, surrogate: EmotionModel | None = None) -> str:
    """Returns why a condition does not apply to a model; empty if it does.

    Args:
        model: Trained model.
        condition: Condition to try.
        surrogate: Model against which attacks are searched. Defaults to the model itself.
    """
    if condition.words is not None and not model.takes_text:
        return "the model has no text encoder"
    if condition.effect is not None and not model.takes_audio:
        return "the model has no audio encoder"
    if condition.attack is not None:
        try:
            PerturbationPoint(surrogate or model, condition.attack.level, condition.kind)
        except ValueError as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class ChangedWaveforms:
    """A source of waveforms changed by an effect, the same each time.

    Args:
        clean: Unchanged recordings.
        effect: Changes them; None leaves them unchanged.

    Shape:
        row, view -> waveform ``(samples,)`` float32 at 16 kHz
    """

    clean: Waveforms
    effect: Effect | None

    def __call__(self, row: int, view: int) -> Tensor:
        waveform = self.clean(row, 0)
        if self.effect is None or not len(waveform):
            return waveform
        generator = view_generator(0, self.clean.contents[row], 1)
        return torch.from_numpy(self.effect.apply(waveform.numpy(), generator))


@dataclass(frozen=True)
class ChangedTranscripts:
    """A source of token ids of transcripts with wrong words, the same each time.

    Args:
        tokenize: Text -> token ids ``(token,)`` int64.
        texts: Transcript of each row.
        ids: Id of each row.
        change: Changes transcripts; None leaves them unchanged.
        soundalikes: Vocabulary of misheard words.
    """

    tokenize: Callable[[str], Tensor]
    texts: Sequence[str]
    ids: Sequence[str]
    change: WordAugmentation | None
    soundalikes: Soundalikes

    def __call__(self, row: int, view: int) -> Tensor:
        text = self.texts[row]
        if self.change is not None:
            text = self.change(text, self.ids[row], 1, self.soundalikes)
        return self.tokenize(text)
