"""A frozen teacher, a student that learns what the teacher hears: large to small, voice and words to voice alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pytorch_lightning.utilities import move_data_to_device
from pytorch_lightning.utilities.seed import isolate_rng
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import ManifestError
from mmemo.data.splits import InnerFolds
from mmemo.files import checksum
from mmemo.losses import SoftenedLogits, Taught
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.exposure import Heard
from mmemo.training.features import MODALITIES, FeatureCache, attach_sources, text_content, words_of
from mmemo.training.system import EmotionSystem, load_model

log = logging.getLogger(__name__)
TEACHING_VERSION = 2
"""Part of the cache's name; raise it when a teacher's outputs come to be other numbers."""
HALF_MAX = torch.finfo(torch.float16).max  # what a teacher said is kept in half precision


class DistillationSystem(EmotionSystem):
    """An :class:`EmotionSystem` whose model, the student, also learns from a teacher (Hinton et al. 2015,
    <https://arxiv.org/abs/1503.02531>).

    The teacher hears every view of every training utterance once, before training, and what it said is kept on disk by
    content: it costs an epoch nothing. Utterances without a label take part. A checkpoint's ``state_dict`` holds the
    student alone; the projectors of hints, which a killed run goes on with, stand beside it.

    Args:
        classes: Emotion classes in the order of the model's outputs; on the command line, those of the data.
        model: The student's parts.
        teacher: Checkpoint of ``mmemo fit``, or several whose probabilities are averaged; with the student's classes.
            ``{fold}`` in its path stands for the fold of ``data.split``: in a cross-validation each fold's student
            learns from that fold's teacher, which has not heard the test speakers either.
        distillation: What the student takes over, added to the loss on the labels: ``mmemo.losses.SoftenedLogits``,
            ``FeatureHints``, ``RelationalDistances``; softened logits when not given.
        cross_fitted: Each utterance is taught by those teachers alone that have not heard its speaker, as when they are
            the folds of a cross-validation over the training speakers (Dao et al. 2021,
            <https://arxiv.org/abs/2104.09732>): a teacher is all but certain of what it was trained on, and tells the
            student little more than the labels do. With softened logits alone, since vectors of different teachers do
            not compare.
        audio_only: Refuse a student that reads words: it is meant to be used without a transcript.
        options: Of :class:`EmotionSystem`. Its ``loss`` is that on the labels; with ``mixup``, what the teacher said is
            mixed alike; without ``cache_features`` the student would not hear the views that the teacher heard.
    """

    def __init__(
        self,
        classes: list[str],
        model: Callable[[list[str]], EmotionModel],
        teacher: str | list[str] | None = None,
        distillation: list[nn.Module] | None = None,
        cross_fitted: bool = False,
        audio_only: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(classes, model, **options)
        self.teacher = [Path(path) for path in ([teacher] if isinstance(teacher, str) else teacher or [])]
        if not self.teacher:
            raise ValueError(
                "DistillationSystem has no teacher: name a checkpoint of `mmemo fit`, as in "
                "--model.init_args.teacher runs/my_teacher/checkpoints/last.ckpt"
            )
        if not self.model.classes:
            raise ValueError("DistillationSystem passes classes on, but data.classes is empty")
        if audio_only and "text" in self.model.modalities:
            raise ValueError(
                "the student reads words, but is to be used without a transcript (audio_only: true); take its "
                "text_encoder out, or set audio_only: false"
            )
        self.distillation = nn.ModuleList([SoftenedLogits()] if distillation is None else distillation)
        if not len(self.distillation):
            raise ValueError(
                "distillation is an empty list, so that nothing is taken over from the teacher; leave it out for "
                "SoftenedLogits, or name what is, such as [mmemo.losses.FeatureHints]"
            )
        for part in self.distillation:
            if not hasattr(part, "takes"):
                raise ValueError(
                    f"{type(part).__name__} is nothing to distil; expected some of mmemo.losses: SoftenedLogits, "
                    "FeatureHints, RelationalDistances"
                )
            if cross_fitted and part.takes != "logits":
                raise ValueError(
                    f"{type(part).__name__} takes the teacher's vectors, and with cross_fitted: true utterances have "
                    "different teachers, whose vectors do not compare; distil SoftenedLogits alone"
                )
        self.cross_fitted = cross_fitted
        self._lessons: Lessons | None = None
        self._teachers_heard = self._loaded_heard = Heard()

    @property
    def learns_unlabelled(self) -> bool:
        return True

    def setup(self, stage: str) -> None:
        datamodule = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and isinstance(datamodule, EmotionDataModule):
            for name in self.model.modalities:
                if not (self._caches(name, fitting=True) and self.model.encoder(name).caches):
                    raise ValueError(
                        f"the teacher hears fixed views of each utterance, and this student hears new ones in every "
                        f"step, since its {name} encoder does not read the cache; set cache_features: true, and "
                        "audio_finetuning to one that trains above the cache"
                    )
            if isinstance(datamodule.splitter, InnerFolds) and any("{fold}" in str(path) for path in self.teacher):
                raise ValueError(
                    "{fold} in the teacher's path stands for a fold of data.split, and the inner folds of `mmemo tune` "
                    "and --nested have no teachers of their own: those of outer folds have heard who judges inside; "
                    "tune mmemo.EmotionSystem on the labels, and distil with the settings found"
                )
            teachers = self.teachers(datamodule.splitter.fold)
            for path in teachers:  # before features are computed
                self._teachers_heard |= check_teacher(path, self.model.classes, datamodule)
            self._tell_leak(self._teachers_heard)
        super().setup(stage)
        if stage == "fit" and isinstance(datamodule, EmotionDataModule):
            students = datamodule.sources
            with isolate_rng():  # a run must not depend on whether the teacher was heard already
                self._lessons = lessons(teachers, self.model.classes, datamodule, self.trainer, self.cross_fitted)
            datamodule.attach(students)
            with isolate_rng():  # a projector must not shift the draws of what comes after it
                for part in self.distillation:
                    if hasattr(part, "prepare"):
                        cast(Any, part).prepare(self._student_dims(), self._lessons.dims)
                        part.to(self.device)

    def teachers(self, fold: int) -> list[Path]:
        """Checkpoints that teach in a fold.

        Args:
            fold: Of ``data.split``, from 1.
        """
        return [Path(str(path).replace("{fold}", str(fold))) for path in self.teacher]

    def heard(self, datamodule: EmotionDataModule) -> Heard:
        return super().heard(datamodule) | self._teachers_heard  # whom its teachers heard it knows by hearsay

    def on_test_start(self) -> None:
        self._tell_leak(self._loaded_heard)

    def on_predict_start(self) -> None:
        self._tell_leak(self._loaded_heard)

    def _tell_leak(self, heard: Heard) -> None:
        """Where speakers may be on both sides, every result says so."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if not isinstance(datamodule, EmotionDataModule) or not datamodule.allow_speaker_overlap:
            return
        names = judges_heard(heard, datamodule)
        if names:
            warning = f"the student or its teachers were trained on speakers who judge it: {', '.join(names[:5])}"
            log.warning("%s", warning)
            datamodule.warnings.append(warning)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        state = checkpoint["state_dict"]
        projectors = [name for name in state if name.startswith("distillation.")]
        checkpoint["projectors"] = {name: state.pop(name) for name in projectors}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_heard = Heard.read(checkpoint)
        own = self.state_dict()
        projectors = checkpoint.get("projectors", {})
        checkpoint["state_dict"].update({name: values for name, values in projectors.items() if name in own})
        super().on_load_checkpoint(checkpoint)

    def _student_dims(self) -> dict[str, int]:
        heard = sum(cast(Any, part).dim for part in self.model.modalities.values())
        return {"embedding": self.model.fusion.dim, "hidden": heard}

    def criterion(self, output: EmotionOutput, batch: EmotionBatch) -> Tensor:
        loss = super().criterion(output, batch)
        assert self._lessons is not None
        masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask, batch.text_mask) if mask is not None]
        heard = torch.stack([mask.any(1) for mask in masks]).any(0)  # nothing is learned from what is not there
        if not heard.any():
            return loss
        student = Taught(cast(Tensor, output.logits), output.embedding, hidden(output))
        student = Taught(*(values[heard] for values in student))
        taught = Taught(*(values[heard] for values in self._lessons.of(batch)))
        for part in self.distillation:
            loss = loss + part(student, taught)
        return loss


