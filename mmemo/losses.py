"""What training minimises.

A loss takes what the model said and what is true of a batch, and gives a scalar: the mean over the utterances that
have the label it needs, 0 when none has. ``reads`` says which labels those are (``emotion``, ``votes``,
``dimensions``), so that training knows which rows it can use, and ``trains`` which heads learn from it.
:class:`WeightedSum` and :class:`UncertaintyWeighted` join several losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from mmemo.labels import UNLABELLED

__all__ = [
    "BalancedSoftmax", "CCCLoss", "CrossEntropy", "FeatureHints", "FocalLoss", "RelationalDistances", "SoftLabels",
    "SoftenedLogits", "SupervisedContrastive", "Taught", "UncertaintyWeighted", "WeightedSum", "count_classes",
]  # fmt: skip


class Predicted(Protocol):
    """What a model said of a batch; an ``EmotionOutput``."""

    @property
    def embedding(self) -> Tensor:
        """Fused vectors ``(batch, dim)``."""

    @property
    def logits(self) -> Tensor | None:
        """Class scores ``(batch, num_classes)``."""

    @property
    def dimensions(self) -> Tensor | None:
        """Valence, arousal, dominance ``(batch, 3)``."""


class Labelled(Protocol):
    """What is true of a batch; an ``EmotionBatch``."""

    @property
    def target(self) -> Tensor:
        """Class indices ``(batch,)`` int64, ``labels.UNLABELLED`` where there is none."""

    @property
    def votes(self) -> Tensor:
        """Share of the raters' votes for each class ``(batch, num_classes)``; zeros where nobody voted."""

    @property
    def dimensions(self) -> Tensor:
        """Valence, arousal, dominance ``(batch, 3)``, NaN where there is none."""


class CrossEntropy(nn.Module):
    """Cross-entropy with the label of each utterance.

    Args:
        label_smoothing: Probability moved from the label to all classes alike, in [0, 1).
        class_weights: ``balanced`` weighs each class by the inverse of its share of the training rows (King and
            Zeng 2001, as in scikit-learn); a list gives the weights in the order of ``data.classes``; none weighs
            all alike.
    """

    reads = ("emotion",)
    trains: tuple[str, ...] = ("classes",)

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: Literal["balanced"] | list[float] | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.label_smoothing = label_smoothing
        self.balanced = class_weights == "balanced"
        given = None if self.balanced or class_weights is None else torch.tensor(cast("list[float]", class_weights))
        self.register_buffer("weights", given, persistent=False)
        self.weights: Tensor | None

    def count_classes(self, counts: Tensor) -> None:
        """Learns how many training rows each class has.

        Args:
            counts: ``(num_classes,)``.

        Raises:
            ValueError: There is not one weight per class.
        """
        if self.balanced:
            self.weights = (counts.sum() / (len(counts) * counts.clamp(min=1))).to(torch.float32)
        elif self.weights is not None and len(self.weights) != len(counts):
            raise ValueError(f"class_weights names {len(self.weights)} weights, data.classes {len(counts)} classes")

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        logits, target = _classes(output, batch)
        weights = None if self.weights is None else self.weights.to(logits)
        losses = nn.functional.cross_entropy(
            logits, target, weights, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing, reduction="none"
        )
        total = (target != UNLABELLED) if weights is None else _weight_of(target, weights)
        return losses.sum() / total.sum().clamp(min=1e-9)


class FocalLoss(nn.Module):
    """Cross-entropy that turns to the utterances the model still gets wrong (Lin et al. 2017, eq. 4,
    <https://arxiv.org/abs/1708.02002>).

    Args:
        gamma: How fast an utterance that is recognised loses weight, 0 (cross-entropy) or more.
    """

    reads = ("emotion",)
    trains: tuple[str, ...] = ("classes",)

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FocalLoss(gamma={gamma}), expected 0 or more")
        self.gamma = gamma

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        logits, target = _classes(output, batch)
        losses = nn.functional.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="none")
        missed = 1 - torch.exp(-losses)
        return _mean_over_labelled(missed.clamp(min=1e-8) ** self.gamma * losses, target)


