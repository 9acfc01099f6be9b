"""Frozen below, trained above, cached: what all pretrained encoders share.

A subclass gives a stem and blocks. This class draws the line between the blocks that stay frozen, whose output is
cached, and the blocks that are trained; what comes after the encoder does not depend on where the line is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmemo import pretrained

FEATURES_VERSION = 2
"""Part of every fingerprint; raise it when ``precompute`` returns other numbers."""


class FrozenBackbone:
    """Loads pretrained weights on first use, and keeps them out of checkpoints, optimizers and DDP.

    An encoder holds it as a plain attribute, so PyTorch does not count its parameters as the encoder's. If every
    feature comes from the cache, the weights are never loaded.

    Args:
        load: Returns the pretrained module; called once, on first use.
    """

    def __init__(self, load: Callable[[], nn.Module]) -> None:
        self._load = load
        self._module: nn.Module | None = None

    def on(self, device: torch.device) -> nn.Module:
        """Returns the module on a device, in eval mode, without gradients for its parameters."""
        if self._module is None:
            self._module = self._load().eval().requires_grad_(False)
        current = next(self._module.parameters()).device
        return self._module if current == device else self._module.to(device)  # an exporter cannot call to()


class PretrainedEncoder(nn.Module, ABC):
    """A stem and numbered blocks with pretrained weights; frozen until `unfreeze` is called.

    Hidden state 0 is the output of the stem, state n that of block n. Blocks above the last chosen state never run.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id.
        num_blocks: Number of blocks of the model.
        layers: Hidden states to return, 0 to ``num_blocks``. Defaults to all.
        dim: Size of a hidden state.

    Raises:
        ValueError: The model has no such hidden state, or one is named twice.

    Shape:
        raw input, mask -> features ``(batch, layer, time, dim)``, mask ``(batch, time)``
    """

    kind = ""  # start of the fingerprint
    splits = True  # whether upper blocks can start from a cached hidden state
    lowest_block = 0  # lowest block that can be trained; 0 is the stem
    differentiable = True  # whether gradients reach the raw input
    replaceable: tuple[str, ...] = ()  # linear modules that LoRA and LowRank may replace; empty for all

    def __init__(self, model_id: str, num_blocks: int, layers: Sequence[int] | None, dim: int) -> None:
        super().__init__()
        self.model_id = model_id
        self.num_blocks = num_blocks
        self.layers = chosen_layers(layers, num_blocks, model_id)
        self.num_layers = len(self.layers)
        self.dim = dim
        self.frozen_below = self.layers[-1] + 1  # number of the first trained block: none yet
        self.trained: nn.Module | None = None
        self._backbone = FrozenBackbone(self._load_frozen)

    # Implemented by subclasses.

    @abstractmethod
    def load_blocks(self, first: int, last: int) -> nn.Module:
        """Loads the pretrained blocks ``first`` to ``last``; 0 includes the stem."""

    @abstractmethod
    def blocks_of(self, module: nn.Module) -> dict[int, nn.Module]:
        """Returns number -> block of a module that ``load_blocks`` returned for training."""

    @abstractmethod
    def run(
        self, module: nn.Module, inputs: Tensor, mask: Tensor, first: int, states: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Computes hidden states.

        Args:
            module: What ``load_blocks`` returned.
            inputs: Output of ``prepare_input`` if ``first`` is 0, else hidden state ``first - 1``
                ``(batch, time, dim)``.
            mask: Mask of the inputs ``(batch, time)`` bool.
            first: First block to run.
            states: Hidden states to return, in ascending order.

        Returns:
            States ``(batch, state, time, dim)`` with zeros on padding, mask ``(batch, time)``.
        """

    @abstractmethod
    def whole_model(self, trained: Mapping[str, Tensor]) -> PreTrainedModel:
        """Returns the whole pretrained model with trained blocks in it.

        Args:
            trained: State of ``self.trained``.
        """

    def options(self) -> str:
        """Returns the part of the fingerprint that follows the weights."""
        return str(self.kept_states)

    def prepare_input(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what the stem takes, and its mask.

        Shape:
            raw input, mask ``(batch, samples)`` or ``(batch, token)`` -> the same, or a spectrogram
            ``(batch, frame, mel)`` with mask ``(batch, frame)``
        """
        return inputs, mask

    def pack(self, inputs: Tensor) -> Tensor:
        """Returns the stem's input in the shape of features, for an encoder that caches nothing.

        Shape:
            token ids ``(batch, token)`` -> the same; waveform ``(batch, samples)`` -> ``(batch, 1, samples, 1)``;
            spectrogram ``(batch, frame, mel)`` -> ``(batch, 1, frame, mel)``
        """
        return inputs

    def unpack(self, features: Tensor) -> Tensor:
        """Undoes :meth:`pack`: ``(batch, 1, time, dim)`` -> input of the stem; token ids stay ``(batch, token)``."""
        return features

    def pool(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Shortens the features, after the trained blocks.

        Shape:
            features ``(batch, layer, time, dim)``, mask ``(batch, time)`` bool -> the same, with a shorter time
        """
        return features, mask

    # Shared by all encoders.

    @property
    def caches(self) -> bool:
        """Whether ``precompute`` is worth caching: not if training reaches down to the stem."""
        return self.frozen_below > 0

    @property
    def kept_states(self) -> list[int]:
        """Hidden states that ``precompute`` returns: the chosen ones below the line, and the input of the first trained
        block."""
        below = {layer for layer in self.layers if layer < self.frozen_below}
        return sorted(below | {max(self.frozen_below - 1, 0)} if self.trained is not None else below)

    @property
    def trained_blocks(self) -> nn.Module:
        """The blocks above the line; only after ``unfreeze``."""
        assert self.trained is not None, "unfreeze() comes first"
        return self.trained

    def fingerprint(self) -> str:
        """Returns everything that ``precompute`` depends on."""
        return f"{self.kind}-{FEATURES_VERSION}:{pretrained.fingerprint(self.model_id)}:{self.options()}"

    def unfreeze(self, first_block: int) -> None:
        """Trains a block and all above it; everything below stays frozen and may be cached.

        Args:
            first_block: Lowest trained block, from 1; 0 trains the stem too.

        Raises:
            ValueError: The block does not run with the chosen layers.
        """
        check_block(first_block, self.layers, self.model_id)
        first_block = max(first_block, self.lowest_block)
        self.frozen_below = first_block if self.splits else 0
        self.trained = self.load_blocks(self.frozen_below, self.layers[-1])
        if self.frozen_below < first_block:  # blocks that cannot be split off are frozen in place
            above = [block for number, block in self.blocks_of(self.trained).items() if number >= first_block]
            is_trained = {id(parameter) for block in above for parameter in block.parameters()}
            for parameter in self.trained.parameters():
                parameter.requires_grad_(parameter.requires_grad and id(parameter) in is_trained)
        self._backbone = FrozenBackbone(self._load_frozen)

    def _load_frozen(self) -> nn.Module:
        return self.load_blocks(0, self.kept_states[-1])

    def block_parameters(self) -> dict[int, list[nn.Parameter]]:
        """Returns number of each trained block -> its trained parameters; 0 is everything outside the blocks."""
        blocks = self.blocks_of(self.trained_blocks)
        owner = {id(parameter): number for number, block in blocks.items() for parameter in block.parameters()}
        by_block: dict[int, list[nn.Parameter]] = {}
        for parameter in self.trained_blocks.parameters():
            if parameter.requires_grad:
                by_block.setdefault(owner.get(id(parameter), 0), []).append(parameter)
        return dict(sorted(by_block.items()))

    def precompute(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the frozen part: the blocks below the line, or only the preparation of the input if there are none.

        Shape:
            raw input, mask ``(batch, samples)`` or ``(batch, token)``
            -> hidden states ``(batch, state, time, dim)``, mask ``(batch, time)``; without a frozen block, what
            :meth:`pack` returns
        """
        inputs, mask = self.prepare_input(inputs, mask)
        if not self.caches:
            return self.pack(inputs), mask
        features, mask = self.run(self._backbone.on(inputs.device), inputs, mask, 0, self.kept_states)
        return self.pool(features, mask) if self.trained is None else (features, mask)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.trained is None:
            return features, mask
        if self.frozen_below == 0:
            return self.pool(*self.run(self.trained, self.unpack(features), mask, 0, self.layers))
        above = [layer for layer in self.layers if layer >= self.frozen_below]
        computed, mask = self.run(self.trained, features[:, -1], mask, self.frozen_below, above)
        below = [index for index, layer in enumerate(self.kept_states) if layer in self.layers]
        return self.pool(torch.cat([features[:, below], computed], dim=1), mask)


def chosen_layers(layers: Sequence[int] | None, num_blocks: int, model_id: str) -> list[int]:
    """Returns the chosen hidden states in ascending order.

    Args:
        layers: Hidden states, 0 (before the first block) to ``num_blocks``. Defaults to all.
        num_blocks: Number of the model's blocks.
        model_id: Model for the error message.

    Raises:
        ValueError: The model has no such hidden state, or one is named twice.
    """
    chosen = list(range(num_blocks + 1)) if layers is None else sorted(layers)
    if not chosen or len(set(chosen)) < len(chosen) or chosen[0] < 0 or chosen[-1] > num_blocks:
        raise ValueError(f"layers={layers}: {model_id} has hidden states 0..{num_blocks}, name each once")
    return chosen


def check_block(first_block: int, layers: Sequence[int], model_id: str) -> None:
    """Checks that a block that is to be trained runs.

    Args:
        first_block: Lowest trained block, 0 for the stem.
        layers: Chosen hidden states; blocks above the last never run.
        model_id: Model for the error message.

    Raises:
        ValueError: It does not run.
    """
    if not 0 <= first_block <= layers[-1]:
        raise ValueError(
            f"{model_id}: cannot train from block {first_block}; with layers={list(layers)} blocks 1 to {layers[-1]} "
            "run (0 is the stem): lower the fine-tuning's num_blocks, or choose higher layers"
        )


def load_partial(model: PreTrainedModel, state: Mapping[str, Tensor], prefix: str) -> PreTrainedModel:
    """Loads some of a model's tensors into it.

    Args:
        model: Whole model.
        state: Some of its tensors, each of the shape of the model's own, such as ``(out_features, in_features)``.
        prefix: Prefix of their names in the whole model.

    Returns:
        ``model``, with these tensors in it.

    Raises:
        ValueError: The model has no such tensor, so these are weights of another architecture.
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
    """Adds an offset to the number after a prefix; other names are returned unchanged.

    Example:
        >>> shifted("layers.3.weight", "layers.", 2)
        'layers.5.weight'
    """
    if not name.startswith(prefix):
        return name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{int(number) + offset}.{rest}"
