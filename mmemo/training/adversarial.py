"""Hooks that make a model robust: adversarial training, consistency under perturbation, domain invariance."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.data.manifest import ManifestError
from mmemo.data.table import DataTable
from mmemo.labels import UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.pooling import MaskedBatchNorm
from mmemo.training.attacks import (
    Attack,
    Level,
    PerturbationPoint,
    budget,
    evaluation_gradients,
    length,
    real,
    running_statistics,
    scaled,
    unit,
)
from mmemo.training.hooks import Step


class _Hook(nn.Module):
    """Shared defaults: no logged accuracy, and no preparation."""

    unlabelled = False
    accuracy: Tensor | None = None

    def prepare(self, table: DataTable, model: EmotionModel) -> None:
        """Does nothing."""


class AdversarialTraining(_Hook):
    """The loss on inputs that an attack perturbed.

    Follows Goodfellow et al. 2015, section 6, <https://arxiv.org/abs/1412.6572>, and Miyato et al. 2017,
    <https://arxiv.org/abs/1605.07725>. The term is a scalar ``()``.

    Args:
        attack: Finds the perturbation: ``mmemo.training.FGSM``, ``FGM`` or ``PGD``.
        weight: Weight of this loss, above 0; the ordinary loss has weight 1.

    Raises:
        ValueError: ``weight`` is not above 0.

    Example:
        >>> from mmemo.data.batch import Example, collate
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from mmemo.training import FGSM
        >>> from mmemo.training.system import EmotionSystem
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], ConvNeXtEncoder(hidden_dim=8))).eval()
        >>> batch = collate([Example(0, torch.randn(8_000), None, None, 0, torch.zeros(2), torch.zeros(3))])
        >>> step = Step(system.model, system, batch, system(batch), lambda output: system.loss(output, batch), 1.0)
        >>> bool(AdversarialTraining(FGSM("audio_features", relative_norm=0.05))(step) > step.loss(step.output))
        True
    """

    def __init__(self, attack: Attack, weight: float = 1.0) -> None:
        super().__init__()
        self.attack = attack
        self.weight = _positive(self, "weight", weight)
        self.levels: tuple[Level, ...] = (attack.level,)

    def forward(self, step: Step) -> Tensor:
        point = PerturbationPoint(step.model, self.attack.level)
        with evaluation_gradients(step.model):
            values, mask = point.values(step.forward, step.batch)
            delta = self.attack.search(
                lambda perturbed: step.loss(point.run(step.forward, step.batch, perturbed - values)), values, mask
            )
        return self.weight * step.loss(point.run(step.forward, step.batch, delta))


class FreeLB(_Hook):
    """The mean loss along the steps of an attack, instead of at its end.

    Follows Zhu et al. 2020, algorithm 1, <https://arxiv.org/abs/1909.11764>. The term is a scalar ``()``.

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform, in dB. Defaults to 45.
        relative_norm: Strength at other levels: norm of the perturbation divided by that of the perturbed tensor.
            Defaults to 0.05.
        steps: Number of steps, 1 or more.
        weight: Weight of the term, above 0.

    Raises:
        ValueError: A value is out of range, or the strength belongs to another level.

    Example:
        >>> from mmemo.data.batch import Example, collate
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from mmemo.training.system import EmotionSystem
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], ConvNeXtEncoder(hidden_dim=8))).eval()
        >>> batch = collate([Example(0, torch.randn(8_000), None, None, 0, torch.zeros(2), torch.zeros(3))])
        >>> step = Step(system.model, system, batch, system(batch), lambda output: system.loss(output, batch), 1.0)
        >>> bool(FreeLB("audio_features", relative_norm=0.05)(step) > step.loss(step.output))
        True
    """

    def __init__(
        self,
        level: Level = "token_embeddings",
        snr_db: float | None = None,
        relative_norm: float | None = None,
        steps: int = 3,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.budget = budget(type(self).__name__, level, snr_db, relative_norm)
        self.level, self.snr_db, self.relative_norm = level, snr_db, relative_norm
        self.levels: tuple[Level, ...] = (level,)
        if steps < 1:
            raise ValueError(f"FreeLB(steps={steps}), expected 1 or more")
        self.steps = steps
        self.weight = _positive(self, "weight", weight)

    def forward(self, step: Step) -> Tensor:
        point = PerturbationPoint(step.model, self.levels[0])
        with evaluation_gradients(step.model):
            values, mask = point.values(step.forward, step.batch)
        radius = self.budget.radius(values, mask)
        inside = torch.rand(len(values), device=values.device)
        delta = scaled(unit(torch.randn_like(values) * real(values, mask)), inside * radius)
        total = values.new_zeros(())
        for _ in range(self.steps):
            delta = delta.detach().requires_grad_()
            loss = step.loss(point.run(step.forward, step.batch, delta))
            total = total + loss / self.steps
            (gradient,) = torch.autograd.grad(loss, delta, retain_graph=True)
            moved = delta.detach() + scaled(unit(gradient * real(values, mask)), radius / self.steps)
            delta = scaled(moved, (radius / length(moved).clamp(min=1e-20)).clamp(max=1.0))
        return self.weight * total


class VirtualAdversarial(_Hook):
    """Consistency: the same prediction for an input and its worst neighbour. Needs no labels.

    Follows Miyato et al. 2018, algorithm 1, <https://arxiv.org/abs/1704.03976>. The term is a scalar ``()``.

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform, in dB. Defaults to 45.
        relative_norm: Strength at other levels: norm of the perturbation divided by that of the perturbed tensor.
            Defaults to 0.05.
        power_iterations: Steps towards the worst direction, 1 or more.
        weight: Weight of the term, above 0.

    Raises:
        ValueError: A value is out of range, or the strength belongs to another level.

    Example:
        >>> from mmemo.data.batch import Example, collate
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from mmemo.training.system import EmotionSystem
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], ConvNeXtEncoder(hidden_dim=8))).eval()
        >>> batch = collate([Example(0, torch.randn(8_000), None, None, 0, torch.zeros(2), torch.zeros(3))])
        >>> step = Step(system.model, system, batch, system(batch), lambda output: system.loss(output, batch), 1.0)
        >>> near, far = (VirtualAdversarial(relative_norm=norm)(step) for norm in (0.01, 0.3))
        >>> bool(0 <= near < far)
        True
    """

    unlabelled = True

    def __init__(
        self,
        level: Level = "audio_features",
        snr_db: float | None = None,
        relative_norm: float | None = None,
        power_iterations: int = 1,
        weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.budget = budget(type(self).__name__, level, snr_db, relative_norm)
        self.level, self.snr_db, self.relative_norm = level, snr_db, relative_norm
        self.levels: tuple[Level, ...] = (level,)
        if power_iterations < 1:
            raise ValueError(f"VirtualAdversarial(power_iterations={power_iterations}), expected 1 or more")
        self.power_iterations = power_iterations
        self.weight = _positive(self, "weight", weight)

    def prepare(self, table: DataTable, model: EmotionModel) -> None:
        """Raises ValueError for a model without classes."""
        _needs_classes(self, model)

    def forward(self, step: Step) -> Tensor:
        point = PerturbationPoint(step.model, self.levels[0])
        with evaluation_gradients(step.model):
            values, mask = point.values(step.forward, step.batch)
            radius = self.budget.radius(values, mask)
            plain = _log_probs(step.forward(step.batch)).detach()
            direction = unit(torch.randn_like(values) * real(values, mask))
            for _ in range(self.power_iterations):
                # A tenth of the radius, not the paper's 1e-6, which vanishes in half precision.
                near = scaled(direction, 0.1 * radius).requires_grad_()
                distance = _divergence(plain, _log_probs(point.run(step.forward, step.batch, near)))
                (gradient,) = torch.autograd.grad(distance, near)
                direction = unit(gradient * real(values, mask))
        with isolate_rng(), torch.no_grad():  # same dropout on both sides, or it would be the difference
            target = _log_probs(step.forward(step.batch))
        perturbed_output = _log_probs(point.run(step.forward, step.batch, scaled(direction, radius)))
        return self.weight * _divergence(target, perturbed_output)


class TRADES(_Hook):
    """Trades accuracy for robustness: the divergence between the predictions for an input and its worst neighbour.

    Follows Zhang et al. 2019, eq. 5, <https://arxiv.org/abs/1901.08573>. The term is a scalar ``()``.

    Args:
        attack: Finds the neighbour: ``mmemo.training.PGD``, with a random start.
        weight: Weight of the divergence, 1 / lambda in the paper, above 0.

    Raises:
        ValueError: The attack has no random start, or ``weight`` is not above 0.

    Example:
        >>> from mmemo.data.batch import Example, collate
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from mmemo.training import PGD
        >>> from mmemo.training.system import EmotionSystem
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], ConvNeXtEncoder(hidden_dim=8))).eval()
        >>> batch = collate([Example(0, torch.randn(8_000), None, None, 0, torch.zeros(2), torch.zeros(3))])
        >>> step = Step(system.model, system, batch, system(batch), lambda output: system.loss(output, batch), 1.0)
        >>> near, far = (TRADES(PGD("audio_features", relative_norm=norm))(step) for norm in (0.01, 0.3))
        >>> bool(0 <= near < far)
        True
    """

    def __init__(self, attack: Attack, weight: float = 6.0) -> None:
        super().__init__()
        self.attack = attack
        self.levels: tuple[Level, ...] = (attack.level,)
        self.weight = _positive(self, "weight", weight)
        if not attack.random_start:
            raise ValueError(
                "TRADES needs an attack with a random start, such as PGD: at the input itself the gradient is zero"
            )

    def prepare(self, table: DataTable, model: EmotionModel) -> None:
        """Raises ValueError for a model without classes."""
        _needs_classes(self, model)

    def forward(self, step: Step) -> Tensor:
        point = PerturbationPoint(step.model, self.attack.level)
        with evaluation_gradients(step.model):
            values, mask = point.values(step.forward, step.batch)
            plain = _log_probs(step.forward(step.batch)).detach()

            def distance(perturbed: Tensor) -> Tensor:
                output = point.run(step.forward, step.batch, perturbed - values)
                return _divergences(plain, _log_probs(output))

            delta = self.attack.search(distance, values, mask)
        with isolate_rng():  # same dropout on both sides, or it would be the difference
            target = _log_probs(step.forward(step.batch))
        perturbed_output = _log_probs(point.run(step.forward, step.batch, delta))
        return self.weight * _divergence(target, perturbed_output)


class DomainAdversarial(_Hook):
    """Removes a domain, such as speaker or corpus, from the fused vector by gradient reversal.

    A classifier learns to predict the domain, and its gradient is reversed before it reaches the model (Ganin et al.
    2016, section 4.2, <https://arxiv.org/abs/1505.07818>). Differs in two ways, without which the model only evades a
    classifier that lags behind, and another classifier still reads the domain. First, the classifier takes several
    steps on the latest vectors for each step of the model. Second, nothing is reversed for an utterance whose domain
    the classifier predicts no better than by chance, since a wrong speaker is as informative as the right one.

    Under several processes, each has its own classifier. A resumed run keeps the classifier, but not its optimizer and
    memory. Utterances without labels take part, so the model can be adapted to a corpus without labels
    (``unlabelled: true``). The term is a scalar ``()``.

    Args:
        column: Manifest column, such as ``speaker``, ``corpus`` or ``gender``; rows without a value are left out.
        weight: Final weight of the reversed gradient, above 0.
        gamma: Speed of the warm-up: the weight is scaled by ``2 / (1 + exp(-gamma * progress)) - 1``; above 0.
        hidden_dim: Size of the classifier's hidden layer; 0 for a linear classifier, which converges fastest.
        steps: Steps of the classifier for each step of the model, 1 or more.
        lr: Learning rate of the classifier (Adam), above 0.
        memory: Number of latest utterances that the classifier learns from, 1 or more.

    Raises:
        ValueError: A value is out of range, or ``column`` is the emotion.

    Example:
        >>> from types import SimpleNamespace
        >>> import pandas as pd
        >>> from mmemo.data.batch import Example, collate
        >>> from mmemo.models import ConvNeXtEncoder
        >>> from mmemo.training.system import EmotionSystem
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], ConvNeXtEncoder(hidden_dim=8))).eval()
        >>> clips = [Example(row, torch.randn(8_000), None, None, 0, torch.zeros(2), torch.zeros(3)) for row in (0, 1)]
        >>> batch = collate(clips)
        >>> step = Step(system.model, system, batch, system(batch), lambda output: system.loss(output, batch), 1.0)
        >>> manifest = SimpleNamespace(frame=pd.DataFrame({"speaker": ["ada", "ben"]}))
        >>> hook = DomainAdversarial("speaker")
        >>> hook.prepare(SimpleNamespace(manifest=manifest, split=SimpleNamespace(train=batch.row)), system.model)
        >>> terms = [hook(step) for _ in range(20)]
        >>> hook.accuracy  # the classifier distinguishes the two vectors
        tensor(1.)
    """

    unlabelled = True
    levels: tuple[Level, ...] = ()

    def __init__(
        self,
        column: str,
        weight: float = 1.0,
        gamma: float = 10.0,
        hidden_dim: int = 0,
        steps: int = 5,
        lr: float = 0.01,
        memory: int = 1024,
    ) -> None:
        super().__init__()
        if column == "emotion":
            raise ValueError("DomainAdversarial(column='emotion') would remove the emotion itself; name a domain")
        self.column = column
        self.weight = _positive(self, "weight", weight)
        self.gamma = _positive(self, "gamma", gamma)
        self.lr = _positive(self, "lr", lr)
        if min(steps, memory) < 1 or hidden_dim < 0:
            raise ValueError(
                f"DomainAdversarial(steps={steps}, memory={memory}, hidden_dim={hidden_dim}), expected 1 or more, the "
                "last 0 or more"
            )
        self.hidden_dim = hidden_dim
        self.steps = steps
        self.memory = memory
        self.classifier: nn.Module | None = None  # its size depends on the data

    def prepare(self, table: DataTable, model: EmotionModel) -> None:
        """Builds the classifier.

        Raises:
            ManifestError: The manifest has no such column, or the training rows have a single value in it.
        """
        frame = table.manifest.frame
        if self.column not in frame:
            raise ManifestError(
                f"{table.name}: DomainAdversarial needs column {self.column!r}, the columns are "
                f"{', '.join(frame.columns)}"
            )
        column = frame[self.column]
        known = sorted(column.iloc[table.split.train].dropna().unique().tolist(), key=str)
        if len(known) < 2:
            raise ManifestError(
                f"{table.name}: column {self.column!r} has {len(known)} values in the training rows "
                f"({', '.join(map(str, known))}), DomainAdversarial needs two or more"
            )
        numbers = {value: number for number, value in enumerate(known)}
        domains = np.array([numbers.get(value, UNLABELLED) for value in column], dtype=np.int64)
        self.register_buffer("domains", torch.from_numpy(domains), persistent=False)
        self.domains: Tensor
        if self.classifier is None:
            dim = model.fusion.dim
            # Standardised, or the model could evade the classifier by shrinking the vector.
            self.norm = MaskedBatchNorm(dim)
            self.classifier = nn.Linear(dim, len(known))
            if self.hidden_dim:
                self.classifier = nn.Sequential(
                    nn.Linear(dim, self.hidden_dim), nn.ReLU(), nn.Linear(self.hidden_dim, len(known))
                )
            self.classifier.requires_grad_(False)  # it has its own optimizer
            self._optimizer = torch.optim.Adam(self.classifier.parameters(), lr=self.lr)
            self._latest: list[tuple[Tensor, Tensor]] = []

    def forward(self, step: Step) -> Tensor:
        assert self.classifier is not None
        strength = self.weight * (2 / (1 + math.exp(-self.gamma * step.progress)) - 1)
        embedding = step.output.embedding.float()
        domain = self.domains[step.batch.row]
        known = domain != UNLABELLED
        self._learn(embedding[known].detach(), domain[known])
        logits = self.classifier(self.norm(cast(Tensor, _Reversed.apply(embedding, strength)), known))
        losses = nn.functional.cross_entropy(logits, domain, ignore_index=UNLABELLED, reduction="none")
        self.accuracy = (logits.argmax(1) == domain)[known].float().mean() if known.any() else None
        return losses.clamp(max=math.log(logits.shape[1])).sum() / known.sum().clamp(min=1)

    def _learn(self, embedding: Tensor, domain: Tensor) -> None:
        """Trains the classifier on the latest vectors."""
        assert self.classifier is not None
        self._latest.append((embedding, domain))
        while sum(len(names) for _, names in self._latest) > self.memory and len(self._latest) > 1:
            self._latest.pop(0)
        vectors, names = (torch.cat(parts) for parts in zip(*self._latest, strict=True))
        if len(vectors) == 0:
            return
        with torch.no_grad(), running_statistics(self):
            vectors = self.norm(vectors, torch.ones_like(names, dtype=torch.bool))
        self.classifier.requires_grad_(True)
        for _ in range(self.steps):
            loss = nn.functional.cross_entropy(self.classifier(vectors), names)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        self._optimizer.zero_grad()
        self.classifier.requires_grad_(False)


class _Reversed(torch.autograd.Function):
    """Identity in the forward pass; multiplies the gradient by a negative number (Ganin et al. 2016, eq. 16)."""

    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradients[0], None


def _log_probs(output: EmotionOutput) -> Tensor:
    assert output.logits is not None
    return output.logits.float().log_softmax(-1)


def _divergences(target: Tensor, predicted: Tensor) -> Tensor:
    return (target.exp() * (target - predicted)).sum(-1)


def _divergence(target: Tensor, predicted: Tensor) -> Tensor:
    return _divergences(target, predicted).mean()


def _needs_classes(hook: nn.Module, model: EmotionModel) -> None:
    if model.head is None:
        raise ValueError(f"{type(hook).__name__} compares class probabilities, but data.classes is empty")


def _positive(hook: nn.Module, name: str, value: float) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{type(hook).__name__}({name}={value}), expected a number above 0")
    return value