class BalancedSoftmax(nn.Module):
    """Cross-entropy that allows for the classes' shares in training (Ren et al. 2020, eq. 4,
    <https://arxiv.org/abs/2007.10740>).

    The logarithm of each class's count is added to its score in training alone, so that in use the model
    treats all classes alike however rare they were.
    """

    reads = ("emotion",)
    trains: tuple[str, ...] = ("classes",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_counts", None, persistent=False)
        self.log_counts: Tensor | None

    def count_classes(self, counts: Tensor) -> None:
        """Learns how many training rows each class has.

        Args:
            counts: ``(num_classes,)``.
        """
        self.log_counts = counts.clamp(min=1).to(torch.float32).log()

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        logits, target = _classes(output, batch)
        if self.training and self.log_counts is not None:
            logits = logits + self.log_counts.to(logits)
        losses = nn.functional.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="none")
        return _mean_over_labelled(losses, target)


class SoftLabels(nn.Module):
    """Learns the raters' votes instead of their majority: a tie stays a tie.

    Args:
        divergence: ``cross_entropy`` of the predicted with the voted distribution, or ``kl``, which is less by the
            votes' own entropy: the same gradient, but 0 for a perfect model.
    """

    reads = ("votes",)
    trains = ("classes",)

    def __init__(self, divergence: Literal["cross_entropy", "kl"] = "cross_entropy") -> None:
        super().__init__()
        self.divergence = divergence

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        assert output.logits is not None, "checked when training began"
        votes = batch.votes
        losses = -(votes * output.logits.log_softmax(-1)).sum(-1)
        if self.divergence == "kl":
            losses = losses + torch.xlogy(votes, votes).sum(-1)
        return losses.sum() / (votes.sum(-1) > 0).sum().clamp(min=1)


class CCCLoss(nn.Module):
    """One minus the concordance correlation coefficient (Lin 1989), averaged over the dimensions.

    The coefficient is that of the batch, so small batches make it noisy: 32 utterances or more are usual. A dimension
    with fewer than two labelled utterances in the batch does not count.
    """

    reads = ("dimensions",)
    trains = ("dimensions",)

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        assert output.dimensions is not None, "checked when training began"
        predicted, truth = output.dimensions.float(), batch.dimensions
        present = truth.isfinite()
        counts = present.sum(0)
        weights = present / counts.clamp(min=1)  # (batch, dimension)
        truth = torch.where(present, truth, 0.0)
        mean_predicted, mean_truth = (weights * predicted).sum(0), (weights * truth).sum(0)
        from_mean = (predicted - mean_predicted) * present, (truth - mean_truth) * present
        covariance = (weights * from_mean[0] * from_mean[1]).sum(0)
        variances = (weights * from_mean[0].square()).sum(0) + (weights * from_mean[1].square()).sum(0)
        ccc = 2 * covariance / (variances + (mean_predicted - mean_truth).square()).clamp(min=1e-8)
        usable = counts > 1
        return ((1 - ccc) * usable).sum() / usable.sum().clamp(min=1)


class SupervisedContrastive(nn.Module):
    """Pulls utterances of one class together and pushes the others away (Khosla et al. 2020, eq. 2,
    <https://arxiv.org/abs/2004.11362>). A term beside a loss of the classes, not a loss of its own.

    Args:
        temperature: Sharpness of the similarity, above 0.

    Raises:
        ValueError: In training, when a batch holds one class alone: nothing can be pushed away.
    """

    reads = ("emotion",)
    trains: tuple[str, ...] = ()  # no head learns from it: it stands beside a loss that trains one

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"SupervisedContrastive(temperature={temperature}), expected a number above 0")
        self.temperature = temperature

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        target = batch.target
        labelled = target != UNLABELLED
        if self.training and labelled.any() and len(target[labelled].unique()) < 2:
            raise ValueError(
                f"SupervisedContrastive: a batch of {int(labelled.sum())} utterances holds one class alone; raise "
                "data.batch_size, or set data.balanced: true"
            )
        vectors = nn.functional.normalize(output.embedding.float(), dim=-1)
        others = labelled[:, None] & labelled[None] & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
        similarity = (vectors @ vectors.T / self.temperature).masked_fill(~others, torch.finfo(torch.float32).min)
        positive = others & (target[:, None] == target[None])
        log_prob = similarity - similarity.logsumexp(1, keepdim=True)
        losses = -torch.where(positive, log_prob, 0.0).sum(1) / positive.sum(1).clamp(min=1)
        return losses.sum() / positive.any(1).sum().clamp(min=1)