def hidden(output: EmotionOutput) -> Tensor:
    """Mean over time of the features that reach the fusion, all modalities side by side ``(batch, dim)``."""
    means = []
    for one in output.heard:
        share = one.mask / one.mask.sum(1, keepdim=True).clamp(min=1)
        means.append((one.features.float() * share[..., None]).sum(1))
    return torch.cat(means, dim=-1)


class Lessons(NamedTuple):
    """What the teacher said of every view of the training rows.

    Args:
        position: Row of the manifest -> row of the tables; -1 for one that is not trained on.
        logits: ``(row, view, num_classes)``.
        embedding: ``(row, view, dim)``.
        hidden: ``(row, view, dim)``.
    """

    position: Tensor
    logits: Tensor
    embedding: Tensor
    hidden: Tensor

    @property
    def dims(self) -> dict[str, int]:
        """Sizes of its vectors."""
        return {"embedding": self.embedding.shape[-1], "hidden": self.hidden.shape[-1]}

    def of(self, batch: EmotionBatch) -> Taught:
        """What was said of the views that a batch holds."""
        assert batch.view is not None
        rows, views = self.position[batch.row.cpu()], batch.view.cpu() % self.logits.shape[1]
        tables = (self.logits, self.embedding, self.hidden)
        return Taught(*(table[rows, views].to(batch.row.device).float() for table in tables))


