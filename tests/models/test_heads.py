from __future__ import annotations

import pytest
import torch

from mmemo.models.heads import ClassHead, DimensionHead, NoHead


def test_heads_predict_the_right_shapes_and_ranges() -> None:
    vector = torch.randn(3, 6)
    assert ClassHead(6, 4)(vector).shape == (3, 4)
    assert ClassHead(6, 4, hidden_dim=5)(vector).shape == (3, 4)
    dimensions = DimensionHead(6)(100 * vector)
    assert dimensions.shape == (3, 3)
    assert (dimensions.abs() <= 1).all()
    assert NoHead(4, 4)(vector[:, :4]).shape == (3, 4)
    with pytest.raises(ValueError, match="num_logits: 4"):
        NoHead(6, 4)
