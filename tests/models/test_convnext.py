from __future__ import annotations

import pytest
import torch

from mmemo.export.onnx import frozen_parts
from mmemo.models import ConvNeXtEncoder
from mmemo.training.experiment import Experiment
from tests.conftest import ROOT


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    waveform, mask = torch.randn(3, 9000), torch.arange(9000) < torch.tensor([9000, 4321, 0])[:, None]
    return waveform * mask, mask


def test_neither_padding_nor_the_rest_of_the_batch_changes_a_feature() -> None:
    encoder = ConvNeXtEncoder(num_mels=16, hidden_dim=8, num_blocks=2).eval()
    waveform, mask = clips()
    together, frames = encoder(*encoder.precompute(waveform, mask))
    alone, alone_frames = encoder(*encoder.precompute(waveform[1:2, :4321], mask[1:2, :4321]))
    assert frames[1].sum() == alone_frames.sum() == 7  # 28 frames of 10 ms, four to one
    torch.testing.assert_close(together[1, :, :7], alone[0, :, :7], atol=1e-6, rtol=1e-5)
    assert (together[2] == 0).all()
    assert not frames[2].any()
    assert (together[1, :, 7:] == 0).all()


def test_stripes_are_blanked_in_training_alone() -> None:
    encoder = ConvNeXtEncoder(num_mels=16, hidden_dim=8, num_blocks=1, dropout=0.0)
    features, mask = encoder.precompute(*clips())
    torch.manual_seed(0)
    one, two = encoder(features, mask)[0], encoder(features, mask)[0]
    assert not torch.equal(one[0], two[0])
    striped = encoder._striped(features, mask)
    changed = (striped != features)[0, 0].float().mean()
    assert 0 < changed < 0.7
    assert (striped[1, :, int(mask[1].sum()) :] == 0).all()
    encoder.eval()
    torch.testing.assert_close(encoder(features, mask)[0], encoder(features, mask)[0])


def test_settings_that_make_no_network_are_told() -> None:
    with pytest.raises(ValueError, match="expected two channels, a multiple of 4, an odd number"):
        ConvNeXtEncoder(kernel=8)


SIZES = [("nano", 37_500, 75_000), ("small", 75_000, 300_000), ("base", 300_000, 2_000_000)]


@pytest.mark.parametrize(("name", "least", "most"), SIZES)
def test_a_student_keeps_to_its_size(name: str, least: int, most: int) -> None:
    config = ROOT / "configs" / f"ravdess_student_{name}.yaml"
    model = Experiment(["--config", str(config)], run=False).model.model
    parts = [model, *frozen_parts(model)]  # what is frozen has its size too
    assert least < sum(parameter.numel() for part in parts for parameter in part.parameters()) <= most
