"""Progress of training where there is no terminal: a line every 30 seconds."""

from __future__ import annotations

import sys
import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar

from mmemo.progress import LINE_SECONDS


class ProgressLines(ProgressBar):
    """Prints epoch, step and training loss on standard error, at most every 30 seconds.

    Args:
        seconds: Least time between two lines.
    """

    def __init__(self, seconds: float = LINE_SECONDS) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = trainer.callback_metrics.get("train/loss")
        shown = "" if loss is None else f", train/loss {float(loss):.3f}"
        epochs = "" if trainer.max_epochs in (None, -1) else f" of {trainer.max_epochs}"
        position = f"epoch {trainer.current_epoch + 1}{epochs}, step {batch_idx + 1} of {self.total_train_batches}"
        self._print(trainer, f"Training: {position}{shown}")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *others: Any) -> None:
        self._print(trainer, "Validation")

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *others: Any
    ) -> None:
        self._print(trainer, f"Test: step {batch_idx + 1}")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *others: Any
    ) -> None:
        self._print(trainer, f"Prediction: step {batch_idx + 1}")

    def _print(self, trainer: Trainer, line: str) -> None:
        if trainer.is_global_zero and time.monotonic() - self._last >= self.seconds:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)
