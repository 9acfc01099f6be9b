from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmemo.models.text import HuggingFaceTextEncoder
from tests.conftest import padded


def batch(encoder: HuggingFaceTextEncoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    return padded([encoder.tokenize(text) for text in texts])


def check_alone_equals_batched(encoder: HuggingFaceTextEncoder, texts: list[str]) -> None:
    with torch.inference_mode():
        features, mask = encoder.precompute(*batch(encoder, [*texts, ""]))
        assert features.isfinite().all()
        assert features[-1].abs().sum() == 0
        assert not mask[-1].any()
        for row, text in enumerate(texts):
            alone, _ = encoder.precompute(*batch(encoder, [text]))
            torch.testing.assert_close(features[row][:, mask[row]], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("layers", [None, [0], [1], [1, 2]])
def test_padding_changes_nothing(tiny_bert: Path, layers: list[int] | None) -> None:
    check_alone_equals_batched(HuggingFaceTextEncoder(str(tiny_bert), layers), ["go away now", "the shop"])


def random_text_model(kind: str, folder: Path, tokenizer: Path) -> Path:
    """A tiny random model of a family, with the corpus's words."""
    import shutil

    import transformers

    torch.manual_seed(0)
    options = {"vocab_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 16, "pad_token_id": 0}
    if kind == "DistilBert":
        options = {"vocab_size": 40, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
    if kind == "XLNet":
        options = {"vocab_size": 40, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "pad_token_id": 0}
    config = getattr(transformers, f"{kind}Config")(**options)
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, folder / name)
    return folder


@pytest.mark.parametrize("kind", ["Roberta", "XLNet", "MPNet", "DistilBert"])
def test_other_families(kind: str, tiny_bert: Path, tmp_path: Path) -> None:
    folder = random_text_model(kind, tmp_path, tiny_bert)
    check_alone_equals_batched(HuggingFaceTextEncoder(str(folder), [1, 2]), ["go away now", "the shop"])


def test_pooled_is_the_mean_over_tokens(tiny_bert: Path) -> None:
    tokens, pooled = (HuggingFaceTextEncoder(str(tiny_bert), [1], pooled=pooled) for pooled in (False, True))
    ids, mask = batch(tokens, ["go away now", "the shop", ""])
    with torch.inference_mode():
        states, _ = tokens.precompute(ids, mask)
        mean, mean_mask = pooled.precompute(ids, mask)
    assert mean.shape == (3, 1, 1, 16)
    assert mean_mask.tolist() == [[True], [True], [False]]
    torch.testing.assert_close(mean[1, 0, 0], states[1, 0][mask[1]].mean(0))


def test_gives_the_models_own_hidden_states(tiny_bert: Path) -> None:
    from transformers import AutoModel

    encoder = HuggingFaceTextEncoder(str(tiny_bert), [1])
    ids = encoder.tokenize("i miss you so")
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(tiny_bert).eval()(ids[None], output_hidden_states=True).hidden_states
        features, _ = encoder.precompute(ids[None], torch.ones(1, len(ids), dtype=torch.bool))
    torch.testing.assert_close(features[0, 0], expected[1][0])
    assert len(encoder._backbone.on(torch.device("cpu")).encoder.layer) == 1  # type: ignore[union-attr,arg-type]


def test_an_empty_transcript_has_no_tokens_and_a_long_one_is_cut(tiny_bert: Path) -> None:
    encoder = HuggingFaceTextEncoder(str(tiny_bert), max_tokens=8)
    assert len(encoder.tokenize("  ")) == 0
    assert len(encoder.tokenize("go away now " * 20)) == 8


@pytest.mark.weights
def test_minilm_embeds_similar_words_closely() -> None:
    encoder = HuggingFaceTextEncoder(layers=[6])
    with torch.inference_mode():
        features, mask = encoder.precompute(*batch(encoder, ["I am so happy!", "What a joy.", "The train is late."]))
    vectors = features[:, 0].sum(1) / mask.sum(1, keepdim=True)
    like, unlike = torch.cosine_similarity(vectors[0], vectors[1:])
    assert like > unlike + 0.2
