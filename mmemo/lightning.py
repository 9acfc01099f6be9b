"""Running Lightning: Ctrl-C, the processes of DDP, and advice that does not apply here."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

ADVICE = (
    "isinstance.treespec",
    "Experiment logs directory",
    "The number of training batches",
    "LightningCLI's args parameter",
    "Be aware that when using `ckpt_path`",
    "does not have many workers",
    "The dirpath has changed from",
    "Total length of `list` across ranks is zero",  # num_val_speakers: 0
    "is not supported by the model summary",  # bf16-mixed
    "skip_none parameter",
    "You have overridden `on_after_batch_transfer`",
)
LOGGERS = ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed")


@contextmanager
def lightning_runs() -> Iterator[None]:
    """Hides Lightning's advice, and raises KeyboardInterrupt where Lightning would exit with code 1 after Ctrl-C.

    Raises:
        KeyboardInterrupt: The user pressed Ctrl-C.
    """
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ADVICE:
                warnings.filterwarnings("ignore", f".*{message}.*")
            yield
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def is_first_process() -> bool:
    """Returns whether this is the process that writes files and reports: the only one, or rank 0 of DDP."""
    from pytorch_lightning.utilities import rank_zero_only

    return int(rank_zero_only.rank) == 0  # type: ignore[attr-defined]


def wait_for_all_processes() -> None:
    """Returns when all processes of DDP have arrived here; at once if there is only one."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
