"""Losses on the labels: emotion classes, the raters' votes, and valence, arousal and dominance."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mmemo.labels import UNLABELLED


class ModelOutput(Protocol):
    """What a model predicts for a batch; implemented by ``EmotionOutput``."""

    @property
    def embedding(self) -> Tensor:
        """Fused vectors ``(batch, dim)``."""

    @property
    def logits(self) -> Tensor | None:
        """Class scores ``(batch, num_classes)``."""

    @property
    def dimensions(self) -> Tensor | None:
        """Valence, arousal and dominance ``(batch, 3)``."""


class Targets(Protocol):
    """The labels of a batch; implemented by ``EmotionBatch``."""

    @property
    def target(self) -> Tensor:
        """Class indices ``(batch,)`` int64; ``labels.UNLABELLED`` marks utterances without a label."""

    @property
    def votes(self) -> Tensor:
        """Share of the raters' votes for each class ``(batch, num_classes)``; zeros if there are no votes."""

    @property
    def dimensions(self) -> Tensor:
        """Valence, arousal and dominance ``(batch, 3)``; NaN marks missing labels."""


@runtime_checkable
class Loss(Protocol):
    """What training minimises.

    Args:
        required_labels: Kinds of labels it needs, some of ``emotion``, ``votes`` and ``dimensions``.
        trained_heads: Heads that it trains, some of ``classes`` and ``dimensions``; empty for an auxiliary term.
    """

    required_labels: tuple[str, ...]
    trained_heads: tuple[str, ...]

    def __call__(self, output: ModelOutput, batch: Targets) -> Tensor:
        """Returns the mean over the utterances that have the labels, a scalar ``()``; 0 if none has."""


@runtime_checkable
class CountsClasses(Protocol):
    """A loss that depends on how often each class occurs in the training rows."""

    def set_class_counts(self, counts: Tensor) -> None:
        """Sets the number of training rows of each class ``(num_classes,)``."""


class CrossEntropy(nn.Module):
    """Cross-entropy with the emotion label of each utterance.

    Args:
        label_smoothing: Probability mass spread evenly over all classes, in [0, 1).
        class_weights: ``balanced`` weights each class by the inverse of its share of the training rows (King and
            Zeng 2001, as in scikit-learn). A list gives one weight per class, in the order of ``data.classes``.
            Defaults to equal weights.

    Shape:
        output.logits ``(batch, num_classes)``, batch.target ``(batch,)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> output = SimpleNamespace(logits=torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        >>> batch = SimpleNamespace(target=torch.tensor([0, UNLABELLED]))
        >>> print(f"{CrossEntropy()(output, batch):.3f}")
        0.127
    """

    required_labels = ("emotion",)
    trained_heads: tuple[str, ...] = ("classes",)

    def __init__(
        self, label_smoothing: float = 0.0, class_weights: Literal["balanced"] | list[float] | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.balanced = class_weights == "balanced"
        fixed_weights = None if self.balanced or class_weights is None else torch.tensor(class_weights)
        self.register_buffer("weights", fixed_weights, persistent=False)
        self.weights: Tensor | None

    def set_class_counts(self, counts: Tensor) -> None:
        """Sets the balanced weights, or checks the number of fixed ones.

        Args:
            counts: Number of training rows of each class ``(num_classes,)``.

        Raises:
            ValueError: The number of fixed weights differs from the number of classes.
        """
        if self.balanced:
            self.weights = (counts.sum() / (len(counts) * counts.clamp(min=1))).to(torch.float32)
        elif self.weights is not None and len(self.weights) != len(counts):
            raise ValueError(f"class_weights has {len(self.weights)} weights, data.classes has {len(counts)} classes")

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        logits, target = _logits_and_target(output, batch)
        weights = None if self.weights is None else self.weights.to(logits)
        losses = nn.functional.cross_entropy(
            logits, target, weights, ignore_index=UNLABELLED, label_smoothing=self.label_smoothing, reduction="none"
        )
        total = (target != UNLABELLED) if weights is None else _target_weights(target, weights)
        return losses.sum() / total.sum().clamp(min=1e-9)


class FocalLoss(nn.Module):
    """Cross-entropy that focuses on the utterances that the model still gets wrong.

    Follows Lin et al. 2017, eq. 4, <https://arxiv.org/abs/1708.02002>.

    Args:
        gamma: Focusing parameter, 0 (plain cross-entropy) or more; the higher, the less an utterance counts that the
            model already gets right.

    Raises:
        ValueError: ``gamma`` is negative.

    Shape:
        output.logits ``(batch, num_classes)``, batch.target ``(batch,)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> output = SimpleNamespace(logits=torch.tensor([[2.0, 0.0]]))
        >>> batch = SimpleNamespace(target=torch.tensor([0]))
        >>> print(f"{FocalLoss(gamma=2.0)(output, batch):.4f}")
        0.0018
    """

    required_labels = ("emotion",)
    trained_heads: tuple[str, ...] = ("classes",)

    def __init__(self, gamma: float = 2.0) -> None:
        super().__init__()
        if gamma < 0:
            raise ValueError(f"FocalLoss(gamma={gamma}), expected 0 or more")
        self.gamma = gamma

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        logits, target = _logits_and_target(output, batch)
        losses = nn.functional.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="none")
        missed = 1 - torch.exp(-losses)  # 1 - the probability of the target
        return _mean_over_labelled(missed.clamp(min=1e-8) ** self.gamma * losses, target)


