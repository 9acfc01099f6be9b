from __future__ import annotations

import numpy as np
import pytest
import torch

from mmemo.data.batch import BucketSampler, Example, collate
from mmemo.labels import UNLABELLED


def example(row: int, audio: torch.Tensor | None, text: torch.Tensor | None, target: int) -> Example:
    return Example(row, audio, audio, text, target, torch.zeros(3), torch.zeros(3))


def test_padding_is_masked_and_zero() -> None:
    batch = collate(
        [
            example(7, torch.ones(2, 5, 3, dtype=torch.float16), torch.tensor([4, 5]), 1),
            example(8, torch.ones(2, 0, 3, dtype=torch.float16), torch.tensor([], dtype=torch.long), UNLABELLED),
        ]
    )
    assert batch.row.tolist() == [7, 8]
    assert batch.audio is not None
    assert batch.audio.shape == (2, 2, 5, 3)
    assert batch.audio.dtype == torch.float32
    assert batch.audio_mask is not None
    assert batch.audio_mask.sum(1).tolist() == [5, 0]
    assert batch.audio[1].abs().sum() == 0
    assert batch.text is not None
    assert batch.text.tolist() == [[4, 5], [0, 0]]
    assert batch.text_mask is not None
    assert batch.text_mask.tolist() == [[True, True], [False, False]]


def test_a_batch_without_any_audio_has_one_masked_frame() -> None:
    batch = collate([example(0, torch.zeros(2, 0, 3), None, 0)])
    assert batch.audio is not None
    assert batch.audio.shape == (1, 2, 1, 3)
    assert not batch.audio_mask.any()  # type: ignore[union-attr]
    assert batch.text is None


def test_single_modality_batches_mask_the_other_modality() -> None:
    batch = collate([example(0, torch.ones(4), torch.ones(2, dtype=torch.long), 0)])
    assert not batch.audio_only().text_mask.any()  # type: ignore[union-attr]
    assert batch.audio_only().audio_mask.all()  # type: ignore[union-attr]
    assert not batch.text_only().audio_mask.any()  # type: ignore[union-attr]


@pytest.mark.parametrize(("num", "size", "processes"), [(100, 8, 1), (100, 8, 2), (17, 4, 3), (3, 2, 2), (5, 5, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_utterance_is_sampled_once_and_processes_have_equally_many_batches(
    num: int, size: int, processes: int, shuffle: bool
) -> None:
    durations = np.random.default_rng(0).uniform(1, 10, num)
    seen: list[int] = []
    counts = set()
    for rank in range(processes):
        sampler = BucketSampler(durations, size, shuffle, rank=rank, num_processes=processes)
        batches = list(sampler)
        counts.add(len(batches))
        assert len(batches) == len(sampler)
        assert all(batches)
        seen += [index for batch in batches for index in batch]
    assert sorted(seen) == list(range(num))
    assert len(counts) == 1


def test_batches_have_similar_durations_and_little_padding() -> None:
    durations = np.random.default_rng(0).uniform(1, 10, 2000)
    for shuffle in (True, False):
        batches = list(BucketSampler(durations, 32, shuffle))
        padded = sum(len(batch) * durations[batch].max() for batch in batches)
        assert padded / durations.sum() < 1.1
    random = np.array_split(np.random.default_rng(1).permutation(2000), 63)
    assert sum(len(batch) * durations[batch].max() for batch in random) / durations.sum() > 1.5


def test_epochs_differ_and_are_reproducible() -> None:
    sampler = BucketSampler(np.arange(100.0), 8, shuffle=True)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(BucketSampler(np.arange(100.0), 8, shuffle=True, seed=1)) != first


def test_too_few_utterances_for_the_processes_are_rejected() -> None:
    with pytest.raises(ValueError, match="2 utterances cannot be divided among 3 processes"):
        BucketSampler([1.0, 2.0], 4, num_processes=3)
    with pytest.raises(ValueError, match="batch_size=1 is below the number of processes"):
        BucketSampler([1.0, 2.0], 1, num_processes=2)
