"""Terms that training adds to its loss: what a hook is, and how several of them run.

A hook is an ``nn.Module`` that takes a :class:`Step` and returns a scalar. Hooks are listed in the YAML and their terms
are added up. None leaves a trace: random generators, batch statistics and modes are restored afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
import torch
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.table import DataTable
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.attacks import RAW, Forward, Level, PerturbationPoint, running_statistics


class Step(NamedTuple):
    """One training step, after the ordinary forward pass.

    Args:
        model: Model in training.
        forward: Runs it on a batch.
        batch: Inputs of the step.
        output: Output of the model for them.
        loss: Function from an output to the loss that is minimised, a scalar ``()``.
        progress: Share of the training that is over, in [0, 1].
        number: Number of the step.
    """

    model: EmotionModel
    forward: Forward
    batch: EmotionBatch
    output: EmotionOutput
    loss: Callable[[EmotionOutput], Tensor]
    progress: float
    number: int = 0


@runtime_checkable
class Hook(Protocol):
    """A term that is added to the loss.

    Args:
        levels: Where it perturbs the model; empty if it does not.
        unlabelled: Whether it also learns from utterances without labels.
        accuracy: A share to log beside the term, a scalar ``()``; or None.
    """

    levels: tuple[Level, ...]
    unlabelled: bool
    accuracy: Tensor | None

    def prepare(self, table: DataTable, model: EmotionModel) -> None:
        """Prepares for training on a table, once per run."""

    def __call__(self, step: Step) -> Tensor:
        """Returns the term, a scalar ``()``."""


class Hooks(nn.ModuleList):
    """The hooks of a system, in order.

    Args:
        hooks: Modules that satisfy :class:`Hook`.
        model: Model that they will be used on.

    Raises:
        ValueError: A module is not a hook, or the model cannot be perturbed where a hook wants to.
    """

    def __init__(self, hooks: list[nn.Module], model: EmotionModel) -> None:
        super().__init__(hooks)
        for hook in hooks:
            name = type(hook).__name__
            if not isinstance(hook, Hook):
                raise ValueError(
                    f"{name} is not a hook; expected one of mmemo.training: AdversarialTraining, FreeLB, TRADES, "
                    "VirtualAdversarial, DomainAdversarial (FGSM, FGM and PGD are attacks for them)"
                )
            for level in hook.levels:
                PerturbationPoint(model, level, name)  # raises if there is no such level

    @property
    def all(self) -> list[Hook]:
        """The modules, typed as `Hook`."""
        return [cast(Hook, hook) for hook in self]

    @property
    def unlabelled(self) -> bool:
        """Whether any hook learns from utterances without labels."""
        return any(hook.unlabelled for hook in self.all)

    def need_raw(self, modality: str) -> bool:
        """Returns whether a hook perturbs a modality below its cached features."""
        waveform = "text" if modality == "text" else "audio"  # descriptors use the same waveform as the audio encoder
        return any(RAW.get(level) == waveform for hook in self.all for level in hook.levels)

    def prepare(self, table: DataTable, model: EmotionModel, device: torch.device, has_end: bool) -> None:
        """Prepares every hook for training.

        Args:
            table: Training data.
            model: Model in training.
            device: Device of the model.
            has_end: Whether the trainer has a last epoch or step.

        Raises:
            ValueError: Training has no end, which hooks need.
        """
        if len(self) and not has_end:
            raise ValueError("hooks depend on the progress of training, so it needs an end: set trainer.max_epochs")
        for hook in self.all:
            hook.prepare(table, model)
        self.to(device)

    def forward(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of all terms, a scalar ``()``, and name -> value to log.

        Args:
            step: The training step.
        """
        terms = self.terms(step)
        logged = {f"train/{name}": term.detach() for name, term in terms.items()}
        reported = zip(terms, self.all, strict=True)
        accuracies = {f"train/{name}/accuracy": hook.accuracy for name, hook in reported if hook.accuracy is not None}
        return torch.stack(list(terms.values())).sum(), logged | accuracies

    def terms(self, step: Step) -> dict[str, Tensor]:
        """Returns name -> term of each hook, a scalar ``()``; hooks of one class are numbered.

        Args:
            step: The training step.
        """
        names = [type(hook).__name__ for hook in self]
        terms = {}
        for index, hook in enumerate(self):
            number = f"_{names[:index].count(names[index]) + 1}" if names.count(names[index]) > 1 else ""
            terms[names[index] + number] = hook_term(hook, step, index)
        return terms


def hook_term(hook: nn.Module, step: Step, index: int = 0) -> Tensor:
    """Returns the term of a hook, a scalar ``()``; random generators and batch statistics are restored afterwards.

    Args:
        hook: A module that satisfies :class:`Hook`.
        step: The training step.
        index: Position of the hook; with the number of the step it seeds the hook's random draws.
    """
    with isolate_rng(), running_statistics(step.model):
        seeds = np.random.SeedSequence([torch.initial_seed(), step.number, index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        return hook(step)
