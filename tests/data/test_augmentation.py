from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmemo.audio.effects import Gain, Noise
from mmemo.data.augmentation import Soundalikes, WaveformAugmentation, WordAugmentation
from tests.conftest import tone

TEXTS = ["the cat sat on the mat", "a cut mat, and a hat", "Where is the rat?", "they were there", "I sit on my hat"]


def test_seed_name_and_number_determine_a_view_in_any_order_and_thread() -> None:
    clip = tone(0.7).numpy()
    augmentation = WaveformAugmentation()
    views = [augmentation(clip, "a", view) for view in range(6)]
    np.testing.assert_array_equal(views[0], clip)
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda view: WaveformAugmentation()(clip, "a", view), [5, 4, 3, 2, 1, 0]))
    for view, other in zip(views, reversed(again), strict=True):
        np.testing.assert_array_equal(view, other)
    assert len({view.tobytes() for view in views}) >= 5  # a view may apply no effect
    assert not np.array_equal(augmentation(clip, "b", 1), views[1])
    assert not np.array_equal(WaveformAugmentation(seed=1)(clip, "a", 1), views[1])
    assert augmentation.fingerprint() != WaveformAugmentation(seed=1).fingerprint()
    assert augmentation.fingerprint() != WaveformAugmentation([Gain()]).fingerprint()
    assert all(np.isfinite(view).all() and view.dtype == np.float32 for view in views)


def test_effects_are_applied_with_their_chance() -> None:
    clip = tone(0.1).numpy()
    augmentation = WaveformAugmentation([Noise("white", 20, 20, chance=0.25)])
    changed = sum(not np.array_equal(augmentation(clip, "a", view), clip) for view in range(1, 401))
    assert 70 <= changed <= 130


def test_the_global_generators_are_unchanged() -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    WaveformAugmentation()(tone(0.3).numpy(), "a", 1)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_words_are_replaced_by_similar_ones_at_the_requested_rate() -> None:
    soundalikes = Soundalikes(TEXTS)
    assert "cut" in soundalikes.similar_to("Cat,")
    assert "cat" not in soundalikes.similar_to("Cat,")
    text = "the cat sat on the mat " * 50
    substituted = WordAugmentation(error_rate=0.2, deletions=0.0, empty=0.0)(text, "a", 1, soundalikes)
    pairs = list(zip(text.split(), substituted.split(), strict=True))
    assert 0.15 < sum(a != b for a, b in pairs) / len(pairs) < 0.25
    vocabulary = {word for line in TEXTS for word in line.lower().replace(",", "").replace("?", "").split()}
    assert all(b in vocabulary for _, b in pairs)
    deleted = WordAugmentation(error_rate=0.2, deletions=1.0, empty=0.0)(text, "a", 1, soundalikes)
    assert 0.75 < len(deleted.split()) / len(pairs) < 0.85


def test_views_of_transcripts_are_deterministic_and_may_be_empty() -> None:
    soundalikes = pickle.loads(pickle.dumps(Soundalikes(TEXTS)))
    augmentation = WordAugmentation(0.3, empty=0.25)
    views = [augmentation(TEXTS[0], "a", view, soundalikes) for view in range(200)]
    assert views[0] == TEXTS[0]
    assert views == [augmentation(TEXTS[0], "a", view, Soundalikes(TEXTS)) for view in range(200)]
    assert 30 <= sum(view == "" for view in views) <= 70
    assert WordAugmentation(0.9)("hello", "a", 1, Soundalikes(["hello"])) in ("hello", "")


def test_invalid_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"error_rate=1"):
        WordAugmentation(1.0)
    with pytest.raises(ValueError, match=r"empty=1.5"):
        WordAugmentation(empty=1.5)
