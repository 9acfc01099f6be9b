"""Adversarial perturbations: where they are added, how large they are, how they are found.

A level is a point in the model that a tensor passes: the waveform, the log-mel spectrogram, an encoder's features, or
the token embeddings. An attack takes a function from that tensor to a loss, and searches within its budget. It does
not depend on the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.encoder import HasLogMel

Level = Literal["waveform", "log_mel", "audio_features", "token_embeddings", "text_features"]
RAW = {"waveform": "audio", "log_mel": "audio", "token_embeddings": "text"}
"""Levels below the cached features -> the modality that must be read raw then."""

Objective = Callable[[Tensor], Tensor]
"""Function of a perturbed tensor that an attack maximises: one number per utterance ``(batch,)``, or a scalar."""

Forward = Callable[[EmotionBatch], EmotionOutput]


class Attack(Protocol):
    """A search for the worst perturbation within a budget.

    Args:
        level: Where the model is perturbed.
        random_start: Whether it starts at a random point of the budget instead of at the input.
    """

    level: Level
    random_start: bool

    def search(self, objective: Objective, values: Tensor, mask: Tensor) -> Tensor:
        """Returns the perturbation, of the shape of ``values``, with zeros where ``mask`` is False.

        Args:
            objective: Function to maximise, from a tensor of the shape of ``values``.
            values: ``(batch, samples)``, ``(batch, token, dim)`` or ``(batch, layer, time, dim)``.
            mask: ``(batch, samples)``, ``(batch, token)`` or ``(batch, time)`` bool.
        """


class Budget(NamedTuple):
    """Largest perturbation, relative to each utterance's own real values.

    Args:
        level: Where the perturbation is added.
        ratio: Its Euclidean norm divided by the utterance's.
    """

    level: Level
    ratio: float

    def radius(self, values: Tensor, mask: Tensor) -> Tensor:
        """Returns the largest Euclidean norm ``(batch,)``."""
        return self.ratio * length(values * real(values, mask))

    def bound(self, values: Tensor, mask: Tensor) -> Tensor:
        """Returns the change of every value ``(batch,)`` at which the perturbation has its largest norm."""
        count = real(values, mask).expand_as(values).flatten(1).sum(1)
        return self.radius(values, mask) / count.clamp(min=1).sqrt()


def budget(name: str, level: Level, snr_db: float | None, relative_norm: float | None) -> Budget:
    """Converts the strength of an attack to a budget.

    Args:
        name: Attack for the error message.
        level: Where the perturbation is added.
        snr_db: Power of the waveform divided by that of the perturbation, in dB; for the waveform only.
        relative_norm: Norm of the perturbation divided by that of the perturbed tensor, above 0; for other levels.

    Raises:
        ValueError: The strength is out of range, or belongs to another level.
    """
    if level not in Level.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"{name}(level={level!r}), expected one of {', '.join(Level.__args__)}")  # type: ignore[attr-defined]
    if level == "waveform":
        if relative_norm is not None:
            raise ValueError(f"{name}: the strength of an attack on the waveform is snr_db, not relative_norm")
        snr_db = 45.0 if snr_db is None else snr_db
        if (
            isinstance(snr_db, bool) or not isinstance(snr_db, int | float) or not -100 <= snr_db <= 200
        ):  # a NaN is in no range
            raise ValueError(f"{name}(snr_db={snr_db}), expected a number of decibels, such as 45")
        return Budget(level, 10 ** (-snr_db / 20))
    if snr_db is not None:
        raise ValueError(f"{name}: the strength of an attack on {level} is relative_norm, not snr_db")
    relative_norm = 0.05 if relative_norm is None else relative_norm
    if not isinstance(relative_norm, int | float) or not (math.isfinite(relative_norm) and relative_norm > 0):
        raise ValueError(f"{name}(relative_norm={relative_norm}), expected a number above 0, such as 0.05")
    return Budget(level, float(relative_norm))


class FGSM:
    """One step along the sign of the gradient.

    Follows Goodfellow et al. 2015, section 4, <https://arxiv.org/abs/1412.6572>.

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform: its power divided by that of the perturbation, in dB. Defaults to 45.
        relative_norm: Strength at other levels: norm of the perturbation divided by that of the perturbed tensor.
            Defaults to 0.05.

    Raises:
        ValueError: The strength is out of range, or belongs to another level.

    Shape:
        values ``(batch, samples)``, ``(batch, token, dim)`` or ``(batch, layer, time, dim)`` with its mask
        -> perturbation of the same shape

    Example:
        >>> values, mask = torch.ones(1, 5, 2), torch.ones(1, 5, dtype=torch.bool)
        >>> change = FGSM("audio_features", relative_norm=0.1).search(lambda values: values.sum(), values, mask)
        >>> print(f"{float(change.norm() / values.norm()):.3f}")
        0.100
    """

    def __init__(
        self, level: Level = "waveform", snr_db: float | None = None, relative_norm: float | None = None
    ) -> None:  # fmt: skip
        self.budget = budget(type(self).__name__, level, snr_db, relative_norm)
        self.level, self.snr_db, self.relative_norm = level, snr_db, relative_norm

    random_start = False  # at the input itself

    def search(self, objective: Objective, values: Tensor, mask: Tensor) -> Tensor:
        gradient = _gradient(objective, values, torch.zeros_like(values), mask)[0]
        return scaled(gradient.sign(), self.budget.bound(values, mask))


class FGM(FGSM):
    """One step of a given length along the gradient.

    Follows Miyato et al. 2017, eq. 3, <https://arxiv.org/abs/1605.07725>.

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform: its power divided by that of the perturbation, in dB. Defaults to 45.
        relative_norm: Strength at other levels: norm of the perturbation divided by that of the perturbed tensor.
            Defaults to 0.05.

    Raises:
        ValueError: The strength is out of range, or belongs to another level.

    Shape:
        values ``(batch, samples)``, ``(batch, token, dim)`` or ``(batch, layer, time, dim)`` with its mask
        -> perturbation of the same shape

    Example:
        >>> values, mask = torch.ones(1, 5, 2), torch.ones(1, 5, dtype=torch.bool)
        >>> change = FGM("audio_features", relative_norm=0.1).search(lambda values: values.sum(), values, mask)
        >>> print(f"{float(change.norm() / values.norm()):.3f}")
        0.100
    """

    def search(self, objective: Objective, values: Tensor, mask: Tensor) -> Tensor:
        gradient = _gradient(objective, values, torch.zeros_like(values), mask)[0]
        return scaled(unit(gradient), self.budget.radius(values, mask))


class PGD:
    """Projected gradient descent: several steps, each projected back into the budget; returns the worst point.

    Follows Madry et al. 2018, <https://arxiv.org/abs/1706.06083>.

    Args:
        level: Where the model is perturbed.
        snr_db: Strength on the waveform: its power divided by that of the perturbation, in dB. Defaults to 45.
        relative_norm: Strength at other levels: norm of the perturbation divided by that of the perturbed tensor.
            Defaults to 0.05.
        steps: Number of steps, 1 or more.
        step_size: Length of a step as a share of the budget, above 0. Defaults to 2.5 / steps.
        norm: ``linf`` bounds each value, ``l2`` the norm of all; both keep the strength.
        random_start: Whether to start at a random point of the budget instead of at the utterance itself.

    Raises:
        ValueError: A value is out of range, or the strength belongs to another level.

    Shape:
        values ``(batch, samples)``, ``(batch, token, dim)`` or ``(batch, layer, time, dim)`` with its mask
        -> perturbation of the same shape

    Example:
        >>> values, mask = torch.ones(1, 5, 2), torch.ones(1, 5, dtype=torch.bool)
        >>> attack = PGD("audio_features", relative_norm=0.1, steps=3, norm="l2")
        >>> change = attack.search(lambda values: values.square().sum(), values, mask)
        >>> print(f"{float(change.norm() / values.norm()):.3f}")
        0.100
    """

    def __init__(
        self,
        level: Level = "waveform",
        snr_db: float | None = None,
        relative_norm: float | None = None,
        steps: int = 10,
        step_size: float | None = None,
        norm: Literal["linf", "l2"] = "linf",
        random_start: bool = True,
    ) -> None:
        self.budget = budget(type(self).__name__, level, snr_db, relative_norm)
        self.level, self.snr_db, self.relative_norm = level, snr_db, relative_norm
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"PGD(steps={steps}), expected a whole number, 1 or more")
        self.steps = steps
        self.step_size = 2.5 / steps if step_size is None else step_size
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"PGD(step_size={step_size}), expected a number above 0")
        if norm not in ("linf", "l2"):
            raise ValueError(f"PGD(norm={norm!r}), expected linf or l2")
        self.norm = norm
        self.random_start = random_start

    def search(self, objective: Objective, values: Tensor, mask: Tensor) -> Tensor:
        limit = (self.budget.bound if self.norm == "linf" else self.budget.radius)(values, mask)
        delta = torch.zeros_like(values)
        if self.random_start:
            delta = self._project(scaled(torch.rand_like(values) * 2 - 1, limit) * real(values, mask), limit)
        worst, highest = delta, None
        for _ in range(self.steps):
            gradient, losses = _gradient(objective, values, delta, mask)
            worst, highest = _worse(worst, highest, delta, losses)
            step = gradient.sign() if self.norm == "linf" else unit(gradient)
            delta = self._project(delta + scaled(step, self.step_size * limit), limit)
        with torch.no_grad():
            losses = objective(values + delta)
        return _worse(worst, highest, delta, losses)[0]

    def _project(self, delta: Tensor, limit: Tensor) -> Tensor:
        if self.norm == "linf":
            bound = limit.view(-1, *[1] * (delta.ndim - 1))
            return torch.maximum(torch.minimum(delta, bound), -bound)
        return scaled(delta, (limit / length(delta).clamp(min=1e-12)).clamp(max=1.0))


class PerturbationPoint:
    """A point in a model where perturbations are added.

    Args:
        model: Model to perturb.
        level: The point.
        name: Attack or hook for the error message.

    Raises:
        ValueError: The model has no such point, or gradients do not reach it.
    """

    def __init__(self, model: EmotionModel, level: Level, name: str = "attack") -> None:
        self.model = model
        self.level = level
        modality = "text" if level in ("token_embeddings", "text_features") else "audio"
        encoder = model.encoder(modality)
        has = ", ".join(model.modalities)
        wanted = "an audio_encoder" if modality == "audio" else "a text_encoder"
        if encoder is None:
            raise ValueError(
                f"{name}: level {level} needs a model with {wanted}; this one has only {has}"
            )  # fmt: skip
        if level in ("waveform", "log_mel") and not encoder.differentiable:
            raise ValueError(
                f"{name}: {type(encoder).__name__} is not differentiable down to the {level}; use level audio_features"
            )
        if level == "log_mel" and not isinstance(encoder, HasLogMel):
            raise ValueError(
                f"{name}: {type(encoder).__name__} has no log-mel spectrogram; use level waveform or audio_features"
            )
        self.encoder: Any = encoder
        self.modality = modality

    def values(self, forward: Forward, batch: EmotionBatch) -> tuple[Tensor, Tensor]:
        """Returns the tensor at the point, and its mask.

        Args:
            forward: Runs the model on a batch.
            batch: Raw inputs if the level is below the cached features.

        Returns:
            Waveform ``(batch, samples)``, log-mel ``(batch, frame, mel)``, token embeddings ``(batch, token, dim)`` or
            features ``(batch, layer, time, dim)``; mask ``(batch, time)`` bool.
        """
        if self.level == "waveform":
            assert batch.audio is not None
            assert batch.audio_mask is not None
            return batch.audio, batch.audio_mask
        captured: list[Any] = []
        handle = self._module(batch).register_forward_hook(lambda module, inputs, output: captured.append(output))
        try:
            with torch.no_grad():
                forward(batch)
        finally:
            handle.remove()
        if self.level == "token_embeddings":
            assert batch.text_mask is not None
            return captured[0].detach(), batch.text_mask
        return captured[0][0].detach(), captured[0][1]

    def run(self, forward: Forward, batch: EmotionBatch, delta: Tensor) -> EmotionOutput:
        """Returns the model's output with a perturbation added.

        Args:
            forward: Runs the model on a batch.
            batch: As for :meth:`values`.
            delta: Perturbation, of the shape of the tensor at the point, such as ``(batch, samples)``.
        """
        if self.level == "waveform":
            return forward(add_to_waveform(batch, delta))

        def add(module: nn.Module, inputs: Any, output: Any) -> Any:
            return output + delta if isinstance(output, Tensor) else (output[0] + delta, *output[1:])

        handle = self._module(batch).register_forward_hook(add)
        try:
            return forward(batch)
        finally:
            handle.remove()

    def _module(self, batch: EmotionBatch) -> nn.Module:
        if self.level == "log_mel":
            return self.encoder.log_mel
        if self.level == "token_embeddings":
            assert batch.text is not None
            return self.encoder.embeddings(batch.text.device)
        return self.encoder


def add_to_waveform(batch: EmotionBatch, delta: Tensor) -> EmotionBatch:
    """Returns a batch of waveforms with a perturbation added.

    Args:
        batch: Waveforms.
        delta: ``(batch, samples)``.
    """
    assert batch.audio is not None
    perturbed = batch.audio + delta
    is_waveform = batch.descriptors is not None and batch.descriptors.ndim == 2  # of the same recording
    return batch._replace(audio=perturbed, descriptors=perturbed if is_waveform else batch.descriptors)


@contextmanager
def evaluation_gradients(model: nn.Module) -> Iterator[None]:
    """Context with gradients on, dropout and batch statistics off. Restores modes and random generators afterwards.

    Args:
        model: Model that is put into eval mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    # cuDNN's recurrent layers have no gradient in eval mode; PyTorch's own have.
    with isolate_rng(), torch.inference_mode(False), torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Context in which batch normalisation uses its running statistics, and does not update them.

    A perturbed batch must be normalised as it is at test time; its own statistics would remove the perturbation.

    Args:
        model: Model whose batch normalisations are switched.
    """
    norms = [module for module in model.modules() if module.training and "running_mean" in dict(module.named_buffers())]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm in norms:
            norm.training = True


def real(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mask ``(batch, time)`` broadcastable to a tensor of any level.

    Shape:
        ``(batch, time)``, ``(batch, time, 1)`` or ``(batch, 1, time, 1)`` for 2, 3 or 4 axes of ``values``
    """
    if values.ndim == 4:
        return mask[:, None, :, None]
    return mask if values.ndim == 2 else mask[..., None]


def length(values: Tensor) -> Tensor:
    """Returns the Euclidean norm of each utterance ``(batch,)``."""
    return values.flatten(1).float().norm(dim=1)


def scaled(values: Tensor, factor: Tensor) -> Tensor:
    """Multiplies each utterance of ``(batch, ...)`` by its own factor ``(batch,)``."""
    return values * factor.view(-1, *[1] * (values.ndim - 1))


def unit(values: Tensor) -> Tensor:
    """Scales each utterance of ``(batch, ...)`` to norm 1."""
    return scaled(values, 1 / length(values).clamp(min=1e-20))


def _gradient(objective: Objective, values: Tensor, delta: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient at a perturbation, zero on padding, and the objective there."""
    delta = delta.detach().requires_grad_()
    losses = objective(values + delta)
    (gradient,) = torch.autograd.grad(losses.sum(), delta)
    return gradient * real(values, mask), losses.detach()


def _worse(worst: Tensor, highest: Tensor | None, delta: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    losses = losses.detach().expand(len(delta))
    if highest is None:
        return delta, losses
    better = losses > highest
    return torch.where(better.view(-1, *[1] * (delta.ndim - 1)), delta, worst), torch.maximum(losses, highest)
