"""Model, loss, metrics and optimizer as a LightningModule. The steps hold no maths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.table import DataTable, Requirements
from mmemo.losses import CrossEntropy, Loss, set_class_counts
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.averaging import average_views, first_views
from mmemo.training.checkpoint import check_classes, check_encoders, complete_state
from mmemo.training.checks import check_finite, check_heads, check_mixing, check_mixup
from mmemo.training.exposure import Exposure
from mmemo.training.features import attach_sources
from mmemo.training.finetuning import Finetuning, encoder_tunings
from mmemo.training.forward import run_model
from mmemo.training.head_metrics import ConditionMetrics, HeadMetrics
from mmemo.training.hooks import Hooks, Step
from mmemo.training.mixing import Mixed, conditions_of, drop_modalities, mixup, restricted
from mmemo.training.optimization import build_optimizer, one_cycle_schedule
from mmemo.training.prediction import Prediction
from mmemo.training.recipe import stored_recipe
from mmemo.training.speakers import SpeakerCalibrated


class EmotionSystem(SpeakerCalibrated):
    """Trains an :class:`EmotionModel`, and reports UAR, accuracy and F1 of classes, CCC and MAE of dimensions.

    A checkpoint holds the trained weights and the settings of all parts; frozen weights are not saved.

    Args:
        model: The parts of the model.
        loss: What is minimised; see ``mmemo.losses``. Defaults to ``CrossEntropy``.
        optimizer: Builds the optimizer from the parameters, such as ``functools.partial(torch.optim.AdamW, lr=1e-3)``.
        audio_finetuning: Trained blocks of the audio encoder, such as ``mmemo.training.LastBlocks``; None freezes it.
        text_finetuning: The same for the text encoder.
        one_cycle: Warm the learning rate up, then anneal it to zero (Smith and Topin 2018,
            <https://arxiv.org/abs/1708.07120>); otherwise it is constant.
        cache_features: Read the output of frozen blocks from the cache; otherwise compute it in every step.
        by_modality: Also test and predict from the audio only and from the text only.
        modality_dropout: Probability that a training utterance loses its text, and the same for its audio, in
            [0, 0.5]. Applies to models with both; an utterance never loses its last modality.
        mixup: Parameter of the Beta distribution from which mixup draws its shares (Zhang et al. 2018,
            <https://arxiv.org/abs/1710.09412>); 0 turns it off. Cached features are mixed where there are any.
        hooks: Terms added to the loss, such as ``mmemo.training.AdversarialTraining``.

    Raises:
        ValueError: The parts do not fit together.

    Example:
        >>> from mmemo.models import ConvNeXtEncoder, EmotionModel
        >>> system = EmotionSystem(EmotionModel(["anger", "sadness"], audio_encoder=ConvNeXtEncoder(hidden_dim=8)))
        >>> system.model.classes
        ('anger', 'sadness')
    """

    def __init__(
        self,
        model: EmotionModel,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        audio_finetuning: Finetuning | None = None,
        text_finetuning: Finetuning | None = None,
        one_cycle: bool = True,
        cache_features: bool = True,
        by_modality: bool = False,
        modality_dropout: float = 0.0,
        mixup: float = 0.0,
        hooks: list[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_mixing(modality_dropout, mixup)
        self.model = model
        self.loss = loss if loss is not None else CrossEntropy()
        self.optimizer = optimizer
        self.audio_finetuning, self.text_finetuning = audio_finetuning, text_finetuning
        self.one_cycle, self.cache_features, self.by_modality = one_cycle, cache_features, by_modality
        self.modality_dropout, self.mixup = modality_dropout, mixup
        self.tunings = encoder_tunings(model, audio_finetuning, text_finetuning)
        check_heads(model, self.loss)
        self.hooks = Hooks(hooks or [], model)
        if mixup:
            check_mixup(model, reads_raw_text=not self.caches("text", fitting=True))
        self.conditions = conditions_of(model, by_modality)
        self.val_metrics = HeadMetrics(model, "val/")
        self.test_metrics = ConditionMetrics(model, self.conditions)
        self.warnings: list[str] = []  # about the model, for every result

    @property
    def requirements(self) -> Requirements:
        """Labels and modalities that training and inference need."""
        labels = cast(Loss, self.loss).required_labels
        return Requirements(labels, self.model.takes_audio, self.model.takes_text, self.hooks.unlabelled)

    def caches(self, modality: str, fitting: bool) -> bool:
        """Returns whether a modality can come from the cache: not if a hook perturbs it below the cached features."""
        return self.cache_features and not (fitting and self.hooks.need_raw(modality))

    def setup(self, stage: str) -> None:
        datamodule = self.datamodule
        if datamodule is None:
            return
        check_classes(self.model.classes, datamodule.classes, "data.classes")
        if stage in ("fit", "validate") and self.model.classes:
            set_class_counts(self.loss, datamodule.table.class_counts)
        if stage == "fit":
            for tuning in self.tunings:
                tuning.check_schedule(self.trainer)
            has_end = self.trainer.max_epochs != -1 or self.trainer.max_steps != -1
            self.hooks.prepare(datamodule.table, self.model, self.device, has_end)
        cached = {name for name in self.model.modalities if self.caches(name, stage == "fit")}
        attach_sources(datamodule, self.model, self.trainer, cached)

    @property
    def datamodule(self) -> EmotionDataModule | None:
        """Data module of the trainer; None if the batches come from elsewhere."""
        datamodule = getattr(self.trainer, "datamodule", None)
        return datamodule if isinstance(datamodule, EmotionDataModule) else None

    def on_train_epoch_start(self) -> None:
        for tuning in self.tunings:
            tuning.start_epoch(self.current_epoch)

    def on_train_end(self) -> None:
        for tuning in self.tunings:
            tuning.train_all()

    def exposure(self, table: DataTable) -> Exposure:
        """Returns the speakers and recordings that this run trains on."""
        return Exposure.of_training(table, self.model.takes_audio)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {
            "system": stored_recipe(self), "classes": list(self.model.classes), "encoders": self.model.fingerprints()
        }  # fmt: skip
        if self.datamodule is not None:
            self.exposure(self.datamodule.table).write(checkpoint)
        for name in [name for tuning in self.tunings for name in tuning.frozen_names()]:
            checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_classes(self.model.classes, checkpoint.get("classes", ()), "the checkpoint's classes")
        check_encoders(checkpoint.get("encoders", {}), self.model.fingerprints())
        complete_state(checkpoint["state_dict"], self.state_dict(), [tuning.prefix for tuning in self.tunings])

    def forward(self, batch: EmotionBatch) -> EmotionOutput:
        return run_model(self.model, batch)

    def criterion(self, output: EmotionOutput, batch: EmotionBatch) -> Tensor:
        """Returns what training minimises, without the terms of gates and hooks."""
        return self.loss(output, batch)

    def training_step(self, batch: EmotionBatch, batch_idx: int) -> Tensor:
        batch = drop_modalities(batch, self.modality_dropout)
        mixed = mixup(batch, self.mixup) if self.mixup else Mixed(batch, batch, batch)
        output = self(mixed.inputs)
        criterion = mixed.criterion(self.criterion)
        loss = criterion(output) + output.penalty
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": len(batch.row)}
        if len(self.hooks):
            progress = min(self.global_step / max(float(self.trainer.estimated_stepping_batches), 1.0), 1.0)
            step = Step(self.model, self.forward, mixed.inputs, output, criterion, progress, self.global_step)
            term, logged = self.hooks(step)
            self.log_dict(logged, **options)
            loss = loss + term
        check_finite(loss, self.current_epoch, batch, self.datamodule)
        self.log("train/loss", loss, prog_bar=True, **options)
        return loss

    def validation_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        output = self(batch)
        self.log("val/loss", self.loss(output, batch), batch_size=len(batch.row), sync_dist=True)
        self.val_metrics.update(output, batch)

    def on_validation_epoch_end(self) -> None:
        metrics = self.val_metrics.compute()  # already the same on all processes
        monitored = default_monitor(self.model.classes)
        self.log(monitored, metrics.pop(monitored), prog_bar=True, sync_dist=True)
        self.log_dict(metrics, sync_dist=True)
        self.val_metrics.reset()

    @property
    def _num_views(self) -> int:
        """Views of each test utterance that a batch holds one after the other."""
        return 1 if self.datamodule is None else self.datamodule.test_views

    def _outputs(self, batch: EmotionBatch) -> dict[str, EmotionOutput]:
        """Returns condition -> output for each utterance, averaged over its views."""
        inputs = {condition: restricted(batch, condition) for condition in self.conditions}
        return {condition: average_views(self(part), self._num_views) for condition, part in inputs.items()}

    def test_step(self, batch: EmotionBatch, batch_idx: int) -> None:
        self.test_metrics.update(self._outputs(batch), first_views(batch, self._num_views))

    def on_test_epoch_end(self) -> None:
        self.log_dict(self.test_metrics.compute(), sync_dist=True)

    def predict_step(self, batch: EmotionBatch, batch_idx: int) -> Prediction:
        return Prediction.of(first_views(batch, self._num_views).row, self._outputs(batch))

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.optimizer, self.parameters(), self.tunings)
        return one_cycle_schedule(optimizer, self.trainer.estimated_stepping_batches) if self.one_cycle else optimizer


def default_monitor(classes: Sequence[str]) -> str:
    """Returns the validation metric that chooses the best epoch.

    Args:
        classes: Classes of the model; empty for a model of dimensions.
    """
    return "val/uar" if classes else "val/ccc"
