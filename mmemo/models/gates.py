"""Which features, layers and modalities count for this utterance: adaptive feature selection.

A gate is built as ``Gate(group_sizes)``: the sizes of the feature groups that lie side by side (layers, families of
descriptors), which add up to the feature axis. It keeps the shape of the features, and says what it kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn


class Gated(NamedTuple):
    """What a gate gives.

    Args:
        features: What is left of the features ``(batch, time, dim)``.
        gate: How far each feature was let through ``(batch, dim)``, in [0, 1].
        penalty: Scalar to be minimised beside the loss; none for a gate that asks for nothing.
    """

    features: Tensor
    gate: Tensor
    penalty: Tensor | None = None


class FeatureGate(nn.Module):
    """Softly selects feature dimensions per utterance, so that noisy ones can be ignored.

    A squeeze-and-excitation gate (Hu et al. 2018, eq. 3, <https://arxiv.org/abs/1709.01507>) on the mean over
    time of the frames that are there. It starts open, close to no gate at all.

    Args:
        group_sizes: Sizes of the feature groups side by side; they add up to the feature axis.
        hidden_dim: Size of the bottleneck.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> gated ``(batch, time, dim)``, gate ``(batch, dim)`` in [0, 1]
    """

    def __init__(self, group_sizes: Sequence[int], hidden_dim: int = 32) -> None:
        super().__init__()
        dim = sum(group_sizes)
        self.norm = nn.LayerNorm(dim)
        self.squeeze = nn.Linear(dim, hidden_dim)
        self.excite = nn.Linear(hidden_dim, dim)
        nn.init.zeros_(self.excite.weight)
        nn.init.constant_(self.excite.bias, 3.0)  # sigmoid(3) = 0.95

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        mean = _mean_over_time(features, mask)
        gate = self.excite(nn.functional.relu(self.squeeze(self.norm(mean)))).sigmoid()
        return Gated(features * rearrange(gate, "batch dim -> batch 1 dim"), gate)


class HardConcreteGate(nn.Module):
    """Switches feature dimensions off for good: stochastic gates with an L0 penalty.

    Follows Louizos et al. 2018, <https://arxiv.org/abs/1712.01312>: in training each utterance draws its gates
    from the hard-concrete distribution (eq. 10 and 11), and the expected share of open gates (eq. 12, divided by
    their number) is a penalty beside the loss. In eval mode the gates are the deterministic ones of eq. 13:
    a feature that was not worth its price is exactly zero.

    Args:
        group_sizes: Sizes of the feature groups side by side; they add up to the feature axis.
        penalty: Price of keeping all features, in units of the loss, 0 or more.
        warmup_steps: Training steps over which the price rises from 0, so that features are not judged before
            the rest has learned to use them.
        temperature: Of the hard-concrete distribution, in (0, 1].

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> gated ``(batch, time, dim)``, gate ``(batch, dim)`` in [0, 1], penalty scalar
    """

    STEP = 30.0  # how far log alpha moves when its parameter moves by 1
    LOW, HIGH = -0.1, 1.1  # gamma and zeta: how far the concrete distribution is stretched before it is cut

    def __init__(
        self,
        group_sizes: Sequence[int],
        penalty: float = 0.1,
        warmup_steps: int = 200,
        temperature: float = 2 / 3,
    ) -> None:
        super().__init__()
        if penalty < 0 or warmup_steps < 0 or not 0 < temperature <= 1:
            raise ValueError(
                f"HardConcreteGate(penalty={penalty}, warmup_steps={warmup_steps}, temperature={temperature}): "
                "expected a penalty and steps of 0 or more and a temperature in (0, 1]"
            )
        self.price = penalty
        self.warmup_steps = warmup_steps
        self.temperature = temperature
        self.position = nn.Parameter(torch.zeros(sum(group_sizes)))
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def log_alpha(self) -> Tensor:
        """Location of each gate's distribution ``(dim,)``; it starts open, with a chance of 98 %.

        It is a multiple of the parameter, so that a gate can close within the small steps that suit weights.
        """
        return 2.5 + self.STEP * self.position

    @property
    def open_chance(self) -> Tensor:
        """Chance of each gate not to be zero ``(dim,)``, eq. 12."""
        return (self.log_alpha - self.temperature * math.log(-self.LOW / self.HIGH)).sigmoid()

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        if not self.training:
            gate = self._stretched(self.log_alpha.sigmoid()).expand(features.shape[0], -1)
            return Gated(features * gate[:, None], gate)
        uniform = torch.rand(len(features), len(self.log_alpha), device=features.device).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - (1 - uniform).log()
        gate = self._stretched(((noise + self.log_alpha) / self.temperature).sigmoid())
        self.steps += 1
        price = self.price * (self.steps / max(self.warmup_steps, 1)).clamp(max=1.0)
        return Gated(features * gate[:, None], gate, price * self.open_chance.mean())

    def _stretched(self, concrete: Tensor) -> Tensor:
        return (concrete * (self.HIGH - self.LOW) + self.LOW).clamp(0.0, 1.0)


class GatedResidualNetwork(nn.Module):
    """A small network that can skip itself (Lim et al. 2021, eq. 2 to 5, <https://arxiv.org/abs/1912.09363>).

    Args:
        input_dim: Size of the input.
        hidden_dim: Size of the hidden layer.
        dim: Size of the output; that of the input when not given.
        dropout: Share of hidden features dropped in training, in [0, 1).
        norm: Whether the output is normalised, as in the paper; a feature that stands alone would be wiped out.

    Shape:
        ``(..., input_dim)`` -> ``(..., dim)``
    """

    def __init__(
        self, input_dim: int, hidden_dim: int, dim: int | None = None, dropout: float = 0.1, norm: bool = True
    ) -> None:
        super().__init__()
        dim = dim or input_dim
        self.hidden = nn.Sequential(nn.Linear(input_dim, hidden_dim), nn.ELU(), nn.Linear(hidden_dim, hidden_dim))
        self.gated = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden_dim, 2 * dim), nn.GLU())
        self.skip = nn.Identity() if dim == input_dim else nn.Linear(input_dim, dim)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        return self.norm(self.skip(features) + self.gated(self.hidden(features)))


class VariableSelection(nn.Module):
    """Weighs groups of features against each other per utterance: layers, or families of descriptors.

    The variable selection network of the Temporal Fusion Transformer (Lim et al. 2021, eq. 6 to 8,
    <https://arxiv.org/abs/1912.09363>): a gated residual network on the mean over time gives the groups' weights, one
    more per group refines its features. Differs in leaving the weighted groups side by side instead of
    summing them, since they differ in size, and so in not normalising them; equal weights leave their loudness.

    Args:
        group_sizes: Sizes of the feature groups side by side; they add up to the feature axis.
        hidden_dim: Size of the networks' hidden layers.
        dropout: Share of hidden features dropped in training, in [0, 1).

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool -> selected ``(batch, time, dim)``,
        gate ``(batch, dim)``: the weight of each feature's group, in [0, 1], the groups' weights summing to 1
    """

    def __init__(self, group_sizes: Sequence[int], hidden_dim: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = list(group_sizes)
        dim = sum(sizes)
        self.sizes = sizes
        self.mean_norm = nn.LayerNorm(dim)
        self.weigh = GatedResidualNetwork(dim, hidden_dim, len(sizes), dropout)
        self.refine = nn.ModuleList(GatedResidualNetwork(size, hidden_dim, None, dropout, norm=False) for size in sizes)

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        weights = self.weigh(self.mean_norm(_mean_over_time(features, mask))).softmax(-1)  # (batch, group)
        refined = [refine(part) for refine, part in zip(self.refine, features.split(self.sizes, -1), strict=True)]
        sizes = torch.tensor(self.sizes, device=features.device)
        gate = weights.repeat_interleave(sizes, dim=1)  # (batch, dim)
        selected = torch.cat(refined, dim=-1) * gate[:, None] * len(self.sizes)
        return Gated(selected * mask[..., None], gate)


class NoGate(nn.Module):
    """Lets every feature through: what a gate is compared against.

    Args:
        group_sizes: Sizes of the feature groups side by side; they add up to the feature axis.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> the same features, gate ``(batch, dim)`` of ones
    """

    def __init__(self, group_sizes: Sequence[int]) -> None:
        super().__init__()
        self.dim = sum(group_sizes)

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        return Gated(features, features.new_ones(features.shape[0], self.dim))  # len() would fix an export's batch


class ModalityGate(nn.Module):
    """How far each modality is to be believed in this utterance.

    The gate of the gated multimodal unit (Arevalo et al. 2017, eq. 1 to 4, <https://arxiv.org/abs/1702.01992>), with a
    softmax over the modalities in place of separate sigmoids (for two they are the same), so that weights
    sum to 1 and a missing modality weighs nothing.

    Args:
        dims: Size of each modality's vector.
        num_weights: 1 for one weight per modality; the size of the fused vector for one per feature.
        dropout: Share of inputs dropped in training, in [0, 1).

    Shape:
        vectors: one ``(batch, dims[modality])`` per modality, present ``(batch, modality)`` bool
        -> weights ``(batch, modality, num_weights)`` in [0, 1], summing to 1 over the modalities that are
        present; zeros where none is
    """

    def __init__(self, dims: Sequence[int], num_weights: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.num_modalities = len(dims)
        self.score = nn.Sequential(nn.Dropout(dropout), nn.Linear(sum(dims), len(dims) * num_weights))
        for parameter in self.score[1].parameters():
            nn.init.zeros_(parameter)  # starts by believing all alike

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        scores = self.score(torch.cat(list(vectors), dim=-1)).float()
        scores = rearrange(scores, "batch (modality weight) -> batch modality weight", modality=self.num_modalities)
        here = present[..., None]
        return scores.masked_fill(~here, torch.finfo(scores.dtype).min).softmax(1) * here


def _mean_over_time(features: Tensor, mask: Tensor) -> Tensor:
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return reduce(features * weights[..., None], "batch time dim -> batch dim", "sum")
