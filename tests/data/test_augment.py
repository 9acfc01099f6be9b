from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mmemo.data.augment import WaveformAugmentation
from tests.conftest import tone


def test_views_are_fixed_by_seed_name_and_number_in_any_order_and_thread() -> None:
    clip = tone(0.7).numpy()
    augmentation = WaveformAugmentation()
    views = [augmentation(clip, "a", view) for view in range(6)]
    np.testing.assert_array_equal(views[0], clip)
    with ThreadPoolExecutor(4) as threads:
        again = list(threads.map(lambda view: WaveformAugmentation()(clip, "a", view), [5, 4, 3, 2, 1, 0]))
    for view, other in zip(views, reversed(again), strict=True):
        np.testing.assert_array_equal(view, other)
    assert len({view.tobytes() for view in views}) == 6
    assert not np.array_equal(augmentation(clip, "b", 1), views[1])
    assert not np.array_equal(WaveformAugmentation(seed=1)(clip, "a", 1), views[1])
    assert augmentation.fingerprint() != WaveformAugmentation(seed=1).fingerprint()
    assert all(np.isfinite(view).all() and view.dtype == np.float32 for view in views)


def test_the_global_generators_are_as_they_were() -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    WaveformAugmentation()(tone(0.3).numpy(), "a", 1)
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002


def test_bad_settings_are_told() -> None:
    with pytest.raises(ValueError, match=r"stretch=1\.5"):
        WaveformAugmentation(stretch=1.5)
