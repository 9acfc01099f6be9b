"""The interface of encoders: raw input -> hidden states, in a part that may be cached and a part that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Encoder(Protocol):
    """An ``nn.Module`` in two halves: ``precompute`` never changes in training and may be cached; ``forward`` may.

    Args:
        dim: Size of the feature axis.
        num_layers: Number of hidden states that are returned.
        differentiable: Whether gradients reach the raw input.
        caches: Whether caching ``precompute`` is worthwhile.

    Shape:
        raw input ``(batch, samples)`` or ``(batch, token)`` with its mask
        -> ``precompute`` and ``forward``: features ``(batch, layer, time, dim)``, mask ``(batch, time)``
    """

    dim: int
    num_layers: int
    differentiable: bool

    @property
    def caches(self) -> bool:
        """Whether caching ``precompute`` is worthwhile."""

    def fingerprint(self) -> str:
        """Returns ``kind:weights:options``, everything that ``precompute`` depends on; the key of the cache."""

    def precompute(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the part that training never changes, and its mask."""

    def __call__(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the features of a batch of precomputed inputs, and their mask."""


@runtime_checkable
class TextEncoder(Encoder, Protocol):
    """An encoder of transcripts."""

    def tokenize(self, text: str) -> Tensor:
        """Returns token ids ``(token,)`` int64; none for an empty transcript."""


# What an encoder may have beyond `Encoder`; recognised with `isinstance`.


@runtime_checkable
class NamesFeatures(Protocol):
    """An encoder whose features have names, ``group/feature``, such as ``mfcc/3``."""

    feature_names: Sequence[str]


@runtime_checkable
class HasLayers(Protocol):
    """An encoder that gives chosen hidden states, numbered as in the pretrained model; 0 is the input of block 1."""

    layers: Sequence[int]


@runtime_checkable
class HasLogMel(Protocol):
    """An encoder that starts with a log-mel spectrogram, which attacks may perturb."""

    log_mel: nn.Module


@runtime_checkable
class HasMaxSeconds(Protocol):
    """An encoder that cuts recordings to a length, in seconds."""

    max_seconds: float


@runtime_checkable
class HasModelId(Protocol):
    """An encoder with pretrained weights of this name or folder."""

    model_id: str
