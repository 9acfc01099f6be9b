"""What pretrained encoders share: a frozen part that is neither trained nor saved, and a line above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class FrozenBackbone:
    """Loads pretrained weights on first use and keeps them out of checkpoints, optimizers and DDP.

    An encoder holds it as a plain attribute, so PyTorch does not count its parameters as the encoder's. When
    every feature comes from the cache, the weights are never loaded at all.

    Args:
        load: Returns the pretrained module; called once, at the first use.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._module: nn.Module | None = None

    def on(self, device: torch.device) -> Any:
        """The module in eval mode, without parameter gradients, on ``device``."""
        if self._module is None:
            self._module = self._load().eval().requires_grad_(False)
        there = next(self._module.parameters()).device
        return self._module if there == device else self._module.to(device)  # an exporter cannot move it


def chosen_layers(layers: Sequence[int] | None, num_blocks: int, model_id: str) -> list[int]:
    """Checks a choice of hidden states against a model.

    Args:
        layers: Hidden states, 0 (before the first block) to ``num_blocks``; none given chooses all.
        num_blocks: Number of the model's blocks.
        model_id: Named in the error.

    Raises:
        ValueError: A layer that the model does not have, or one named twice.
    """
    chosen = list(range(num_blocks + 1)) if layers is None else sorted(layers)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] > num_blocks:
        raise ValueError(f"layers={layers}: {model_id} has hidden states 0..{num_blocks}, name each once")
    return chosen


def check_block(first_block: int, layers: Sequence[int], model_id: str) -> None:
    """Refuses to train blocks that a model does not have or that never run.

    Args:
        first_block: The lowest block to be trained, 0 for what is below the first.
        layers: Hidden states chosen of the model; blocks above the last never run.
        model_id: Named in the error.

    Raises:
        ValueError: There is no such block.
    """
    if not 0 <= first_block <= layers[-1]:
        raise ValueError(
            f"{model_id} was asked to train from block {first_block}; with layers={list(layers)} blocks 1 to "
            f"{layers[-1]} run (0 is what lies below them): lower the fine-tuning's num_blocks, or choose higher layers"
        )


def kept_states(layers: Sequence[int], frozen_below: int, tuned: bool) -> list[int]:
    """Hidden states that ``precompute`` returns: the chosen ones below the line, and the one that training starts from.

    Args:
        layers: Hidden states chosen of the model.
        frozen_below: The lowest trained block, 0 for what lies below the first.
        tuned: Whether any block is trained.
    """
    below = {layer for layer in layers if layer < frozen_below}
    return sorted(below | {max(frozen_below - 1, 0)} if tuned else below)


def trained_by_block(model: nn.Module, blocks: nn.ModuleList) -> dict[int, list[nn.Parameter]]:
    """Number of each block, 0 for all that belongs to none -> its parameters that are trained; blocks without are left
    out.

    Args:
        model: The whole.
        blocks: Its blocks, from the first.
    """
    inside = {
        id(parameter): number for number, block in enumerate(blocks, start=1) for parameter in block.parameters()
    }  # fmt: skip
    found: dict[int, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            found.setdefault(inside.get(id(parameter), 0), []).append(parameter)
    return dict(sorted(found.items()))


def load_some(model: PreTrainedModel, state: Mapping[str, Tensor], prefix: str) -> PreTrainedModel:
    """Puts tensors into a model that has more of them.

    Args:
        model: The whole.
        state: Some of its tensors.
        prefix: What stands before their names in the whole.

    Raises:
        ValueError: A tensor that the model does not have: these are weights of another architecture.
    """
    named = {prefix + name: tensor for name, tensor in state.items()}
    own = model.state_dict()
    unexpected = [name for name in named if name not in own or own[name].shape != named[name].shape]
    model.load_state_dict({name: named[name] for name in named if name not in unexpected}, strict=False)
    if unexpected:
        raise ValueError(
            f"{type(model).__name__} has no {', '.join(unexpected[:3])} of that shape: weights of another architecture"
        )
    return model


def shifted(name: str, prefix: str, offset: int) -> str:
    """``layers.3.x`` -> ``layers.5.x`` for an offset of 2; other names stay.

    Args:
        name: Of a tensor.
        prefix: What stands before the number.
        offset: Added to the number.
    """
    if not name.startswith(prefix):
        return name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{int(number) + offset}.{rest}"