class WeightedSum(nn.Module):
    """Several losses with fixed weights.

    Args:
        losses: The losses.
        weights: One for each, 0 or more; all 1 when not given.

    Raises:
        ValueError: There is not one weight per loss.
    """

    def __init__(self, losses: list[nn.Module], weights: list[float] | None = None) -> None:
        super().__init__()
        self.losses = nn.ModuleList(losses)
        self.weights = weights or [1.0] * len(losses)
        if not losses or len(self.weights) != len(losses) or min(self.weights) < 0:
            raise ValueError(
                f"WeightedSum: {len(losses)} losses and weights {self.weights}, expected one of 0 or more for each"
            )
        self.reads = _joined(losses, "reads")
        self.trains = _joined(losses, "trains")

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        terms = [weight * loss(output, batch) for weight, loss in zip(self.weights, self.losses, strict=True)]
        return torch.stack(terms).sum()


class UncertaintyWeighted(nn.Module):
    """Several losses whose weights are learned, each as the inverse of its noise (Kendall et al. 2018, eq. 10 in the
    form of its section 3.3, <https://arxiv.org/abs/1705.07115>).

    Args:
        losses: The losses.
    """

    def __init__(self, losses: list[nn.Module]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("UncertaintyWeighted: expected at least one loss")
        self.losses = nn.ModuleList(losses)
        self.log_variances = nn.Parameter(torch.zeros(len(losses)))
        self.reads = _joined(losses, "reads")
        self.trains = _joined(losses, "trains")

    def forward(self, output: Predicted, batch: Labelled) -> Tensor:
        terms = torch.stack([loss(output, batch) for loss in self.losses])
        labelled = terms.detach() != 0  # a term without labels in this batch says nothing of its weight
        return ((torch.exp(-self.log_variances) * terms + self.log_variances / 2) * labelled).sum()


def count_classes(loss: nn.Module, counts: Tensor) -> None:
    """Tells a loss, and those it is made of, how many training rows each class has.

    Args:
        loss: The loss.
        counts: ``(num_classes,)``.
    """
    for part in loss.modules():
        learn = getattr(part, "count_classes", None)
        if callable(learn):
            learn(counts)


def _joined(losses: Sequence[nn.Module], name: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind for loss in losses for kind in cast("tuple[str, ...]", getattr(loss, name))))


def _classes(output: Predicted, batch: Labelled) -> tuple[Tensor, Tensor]:
    assert output.logits is not None, "checked when training began"
    return output.logits, batch.target


def _mean_over_labelled(losses: Tensor, target: Tensor) -> Tensor:
    labelled = target != UNLABELLED
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def _weight_of(target: Tensor, weights: Tensor) -> Tensor:
    labelled = target != UNLABELLED
    return torch.where(labelled, weights[target.clamp(min=0)], 0.0)


class Taught(NamedTuple):
    """What a student or its teacher says of a batch.

    Args:
        logits: ``(batch, num_classes)``.
        embedding: The fused vector ``(batch, dim)``.
        hidden: Mean over time of the features that reach the fusion ``(batch, dim)``.
    """

    logits: Tensor
    embedding: Tensor
    hidden: Tensor


class SoftenedLogits(nn.Module):
    """The student gives each class the probability that the teacher gives it, both softened (Hinton et al. 2015,
    section 2, <https://arxiv.org/abs/1503.02531>): T^2 times the Kullback-Leibler divergence.

    Args:
        temperature: Divides the logits of both, above 0; the higher, the more the unlikely classes count.
        weight: Beside the loss on the labels, above 0.
    """

    takes = "logits"

    def __init__(self, temperature: float = 2.0, weight: float = 1.0) -> None:
        super().__init__()
        self.temperature = _above_zero(self, "temperature", temperature)
        self.weight = _above_zero(self, "weight", weight)

    def forward(self, student: Taught, teacher: Taught) -> Tensor:
        said = (student.logits.float() / self.temperature).log_softmax(-1)
        target = (teacher.logits / self.temperature).log_softmax(-1)
        divergence = nn.functional.kl_div(said, target, reduction="batchmean", log_target=True)
        return self.weight * self.temperature**2 * divergence


