"""Distillation: a student that also learns from the outputs of one or several teachers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning.cli import OptimizerCallable
from pytorch_lightning.utilities.seed import isolate_rng
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.splits import TAUGHT_SPEAKERS, InnerFolds
from mmemo.data.table import DataTable, Requirements
from mmemo.losses import DistillationLoss, Knowledge, SoftenedLogits
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.exposure import Exposure
from mmemo.training.finetuning import Finetuning
from mmemo.training.system import EmotionSystem
from mmemo.training.teachers import (
    TeacherOutputs,
    check_teacher,
    exposed_test_speakers,
    hidden_dim,
    mean_features,
    teacher_outputs,
)

log = logging.getLogger(__name__)


class DistillationSystem(EmotionSystem):
    """An :class:`EmotionSystem` whose model, the student, also learns from a teacher.

    Follows Hinton et al. 2015, <https://arxiv.org/abs/1503.02531>. The teacher runs once on every view of every
    training utterance, before training, also on utterances without labels. Its outputs are cached on disk by content,
    so they cost nothing in an epoch. A checkpoint's ``state_dict`` holds only the student; the projectors of feature
    hints, which a resumed run needs, are stored beside it.

    Args:
        model: Parts of the student.
        teacher: Checkpoint of a teacher with the student's classes, or several whose probabilities are averaged.
            ``{fold}`` in the path is replaced by the fold of ``data.split``: in a cross-validation, each fold's student
            then learns from that fold's teacher, which was not trained on the test speakers either.
        distillation: What the student takes over, added to the loss on the labels: ``mmemo.losses.SoftenedLogits``,
            ``FeatureHints``, ``RelationalDistances``. Defaults to softened logits.
        cross_fitted: Teach each utterance only by teachers that were not trained on its speaker, for example the folds
            of a cross-validation over the training speakers (Dao et al. 2021, <https://arxiv.org/abs/2104.09732>). A
            teacher is overconfident on its own training data, and then adds little to the labels. Works with softened
            logits only, since vectors of different teachers are not comparable.
        audio_only: Refuse a student with a text encoder, because it is meant to be used without transcripts.
        loss: Loss on the labels; see :class:`EmotionSystem` for this and the following. With ``mixup``, the teacher's
            outputs are mixed like the labels.
        optimizer: Builds the optimizer.
        audio_finetuning: Which blocks of the audio encoder are trained.
        text_finetuning: Which blocks of the text encoder are trained.
        one_cycle: Whether the learning rate is warmed up and annealed.
        cache_features: Must be true: without cached features the student would train on other views than the teacher's.
        by_modality: Also test and predict from the audio only and from the text only.
        modality_dropout: Probability of dropping the text, and the same for the audio.
        mixup: Parameter of the Beta distribution of mixup; 0 turns it off.
        hooks: Terms added to the loss.

    Raises:
        ValueError: There is no teacher, or the parts do not fit together.

    Example:
        >>> from mmemo.models import ConvNeXtEncoder
        >>> student = EmotionModel(["anger", "sadness"], audio_encoder=ConvNeXtEncoder(hidden_dim=8))
        >>> system = DistillationSystem(student, teacher="runs/teacher/fold{fold}/checkpoints/best.ckpt")
        >>> [path.as_posix() for path in system.teachers(fold=2)]
        ['runs/teacher/fold2/checkpoints/best.ckpt']
    """

    def __init__(
        self,
        model: EmotionModel,
        teacher: str | list[str] | None = None,
        distillation: list[nn.Module] | None = None,
        cross_fitted: bool = False,
        audio_only: bool = True,
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
        super().__init__(
            model, loss, optimizer, audio_finetuning, text_finetuning, one_cycle, cache_features, by_modality,
            modality_dropout, mixup, hooks,
        )  # fmt: skip
        self.teacher = [str(path) for path in ([teacher] if isinstance(teacher, str | Path) else teacher or [])]
        self.cross_fitted = cross_fitted
        self.audio_only = audio_only
        if not self.teacher:
            raise ValueError(
                "DistillationSystem has no teacher; name a checkpoint, such as "
                "model.init_args.teacher: runs/my_teacher/checkpoints/last.ckpt"
            )
        if not model.classes:
            raise ValueError("DistillationSystem distils classes, but data.classes is empty")
        if audio_only and model.takes_text:
            raise ValueError(
                "the student has a text encoder, but audio_only is true; remove the text_encoder, or set "
                "audio_only: false"
            )
        self.distillation = nn.ModuleList([SoftenedLogits()] if distillation is None else distillation)
        self._check_distillation()
        self._teachers: TeacherOutputs | None = None
        self._teacher_exposure = self._loaded_exposure = Exposure()

    def _check_distillation(self) -> None:
        if not len(self.distillation):
            raise ValueError(
                "distillation is an empty list, so the student would learn nothing from the teacher; remove it to use "
                "SoftenedLogits, or name losses, such as [mmemo.losses.FeatureHints]"
            )
        for part in self.distillation:
            name = type(part).__name__
            if not isinstance(part, DistillationLoss):
                raise ValueError(
                    f"{name} is not a distillation loss; expected some of mmemo.losses: SoftenedLogits, FeatureHints, "
                    "RelationalDistances"
                )
            if self.cross_fitted and part.knowledge != "logits":
                raise ValueError(
                    f"{name} uses the teacher's vectors, but with cross_fitted: true utterances have different "
                    "teachers, whose vectors are not comparable; use SoftenedLogits only"
                )

    @property
    def requirements(self) -> Requirements:
        # Unlabelled utterances have the teacher's labels; a teacher may take audio that its student does not.
        return super().requirements._replace(unlabelled=True, facts=True)

    def setup(self, stage: str) -> None:
        datamodule = self.datamodule
        if stage != "fit" or datamodule is None:
            super().setup(stage)
            return
        teachers = self.teachers(datamodule.split.fold)
        self._check_views(datamodule)
        for path in teachers:  # before any feature is computed
            self._teacher_exposure |= check_teacher(path, self.model.classes, datamodule)
        self._warn_of_leak(self._teacher_exposure)
        super().setup(stage)
        student_sources = datamodule.sources
        with isolate_rng():  # a run must not depend on whether the teacher's outputs were cached before
            self._teachers = teacher_outputs(teachers, self.model.classes, datamodule, self.trainer, self.cross_fitted)
        datamodule.attach(student_sources)
        with isolate_rng():  # a projector must not shift later random draws
            for part in self.distillation:
                cast(DistillationLoss, part).prepare(self._student_dims(), self._teachers.dims)
                part.to(self.device)

    def _check_views(self, datamodule: EmotionDataModule) -> None:
        for name in self.model.modalities:
            if not (self.caches(name, fitting=True) and self.model.encoder(name).caches):
                raise ValueError(
                    f"the teacher sees fixed views of each utterance, but this student's {name} encoder does not read "
                    "the cache and would see new ones; set cache_features: true, and an audio_finetuning that trains "
                    "above the cache"
                )
        if isinstance(datamodule.split, InnerFolds) and any("{fold}" in path for path in self.teacher):
            raise ValueError(
                "{fold} in the teacher's path means a fold of data.split, but the inner folds of `mmemo tune` and "
                "nested have no teachers: those of the outer folds were trained on inner test speakers; tune "
                "mmemo.EmotionSystem on the labels, and distil with the settings found"
            )

    def teachers(self, fold: int) -> list[Path]:
        """Returns the checkpoints of the teachers of a fold, counted from 1."""
        return [Path(path.replace("{fold}", str(fold))) for path in self.teacher]

    def exposure(self, table: DataTable) -> Exposure:
        return super().exposure(table) | self._teacher_exposure  # a student also learns about its teachers' speakers

    def on_test_start(self) -> None:
        self._warn_of_leak(self._loaded_exposure)

    def on_predict_start(self) -> None:
        self._warn_of_leak(self._loaded_exposure)

    def _warn_of_leak(self, exposure: Exposure) -> None:
        """Adds a warning to every result if test speakers were used in training, where that is allowed."""
        datamodule = self.datamodule
        if datamodule is None or not datamodule.allow_speaker_overlap:
            return
        names = exposed_test_speakers(exposure, datamodule)
        if names:
            warning = f"{TAUGHT_SPEAKERS}: {', '.join(names[:5])}"
            if warning not in self.warnings:
                log.warning("%s", warning)
                self.warnings.append(warning)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        projectors = [name for name in state if name.startswith("distillation.")]
        checkpoint["projectors"] = {name: state.pop(name) for name in projectors}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_exposure = Exposure.read(checkpoint)
        own = self.state_dict()
        projectors = checkpoint.get("projectors", {})
        checkpoint["state_dict"].update({name: values for name, values in projectors.items() if name in own})
        super().on_load_checkpoint(checkpoint)

    def _student_dims(self) -> dict[str, int]:
        return {"embedding": self.model.fusion.dim, "hidden": hidden_dim(self.model)}

    def criterion(self, output: EmotionOutput, batch: EmotionBatch) -> Tensor:
        """Returns the loss on the labels plus the distillation losses.

        Shape:
            output and batch, each ``(batch, ...)`` -> scalar
        """
        loss = super().criterion(output, batch)
        assert self._teachers is not None
        masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask, batch.text_mask) if mask is not None]
        has_input = torch.stack([mask.any(1) for mask in masks]).any(0)
        if not has_input.any():
            return loss
        student = Knowledge(cast(Tensor, output.logits), output.embedding, mean_features(output))
        student = Knowledge(*(values[has_input] for values in student))
        teacher = Knowledge(*(values[has_input] for values in self._teachers.of(batch)))
        for part in self.distillation:
            loss = loss + part(student, teacher)
        return loss
