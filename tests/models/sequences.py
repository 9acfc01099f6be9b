"""A small padded batch for the tests in this folder: a full sequence, a shorter one, and a missing one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MASK = torch.tensor([[True] * 7, [True] * 4 + [False] * 3, [False] * 7])


def features(dim: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 7, dim, generator=generator) * MASK[..., None]


def encode(encoder: nn.Module, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the features of an audio encoder from waveforms."""
    return encoder(*encoder.precompute(waveform, mask))
