"""The frozen part of a pretrained model: owned by an encoder, yet no part of what is trained or saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


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
        return self._module.to(device)
