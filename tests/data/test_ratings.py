from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from mmemo.data.corpora.cremad import cremad
from mmemo.data.ratings import majority, mapped_votes, vote_shares
from mmemo.losses import SoftLabels
from tests.conftest import CORPORA

VOTES = pd.DataFrame({"votes_anger": [3, 2, 0, 1], "votes_sadness": [1, 2, 0, 0], "votes_neutral": [0, 0, 0, 9]})


def test_shares_sum_to_one_or_nobody_voted() -> None:
    shares = vote_shares(mapped_votes(VOTES, {"neutral": None}), ["anger", "sadness"])
    np.testing.assert_allclose(shares, [[0.75, 0.25], [0.5, 0.5], [0, 0], [1, 0]])
    joined = vote_shares(mapped_votes(VOTES, {"neutral": "sadness"}), ["anger", "sadness"])
    np.testing.assert_allclose(joined[3], [0.1, 0.9])
    with pytest.raises(ValueError, match=r"votes_neutral votes for 'neutral'.*neutral: null"):
        vote_shares(VOTES, ["anger", "sadness"])
    with pytest.raises(ValueError, match="no column is called votes_EMOTION"):
        vote_shares(pd.DataFrame({"id": ["a"]}), ["anger"])


def test_the_majority_is_silent_on_a_tie() -> None:
    names = VOTES.rename(columns=lambda name: name.removeprefix("votes_"))
    found = majority(names)
    assert found.iloc[[0, 3]].tolist() == ["anger", "neutral"]
    assert found.iloc[[1, 2]].isna().all()


@pytest.mark.parametrize("divergence", ["cross_entropy", "kl"])
def test_soft_labels_pick_no_side_on_a_tie(divergence: str) -> None:
    """Trained on a tie alone, a model that leans to one side comes to rest in the middle, and stays there."""
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
def test_cremads_votes_and_majority_come_from_one_file() -> None:
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
    assert logits.grad[0, first] == logits.grad[0, second] < 0, "the real tie pulls both sides alike"
