from __future__ import annotations

import torch
from torch import nn

from mmemo.models.layer_mix import LayerConcat, LayerMix


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
    concatenated = LayerConcat(3, 6)(states)
    assert concatenated.shape == (2, 7, 18)
    torch.testing.assert_close(concatenated[..., 6:12], states[:, 1])
