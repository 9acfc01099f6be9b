from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmemo.models.cnn import (
    BothDirections,
    ConvRecurrentEncoder,
    InceptionEncoder,
    MaskedConv,
    ResNetEncoder,
    VGGEncoder,
    VGGish,
    VGGishEncoder,
)
from mmemo.pretrained import PretrainedError
from tests.conftest import padded, tone

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
    built = ENCODERS[request.param]()
    for part in built.modules():
        if isinstance(part, MaskedConv):  # as after training: zeros do not stay zeros
            nn.init.normal_(part.norm.running_mean)
            assert part.norm.bias is not None
            nn.init.normal_(part.norm.bias)
    return built


def whole(encoder: nn.Module, waveform: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder(*encoder.precompute(waveform, mask))


def test_neither_padding_nor_batch_mates_change_a_feature(encoder: nn.Module) -> None:
    encoder.eval()
    clips = [tone(1.3), tone(0.73), tone(0.31), torch.zeros(0)]
    waveform, mask = padded(clips)
    with torch.inference_mode():
        features, feature_mask = whole(encoder, waveform, mask)
        assert features.shape[:2] == (4, 1)
        assert features.shape[3] == encoder.dim
        assert not feature_mask[3].any()
        for row, clip in enumerate(clips[:3]):
            alone, alone_mask = whole(encoder, clip[None], torch.ones(1, len(clip), dtype=torch.bool))
            assert alone_mask.sum() == feature_mask[row].sum() > 0
            torch.testing.assert_close(
                features[row, 0][feature_mask[row]], alone[0, 0][alone_mask[0]], atol=1e-4, rtol=1e-3
            )
        assert features[:, 0][~feature_mask].abs().sum() == 0


def test_every_parameter_learns(encoder: nn.Module) -> None:
    waveform, mask = padded([tone(1.0), tone(0.6, 300.0)])
    features, _ = whole(encoder.train(), waveform, mask)
    (features * torch.randn(features.shape)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())


def test_neither_padding_nor_missing_audio_has_a_say_in_the_statistics() -> None:
    torch.manual_seed(0)
    clips = [tone(0.64), tone(0.64, 300.0)]
    means = []
    for extra in ([], [torch.zeros(0)], [torch.zeros(0), torch.zeros(0)]):
        torch.manual_seed(0)
        encoder = VGGEncoder([4, 8], dropout=0.0).train()
        waveform, mask = padded([*clips, *extra])
        longer = torch.nn.functional.pad(waveform, (0, 16_000 * len(extra)))
        encoder(*encoder.precompute(longer, torch.nn.functional.pad(mask, (0, 16_000 * len(extra)))))
        means.append(encoder.network.stages[1].parts[1].norm.running_mean.clone())
    torch.testing.assert_close(means[1], means[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(means[2], means[0], atol=1e-5, rtol=1e-4)


def test_published_vggish_weights_load_and_others_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = VGGish()
    names = {name.rsplit(".", 1)[0] for name in network.state_dict()}
    published = {f"features.{n}" for n in (0, 3, 6, 8, 11, 13)} | {f"embeddings.{n}" for n in (0, 2, 4)}
    assert names == published, "torchvggish's names"
    assert sum(parameter.numel() for parameter in network.parameters()) == 72_141_184
    torch.save(network.state_dict(), tmp_path / "vggish.pth")
    frozen = VGGishEncoder(str(tmp_path / "vggish.pth"))
    assert list(frozen.parameters()) == []
    clip = tone(1.5)[None]
    features, mask = whole(frozen, clip, torch.ones_like(clip, dtype=torch.bool))
    assert features.shape == (1, 1, 2, 128)
    tuned = VGGishEncoder(str(tmp_path / "vggish.pth"), frozen=False)
    torch.testing.assert_close(whole(tuned, clip, torch.ones_like(clip, dtype=torch.bool))[0], features)
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match="weights of another architecture, expected VGGish"):
        whole(VGGishEncoder(str(tmp_path / "other.pth")), clip, mask.new_ones(clip.shape))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(PretrainedError, match="not a file of weights"):
        VGGishEncoder(str(tmp_path / "text.pth"), frozen=False)
    with pytest.raises(ValueError, match="frozen: false"):
        VGGishEncoder()


def test_vggish_spectrogram_is_the_published_one() -> None:
    """The same log-mel as a direct computation in float64: 25 ms periodic Hann, 512 points, magnitude, HTK mel."""
    import numpy as np

    clip = tone(0.96 + 0.015).double().numpy()
    frames = np.stack([clip[start : start + 400] for start in range(0, 96 * 160, 160)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    magnitude = np.abs(np.fft.rfft(frames * window, 512))
    bins, edges = np.linspace(0, 8000, 257), np.linspace(*(1127 * np.log(1 + np.array([125, 7500]) / 700)), 66)
    mel = 1127 * np.log(1 + bins / 700)
    weights = np.stack(
        [
            np.clip(np.minimum((mel - low) / (mid - low), (high - mel) / (high - mid)), 0, None)
            for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False)
        ]
    )
    weights[:, 0] = 0
    expected = np.log(magnitude @ weights.T + 0.01)
    encoder = VGGishEncoder(frozen=False)
    waveform = torch.from_numpy(clip).float()[None]
    found, _ = encoder.precompute(waveform, torch.ones_like(waveform, dtype=torch.bool))
    np.testing.assert_allclose(found[0, 0, :96].numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("cell", [nn.GRU, nn.LSTM])
def test_both_directions_are_those_of_packed_sequences(cell: type[nn.GRU | nn.LSTM]) -> None:
    ours, theirs = BothDirections(cell, 4, 3), cell(4, 3, batch_first=True, bidirectional=True)
    weights = dict(ours.onward.state_dict())
    weights |= {f"{name}_reverse": values for name, values in ours.back.state_dict().items()}
    theirs.load_state_dict(weights)
    frames, lengths = torch.randn(3, 7, 4), torch.tensor([7, 4, 1])
    packed = nn.utils.rnn.pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
    wanted, _ = nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    torch.testing.assert_close(ours(frames, torch.arange(7) < lengths[:, None]), wanted)
    nobody = ours(frames, torch.zeros(3, 7, dtype=torch.bool))
    assert nobody.abs().sum() == 0
