from __future__ import annotations

import pytest
import torch
from torch import nn

from mmemo.models.cnn import (
    BidirectionalRNN,
    ConvRecurrentEncoder,
    InceptionEncoder,
    MaskedConv,
    ResNetEncoder,
    VGGEncoder,
)
from mmemo.models.vggish import VGGishEncoder
from tests.conftest import padded, tone
from tests.models.sequences import encode

ENCODERS = {
    "vgg": lambda: VGGEncoder([4, 8]),
    "resnet": lambda: ResNetEncoder([4, 8]),
    "inception": lambda: InceptionEncoder([4, 8]),
    "gru": lambda: ConvRecurrentEncoder([4, 8], hidden_dim=6, cell="gru"),
    "lstm": lambda: ConvRecurrentEncoder([4, 8], hidden_dim=6, num_recurrent=2, cell="lstm", num_mels=40),
    "vggish": lambda: VGGishEncoder(frozen=False),
}


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    encoder = ENCODERS[request.param]()
    for part in encoder.modules():
        if isinstance(part, MaskedConv):  # as after training: batch norm does not map zeros to zeros
            nn.init.normal_(part.norm.running_mean)
            assert part.norm.bias is not None
            nn.init.normal_(part.norm.bias)
    return encoder


def test_neither_padding_nor_batch_mates_change_a_feature(encoder: nn.Module) -> None:
    encoder.eval()
    clips = [tone(1.3), tone(0.73), tone(0.31), torch.zeros(0)]
    waveform, mask = padded(clips)
    with torch.inference_mode():
        features, feature_mask = encode(encoder, waveform, mask)
        assert features.shape[:2] == (4, 1)
        assert features.shape[3] == encoder.dim
        assert not feature_mask[3].any()
        for row, clip in enumerate(clips[:3]):
            alone, alone_mask = encode(encoder, clip[None], torch.ones(1, len(clip), dtype=torch.bool))
            assert alone_mask.sum() == feature_mask[row].sum() > 0
            torch.testing.assert_close(
                features[row, 0][feature_mask[row]], alone[0, 0][alone_mask[0]], atol=1e-4, rtol=1e-3
            )
        assert features[:, 0][~feature_mask].abs().sum() == 0


def test_every_parameter_gets_a_gradient(encoder: nn.Module) -> None:
    waveform, mask = padded([tone(1.0), tone(0.6, 300.0)])
    features, _ = encode(encoder.train(), waveform, mask)
    (features * torch.randn(features.shape)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_neither_padding_nor_missing_audio_changes_the_statistics() -> None:
    torch.manual_seed(0)
    clips = [tone(0.64), tone(0.64, 300.0)]
    means = []
    for extra in ([], [torch.zeros(0)], [torch.zeros(0), torch.zeros(0)]):
        torch.manual_seed(0)
        encoder = VGGEncoder([4, 8], dropout=0.0).train()
        waveform, mask = padded([*clips, *extra])
        padding = (0, 16_000 * len(extra))
        encode(encoder, torch.nn.functional.pad(waveform, padding), torch.nn.functional.pad(mask, padding))
        means.append(encoder.network.stages[1].parts[1].norm.running_mean.clone())
    torch.testing.assert_close(means[1], means[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(means[2], means[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_bidirectional_rnn_equals_pytorchs_on_packed_sequences(cell: type[nn.GRU | nn.LSTM]) -> None:
    ours, theirs = BidirectionalRNN(cell, 4, 3), cell(4, 3, batch_first=True, bidirectional=True)
    weights = dict(ours.onward.state_dict())
    weights |= {f"{name}_reverse": values for name, values in ours.back.state_dict().items()}
    theirs.load_state_dict(weights)
    frames, lengths = torch.randn(3, 7, 4), torch.tensor([7, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(frames, torch.arange(7) < lengths[:, None]), expected)
    masked = ours(frames, torch.zeros(3, 7, dtype=torch.bool))
    assert masked.abs().sum() == 0
