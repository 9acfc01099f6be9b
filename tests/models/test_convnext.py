from __future__ import annotations

import pytest
import torch

from mmemo.export.graph import frozen_backbones
from mmemo.models import ConvNeXtEncoder
from mmemo.training.experiment_cli import ExperimentCLI
from tests.conftest import ROOT


def clips() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    waveform, mask = torch.randn(3, 9000), torch.arange(9000) < torch.tensor([9000, 4321, 0])[:, None]
    return waveform * mask, mask


def test_neither_padding_nor_batch_mates_change_a_feature() -> None:
    encoder = ConvNeXtEncoder(num_mels=16, hidden_dim=8, num_blocks=2).eval()
    waveform, mask = clips()
    features, frame_mask = encoder(*encoder.precompute(waveform, mask))
    alone, alone_mask = encoder(*encoder.precompute(waveform[1:2, :4321], mask[1:2, :4321]))
    assert frame_mask[1].sum() == alone_mask.sum() == 7  # 28 frames of 10 ms, 4 per output frame
    torch.testing.assert_close(features[1, :, :7], alone[0, :, :7], atol=1e-6, rtol=1e-5)
    assert (features[2] == 0).all()
    assert not frame_mask[2].any()
    assert (features[1, :, 7:] == 0).all()


def test_stripes_are_masked_only_in_training() -> None:
    encoder = ConvNeXtEncoder(num_mels=16, hidden_dim=8, num_blocks=1, dropout=0.0)
    features, mask = encoder.precompute(*clips())
    torch.manual_seed(0)
    first, second = encoder(features, mask)[0], encoder(features, mask)[0]
    assert not torch.equal(first[0], second[0])
    masked = encoder._mask_stripes(features, mask)
    changed = (masked != features)[0, 0].float().mean()
    assert 0 < changed < 0.7
    assert (masked[1, :, int(mask[1].sum()) :] == 0).all()
    encoder.eval()
    torch.testing.assert_close(encoder(features, mask)[0], encoder(features, mask)[0])


def test_invalid_settings_raise() -> None:
    with pytest.raises(ValueError, match="expected two stem_channels, num_mels a multiple of 4, and an odd kernel"):
        ConvNeXtEncoder(kernel=8)


SIZES = [("nano", 37_500, 75_000), ("small", 75_000, 300_000), ("base", 300_000, 2_000_000)]


@pytest.mark.parametrize(("name", "minimum", "maximum"), SIZES)
def test_students_have_the_size_that_their_name_promises(name: str, minimum: int, maximum: int) -> None:
    config = ROOT / "configs" / f"ravdess_student_{name}.yaml"
    model = ExperimentCLI(["--config", str(config)], run=False).model.model
    parts = [model, *frozen_backbones(model)]  # frozen weights count too
    assert minimum < sum(parameter.numel() for part in parts for parameter in part.parameters()) <= maximum