class BalancedSoftmax(nn.Module):
    """Cross-entropy corrected for the class frequencies of the training set.

    In training, the logarithm of each class's count is added to its logit (Ren et al. 2020, eq. 4,
    <https://arxiv.org/abs/2007.10740>). Predictions use the plain logits, so the model does not favour frequent
    classes.

    Shape:
        output.logits ``(batch, num_classes)``, batch.target ``(batch,)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> loss = BalancedSoftmax()
        >>> loss.set_class_counts(torch.tensor([90, 10]))
        >>> output = SimpleNamespace(logits=torch.zeros(1, 2))
        >>> print(f"{loss(output, SimpleNamespace(target=torch.tensor([1]))):.3f}")  # -log(10 / 100)
        2.303
    """

    required_labels = ("emotion",)
    trained_heads: tuple[str, ...] = ("classes",)

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("log_counts", None, persistent=False)
        self.log_counts: Tensor | None

    def set_class_counts(self, counts: Tensor) -> None:
        """Sets the class frequencies.

        Args:
            counts: Number of training rows of each class ``(num_classes,)``.
        """
        self.log_counts = counts.clamp(min=1).to(torch.float32).log()

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        logits, target = _logits_and_target(output, batch)
        if self.training and self.log_counts is not None:
            logits = logits + self.log_counts.to(logits)
        losses = nn.functional.cross_entropy(logits, target, ignore_index=UNLABELLED, reduction="none")
        return _mean_over_labelled(losses, target)


class SoftLabels(nn.Module):
    """Trains on the distribution of the raters' votes instead of the majority label: a tie stays a tie.

    Args:
        divergence: ``cross_entropy`` between the predicted and the voted distribution, or ``kl``, which subtracts the
            entropy of the votes: the same gradient, but 0 for a perfect model.

    Shape:
        output.logits ``(batch, num_classes)``, batch.votes ``(batch, num_classes)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> output = SimpleNamespace(logits=torch.zeros(1, 2))
        >>> print(f"{SoftLabels('kl')(output, SimpleNamespace(votes=torch.tensor([[0.5, 0.5]]))):.1f}")
        0.0
    """

    required_labels = ("votes",)
    trained_heads = ("classes",)

    def __init__(self, divergence: Literal["cross_entropy", "kl"] = "cross_entropy") -> None:
        super().__init__()
        self.divergence = divergence

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        assert output.logits is not None, "EmotionSystem checks the heads before training"
        votes = batch.votes
        losses = -(votes * output.logits.log_softmax(-1)).sum(-1)
        if self.divergence == "kl":
            losses = losses + torch.xlogy(votes, votes).sum(-1)
        return losses.sum() / (votes.sum(-1) > 0).sum().clamp(min=1)


