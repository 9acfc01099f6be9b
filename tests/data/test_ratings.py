from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mmemo.data.corpora.cremad import cremad
from mmemo.data.ratings import majority, map_votes, vote_shares
from mmemo.losses import SoftLabels
from tests.conftest import CORPORA

VOTES = pd.DataFrame({"votes_anger": [3, 2, 0, 1], "votes_sadness": [1, 2, 0, 0], "votes_neutral": [0, 0, 0, 9]})


def test_shares_sum_to_one_or_are_zero_without_votes() -> None:
    shares = vote_shares(map_votes(VOTES, {"neutral": None}), ["anger", "sadness"])
    np.testing.assert_allclose(shares, [[0.75, 0.25], [0.5, 0.5], [0, 0], [1, 0]])
    joined = vote_shares(map_votes(VOTES, {"neutral": "sadness"}), ["anger", "sadness"])
    np.testing.assert_allclose(joined[3], [0.1, 0.9])
    with pytest.raises(ValueError, match=r"votes_neutral has votes for 'neutral'.*neutral: null"):
        vote_shares(VOTES, ["anger", "sadness"])
    with pytest.raises(ValueError, match="expected columns votes_EMOTION"):
        vote_shares(pd.DataFrame({"id": ["a"]}), ["anger"])


def test_a_tie_has_no_majority() -> None:
    names = VOTES.rename(columns=lambda name: name.removeprefix("votes_"))
    emotions = majority(names)
    assert emotions.iloc[[0, 3]].tolist() == ["anger", "neutral"]
    assert emotions.iloc[[1, 2]].isna().all()


@pytest.mark.parametrize("divergence", ["cross_entropy", "kl"])
def test_soft_labels_stay_balanced_on_a_tie(divergence: str) -> None:
    """A model that starts with a preference converges to equal probabilities when it is trained on a tie."""
    votes = torch.tensor([[0.5, 0.5, 0.0]])
    logits = torch.tensor([[3.0, -1.0, 0.0]], requires_grad=True)
    loss = SoftLabels(divergence)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([logits], lr=1.0)
    for _ in range(500):
        value = loss(SimpleNamespace(logits=logits), SimpleNamespace(votes=votes))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    probs = logits.detach().softmax(-1)[0]
    assert float(probs[0]) == pytest.approx(float(probs[1]), abs=1e-4)
    assert float(probs[2]) < 0.01
    if divergence == "kl":
        assert float(value) == pytest.approx(0.0, abs=0.01)


@pytest.mark.corpora
def test_cremad_votes_and_majority_are_consistent() -> None:
    soft = cremad(CORPORA / "cremad")
    hard = cremad(CORPORA / "cremad", labels="majority")
    assert len(soft) == len(hard) == 7442
    votes = soft.filter(like="votes_")
    classes = [name.removeprefix("votes_") for name in votes]
    shares = vote_shares(soft, classes)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-5)
    leaders = (shares == shares.max(1, keepdims=True)).sum(1)
    tied = hard["emotion"].isna().to_numpy()
    np.testing.assert_array_equal(tied, leaders > 1)
    assert 0 < tied.sum() < 1000
    best = np.array(classes)[shares.argmax(1)]
    assert (best[~tied] == hard["emotion"].to_numpy()[~tied]).all()
    loss = SoftLabels()
    row = int(np.flatnonzero(tied & (leaders == 2))[0])
    first, second = np.flatnonzero(shares[row] == shares[row].max())
    logits = torch.zeros(1, len(classes), requires_grad=True)
    loss(SimpleNamespace(logits=logits), SimpleNamespace(votes=torch.from_numpy(shares[row : row + 1]))).backward()
    assert logits.grad is not None
    assert logits.grad[0, first] == logits.grad[0, second] < 0, "a tie pulls both classes equally"
