"""Layer mix, pooling, gates, fusion, heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mmemo.models.fusion import Concatenation, CrossAttention, CrossModalAttention
from mmemo.models.gates import FeatureGate, NoGate
from mmemo.models.heads import ClassHead
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
    gated, values = gate(features(), MASK)
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


FUSIONS = [Concatenation, lambda audio, text: CrossModalAttention(audio, text, hidden_dim=8, num_heads=2)]
TEXT_MASK = torch.tensor([[True] * 3, [False] * 3, [True, False, False]])


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize(("audio", "text"), [(True, True), (True, False), (False, True)])
def test_fusions_are_finite_whatever_is_missing(fusion: type[nn.Module], audio: bool, text: bool) -> None:
    torch.manual_seed(0)
    module = fusion(6 if audio else None, 5 if text else None)
    words = torch.randn(3, 3, 5)
    heard = features().requires_grad_()
    fused = module(
        heard if audio else None, MASK if audio else None, words if text else None, TEXT_MASK if text else None
    )
    assert fused.vector.shape == (3, module.dim)
    assert fused.vector.isfinite().all()
    fused.vector.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_fusions_ignore_padding_and_batch_mates(fusion: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = fusion(6, 5).eval()
    words = torch.randn(3, 3, 5)
    everything = module(features(), MASK, words, TEXT_MASK).vector
    noisy = module(features() + ~MASK[..., None] * 9.0, MASK, words + ~TEXT_MASK[..., None] * 9.0, TEXT_MASK).vector
    torch.testing.assert_close(noisy, everything)
    alone = module(features()[1:2, :4], MASK[1:2, :4], words[1:2], TEXT_MASK[1:2]).vector
    torch.testing.assert_close(alone[0], everything[1], atol=1e-5, rtol=1e-4)


def test_cross_attention_maps_are_distributions_over_real_keys() -> None:
    torch.manual_seed(0)
    module = CrossModalAttention(6, 5, hidden_dim=8, num_heads=2).eval()
    fused = module(features(), MASK, torch.randn(3, 3, 5), TEXT_MASK)
    assert fused.audio_attention is not None
    assert fused.audio_attention.shape == (3, 7, 3)
    torch.testing.assert_close(fused.audio_attention[0].sum(-1), torch.ones(7))
    assert fused.audio_attention[2][:, 1:].abs().sum() == 0
    assert fused.audio_attention[1].abs().sum() == 0, "there were no words to attend to"
    assert fused.audio_attention.isfinite().all()


def test_a_missing_modality_leaves_the_other_as_it_was() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).eval()
    query = torch.randn(2, 5, 8)
    out, _ = attention(query, torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool))
    torch.testing.assert_close(out, query)


def test_heads() -> None:
    vector = torch.randn(3, 6)
    assert ClassHead(6, 4)(vector).shape == (3, 4)
    assert ClassHead(6, 4, hidden_dim=5)(vector).shape == (3, 4)
