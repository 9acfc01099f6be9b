"""Gates: adaptive selection of the features, layers and modalities that matter for an utterance.

A feature gate is built as ``Gate(group_sizes)``: the sizes of adjacent feature groups (layers, families of
descriptors), which add up to the feature axis. It takes features and their mask, and returns :class:`Gated`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange, reduce
from torch import Tensor, nn


class Gated(NamedTuple):
    """The output of a gate.

    Args:
        features: The scaled features ``(batch, time, dim)``.
        gate: Gate of each feature ``(batch, dim)``, in [0, 1].
        penalty: Scalar to minimise with the loss. Defaults to no penalty.
    """

    features: Tensor
    gate: Tensor
    penalty: Tensor | None = None


class FeatureGate(nn.Module):
    """Scales feature dimensions by a learned gate per utterance, so that noisy dimensions can be suppressed.

    A squeeze-and-excitation gate (Hu et al. 2018, eq. 3, <https://arxiv.org/abs/1709.01507>) on the mean over the real
    frames. Gates start at 0.95, close to no gate at all.

    Args:
        group_sizes: Sizes of adjacent feature groups; they add up to the feature axis.
        hidden_dim: Size of the bottleneck.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> gated ``(batch, time, dim)``, gate ``(batch, dim)`` in [0, 1]

    Example:
        >>> gated = FeatureGate([8])(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
        >>> gated.features.shape, gated.gate.shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
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
    """Switches feature dimensions off for all utterances: stochastic gates with an L0 penalty.

    Follows Louizos et al. 2018, <https://arxiv.org/abs/1712.01312>. In training, each utterance draws its gates from
    the hard concrete distribution (eq. 10 and 11), and the expected share of open gates (eq. 12, divided by their
    number) is added to the loss as a penalty. In eval mode the gates are deterministic (eq. 13), and exactly zero for
    features that reduce the loss by less than their penalty.

    Args:
        group_sizes: Sizes of adjacent feature groups; they add up to the feature axis.
        penalty: Penalty for keeping all features, in units of the loss, 0 or more.
        warmup_steps: Training steps over which the penalty rises from 0, so that no feature is dropped before the rest
            of the model has learned to use it.
        temperature: Temperature of the hard concrete distribution, in (0, 1].

    Raises:
        ValueError: An argument is out of range.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> gated ``(batch, time, dim)``, gate ``(batch, dim)`` in [0, 1], penalty scalar

    Example:
        >>> gate = HardConcreteGate([8], penalty=0.1, warmup_steps=0)
        >>> gated = gate(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool))
        >>> print(f"{gated.penalty:.4f}")  # 98 % of the gates are expected to be open
        0.0984
    """

    LOG_ALPHA_SCALE = 30.0  # change of log alpha when its parameter changes by 1
    LOW, HIGH = -0.1, 1.1  # gamma and zeta: the interval that the concrete distribution is stretched to

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
                f"HardConcreteGate(penalty={penalty}, warmup_steps={warmup_steps}, temperature={temperature}), "
                "expected a penalty and steps of 0 or more, and a temperature in (0, 1]"
            )
        self.penalty = penalty
        self.warmup_steps = warmup_steps
        self.temperature = temperature
        self.position = nn.Parameter(torch.zeros(sum(group_sizes)))
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    @property
    def log_alpha(self) -> Tensor:
        """Location of each gate's distribution ``(dim,)``. Gates start open with a probability of 98 %.

        It is a multiple of the parameter, so that a gate can close at the small learning rates that suit weights.
        """
        return 2.5 + self.LOG_ALPHA_SCALE * self.position

    @property
    def open_probability(self) -> Tensor:
        """Probability that each gate is not zero ``(dim,)``, eq. 12."""
        return (self.log_alpha - self.temperature * math.log(-self.LOW / self.HIGH)).sigmoid()

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        if not self.training:
            gate = self._stretch(self.log_alpha.sigmoid()).expand(features.shape[0], -1)
            return Gated(features * gate[:, None], gate)
        uniform = torch.rand(len(features), len(self.log_alpha), device=features.device).clamp(1e-6, 1 - 1e-6)
        noise = uniform.log() - (1 - uniform).log()
        gate = self._stretch(((noise + self.log_alpha) / self.temperature).sigmoid())
        self.steps += 1
        penalty = self.penalty * (self.steps / max(self.warmup_steps, 1)).clamp(max=1.0)
        return Gated(features * gate[:, None], gate, penalty * self.open_probability.mean())

    def _stretch(self, concrete: Tensor) -> Tensor:
        return (concrete * (self.HIGH - self.LOW) + self.LOW).clamp(0.0, 1.0)


class GatedResidualNetwork(nn.Module):
    """A small network with a gated residual connection.

    Follows Lim et al. 2021, eq. 2 to 5, <https://arxiv.org/abs/1912.09363>.

    Args:
        input_dim: Size of the input.
        hidden_dim: Size of the hidden layer.
        dim: Size of the output. Defaults to ``input_dim``.
        dropout: Dropout probability, in [0, 1).
        norm: Whether to normalise the output, as in the paper; this would erase an output of size 1.

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
        output: Tensor = self.norm(self.skip(features) + self.gated(self.hidden(features)))
        return output


class VariableSelection(nn.Module):
    """Weights feature groups, such as layers or families of descriptors, against each other per utterance.

    The variable selection network of the Temporal Fusion Transformer (Lim et al. 2021, eq. 6 to 8,
    <https://arxiv.org/abs/1912.09363>): a gated residual network on the mean over time predicts the group weights, and
    one such network per group refines its features. Differs in concatenating the weighted groups instead of summing
    them, since their sizes differ, and so in not normalising them. Equal weights keep the scale of the features.

    Args:
        group_sizes: Sizes of adjacent feature groups; they add up to the feature axis.
        hidden_dim: Size of the networks' hidden layers.
        dropout: Dropout probability, in [0, 1).

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool -> gated ``(batch, time, dim)``,
        gate ``(batch, dim)``: the weight of each feature's group, in [0, 1]; the group weights sum to 1

    Example:
        >>> gate = VariableSelection([4, 2, 2])
        >>> gate(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool)).gate.shape
        torch.Size([2, 8])
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
        groups = features.split(self.sizes, -1)
        refined = [refine(group) for refine, group in zip(self.refine, groups, strict=True)]
        sizes = torch.tensor(self.sizes, device=features.device)
        gate = weights.repeat_interleave(sizes, dim=1)  # (batch, dim)
        selected = torch.cat(refined, dim=-1) * gate[:, None] * len(self.sizes)
        return Gated(selected * mask[..., None], gate)


class NoGate(nn.Module):
    """Passes every feature through: the baseline for the other gates.

    Args:
        group_sizes: Sizes of adjacent feature groups; they add up to the feature axis.

    Shape:
        features ``(batch, time, dim)``, mask ``(batch, time)`` bool
        -> the same features, gate ``(batch, dim)`` of ones

    Example:
        >>> NoGate([2])(torch.randn(1, 5, 2), torch.ones(1, 5, dtype=torch.bool)).gate
        tensor([[1., 1.]])
    """

    def __init__(self, group_sizes: Sequence[int]) -> None:
        super().__init__()
        self.dim = sum(group_sizes)

    def forward(self, features: Tensor, mask: Tensor) -> Gated:
        # shape[0], not len(): len() would fix the batch size of an exported model
        return Gated(features, features.new_ones(features.shape[0], self.dim))


class ModalityGate(nn.Module):
    """Weights the modalities of each utterance.

    The gate of the gated multimodal unit (Arevalo et al. 2017, eq. 1 to 4, <https://arxiv.org/abs/1702.01992>), with a
    softmax over the modalities instead of separate sigmoids. The two are equal for two modalities; the softmax makes
    the weights sum to 1 for any number and gives a missing modality a weight of 0.

    Args:
        dims: Size of each modality's vector.
        num_weights: Weights per modality: 1, or the size of the fused vector for one per feature.
        dropout: Dropout probability of the inputs, in [0, 1).

    Shape:
        one vector ``(batch, dims[modality])`` per modality, present ``(batch, modality)`` bool
        -> weights ``(batch, modality, num_weights)`` in [0, 1], which sum to 1 over the present modalities;
        zeros if all are missing

    Example:
        >>> vectors, present = [torch.randn(2, 4), torch.randn(2, 3)], torch.tensor([[True, True], [True, False]])
        >>> ModalityGate([4, 3])(vectors, present)[..., 0].tolist()
        [[0.5, 0.5], [1.0, 0.0]]
    """

    def __init__(self, dims: Sequence[int], num_weights: int = 1, dropout: float = 0.2) -> None:
        super().__init__()
        self.num_modalities = len(dims)
        self.score = nn.Sequential(nn.Dropout(dropout), nn.Linear(sum(dims), len(dims) * num_weights))
        for parameter in self.score[1].parameters():
            nn.init.zeros_(parameter)  # starts with equal weights

    def forward(self, vectors: Sequence[Tensor], present: Tensor) -> Tensor:
        scores = self.score(torch.cat(list(vectors), dim=-1)).float()
        scores = rearrange(scores, "batch (modality weight) -> batch modality weight", modality=self.num_modalities)
        present = present[..., None]
        weights: Tensor = scores.masked_fill(~present, torch.finfo(scores.dtype).min).softmax(1) * present
        return weights


def _mean_over_time(features: Tensor, mask: Tensor) -> Tensor:
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return reduce(features * weights[..., None], "batch time dim -> batch dim", "sum")
