"""What a checkpoint holds besides Lightning's state, and whether it fits a system."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

log = logging.getLogger(__name__)

State = dict[str, Tensor]
UNTRAINED_PREFIXES = ("hooks.", "distillation.")
"""Prefixes of tensors that training uses and inference does not."""


def check_classes(model: Sequence[str], others: Sequence[str], name: str) -> None:
    """Checks that a model has the same classes as its data or checkpoint, in the same order.

    Args:
        model: Classes of the model.
        others: The other classes.
        name: What the other classes are, for the error message.

    Raises:
        ValueError: They differ.
    """
    if tuple(model) != tuple(others):
        raise ValueError(
            f"{name}: found {list(others)}, the model's classes are {list(model)}; name the same classes in the same "
            "order"
        )


def check_encoders(stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Compares the encoders of a checkpoint with those of a system.

    Args:
        stored: Modality -> fingerprint in the checkpoint, ``kind:weights:options``.
        expected: The same for the system.

    Raises:
        ValueError: An encoder has another kind or other options. Other weights are only a warning.
    """
    for name, fingerprint in stored.items():
        kind, weights, options = _parsed(expected.get(name, ""))
        stored_kind, stored_weights, stored_options = _parsed(fingerprint)
        if (kind, options) != (stored_kind, stored_options):
            raise ValueError(
                f"the checkpoint was trained on another {name} encoder ({stored_kind} {stored_options}) than the "
                f"config's ({kind} {options}); use the YAML that it was trained with"
            )
        if weights != stored_weights:
            log.warning(
                "the checkpoint was trained on other weights of the %s encoder than the config's model_id", name
            )


def complete_state(state: State, own: State, pretrained_prefixes: Sequence[str]) -> None:
    """Fills a checkpoint's state with the pretrained weights that it does not store. Changes ``state``.

    Args:
        state: State of the checkpoint.
        own: State of the system that loads it.
        pretrained_prefixes: Prefixes of the system's pretrained weights, which a checkpoint may lack.

    Raises:
        ValueError: The checkpoint belongs to another architecture.
    """
    for name in [name for name in state if name.startswith("hooks.") and name not in own]:
        del state[name]
    unexpected = [name for name in state if name not in own or own[name].shape != state[name].shape]
    optional = (*UNTRAINED_PREFIXES, *pretrained_prefixes)
    missing = [name for name in own if name not in state and not name.startswith(optional)]
    if unexpected or missing:
        raise ValueError(
            f"the checkpoint belongs to another architecture: {len(unexpected)} of its tensors do not fit the model"
            f"{_for_example(unexpected)} and {len(missing)} are missing{_for_example(missing)}; use the YAML that it "
            "was trained with"
        )
    for name in own.keys() - state.keys():
        state[name] = own[name]


def check_checkpoint(path: Path) -> Path:
    """Returns the path of a checkpoint that exists.

    Args:
        path: ``.ckpt`` file.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if path.is_dir():
        checkpoints = sorted(path.glob("checkpoints/*.ckpt"))
        remedy = f"name a checkpoint, such as {checkpoints[-1]}" if checkpoints else "expected a .ckpt file"
        raise FileNotFoundError(f"{path}: is a folder; {remedy}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; `mmemo fit` writes them to RUN/checkpoints")
    return path


def _parsed(fingerprint: str) -> tuple[str, str, str]:
    """Splits a fingerprint into kind, weights and options."""
    kind, weights, options = (*fingerprint.split(":", 2), "", "")[:3]
    return kind, weights, options


def _for_example(names: Sequence[str]) -> str:
    return f" ({names[0]}, ...)" if names else ""
