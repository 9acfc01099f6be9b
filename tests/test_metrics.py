from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from mmemo import metrics
from mmemo.labels import UNLABELLED
from mmemo.losses import CrossEntropy


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("absent", [None, 2])
def test_our_metrics_equal_scikit_learns(seed: int, absent: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 4, (97,), generator=generator)
    if absent is not None:
        target[target == absent] = 0  # sometimes predicted, but never a target
    logits = torch.randn(97, 4, generator=generator) + torch.nn.functional.one_hot(target, 4)
    ours = metrics.emotion_metrics(4, "test/")
    for start in range(0, 97, 10):
        ours.update(logits[start : start + 10], target[start : start + 10])
    values = {name: float(value) for name, value in ours.compute().items()}
    predicted = logits.argmax(1)
    assert values["test/uar"] == pytest.approx(balanced_accuracy_score(target, predicted))
    assert values["test/accuracy"] == pytest.approx(accuracy_score(target, predicted))
    assert values["test/weighted_f1"] == pytest.approx(f1_score(target, predicted, average="weighted"))
    assert values["test/macro_f1"] == pytest.approx(f1_score(target, predicted, average="macro"))
    counts = metrics.confusion_matrix(4)(logits, target)
    assert counts.tolist() == confusion_matrix(target, predicted, labels=range(4)).tolist()


def test_unlabelled_utterances_are_ignored() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    target = torch.tensor([0, 1, UNLABELLED])
    assert all(float(value) == 1.0 for value in metrics.emotion_metrics(2, "")(logits, target).values())


def test_cross_entropy_is_the_mean_over_labelled_utterances() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 2, UNLABELLED, 1, UNLABELLED])
    expected = torch.nn.functional.cross_entropy(logits[[0, 1, 3]], target[[0, 1, 3]], label_smoothing=0.1)
    output, targets = SimpleNamespace(logits=logits), SimpleNamespace(target=target)
    torch.testing.assert_close(CrossEntropy(0.1)(output, targets), expected)
    assert CrossEntropy()(output, SimpleNamespace(target=torch.full((5,), UNLABELLED))) == 0
