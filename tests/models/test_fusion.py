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
from mmemo.models.gates import ModalityGate
from tests.models.sequences import MASK, features

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


def text_features() -> Tensor:
    return torch.randn(3, 3, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_modalities", [1, 2, 3])
def test_fusions_are_finite_with_any_modality_missing(fusion: Callable[..., nn.Module], num_modalities: int) -> None:
    module = fusion([6, 5, 6][:num_modalities])
    audio = features().requires_grad_()
    no_audio, no_text = torch.zeros_like(MASK), torch.zeros_like(TEXT_MASK)
    for masks in (
        [MASK, TEXT_MASK, MASK],
        [no_audio, TEXT_MASK, no_audio],
        [no_audio, no_text, no_audio],
    ):
        fused = module([audio, text_features(), features(seed=2)][:num_modalities], masks[:num_modalities])
        assert fused.vector.shape == (3, module.dim)
        assert fused.vector.isfinite().all()
        fused.vector.square().sum().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())


def test_fusions_ignore_padding_and_batch_mates(fusion: Callable[..., nn.Module]) -> None:
    module = fusion([6, 5]).eval()
    for part in module.modules():
        if isinstance(part, ModalityGate):
            nn.init.normal_(part.score[1].weight)
    padded = module([features(), text_features()], [MASK, TEXT_MASK]).vector
    noisy = module(
        [features() + ~MASK[..., None] * 9.0, text_features() + ~TEXT_MASK[..., None] * 9.0], [MASK, TEXT_MASK]
    )
    torch.testing.assert_close(noisy.vector, padded)
    alone = module([features()[1:2, :4], text_features()[1:2]], [MASK[1:2, :4], TEXT_MASK[1:2]]).vector
    torch.testing.assert_close(alone[0], padded[1], atol=1e-5, rtol=1e-4)


def test_features_matter_only_if_their_modality_is_present(fusion: Callable[..., nn.Module]) -> None:
    """Features of missing text have no influence, features of present text have one."""
    module = fusion([6, 5]).eval()
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
    original = module([features(), text_features()], [MASK, TEXT_MASK]).vector
    changed = module([features(), text_features() + 5 * torch.randn(3, 3, 5)], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(original[1], changed[1])
    assert (original[0] - changed[0]).abs().max() > 1e-3


def test_modality_weights_sum_to_one_over_the_present_modalities(fusion: Callable[..., nn.Module]) -> None:
    weights = fusion([6, 5])([features(), text_features()], [MASK, TEXT_MASK]).weights
    if weights is None:
        pytest.skip("this fusion does not weight modalities")
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights[1].tolist() == [1.0, 0.0], "no text"
    assert weights[2].tolist() == [0.0, 1.0], "no audio"


def test_late_fusion_is_the_mean_of_the_modalities_scores() -> None:
    module = LateFusion([6, 5], num_logits=4).eval()
    both = module([features(), text_features()], [MASK, TEXT_MASK]).vector[0]
    audio = module([features(), text_features()], [MASK, torch.zeros_like(TEXT_MASK)]).vector[0]
    text = module([features(), text_features()], [torch.zeros_like(MASK), TEXT_MASK]).vector[0]
    torch.testing.assert_close(both, (audio + text) / 2)


def test_low_rank_fusion_equals_the_full_tensor() -> None:
    """Liu et al. 2018, eq. 4: a tensor of rank 2, applied to the outer product of the inputs."""
    module = LowRankFusion([6, 5], output_dim=3, rank=2).eval()
    vectors, _ = module.pooled([features(), text_features()], [MASK, TEXT_MASK])
    first, second = (torch.cat([vector, torch.ones(3, 1)], 1) for vector in vectors)
    tensor = torch.einsum("r,rio,rjo->ijo", module.rank_weights, *module.factors)
    expected = module.norm(torch.einsum("bi,bj,ijo->bo", first, second, tensor))
    fused = module([features(), text_features()], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(fused, expected, atol=1e-4, rtol=1e-3)


def test_gated_unit_equals_the_papers_for_two_modalities() -> None:
    """Arevalo et al. 2017: h = z tanh(W1 x1) + (1 - z) tanh(W2 x2)."""
    module = GatedMultimodalUnit([6, 5], hidden_dim=4).eval()
    nn.init.normal_(module.gate.score[1].weight)
    vectors, _ = module.pooled([features(), text_features()], [MASK, TEXT_MASK])
    scores = module.gate.score(torch.cat(vectors, 1))
    z = (scores[:, :4] - scores[:, 4:]).sigmoid()
    expected = z * module.project[0](vectors[0]) + (1 - z) * module.project[1](vectors[1])
    fused = module([features(), text_features()], [MASK, TEXT_MASK]).vector
    torch.testing.assert_close(fused[0], expected[0])


def test_modalities_exchange_information_only_through_bottleneck_tokens() -> None:
    torch.manual_seed(0)
    one_layer = AttentionBottleneck([6, 5], hidden_dim=8, num_heads=2, num_layers=1).eval()
    two_layers = AttentionBottleneck([6, 5], hidden_dim=8, num_heads=2, num_layers=2).eval()
    audio_part = slice(0, 16)
    for module, exchanges in ((one_layer, False), (two_layers, True)):
        original = module([features(), text_features()], [MASK, TEXT_MASK]).vector[0, audio_part]
        changed = module([features(), text_features().roll(1, -1)], [MASK, TEXT_MASK]).vector[0, audio_part]
        assert ((original - changed).abs().max() > 1e-6) == exchanges


def test_attention_maps_are_distributions_over_real_keys() -> None:
    torch.manual_seed(0)
    for kind, shape in (("cross-modal", (3, 7, 3)), ("bottleneck", (3, 2, 7))):
        fused = FUSIONS[kind]([6, 5]).eval()([features(), text_features()], [MASK, TEXT_MASK])
        assert len(fused.attention) == 2
        first = fused.attention[0].weights
        assert first.shape == shape
        torch.testing.assert_close(first[0].sum(-1), torch.ones(shape[1]))
        for _, key, weights in fused.attention:
            mask = (MASK, TEXT_MASK)[key]
            assert weights.isfinite().all()
            assert (weights * ~mask[:, None]).abs().sum() == 0


def test_attention_to_a_missing_modality_is_zero() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).eval()
    context, weights = attention(torch.randn(2, 5, 8), torch.randn(2, 3, 8), torch.zeros(2, 3, dtype=torch.bool))
    assert context.abs().sum() == weights.abs().sum() == 0
