from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mmemo.models.huggingface import ASTAudioEncoder, HuggingFaceAudioEncoder
from mmemo.models.whisper import WhisperAudioEncoder
from tests.conftest import padded, tone

LENGTHS = (1.0, 0.73, 0.31)  # seconds


def check_alone_equals_batched(encoder: nn.Module, atol: float = 1e-4) -> None:
    """Neither padding nor batch mates change a feature; a missing clip is masked and finite."""
    clips = [tone(seconds) for seconds in LENGTHS]
    waveform, mask = padded([*clips, torch.zeros(0)])
    with torch.inference_mode():
        features, feature_mask = encoder.precompute(waveform, mask)
        assert features.isfinite().all()
        assert not feature_mask[3].any()
        assert features.shape[:2] == (4, encoder.num_layers)
        assert features.shape[3] == encoder.dim
        for row, clip in enumerate(clips):
            alone, alone_mask = encoder.precompute(clip[None], torch.ones(1, len(clip), dtype=torch.bool))
            assert alone_mask.sum() == feature_mask[row].sum()
            torch.testing.assert_close(features[row][:, feature_mask[row]], alone[0], atol=atol, rtol=1e-3)
            assert features[row][:, ~feature_mask[row]].abs().sum() == 0


@pytest.mark.parametrize("frame_average", [1, 4])
@pytest.mark.parametrize("layers", [None, [0], [1], [0, 2]])
def test_whisper_padding_changes_nothing(tiny_whisper: Path, layers: list[int] | None, frame_average: int) -> None:
    check_alone_equals_batched(WhisperAudioEncoder(str(tiny_whisper), layers, frame_average))