class CCCLoss(nn.Module):
    """One minus the concordance correlation coefficient (Lin 1989), averaged over the dimensions.

    The coefficient is computed per batch, so small batches make it noisy; 32 utterances or more are usual. A dimension
    with fewer than two labelled utterances in the batch does not count.

    Shape:
        output.dimensions ``(batch, 3)``, batch.dimensions ``(batch, 3)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> labels = SimpleNamespace(dimensions=torch.tensor([[-0.5, 0.0, 0.1], [0.5, 0.2, 0.3]]))
        >>> print(f"{CCCLoss()(labels, labels):.1f}")
        0.0
    """

    required_labels = ("dimensions",)
    trained_heads = ("dimensions",)

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        assert output.dimensions is not None, "EmotionSystem checks the heads before training"
        predicted, truth = output.dimensions.float(), batch.dimensions
        present = truth.isfinite()
        counts = present.sum(0)
        weights = present / counts.clamp(min=1)  # (batch, dimension)
        truth = torch.where(present, truth, 0.0)
        mean_predicted, mean_truth = (weights * predicted).sum(0), (weights * truth).sum(0)
        centred_predicted, centred_truth = (predicted - mean_predicted) * present, (truth - mean_truth) * present
        covariance = (weights * centred_predicted * centred_truth).sum(0)
        variances = (weights * centred_predicted.square()).sum(0) + (weights * centred_truth.square()).sum(0)
        ccc = 2 * covariance / (variances + (mean_predicted - mean_truth).square()).clamp(min=1e-8)
        usable = counts > 1
        return ((1 - ccc) * usable).sum() / usable.sum().clamp(min=1)


class SupervisedContrastive(nn.Module):
    """Pulls embeddings of one class together and pushes other classes away.

    Follows Khosla et al. 2020, eq. 2, <https://arxiv.org/abs/2004.11362>. It trains no head: combine it with a loss on
    the classes.

    Args:
        temperature: Divides the cosine similarities, above 0; the lower, the more the nearest utterances count.

    Raises:
        ValueError: ``temperature`` is not above 0, or all labelled utterances of a training batch are of one class.

    Shape:
        output.embedding ``(batch, dim)``, batch.target ``(batch,)`` -> scalar

    Example:
        >>> from types import SimpleNamespace
        >>> output = SimpleNamespace(embedding=torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        >>> batch = SimpleNamespace(target=torch.tensor([0, 0, 1]))
        >>> print(f"{SupervisedContrastive()(output, batch):.5f}")  # the two utterances of class 0 coincide
        0.00005
    """

    required_labels = ("emotion",)
    trained_heads: tuple[str, ...] = ()

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"SupervisedContrastive(temperature={temperature}), expected a number above 0")
        self.temperature = temperature

    def forward(self, output: ModelOutput, batch: Targets) -> Tensor:
        target = batch.target
        labelled = target != UNLABELLED
        if self.training and labelled.any() and len(target[labelled].unique()) < 2:
            raise ValueError(
                f"SupervisedContrastive: all {int(labelled.sum())} labelled utterances of a batch are of one class; "
                "raise data.batch_size, or set data.balanced: true"
            )
        vectors = nn.functional.normalize(output.embedding.float(), dim=-1)
        others = labelled[:, None] & labelled[None] & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
        similarity = (vectors @ vectors.T / self.temperature).masked_fill(~others, torch.finfo(torch.float32).min)
        positive = others & (target[:, None] == target[None])
        log_prob = similarity - similarity.logsumexp(1, keepdim=True)
        losses = -torch.where(positive, log_prob, 0.0).sum(1) / positive.sum(1).clamp(min=1)
        return losses.sum() / positive.any(1).sum().clamp(min=1)


def _logits_and_target(output: ModelOutput, batch: Targets) -> tuple[Tensor, Tensor]:
    assert output.logits is not None, "EmotionSystem checks the heads before training"
    return output.logits, batch.target


def _mean_over_labelled(losses: Tensor, target: Tensor) -> Tensor:
    labelled = target != UNLABELLED
    return (losses * labelled).sum() / labelled.sum().clamp(min=1)


def _target_weights(target: Tensor, weights: Tensor) -> Tensor:
    """Weight of each utterance's class ``(batch,)``; 0 without a label."""
    labelled = target != UNLABELLED
    return torch.where(labelled, weights[target.clamp(min=0)], 0.0)