def lessons(
    checkpoints: Sequence[Path],
    classes: Sequence[str],
    datamodule: EmotionDataModule,
    trainer: Any,
    cross_fitted: bool = False,
) -> Lessons:
    """Lets teachers hear every view of the training rows; what was heard before is read from the cache.

    Args:
        checkpoints: Of the teachers; their probabilities are averaged, their vectors put side by side.
        classes: Of the student, which must be the teachers'.
        datamodule: After its ``setup``.
        trainer: Knows device, precision and processes.
        cross_fitted: Each row is taught by those teachers alone that have not heard its speaker; there are no vectors
            then.

    Raises:
        ManifestError: With ``cross_fitted`` all teachers have heard a training speaker.
    """
    said = [_said_by(path, classes, datamodule, trainer, cross_fitted) for path in checkpoints]
    rows = datamodule.split.train  # now without those whose audio is broken
    position = torch.full((len(datamodule.manifest),), -1)
    position[torch.from_numpy(rows)] = torch.arange(len(rows))
    probs = torch.zeros(len(rows), datamodule.num_views, len(classes))
    teachers = torch.zeros(len(rows))
    for one in said:
        places = position[torch.from_numpy(one.rows)]
        probs[places] += one.logits.float().softmax(-1)
        teachers[places] += 1
    if (teachers == 0).any():
        untaught = datamodule.manifest.frame["id"].iloc[rows[(teachers == 0).numpy()]]
        raise ManifestError(
            f"cross_fitted: all teachers were trained on the speakers of {len(untaught)} training rows, such as "
            f"{untaught.iloc[0]}; name the folds of a cross-validation, each of which leaves some speakers out"
        )
    logits = (probs / teachers[:, None, None]).clamp(min=1e-8).log()
    if cross_fitted:
        nothing = logits[..., :0]
        return Lessons(position, logits, nothing, nothing)
    embedding = torch.cat([one.embedding for one in said], dim=-1)
    return Lessons(position, logits, embedding, torch.cat([one.hidden for one in said], dim=-1))


class Said(NamedTuple):
    """What one teacher said, in half precision.

    Args:
        rows: Of the manifest, those that it heard.
        logits: ``(row, view, num_classes)``.
        embedding: ``(row, view, dim)``.
        hidden: ``(row, view, dim)``.
    """

    rows: np.ndarray
    logits: Tensor
    embedding: Tensor
    hidden: Tensor


def _said_by(
    path: Path, classes: Sequence[str], datamodule: EmotionDataModule, trainer: Any, cross_fitted: bool
) -> Said:
    model = load_model(path)
    attach_sources(datamodule, model, trainer, MODALITIES, redraw=False)
    augmentation = datamodule.augmentation.fingerprint() if datamodule.augmentation and datamodule.num_views > 1 else ""
    frozen = [model.encoder(name).fingerprint() for name in model.modalities]  # is not in the checkpoint
    seen = f"{datamodule.num_views}:{augmentation}:{trainer.precision}:{frozen}"
    cache = FeatureCache(f"teacher-{TEACHING_VERSION}:{checksum(path)}:{seen}")
    keys = _keys(model, datamodule)
    rows = np.asarray(datamodule.split.train, int)
    if cross_fitted:
        rows = rows[~Heard.read(path).rows(datamodule)[rows]]
    missing = np.array([row for row in rows if keys[row] not in cache], dtype=int)
    share = missing[trainer.global_rank :: trainer.world_size]
    if len(share):
        _listen(model, cache, keys, datamodule, share, trainer)
    trainer.strategy.barrier("the teacher has heard all")
    dims = [len(classes), model.fusion.dim, sum(cast(Any, part).dim for part in model.modalities.values())]
    table = torch.zeros(len(rows), datamodule.num_views, sum(dims), dtype=torch.float16)
    for number, row in enumerate(rows):
        table[number] = torch.from_numpy(cache.read(keys[row])[:, 0]).clamp(-HALF_MAX, HALF_MAX)
    logits, embedding, hidden_features = table.split(dims, dim=-1)
    order = [model.classes.index(name) for name in classes]
    return Said(rows, logits[..., order], embedding.clone(), hidden_features.clone())


