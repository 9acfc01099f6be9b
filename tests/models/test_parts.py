"""Layer mix, pooling, gates, fusion, heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mmemo.models.fusion import (
    AttentionBottleneck,
    Concatenation,
    CrossAttention,
    CrossModalAttention,
    GatedMultimodalUnit,
    LateFusion,
    LowRankFusion,
)
from mmemo.models.gates import FeatureGate, HardConcreteGate, ModalityGate, NoGate, VariableSelection
from mmemo.models.heads import ClassHead, DimensionHead, NoHead
from mmemo.models.layer_mix import LayerConcat, LayerMix
from mmemo.models.pooling import AttentiveStatisticsPooling, MaskedBatchNorm, StatisticsPooling

MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False] * 7])


def features(dim: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, dim, generator=generator) * MASK[..., None]


def test_layer_mix_weights_sum_to_one_and_start_equal() -> None:
    mix = LayerMix(3, 6)
    states = torch.randn(2, 3, 7, 6)
    torch.testing.assert_close(mix.weights, torch.full((3,), 1 / 3))
    expected = nn.functional.layer_norm(states, (6,)).mean(1)
    torch.testing.assert_close(mix(states), expected)
    mix.logits.data = torch.tensor([0.0, 50.0, 0.0])
    torch.testing.assert_close(mix(states), nn.functional.layer_norm(states[:, 1], (6,)))


def test_layer_concat_keeps_every_layer() -> None:
    states = torch.randn(2, 3, 7, 6)
    joined = LayerConcat(3, 6)(states)
    assert joined.shape == (2, 7, 18)
    torch.testing.assert_close(joined[..., 6:12], states[:, 1])


@pytest.mark.parametrize("kind", [StatisticsPooling, AttentiveStatisticsPooling])
def test_pooling_starts_as_mean_and_deviation_of_the_real_frames(kind: type[nn.Module]) -> None:
    pooling = kind(6)
    values = features()
    pooled = pooling(values, MASK)
    assert pooled.shape == (3, 12)
    torch.testing.assert_close(pooled[1, :6], values[1, :4].mean(0))
    torch.testing.assert_close(pooled[1, 6:], values[1, :4].std(0, unbiased=False), atol=1e-4, rtol=1e-4)
    assert pooled[2].abs().sum() == 0


@pytest.mark.parametrize("kind", [StatisticsPooling, AttentiveStatisticsPooling])
def test_pooling_of_one_frame_and_of_none_has_finite_gradients(kind: type[nn.Module]) -> None:
    values = features().requires_grad_()
    mask = MASK.clone()
    mask[1] = torch.tensor([True] + [False] * 6)
    kind(6)(values, mask).square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()


def test_attention_sums_to_one_over_real_frames() -> None:
    pooling = AttentiveStatisticsPooling(6)
    nn.init.normal_(pooling.score[2].weight)
    attention = pooling.attention(features(), MASK)
    torch.testing.assert_close(attention.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert attention[1, 4:].abs().sum() == 0


def test_batch_norm_ignores_absent_rows() -> None:
    norm = MaskedBatchNorm(4)
    rows = torch.randn(5, 4) * 3 + 2
    present = torch.tensor([True, True, False, True, True])
    out = norm(rows, present)
    torch.testing.assert_close(out[present].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert out[2].abs().sum() == 0
    before = norm.running_mean.clone()
    assert norm(rows[:1], present[:1]).isfinite().all(), "one row alone is normalised by the running statistics"
    torch.testing.assert_close(norm.running_mean, before)
    assert norm(rows, torch.zeros(5, dtype=torch.bool)).abs().sum() == 0


def test_batch_norm_equals_pytorchs_when_all_are_present() -> None:
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4, affine=False)
    everyone = torch.ones(6, dtype=torch.bool)
    for seed in range(3):
        rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        torch.testing.assert_close(ours(rows, everyone), theirs(rows), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(rows, everyone), theirs.eval()(rows), atol=1e-5, rtol=1e-4)


def test_a_gate_is_in_zero_to_one_starts_open_and_sees_no_padding() -> None:
    gate = FeatureGate(6)
    gated, values, penalty = gate(features(), MASK)
    assert penalty is None
    assert ((values >= 0) & (values <= 1)).all()
    assert (values > 0.9).all()
    torch.testing.assert_close(gated, features() * values[:, None])
    nn.init.normal_(gate.excite.weight)
    noisy = features() + ~MASK[..., None] * 100.0
    torch.testing.assert_close(gate(noisy, MASK)[1], gate(features(), MASK)[1])


def test_an_all_ones_gate_equals_no_gate() -> None:
    gate = FeatureGate(6)
    nn.init.constant_(gate.excite.bias, 1000.0)
    torch.testing.assert_close(gate(features(), MASK)[0], NoGate(6)(features(), MASK)[0])
    assert NoGate(6)(features(), MASK)[1].tolist() == [[1.0] * 6] * 3


FUSIONS = {
    "concatenation": Concatenation,
    "late": partial(LateFusion, num_logits=4),
    "gmu": partial(GatedMultimodalUnit, hidden_dim=8),
    "scalar gmu": partial(GatedMultimodalUnit, hidden_dim=8, per_feature=False),
    "low rank": partial(LowRankFusion, output_dim=8, rank=2),
    "cross-modal": partial(CrossModalAttention, hidden_dim=8, num_heads=2),
    "bottleneck": partial(AttentionBottleneck, hidden_dim=8, num_heads=2, num_tokens=2),
}
TEXT_MASK = torch.tensor([[True] * 3, [False] * 3, [True, False, False]])


@pytest.fixture(params=FUSIONS)
def fusion(request: pytest.FixtureRequest) -> Callable[[Sequence[int]], nn.Module]:
    torch.manual_seed(0)
    return FUSIONS[request.param]


def words() -> Tensor:
    return torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_fusions_are_finite_whatever_is_missing(fusion: Callable[..., nn.Module], num_modalities: int) -> None:
    module = fusion([6, 5, 6][:num_modalities])
    heard = features().requires_grad_()
    nothing = torch.zeros_like(MASK)
    for masks in (
        [MASK, TEXT_MASK, MASK],
        [nothing, TEXT_MASK, nothing],
        [nothing, torch.zeros_like(TEXT_MASK), nothing],
    ):
        fused = module([heard, words(), features(seed=2)][:num_modalities], masks[:num_modalities])
        assert fused.vector.shape == (3, module.dim)
        assert fused.vector.isfinite().all()
        fused.vector.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_fusions_ignore_padding_and_batch_mates(fusion: Callable[..., nn.Module]) -> None:
    module = fusion([6, 5]).eval()
    for part in module.modules():
        if isinstance(part, ModalityGate):
            nn.init.normal_(part.score[1].weight)
    everything = module([features(), words()], [MASK, TEXT_MASK]).vector
    noisy = module([features() + ~MASK[..., None] * 9.0, words() + ~TEXT_MASK[..., None] * 9.0], [MASK, TEXT_MASK])
    torch.testing.assert_close(noisy.vector, everything)
    alone = module([features()[1:2, :4], words()[1:2]], [MASK[1:2, :4], TEXT_MASK[1:2]]).vector
    torch.testing.assert_close(alone[0], everything[1], atol=1e-5, rtol=1e-4)


def test_a_missing_modality_changes_nothing_but_by_being_missing(fusion: Callable[..., nn.Module]) -> None:
    """What stands in the place of missing words has no influence, and words that are there have one."""
    module = fusion([6, 5]).eval()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
    one = module([features(), words()], [MASK, TEXT_MASK]).vector
    other = module([features(), words() + 5 * torch.randn(3, 3, 5)], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(one[1], other[1])
    assert (one[0] - other[0]).abs().max() > 1e-3


def test_modality_weights_sum_to_one_over_what_is_there(fusion: Callable[..., nn.Module]) -> None:
    weights = fusion([6, 5])([features(), words()], [MASK, TEXT_MASK]).weights
    if weights is None:
        pytest.skip("this fusion does not weigh modalities")
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights[1].tolist() == [1.0, 0.0], "no words"
    assert weights[2].tolist() == [0.0, 1.0], "no audio"


def test_late_fusion_is_the_mean_of_the_modalities_scores() -> None:
    module = LateFusion([6, 5], num_logits=4).eval()
    both = module([features(), words()], [MASK, TEXT_MASK]).vector[0]
    audio = module([features(), words()], [MASK, torch.zeros_like(TEXT_MASK)]).vector[0]
    text = module([features(), words()], [torch.zeros_like(MASK), TEXT_MASK]).vector[0]
    torch.testing.assert_close(both, (audio + text) / 2)


def test_low_rank_fusion_equals_the_full_tensor() -> None:
    """Liu et al. 2018, eq. 4: a tensor of rank 2, applied to the outer product of the inputs."""
    module = LowRankFusion([6, 5], output_dim=3, rank=2).eval()
    vectors, _ = module.pooled([features(), words()], [MASK, TEXT_MASK])
    first, second = (torch.cat([vector, torch.ones(3, 1)], 1) for vector in vectors)
    tensor = torch.einsum("r,rio,rjo->ijo", module.rank_weights, *module.factors)
    expected = module.norm(torch.einsum("bi,bj,ijo->bo", first, second, tensor))
    found = module([features(), words()], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_gated_unit_is_the_papers_for_two_modalities() -> None:
    """Arevalo et al. 2017: h = z tanh(W1 x1) + (1 - z) tanh(W2 x2)."""
    module = GatedMultimodalUnit([6, 5], hidden_dim=4).eval()
    nn.init.normal_(module.gate.score[1].weight)
    vectors, _ = module.pooled([features(), words()], [MASK, TEXT_MASK])
    scores = module.gate.score(torch.cat(vectors, 1))
    z = (scores[:, :4] - scores[:, 4:]).sigmoid()
    expected = z * module.project[0](vectors[0]) + (1 - z) * module.project[1](vectors[1])
    found = module([features(), words()], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(found[0], expected[0])


def test_bottleneck_tokens_are_the_only_way_between_modalities() -> None:
    torch.manual_seed(0)
    one_layer = AttentionBottleneck([6, 5], hidden_dim=8, num_heads=2, num_layers=1).eval()
    two_layers = AttentionBottleneck([6, 5], hidden_dim=8, num_heads=2, num_layers=2).eval()
    audio_part = slice(0, 16)
    for module, talks in ((one_layer, False), (two_layers, True)):
        one = module([features(), words()], [MASK, TEXT_MASK]).vector[0, audio_part]
        other = module([features(), words().roll(1, -1)], [MASK, TEXT_MASK]).vector[0, audio_part]
        assert ((one - other).abs().max() > 1e-6) == talks


def test_attention_maps_are_distributions_over_real_keys() -> None:
    torch.manual_seed(0)
    for kind, shape in (("cross-modal", (3, 7, 3)), ("bottleneck", (3, 2, 7))):
        fused = FUSIONS[kind]([6, 5]).eval()([features(), words()], [MASK, TEXT_MASK])
        assert len(fused.attention) == 2
        first = fused.attention[0].weights
        assert first.shape == shape
        torch.testing.assert_close(first[0].sum(-1), torch.ones(shape[1]))
        for _, key, weights in fused.attention:
            mask = (MASK, TEXT_MASK)[key]
            assert weights.isfinite().all()
            assert (weights * ~mask[:, None]).abs().sum() == 0


def test_a_missing_modality_leaves_the_other_as_it_was() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).eval()
    context, weights = attention(torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool))
    assert context.abs().sum() == weights.abs().sum() == 0


def test_heads() -> None:
    vector = torch.randn(3, 6)
    assert ClassHead(6, 4)(vector).shape == (3, 4)
    assert ClassHead(6, 4, hidden_dim=5)(vector).shape == (3, 4)
    dimensions = DimensionHead(6)(100 * vector)
    assert dimensions.shape == (3, 3)
    assert (dimensions.abs() <= 1).all()
    assert NoHead(4, 4)(vector[:, :4]).shape == (3, 4)
    with pytest.raises(ValueError, match="num_logits: 4"):
        NoHead(6, 4)


def test_hard_concrete_gates_are_exactly_zero_once_closed_and_cost_nothing_then() -> None:
    gate = HardConcreteGate(6, penalty=0.5, warmup_steps=2)
    gate.log_alpha.data[:3] = -8.0
    gated, values, penalty = gate.eval()(features(), MASK)
    assert penalty is None
    assert values[:, :3].abs().sum() == 0
    assert (values[:, 3:] > 0.9).all()
    assert gated[..., :3].abs().sum() == 0
    gate.train()
    prices = [gate(features(), MASK).penalty for _ in range(4)]
    torch.testing.assert_close(torch.stack(prices), 0.5 * gate.open_chance.mean() * torch.tensor([0.5, 1.0, 1.0, 1.0]))


def test_hard_concrete_open_chance_is_that_of_its_draws() -> None:
    torch.manual_seed(0)
    gate = HardConcreteGate(3)
    gate.log_alpha.data = torch.tensor([-1.0, 0.0, 1.5])
    many = torch.zeros(20_000, 1, 3)
    drawn = gate(many, torch.ones(20_000, 1, dtype=torch.bool)).gate
    torch.testing.assert_close((drawn > 0).float().mean(0), gate.open_chance.detach(), atol=0.02, rtol=0)


def test_hard_concrete_gates_drop_noise_and_keep_what_counts() -> None:
    """Trained on one informative feature among nine noisy ones, it keeps that one alone."""
    torch.manual_seed(0)
    gate, head = HardConcreteGate(10, penalty=1.0, warmup_steps=50), nn.Linear(10, 2)
    optimizer = torch.optim.Adam([{"params": gate.parameters(), "lr": 0.1}, {"params": head.parameters(), "lr": 0.02}])
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


def test_variable_selection_weights_groups_and_sees_no_padding() -> None:
    torch.manual_seed(0)
    gate = VariableSelection(6, group_sizes=[1, 2, 3]).eval()
    gated, values, _ = gate(features(), MASK)
    assert gated.shape == (3, 7, 6)
    torch.testing.assert_close(values[:, [0, 1, 3]].sum(1), torch.ones(3))
    assert values[:, 1].equal(values[:, 2])
    noisy = features() + ~MASK[..., None] * 100.0
    torch.testing.assert_close(gate(noisy, MASK).gate, values)
    torch.testing.assert_close(gate(noisy, MASK).features, gated)
    assert gated[~MASK].abs().sum() == 0
    with pytest.raises(ValueError, match="add up to the 6 features"):
        VariableSelection(6, num_groups=4)


def test_variable_selection_finds_the_group_that_counts() -> None:
    torch.manual_seed(0)
    gate, head = VariableSelection(6, num_groups=3), nn.Linear(6, 2)
    optimizer = torch.optim.Adam([*gate.parameters(), *head.parameters()], lr=0.01)
    mask = torch.ones(64, 1, dtype=torch.bool)
    for _ in range(300):
        values = torch.randn(64, 1, 6)
        target = (values[:, 0, 2] * values[:, 0, 3] > 0).long()
        loss = nn.functional.cross_entropy(head(gate(values, mask).features[:, 0]), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = gate.eval()(values, mask).gate.mean(0)[[0, 2, 4]]
    assert weights.argmax() == 1
