from __future__ import annotations

import pytest
import torch
from torch import nn

from mmemo.models.gates import FeatureGate, HardConcreteGate, NoGate, VariableSelection
from tests.models.sequences import MASK, features


def test_feature_gates_are_in_zero_to_one_start_open_and_ignore_padding() -> None:
    gate = FeatureGate([6])
    gated, values, penalty = gate(features(), MASK)
    assert penalty is None
    assert ((values >= 0) & (values <= 1)).all()
    assert (values > 0.9).all()
    torch.testing.assert_close(gated, features() * values[:, None])
    nn.init.normal_(gate.excite.weight)
    noisy = features() + ~MASK[..., None] * 100.0
    torch.testing.assert_close(gate(noisy, MASK)[1], gate(features(), MASK)[1])


def test_an_all_ones_gate_equals_no_gate() -> None:
    gate = FeatureGate([6])
    nn.init.constant_(gate.excite.bias, 1000.0)
    torch.testing.assert_close(gate(features(), MASK)[0], NoGate([6])(features(), MASK)[0])
    assert NoGate([6])(features(), MASK)[1].tolist() == [[1.0] * 6] * 3


def test_closed_hard_concrete_gates_are_exactly_zero_and_the_penalty_warms_up() -> None:
    gate = HardConcreteGate([6], penalty=0.5, warmup_steps=2)
    gate.position.data[:3] = -0.4
    gated, values, penalty = gate.eval()(features(), MASK)
    assert penalty is None
    assert values[:, :3].abs().sum() == 0
    assert (values[:, 3:] > 0.9).all()
    assert gated[..., :3].abs().sum() == 0
    gate.train()
    penalties = [gate(features(), MASK).penalty for _ in range(4)]
    torch.testing.assert_close(
        torch.stack(penalties), 0.5 * gate.open_probability.mean() * torch.tensor([0.5, 1.0, 1.0, 1.0])
    )


def test_hard_concrete_open_probability_matches_its_samples() -> None:
    torch.manual_seed(0)
    gate = HardConcreteGate([3])
    gate.position.data = (torch.tensor([-1.0, 0.0, 1.5]) - 2.5) / gate.LOG_ALPHA_SCALE
    values = torch.zeros(20_000, 1, 3)
    sampled = gate(values, torch.ones(20_000, 1, dtype=torch.bool)).gate
    torch.testing.assert_close((sampled > 0).float().mean(0), gate.open_probability.detach(), atol=0.02, rtol=0)


def test_hard_concrete_gates_drop_noise_and_keep_the_informative_feature() -> None:
    """Trained on one informative feature among nine noisy ones, the gate keeps only that one."""
    torch.manual_seed(0)
    gate, head = HardConcreteGate([10], penalty=1.0, warmup_steps=50), nn.Linear(10, 2)
    optimizer = torch.optim.Adam([*gate.parameters(), *head.parameters()], lr=0.01)
    for _ in range(400):
        values = torch.randn(64, 1, 10)
        target = (values[:, 0, 3] > 0).long()
        gated, _, penalty = gate(values, torch.ones(64, 1, dtype=torch.bool))
        loss = nn.functional.cross_entropy(head(gated[:, 0] * 3), target) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    kept = gate.eval()(values, torch.ones(64, 1, dtype=torch.bool)).gate[0] > 0
    assert kept.nonzero().flatten().tolist() == [3]


def test_variable_selection_weights_groups_and_ignores_padding() -> None:
    torch.manual_seed(0)
    gate = VariableSelection([1, 2, 3]).eval()
    gated, values, _ = gate(features(), MASK)
    assert gated.shape == (3, 7, 6)
    torch.testing.assert_close(values[:, [0, 1, 3]].sum(1), torch.ones(3))
    assert values[:, 1].equal(values[:, 2])
    noisy = features() + ~MASK[..., None] * 100.0
    torch.testing.assert_close(gate(noisy, MASK).gate, values)
    torch.testing.assert_close(gate(noisy, MASK).features, gated)
    assert gated[~MASK].abs().sum() == 0


@pytest.mark.parametrize("feature", range(6))
def test_variable_selection_passes_features_of_every_group_through(feature: int) -> None:
    torch.manual_seed(0)
    gate = VariableSelection([1, 2, 3]).eval()
    changed = features()
    changed[0, 2, feature] += 1.0
    difference = (gate(changed, MASK).features - gate(features(), MASK).features)[0, 2, feature]
    assert difference.abs() > 0.1


def test_variable_selection_adapts_to_the_utterance() -> None:
    """Each of three groups predicts a class and carries a flag; only the flagged group is right, and it varies."""
    torch.manual_seed(0)
    gate, head = VariableSelection([2, 2, 2], dropout=0.0), nn.Linear(6, 2)
    optimizer = torch.optim.AdamW([*gate.parameters(), *head.parameters()], lr=0.01, weight_decay=0.1)
    mask = torch.ones(64, 1, dtype=torch.bool)
    row = torch.arange(64)
    for _ in range(300):
        trusted, target = torch.randint(3, (64,)), torch.randint(2, (64,))
        groups = torch.full((64, 3, 2), -2.0)
        groups[..., 0] = 2.0 * torch.randint(2, (64, 3)) - 1
        groups[row, trusted] = torch.stack([2.0 * target - 1, torch.full((64,), 2.0)], dim=1)
        values = groups.reshape(64, 1, 6)
        loss = nn.functional.cross_entropy(head(gate(values, mask).features[:, 0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    selected = gate.eval()(values, mask).gate[:, [0, 2, 4]].argmax(1)
    assert (selected == trusted).float().mean() > 0.5, "chance is a third"