def check_teacher(path: Path, classes: Sequence[str], datamodule: EmotionDataModule) -> Heard:
    """Refuses a teacher of other classes, or one that would pass on what it knows of those who judge its student.

    Args:
        path: Its checkpoint.
        classes: Of the student.
        datamodule: After its ``setup``.

    Returns:
        Whom it has heard in training.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It cannot be read, or the teacher tells other classes apart.
        ManifestError: The teacher was trained on speakers of the validation or test side.
    """
    there = load_model(path).classes
    if set(there) != set(classes):
        raise ValueError(
            f"{path}: the teacher tells {list(there)} apart, the student {list(classes)}; set data.classes to the "
            "teacher's, or train a teacher of the student's"
        )
    heard = Heard.read(path)
    names = [] if datamodule.allow_speaker_overlap else judges_heard(heard, datamodule)
    if names:
        raise ManifestError(
            f"{path}: this teacher was trained on speakers who judge the student ({', '.join(names[:5])}); "
            "use the teacher of the same fold ({fold} in the path), or set data.allow_speaker_overlap: true"
        )
    return heard


def judges_heard(heard: Heard, datamodule: EmotionDataModule) -> list[str]:
    """Who of those that judge a student was heard before.

    Args:
        heard: In training, by it or its teachers.
        datamodule: After its ``setup``.

    Returns:
        Their names, sorted; "of" and the utterance where a speaker has none.
    """
    judging = [datamodule.split.val, datamodule.split.test]
    if isinstance(datamodule.splitter, InnerFolds):
        judging.append(datamodule.splitter.outer(datamodule.manifest).test)  # who judge in the end
    judges = np.concatenate([np.asarray(rows, int) for rows in judging])
    shared = datamodule.manifest.frame.iloc[judges[heard.rows(datamodule)[judges]]]
    return sorted(set(shared["speaker"].fillna("of " + shared["id"])))


def _keys(model: EmotionModel, datamodule: EmotionDataModule) -> list[str]:
    """For each row, a name of all that the teacher hears and reads of it."""
    frame = datamodule.manifest.frame
    contents = datamodule.inspect_audio(progress=False) if _listens(model) else [""] * len(frame)
    texts = [""] * len(frame)
    if "text" in model.modalities:
        words = words_of(datamodule, changed=True)
        texts = ["\n".join(words(row, view) for view in range(datamodule.num_views)) for row in range(len(frame))]
    named = zip(frame["id"], contents, texts, strict=True)
    return [text_content("\n".join(map(str, parts))) for parts in named]


def _listens(model: EmotionModel) -> bool:
    return bool({"audio", "descriptors"} & set(model.modalities))


@torch.no_grad()
def _listen(
    model: EmotionModel,
    cache: FeatureCache,
    keys: Sequence[str],
    datamodule: EmotionDataModule,
    rows: Any,
    trainer: Any,
) -> None:
    device = trainer.strategy.root_device
    model.eval().to(device)
    contents = datamodule.inspect_audio(progress=False) if _listens(model) else [""] * len(keys)
    lost: list[int] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not trainer.is_global_zero) as bar:
        task = bar.add_task("The teacher hears", total=len(rows))
        for batch in datamodule.views_dataloader(rows):
            batch = cast(EmotionBatch, move_data_to_device(batch, device))
            with trainer.precision_plugin.forward_context():
                output = model(
                    batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.descriptors,
                    batch.descriptors_mask,
                )  # fmt: skip
            parts = [output.logits.float(), output.embedding.float(), hidden(output)]
            table = (
                torch.cat(parts, dim=-1)
                .cpu()
                .numpy()
                .reshape(-1, datamodule.num_views, 1, sum(p.shape[-1] for p in parts))
            )
            silent = _silent(batch).reshape(len(table), -1).all(1).tolist()
            for row, values, nothing in zip(batch.row[:: datamodule.num_views].tolist(), table, silent, strict=True):
                if nothing and contents[row]:
                    lost.append(row)
                else:
                    cache.write(keys[row], values)
            bar.advance(task, len(table))
    if lost:
        name = datamodule.manifest.frame["path"].iloc[lost[0]]
        raise ManifestError(
            f"{len(lost)} recordings could not be read any more while the teacher heard them, such as {name}; bring "
            "them back and begin again: what it said of the others is kept"
        )


def _silent(batch: EmotionBatch) -> Tensor:
    """Which utterances have a place for audio, and none in it ``(batch,)`` bool."""
    masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask) if mask is not None]
    if not masks:
        return torch.zeros(len(batch.row), dtype=torch.bool)
    return ~torch.stack([mask.any(1) for mask in masks]).any(0).cpu()