class FeatureHints(nn.Module):
    """The teacher's vector can be read off the student's by a linear map, which is learned along (Romero et al. 2015,
    eq. 3, <https://arxiv.org/abs/1412.6550>).

    With ``takes: embedding`` and a teacher of voice and words, what the words say passes to a student that hears the
    voice alone.

    Args:
        takes: ``embedding``, the fused vector, or ``hidden``, the mean over time of the features before the fusion.
        weight: Beside the loss on the labels, above 0.
    """

    def __init__(self, takes: Literal["embedding", "hidden"] = "embedding", weight: float = 1.0) -> None:
        super().__init__()
        self.takes = takes
        self.weight = _above_zero(self, "weight", weight)
        self.projector: nn.Linear | None = None  # its size is that of student and teacher

    def prepare(self, student_dims: dict[str, int], teacher_dims: dict[str, int]) -> None:
        """Builds the projector.

        Args:
            student_dims: Sizes of the student's vectors.
            teacher_dims: Sizes of the teacher's.
        """
        if self.projector is None:
            self.projector = nn.Linear(student_dims[self.takes], teacher_dims[self.takes])

    def forward(self, student: Taught, teacher: Taught) -> Tensor:
        assert self.projector is not None
        wanted = nn.functional.layer_norm(getattr(teacher, self.takes), [self.projector.out_features])  # free of scale
        return self.weight * nn.functional.mse_loss(self.projector(getattr(student, self.takes).float()), wanted)


class RelationalDistances(nn.Module):
    """Utterances are as far from each other, and at the same angles, for the student as for the teacher (Park et al.
    2019, eq. 5 to 9, <https://arxiv.org/abs/1904.05068>).

    Args:
        distance_weight: Of the distances between two, 0 or more.
        angle_weight: Of the angles between three, 0 or more.
    """

    takes = "embedding"

    def __init__(self, distance_weight: float = 1.0, angle_weight: float = 2.0) -> None:
        super().__init__()
        if not (distance_weight >= 0 and angle_weight >= 0 and 0 < distance_weight + angle_weight < float("inf")):
            raise ValueError(
                f"RelationalDistances(distance_weight={distance_weight}, angle_weight={angle_weight}), expected 0 or "
                "more, and one of them above 0"
            )
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    def forward(self, student: Taught, teacher: Taught) -> Tensor:
        said, wanted = student.embedding.float(), teacher.embedding
        loss = said.new_zeros(())
        if self.distance_weight:
            distances = nn.functional.smooth_l1_loss(_distances(said), _distances(wanted))
            loss = loss + self.distance_weight * distances
        if self.angle_weight:
            loss = loss + self.angle_weight * nn.functional.smooth_l1_loss(_angles(said), _angles(wanted))
        return loss


def _distances(vectors: Tensor) -> Tensor:
    """Between each two ``(batch, batch)``, in units of their mean."""
    squared = (vectors[:, None] - vectors[None]).square().sum(-1)
    distances = torch.where(squared > 0, squared.clamp(min=1e-12).sqrt(), 0.0)  # no slope at 0
    return distances / distances[distances > 0].mean().clamp(min=1e-12) if bool((distances > 0).any()) else distances


def _angles(vectors: Tensor) -> Tensor:
    """Cosines at each vector between each two others ``(batch, batch, batch)``."""
    apart = vectors[None] - vectors[:, None]
    squared = apart.square().sum(-1, keepdim=True)
    # Two that coincide have no direction, and no slope.
    directions = torch.where(squared > 1e-12, apart * squared.clamp(min=1e-12).rsqrt(), 0.0)
    return directions @ directions.transpose(1, 2)


def _above_zero(part: nn.Module, name: str, value: float) -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{type(part).__name__}({name}={value}), expected a number above 0")
    return value
