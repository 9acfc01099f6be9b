"""Distillation losses: the distance between a student's outputs and its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Knowledge(NamedTuple):
    """The outputs of a student or a teacher that distillation compares.

    Args:
        logits: Class scores ``(batch, num_classes)``.
        embedding: Fused vectors ``(batch, dim)``.
        hidden: Mean over time of the features before the fusion ``(batch, dim)``.
    """

    logits: Tensor
    embedding: Tensor
    hidden: Tensor


@runtime_checkable
class DistillationLoss(Protocol):
    """What a student takes over from its teacher.

    Args:
        knowledge: The output that is compared: ``logits``, ``embedding`` or ``hidden``.
    """

    knowledge: str

    def prepare(self, student_dims: Mapping[str, int], teacher_dims: Mapping[str, int]) -> None:
        """Builds what depends on the sizes of the vectors, once per run."""

    def __call__(self, student: Knowledge, teacher: Knowledge) -> Tensor:
        """Returns the loss, a scalar ``()``, for the outputs of a batch; see :class:`Knowledge` for their shapes."""


class SoftenedLogits(nn.Module):
    """Matches the student's softened class probabilities to the teacher's.

    The loss is T^2 times their Kullback-Leibler divergence (Hinton et al. 2015, section 2,
    <https://arxiv.org/abs/1503.02531>).

    Args:
        temperature: Divides the logits of both, above 0; the higher, the more unlikely classes count.
        weight: Weight relative to the loss on the labels, above 0.

    Raises:
        ValueError: ``temperature`` or ``weight`` is not above 0.

    Shape:
        student.logits, teacher.logits ``(batch, num_classes)`` -> scalar

    Example:
        >>> student = Knowledge(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 4), torch.zeros(1, 8))
        >>> teacher = student._replace(logits=torch.tensor([[3.0, 0.0]]))
        >>> print(f"{SoftenedLogits(temperature=2.0)(student, teacher):.3f}")
        0.361
    """

    knowledge = "logits"

    def __init__(self, temperature: float = 2.0, weight: float = 1.0) -> None:
        super().__init__()
        self.temperature = _check_positive(self, "temperature", temperature)
        self.weight = _check_positive(self, "weight", weight)

    def prepare(self, student_dims: Mapping[str, int], teacher_dims: Mapping[str, int]) -> None:
        """Does nothing: the loss has no parameters."""

    def forward(self, student: Knowledge, teacher: Knowledge) -> Tensor:
        log_probs = (student.logits.float() / self.temperature).log_softmax(-1)
        target = (teacher.logits / self.temperature).log_softmax(-1)
        divergence = nn.functional.kl_div(log_probs, target, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * divergence


class FeatureHints(nn.Module):
    """Matches a learned linear projection of the student's vector to the teacher's vector.

    Follows Romero et al. 2015, eq. 3, <https://arxiv.org/abs/1412.6550>. With ``knowledge: embedding`` and a teacher of
    audio and text, an audio-only student also learns from the text.

    Args:
        knowledge: ``embedding``, the fused vector, or ``hidden``, the mean over time of the features before the fusion.
        weight: Weight relative to the loss on the labels, above 0.

    Raises:
        ValueError: ``weight`` is not above 0.

    Shape:
        vectors ``(batch, student_dim)`` and ``(batch, teacher_dim)`` -> scalar

    Example:
        >>> hints = FeatureHints(knowledge="embedding")
        >>> hints.prepare(student_dims={"embedding": 64}, teacher_dims={"embedding": 256})
        >>> hints.projector
        Linear(in_features=64, out_features=256, bias=True)
    """

    def __init__(self, knowledge: Literal["embedding", "hidden"] = "embedding", weight: float = 1.0) -> None:
        super().__init__()
        self.knowledge = knowledge
        self.weight = _check_positive(self, "weight", weight)
        self.projector: nn.Linear | None = None  # built by prepare(), once both sizes are known

    def prepare(self, student_dims: Mapping[str, int], teacher_dims: Mapping[str, int]) -> None:
        """Builds the projector unless it exists.

        Args:
            student_dims: Size of each of the student's vectors, by name.
            teacher_dims: Size of each of the teacher's vectors, by name.
        """
        if self.projector is None:
            self.projector = nn.Linear(student_dims[self.knowledge], teacher_dims[self.knowledge])

    def forward(self, student: Knowledge, teacher: Knowledge) -> Tensor:
        assert self.projector is not None
        vector: Tensor = getattr(student, self.knowledge)
        target = getattr(teacher, self.knowledge)
        target = nn.functional.layer_norm(target, [self.projector.out_features])  # makes the loss independent of scale
        return self.weight * nn.functional.mse_loss(self.projector(vector.float()), target)


class RelationalDistances(nn.Module):
    """Matches the distances and angles between the student's embeddings to those between the teacher's.

    Follows Park et al. 2019, eq. 5 to 9, <https://arxiv.org/abs/1904.05068>.

    Args:
        distance_weight: Weight of the distances between pairs, 0 or more.
        angle_weight: Weight of the angles between triplets, 0 or more.

    Raises:
        ValueError: A weight is negative or infinite, or both are 0.

    Shape:
        student.embedding ``(batch, student_dim)``, teacher.embedding ``(batch, teacher_dim)`` -> scalar

    Example:
        >>> teacher = Knowledge(torch.zeros(3, 2), torch.eye(3), torch.zeros(3, 8))
        >>> student = teacher._replace(embedding=5 * torch.eye(3))  # scale does not matter
        >>> print(f"{RelationalDistances()(student, teacher):.1f}")
        0.0
    """

    knowledge = "embedding"

    def __init__(self, distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        super().__init__()
        if not (distance_weight >= 0 and angle_weight >= 0 and 0 < distance_weight + angle_weight < float("inf")):
            raise ValueError(
                f"RelationalDistances(distance_weight={distance_weight}, angle_weight={angle_weight}), expected 0 or "
                "more, and at least one above 0"
            )
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def prepare(self, student_dims: Mapping[str, int], teacher_dims: Mapping[str, int]) -> None:
        """Does nothing: the loss has no parameters."""

    def forward(self, student: Knowledge, teacher: Knowledge) -> Tensor:
        vectors, targets = student.embedding.float(), teacher.embedding
        loss = vectors.new_zeros(())
        if self.distance_weight:
            distances = nn.functional.smooth_l1_loss(_distances(vectors), _distances(targets))
            loss = loss + self.distance_weight * distances
        if self.angle_weight:
            loss = loss + self.angle_weight * nn.functional.smooth_l1_loss(_angles(vectors), _angles(targets))
        return loss


def _distances(vectors: Tensor) -> Tensor:
    """Pairwise distances ``(batch, batch)``, divided by their mean."""
    squared = (vectors[:, None] - vectors[None]).square().sum(-1)
    distances = torch.where(squared > 0, squared.clamp(min=1e-12).sqrt(), 0.0)  # sqrt has an infinite gradient at 0
    return distances / distances[distances > 0].mean().clamp(min=1e-12) if bool((distances > 0).any()) else distances


def _angles(vectors: Tensor) -> Tensor:
    """Cosine of the angle at each vector between every two others ``(batch, batch, batch)``."""
    differences = vectors[None] - vectors[:, None]
    squared = differences.square().sum(-1, keepdim=True)
    # Vectors that coincide have no direction; zero keeps their gradient finite.
    directions = torch.where(squared > 1e-12, differences * squared.clamp(min=1e-12).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)


def _check_positive(loss: nn.Module, name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{type(loss).__name__}({name}={value}), expected a number above 0")
    return value
