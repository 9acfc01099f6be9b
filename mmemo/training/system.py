"""Model + loss + metrics + optimizer, as a LightningModule; and the way back from a checkpoint."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MetricCollection

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.losses import CrossEntropy
from mmemo.metrics import confusion_matrix, emotion_metrics
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.features import attach_sources


class Prediction(NamedTuple):
    """What the system says of a batch of utterances.

    Args:
        row: Rows of the manifest ``(batch,)``.
        probs: Class probabilities ``(batch, num_classes)``.
        audio_probs: The same from the voice alone; None unless asked for and the model has both.
        text_probs: The same from the words alone.
    """

    row: Tensor
    probs: Tensor
    audio_probs: Tensor | None = None
    text_probs: Tensor | None = None


class EmotionSystem(LightningModule):
    """Trains an :class:`EmotionModel` and reports UAR, accuracy and F1.

    Frozen backbones are no parameters of the model, so a checkpoint holds what was trained and no more.

    Args:
        classes: Emotion classes in the order of the model's outputs; on the command line, those of the data.
        model: The parts, given as a class with its options; built from the classes.
        loss: From logits and targets to a scalar.
        optimizer: Builds the optimizer from the parameters.
        one_cycle: Warm the learning rate up, then anneal it to zero (Smith and Topin 2018,
            <https://arxiv.org/abs/1708.07120>); else it stays constant.
        cache_features: Read what training never changes from the cache; else compute it in every step.
        by_modality: Also test and predict from the voice alone and the words alone.
        modality_dropout: Chance that a training utterance loses its words, and the same for its voice, in
            [0, 0.5]; only for a model with both, and never the last modality an utterance has.
    """

    def __init__(
        self,
        classes: list[str],
        model: Callable[[list[str]], EmotionModel],
        loss: nn.Module = CrossEntropy(),  # noqa: B008 - jsonargparse shows it in --help; it has no state
        optimizer: OptimizerCallable = torch.optim.AdamW,
        one_cycle: bool = True,
        cache_features: bool = True,
        by_modality: bool = False,
        modality_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0.0 <= modality_dropout <= 0.5:
            raise ValueError(f"modality_dropout={modality_dropout}, expected 0 to 0.5")
        self.save_hyperparameters()  # under the command line: plain settings, not the modules
        self.model = model(classes)
        self.loss = loss
        self.optimizer = optimizer
        self.one_cycle = one_cycle
        self.cache_features = cache_features
        self.modality_dropout = modality_dropout
        both = self.model.audio is not None and self.model.text is not None
        self.views = ("", "audio_only", "text_only") if by_modality and both else ("",)
        num_classes = len(classes)
        self.val_metrics = emotion_metrics(num_classes, "val/")
        self.test_metrics = nn.ModuleList(
            emotion_metrics(num_classes, f"test_{view}/" if view else "test/") for view in self.views
        )
        self.test_confusion = confusion_matrix(num_classes)

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if isinstance(datamodule, EmotionDataModule):
            if datamodule.classes != self.model.classes:
                raise ValueError(
                    f"the model tells {list(self.model.classes)} apart, data.classes is "
                    f"{list(datamodule.classes)}; they must agree, order included"
                )
            attach_sources(datamodule, self.model, self.trainer, self.cache_features)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = list(self.model.classes)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = tuple(checkpoint.get("classes", ()))
        if trained != self.model.classes:
            raise ValueError(
                f"the checkpoint tells {list(trained)} apart, in this order, and data.classes is "
                f"{list(self.model.classes)}; name the same classes in the same order"
            )

    def forward(self, batch: EmotionBatch) -> EmotionOutput:
        return self.model(batch.audio, batch.audio_mask, batch.text, batch.text_mask)

    def training_step(self, batch: EmotionBatch, batch_idx: int) -> Tensor:
        batch = self._drop_modalities(batch)
        loss = self.loss(self(batch).logits, batch.target)
        self.log("train/loss", loss, prog_bar=True, on_step=False, on_epoch=True, sync_dist=True,
                 batch_size=len(batch.row))  # fmt: skip
        return loss

    def validation_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        logits = self(batch).logits
        loss = self.loss(logits, batch.target)
        self.log("val/loss", loss, batch_size=len(batch.row), sync_dist=True)
        self.val_metrics.update(logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        metrics = self.val_metrics.compute()
        uar = metrics.pop("val/uar")
        self.log("val/uar", uar, prog_bar=True, sync_dist=True)  # the same on every process already
        self.log_dict(metrics, sync_dist=True)
        self.val_metrics.reset()

    def test_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        for view, metrics in zip(self.views, self.test_metrics, strict=True):
            logits = self(_view(batch, view)).logits
            cast(MetricCollection, metrics).update(logits, batch.target)
            if not view:
                self.test_confusion.update(logits, batch.target)

    def on_test_epoch_end(self) -> None:
        for metrics in self.test_metrics:
            self.log_dict(cast(MetricCollection, metrics).compute(), sync_dist=True)
            cast(MetricCollection, metrics).reset()
        self.confusion = self.test_confusion.compute().cpu()  # (true class, predicted class)
        self.test_confusion.reset()

    def predict_step(self, batch: EmotionBatch, batch_idx: int) -> Prediction:
        probs = [self(_view(batch, view)).logits.softmax(-1) for view in self.views]
        return Prediction(batch.row, *probs)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if not self.one_cycle:
            return optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ValueError("one_cycle needs an end: set trainer.max_epochs or max_steps, or one_cycle: false")
        scheduler = OneCycleLR(optimizer, rates, total_steps=int(steps), cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _drop_modalities(self, batch: EmotionBatch) -> EmotionBatch:
        if not self.modality_dropout or batch.audio_mask is None or batch.text_mask is None:
            return batch
        both = batch.audio_mask.any(1) & batch.text_mask.any(1)
        chance = torch.rand(len(batch.row), device=both.device)
        no_audio = both & (chance < self.modality_dropout)
        no_text = both & (chance > 1 - self.modality_dropout)
        return batch._replace(
            audio_mask=batch.audio_mask & ~no_audio[:, None], text_mask=batch.text_mask & ~no_text[:, None]
        )


def _view(batch: EmotionBatch, view: str) -> EmotionBatch:
    return getattr(batch, view)() if view else batch


def load_model(checkpoint: str | os.PathLike[str]) -> EmotionModel:
    """Loads a trained model from a checkpoint, in eval mode, on the CPU.

    Args:
        checkpoint: ``.ckpt`` file that ``mmemo fit`` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not a checkpoint of mmemo.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; `mmemo fit` writes them to RUN/checkpoints")
    try:
        system = EmotionSystem.load_from_checkpoint(path, map_location="cpu")
    except (pickle.UnpicklingError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of `mmemo fit` ({str(error).splitlines()[0]}); a system built by hand around "
            "module objects cannot be reloaded, build it from a YAML"
        ) from None
    return system.model.eval()


def prediction_columns(classes: Sequence[str], prediction: Prediction) -> dict[str, Tensor]:
    """Names the numbers of a prediction as columns.

    Args:
        classes: In the order of the probabilities.
        prediction: Of a batch.
    """
    columns: dict[str, Tensor] = {}
    for prefix, probs in (("", prediction.probs), ("audio_", prediction.audio_probs), ("text_", prediction.text_probs)):
        if probs is not None:
            columns |= {f"{prefix}prob_{name}": probs[:, number] for number, name in enumerate(classes)}
    return columns
