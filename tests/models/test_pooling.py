from __future__ import annotations

import pytest
import torch
from torch import nn

from mmemo.models.pooling import AttentiveStatisticsPooling, MaskedBatchNorm, StatisticsPooling
from tests.models.sequences import MASK, features


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
def test_pooling_of_one_frame_or_none_has_finite_gradients(kind: type[nn.Module]) -> None:
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
    normalised = norm(rows, present)
    torch.testing.assert_close(normalised[present].mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    assert normalised[2].abs().sum() == 0
    before = norm.running_mean.clone()
    assert norm(rows[:1], present[:1]).isfinite().all(), "a single row is normalised by the running statistics"
    torch.testing.assert_close(norm.running_mean, before)
    assert norm(rows, torch.zeros(5, dtype=torch.bool)).abs().sum() == 0


def test_batch_norm_equals_pytorchs_when_all_are_present() -> None:
    ours, theirs = MaskedBatchNorm(4), nn.BatchNorm1d(4, affine=False)
    present = torch.ones(6, dtype=torch.bool)
    for seed in range(3):
        rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)) * 3 + 2
        torch.testing.assert_close(ours(rows, present), theirs(rows), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours.eval()(rows, present), theirs.eval()(rows), atol=1e-5, rtol=1e-4)


def test_batch_norm_of_images_equals_pytorchs_on_the_real_frames() -> None:
    """Compares an image whose last frames are padding with the same image without them."""
    ours, theirs = MaskedBatchNorm(4, affine=True), nn.BatchNorm2d(4)
    with torch.no_grad():
        for norm in (ours, theirs):
            assert norm.weight is not None
            assert norm.bias is not None
            norm.weight.copy_(torch.tensor([0.5, 1.0, 2.0, -1.0]))
            norm.bias.copy_(torch.tensor([0.1, 0.0, -3.0, 1.0]))
    present = torch.arange(7)[None, :, None].expand(3, 7, 1) < 5
    for _ in range(2):
        image = torch.randn(3, 4, 7, 6) * 3 + 2
        normalised = ours(image, present)
        torch.testing.assert_close(normalised[:, :, :5], theirs(image[:, :, :5]), atol=1e-5, rtol=1e-4)
        assert normalised[:, :, 5:].abs().sum() == 0, "padding stays zero, although the shift is not"
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    torch.testing.assert_close(ours.eval()(image, present)[:, :, :5], theirs.eval()(image[:, :, :5]))
