"""Optimizer and learning-rate schedule of a system."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pytorch_lightning.cli import OptimizerCallable
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from mmemo.training.finetuning import EncoderTuning


def build_optimizer(
    build: OptimizerCallable, parameters: Iterable[nn.Parameter], tunings: Sequence[EncoderTuning]
) -> Optimizer:
    """Builds the optimizer: one group per fine-tuned block with its own learning rate, one for everything else.

    Args:
        build: Builds an optimizer from parameter groups.
        parameters: All parameters of the system.
        tunings: Its fine-tuned encoders.
    """
    groups: list[dict[str, Any]] = [group for tuning in tunings for group in tuning.parameter_groups()]
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    rest = [parameter for parameter in parameters if parameter.requires_grad and id(parameter) not in grouped]
    optimizer = build([{"params": rest, "lr_ratio": 1.0}, *groups])  # type: ignore[arg-type]
    for group in optimizer.param_groups:
        group["lr"] *= group["lr_ratio"]
    return optimizer


def one_cycle_schedule(optimizer: Optimizer, num_steps: float) -> dict[str, Any]:
    """Returns a one-cycle schedule over the whole training, in Lightning's form.

    Args:
        optimizer: Whose learning rates are the highest of the cycle.
        num_steps: Steps of the training.

    Raises:
        ValueError: The training has no end.
    """
    if num_steps == float("inf"):
        raise ValueError("one_cycle needs an end: set trainer.max_epochs or max_steps, or one_cycle: false")
    rates = [group["lr"] for group in optimizer.param_groups]
    schedule = OneCycleLR(optimizer, rates, total_steps=int(num_steps), cycle_momentum=False)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
