"""What every encoder gives: raw input -> hidden states, in a part that may be cached and a part that is trained."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


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


def named_features(encoder: object) -> list[str]:
    """Returns the names of an encoder's features, ``group/feature``; empty if it does not name them."""
    return list(getattr(encoder, "feature_names", []))


def layer_numbers(encoder: object) -> list[int]:
    """Returns which hidden states an encoder gives; empty if it has no layers to choose from."""
    return list(getattr(encoder, "layers", []))
