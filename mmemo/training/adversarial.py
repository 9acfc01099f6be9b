"""Terms that training minimises beside its loss, so that a model resists: to attacks, to other domains.

A hook is a module that is given a :class:`Step` and gives a scalar. ``levels`` says where it perturbs the model,
``unlabelled`` whether it learns from utterances without a label too. Hooks are listed in the YAML and added up; none
leaves a trace: random generators, batch statistics and modes are afterwards as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import ManifestError
from mmemo.labels import UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.pooling import MaskedBatchNorm
from mmemo.training.attacks import (
    Attack,
    Entry,
    Forward,
    Level,
    budget,
    length,
    real,
    running_statistics,
    scaled,
    undisturbed,
    unit,
)


class Step(NamedTuple):
    """One training step, after the plain forward pass.

    Args:
        model: Being trained.
        forward: Runs it on a batch.
        batch: The inputs.
        output: What the model said of them.
        loss: An output -> the loss that is minimised.
        progress: Share of the training that is over, in [0, 1].
        number: Of the step.
    """

    model: EmotionModel
    forward: Forward
    batch: EmotionBatch
    output: EmotionOutput
    loss: Callable[[EmotionOutput], Tensor]
    progress: float
    number: int = 0


class AdversarialTraining(nn.Module):
    """The same loss on inputs that an attack has changed (Goodfellow et al. 2015, section 6; Miyato et al. 2017).

    Args:
        attack: Finds the change: ``mmemo.training.FGSM``, ``FGM`` or ``PGD``.
        weight: Of this loss beside the plain one, above 0; 1 counts both alike.
    """

    unlabelled = False

    def __init__(self, attack: Attack, weight: float = 1.0) -> None:
        super().__init__()
        self.attack = attack
        self.weight = _positive(self, "weight", weight)
        self.levels: tuple[Level, ...] = (attack.level,)

    def forward(self, step: Step) -> Tensor:
        entry = Entry(step.model, self.attack.level)
        with undisturbed(step.model):
            values, mask = entry.values(step.forward, step.batch)
            delta = self.attack.search(
                lambda perturbed: step.loss(entry.run(step.forward, step.batch, perturbed - values)), values, mask
            )
        return self.weight * step.loss(entry.run(step.forward, step.batch, delta))


class FreeLB(nn.Module):
    """The mean loss along the steps of an attack, rather than at its end alone (Zhu et al. 2020, algorithm 1,
    <https://arxiv.org/abs/1909.11764>).

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform, in dB; 45 when not given.
        relative_norm: Strength elsewhere: norm of the perturbation over that of what it changes; 0.05 when not given.
        steps: At least 1.
        weight: Beside the plain loss, above 0.
    """

    unlabelled = False

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
        self.levels = (level,)
        if steps < 1:
            raise ValueError(f"FreeLB(steps={steps}), expected 1 or more")
        self.steps = steps
        self.weight = _positive(self, "weight", weight)

    def forward(self, step: Step) -> Tensor:
        entry = Entry(step.model, self.levels[0])
        with undisturbed(step.model):
            values, mask = entry.values(step.forward, step.batch)
        radius = self.budget.radius(values, mask)
        inside = torch.rand(len(values), device=values.device)
        delta = scaled(unit(torch.randn_like(values) * real(values, mask)), inside * radius)
        total = values.new_zeros(())
        for _ in range(self.steps):
            delta = delta.detach().requires_grad_()
            loss = step.loss(entry.run(step.forward, step.batch, delta))
            total = total + loss / self.steps
            (slope,) = torch.autograd.grad(loss, delta, retain_graph=True)
            moved = delta.detach() + scaled(unit(slope * real(values, mask)), radius / self.steps)
            delta = scaled(moved, (radius / length(moved).clamp(min=1e-20)).clamp(max=1.0))
        return self.weight * total


class VirtualAdversarial(nn.Module):
    """The model must say the same of an input and of its worst neighbour, whatever is true of it, so utterances
    without a label take part too (Miyato et al. 2018, algorithm 1, <https://arxiv.org/abs/1704.03976>).

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform, in dB; 45 when not given.
        relative_norm: Strength elsewhere: norm of the perturbation over that of what it changes; 0.05 when not given.
        power_iterations: Steps towards the worst direction, at least 1.
        weight: Beside the plain loss, above 0.
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
        self.levels = (level,)
        if power_iterations < 1:
            raise ValueError(f"VirtualAdversarial(power_iterations={power_iterations}), expected 1 or more")
        self.power_iterations = power_iterations
        self.weight = _positive(self, "weight", weight)

    def prepare(self, datamodule: EmotionDataModule, model: EmotionModel) -> None:
        """Refuses a model without classes."""
        _needs_classes(self, model)

    def forward(self, step: Step) -> Tensor:
        entry = Entry(step.model, self.levels[0])
        with undisturbed(step.model):
            values, mask = entry.values(step.forward, step.batch)
            radius = self.budget.radius(values, mask)
            plain = _log_probs(step.forward(step.batch)).detach()
            direction = unit(torch.randn_like(values) * real(values, mask))
            for _ in range(self.power_iterations):
                # A tenth of the radius, not the paper's 1e-6: at half precision nothing would come of that.
                near = scaled(direction, 0.1 * radius).requires_grad_()
                distance = _divergence(plain, _log_probs(entry.run(step.forward, step.batch, near)))
                (slope,) = torch.autograd.grad(distance, near)
                direction = unit(slope * real(values, mask))
        with isolate_rng(), torch.no_grad():  # both sides with the same dropout, or that would be the difference
            target = _log_probs(step.forward(step.batch))
        said = _log_probs(entry.run(step.forward, step.batch, scaled(direction, radius)))
        return self.weight * _divergence(target, said)


class TRADES(nn.Module):
    """Trades accuracy for resistance: the divergence between what is said of an input and of its worst neighbour
    (Zhang et al. 2019, eq. 5, <https://arxiv.org/abs/1901.08573>).

    Args:
        attack: Searches the neighbour: ``mmemo.training.PGD``, with a random start.
        weight: Of the divergence, the paper's 1 / lambda, above 0.
    """

    unlabelled = False

    def __init__(self, attack: Attack, weight: float = 6.0) -> None:
        super().__init__()
        self.attack = attack
        self.levels: tuple[Level, ...] = (attack.level,)
        self.weight = _positive(self, "weight", weight)
        if not getattr(attack, "random_start", False):
            raise ValueError("TRADES needs an attack with a random start, such as PGD: at the input itself it is flat")

    def prepare(self, datamodule: EmotionDataModule, model: EmotionModel) -> None:
        """Refuses a model without classes."""
        _needs_classes(self, model)

    def forward(self, step: Step) -> Tensor:
        entry = Entry(step.model, self.attack.level)
        with undisturbed(step.model):
            values, mask = entry.values(step.forward, step.batch)
            plain = _log_probs(step.forward(step.batch)).detach()

            def distance(perturbed: Tensor) -> Tensor:
                output = entry.run(step.forward, step.batch, perturbed - values)
                return _divergences(plain, _log_probs(output))

            delta = self.attack.search(distance, values, mask)
        with isolate_rng():  # both sides with the same dropout, or that would be the difference
            target = _log_probs(step.forward(step.batch))
        said = _log_probs(entry.run(step.forward, step.batch, delta))
        return self.weight * _divergence(target, said)


class DomainAdversarial(nn.Module):
    """The fused vector must not tell which speaker, corpus or other domain an utterance is of: a classifier learns to
    tell, and its gradient is reversed before it reaches the model (Ganin et al. 2016, section 4.2,
    <https://arxiv.org/abs/1505.07818>).

    Differs in two ways, without which the model hides from a classifier that lags behind, and is read by another one as
    before: the classifier takes several steps of its own on the latest vectors for each step of the model, and nothing
    is reversed for an utterance of which it is no surer than by chance, since a wrong speaker is as telling. Under
    several processes each has a classifier of its own.

    A run that was killed goes on with the classifier as it was, but its optimizer and memory begin anew.

    Utterances without a label take part, so a corpus that has none, or whose labels are hidden with
    ``unlabelled: true``, can be adapted to.

    Args:
        column: Of the manifest, such as ``speaker``, ``corpus`` or ``gender``; rows without a value are left out.
        weight: Of the reversed gradient at the end, above 0.
        gamma: How soon it gets there: ``2 / (1 + exp(-gamma * progress)) - 1`` of it, above 0.
        hidden_dim: Size of the classifier's hidden layer; 0 for a linear one, which is soonest at its best.
        steps: Of the classifier for each step of the model, at least 1.
        lr: Learning rate of the classifier (Adam), above 0.
        memory: Latest utterances that it learns from, at least 1.
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
            raise ValueError("DomainAdversarial(column='emotion') would unlearn what the model is for; name a domain")
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
        self.classifier: nn.Module | None = None  # its size is that of the data
        self.accuracy: Tensor | None = None

    def prepare(self, datamodule: EmotionDataModule, model: EmotionModel) -> None:
        """Builds the classifier.

        Raises:
            ManifestError: The manifest has no such column, or the training rows one value alone.
        """
        frame = datamodule.manifest.frame
        if self.column not in frame:
            raise ManifestError(
                f"{datamodule.manifest_path}: DomainAdversarial asks for column {self.column!r}, found only "
                f"{', '.join(frame.columns)}"
            )
        column = frame[self.column]
        known = sorted(column.iloc[datamodule.split.train].dropna().unique().tolist(), key=str)
        if len(known) < 2:
            raise ManifestError(
                f"{datamodule.manifest_path}: column {self.column!r} has {len(known)} values in the training rows "
                f"({', '.join(map(str, known))}), and DomainAdversarial needs two or more to tell apart"
            )
        numbers = {value: number for number, value in enumerate(known)}
        domains = np.array([numbers.get(value, UNLABELLED) for value in column], dtype=np.int64)
        self.register_buffer("domains", torch.from_numpy(domains), persistent=False)
        self.domains: Tensor
        if self.classifier is None:
            dim = model.fusion.dim
            # Standardised, or the model would hide from the classifier by shrinking what it tells.
            self.norm = MaskedBatchNorm(dim)
            self.classifier = nn.Linear(dim, len(known))
            if self.hidden_dim:
                self.classifier = nn.Sequential(
                    nn.Linear(dim, self.hidden_dim), nn.ReLU(), nn.Linear(self.hidden_dim, len(known))
                )
            self.classifier.requires_grad_(False)  # it has an optimizer of its own
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
        """Lets the classifier catch up with the model."""
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
    """The same value forwards, the gradient times a negative number backwards (Ganin et al. 2016, eq. 16)."""

    @staticmethod
    def forward(context: Any, values: Tensor, strength: float) -> Tensor:
        context.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -context.strength * gradients[0], None


def hook_term(hook: nn.Module, step: Step, place: int = 0) -> Tensor:
    """What a hook asks to be minimised; random generators and batch statistics stay as they are.

    Args:
        hook: One of this file, or of its kind.
        step: Being trained on.
        place: Of the hook among all; with the number of the step it fixes what the hook draws.
    """
    with isolate_rng(), running_statistics(step.model):
        torch.manual_seed(int(np.random.SeedSequence([torch.initial_seed(), step.number, place]).generate_state(1)[0]))
        return hook(step)


def _log_probs(output: EmotionOutput) -> Tensor:
    assert output.logits is not None
    return output.logits.float().log_softmax(-1)


def _divergences(target: Tensor, said: Tensor) -> Tensor:
    return (target.exp() * (target - said)).sum(-1)


def _divergence(target: Tensor, said: Tensor) -> Tensor:
    return _divergences(target, said).mean()


def _needs_classes(hook: nn.Module, model: EmotionModel) -> None:
    if model.head is None:
        raise ValueError(f"{type(hook).__name__} compares class probabilities, but data.classes is empty")


def _positive(hook: nn.Module, name: str, value: float) -> float:
    if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{type(hook).__name__}({name}={value}), expected a number above 0")
    return value