def test_whisper_equals_hugging_face_on_30_seconds(tiny_whisper: Path) -> None:
    from transformers import WhisperFeatureExtractor

    from mmemo import pretrained

    waveform = torch.nn.functional.pad(tone(3.0), (0, 27 * 16_000))
    inputs = WhisperFeatureExtractor()(waveform.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        expected = pretrained.load_encoder(str(tiny_whisper))(inputs, output_hidden_states=True).hidden_states
        features, mask = WhisperAudioEncoder(str(tiny_whisper)).precompute(
            waveform[None], torch.ones(1, len(waveform), dtype=torch.bool)
        )
    assert mask.all()
    torch.testing.assert_close(features[0], torch.stack([state[0] for state in expected]), atol=1e-3, rtol=1e-3)


def test_whisper_frame_average_is_a_mean_over_real_frames(tiny_whisper: Path) -> None:
    clip = tone(0.5)[None]
    mask = torch.ones_like(clip, dtype=torch.bool)
    with torch.inference_mode():
        fine, _ = WhisperAudioEncoder(str(tiny_whisper)).precompute(clip, mask)
        coarse, coarse_mask = WhisperAudioEncoder(str(tiny_whisper), frame_average=4).precompute(clip, mask)
    assert fine.shape[2] == 25
    assert coarse_mask.shape[1] == 7
    torch.testing.assert_close(coarse[:, :, 0], fine[:, :, :4].mean(2))
    torch.testing.assert_close(coarse[:, :, 6], fine[:, :, 24])


def test_whisper_hears_recordings_of_over_30_seconds(tiny_whisper: Path) -> None:
    clip = tone(31.0)[None]
    features, mask = WhisperAudioEncoder(str(tiny_whisper), [1]).precompute(
        clip, torch.ones_like(clip, dtype=torch.bool)
    )
    assert features.shape[2] == mask.sum() == 1550
    assert features.isfinite().all()


def test_blocks_above_the_last_chosen_layer_are_not_even_there(tiny_whisper: Path) -> None:
    encoder = WhisperAudioEncoder(str(tiny_whisper), [0, 1])
    assert len(encoder._backbone.on(torch.device("cpu")).layers) == 1  # type: ignore[arg-type]


def test_a_frozen_backbone_is_no_part_of_what_is_trained_or_saved(tiny_whisper: Path) -> None:
    encoder = WhisperAudioEncoder(str(tiny_whisper))
    encoder.precompute(tone(0.2)[None], torch.ones(1, 3200, dtype=torch.bool))
    assert list(encoder.parameters()) == []
    assert encoder.state_dict() == {}


def test_gradients_reach_the_waveform_through_the_frozen_encoder(tiny_whisper: Path) -> None:
    clip = tone(0.5)[None].requires_grad_()
    features, _ = WhisperAudioEncoder(str(tiny_whisper)).precompute(clip, torch.ones(1, 8000, dtype=torch.bool))
    features.square().mean().backward()
    assert clip.grad is not None
    assert clip.grad.abs().sum() > 0


@pytest.mark.parametrize("layers", [[3], [-1], [1, 1], []])
def test_layers_that_are_not_there_are_refused(tiny_whisper: Path, layers: list[int]) -> None:
    with pytest.raises(ValueError, match=r"has hidden states 0\.\.2"):
        WhisperAudioEncoder(str(tiny_whisper), layers)


def random_model(kind: str, folder: Path) -> Path:
    """A tiny random model of a family, as its users save it."""
    import transformers

    torch.manual_seed(0)
    ast = {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_length": 128, "num_mel_bins": 32, "patch_size": 16, "frequency_stride": 16, "time_stride": 16,
    }  # fmt: skip
    common = {
        "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32,
        "conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 64),
        "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    }  # fmt: skip
    stable = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
    name, options = {
        "wav2vec2": ("Wav2Vec2", common),
        "wav2vec2-large": ("Wav2Vec2", common | stable),
        "hubert": ("Hubert", common),
        "hubert-large": ("Hubert", common | stable),
        "wavlm": ("WavLM", common),
        "wavlm-large": ("WavLM", common | stable),
        "ast": ("AST", ast),
        "data2vec": ("Data2VecAudio", common | {"conv_pos_kernel_size": 3}),
    }[kind]
    config = getattr(transformers, f"{name}Config")(**options)
    getattr(transformers, f"{name}Model")(config).save_pretrained(folder)
    return folder


FAMILIES = ["wav2vec2", "wav2vec2-large", "hubert", "hubert-large", "wavlm", "wavlm-large", "data2vec"]


@pytest.mark.parametrize("kind", FAMILIES)
def test_hugging_face_families_give_their_own_hidden_states(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = random_model(kind, tmp_path / kind)
    check_alone_equals_batched(HuggingFaceAudioEncoder(str(folder), [0, 2]))

    clip = tone(1.0)
    normal = (clip - clip.mean()) / clip.std(unbiased=False)
    with torch.inference_mode():
        model = AutoModel.from_pretrained(folder).eval()
        expected = model(normal[None], output_hidden_states=True).hidden_states
        for layers in ([0], [1, 2], [3]):
            features, _ = HuggingFaceAudioEncoder(str(folder), layers).precompute(
                clip[None], torch.ones(1, len(clip), dtype=torch.bool)
            )
            for got, layer in zip(features[0], layers, strict=True):
                torch.testing.assert_close(got, expected[layer][0], atol=1e-4, rtol=1e-3)


def test_hugging_face_clips_shorter_than_a_frame_are_padded(tmp_path: Path) -> None:
    encoder = HuggingFaceAudioEncoder(str(random_model("wav2vec2", tmp_path / "m")))
    features, mask = encoder.precompute(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    assert mask.sum() == 1
    assert features.isfinite().all()


def test_ast(tmp_path: Path) -> None:
    encoder = ASTAudioEncoder(str(random_model("ast", tmp_path)), [1, 2])
    check_alone_equals_batched(encoder)
    long = tone(3.0)[None]
    features, mask = encoder.precompute(long, torch.ones_like(long, dtype=torch.bool))
    assert features.shape == (1, 2, mask.shape[1], 16)
    assert mask.sum() >= 18, "three windows of 1.28 s"


def test_the_wrong_kind_of_model_is_refused(tiny_whisper: Path, tiny_bert: Path) -> None:
    with pytest.raises(ValueError, match="is a bert model, expected whisper"):
        WhisperAudioEncoder(str(tiny_bert))
    with pytest.raises(ValueError, match="is a whisper model, expected wav2vec2"):
        HuggingFaceAudioEncoder(str(tiny_whisper))
    with pytest.raises(ValueError, match="is a whisper model, expected an AST"):
        ASTAudioEncoder(str(tiny_whisper))


@pytest.mark.weights
def test_the_real_whisper_on_a_real_length() -> None:
    from mmemo.audio.reader import read_audio

    clips = Path(__file__).parent.parent.parent / "demo" / "clips"
    waveforms = [torch.from_numpy(read_audio(clips / f"{name}.flac")) for name in ("ada_anger_1", "ben_sadness_2")]
    encoder = WhisperAudioEncoder("openai/whisper-base", [2, 3, 4])
    with torch.inference_mode():
        together, mask = encoder.precompute(*padded(waveforms))
        for row, waveform in enumerate(waveforms):
            alone, _ = encoder.precompute(waveform[None], torch.ones(1, len(waveform), dtype=torch.bool))
            assert alone.shape == (1, 3, -(-len(waveform) // 320), 512)
            torch.testing.assert_close(together[row][:, mask[row]], alone[0], atol=2e-2, rtol=1e-3)
