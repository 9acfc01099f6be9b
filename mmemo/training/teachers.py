"""Teachers of a distillation: their outputs for every view, cached, and the checks that they fit the student."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.utilities import move_data_to_device
from torch import Tensor

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import ManifestError
from mmemo.data.splits import InnerFolds
from mmemo.data.table import DataTable
from mmemo.files import checksum
from mmemo.losses import Knowledge
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.progress import progress
from mmemo.training.exposure import Exposure
from mmemo.training.feature_cache import FeatureCache
from mmemo.training.features import MODALITIES, attach_sources, text_content, transcripts_of
from mmemo.training.forward import run_model
from mmemo.training.loading import load_model
from mmemo.training.speakers import speaker_profiles

OUTPUTS_VERSION = 2
"""Part of the cache's name; raise it when a teacher's outputs change."""
HALF_MAX = torch.finfo(torch.float16).max  # teachers' outputs are cached in half precision


def mean_features(output: EmotionOutput) -> Tensor:
    """Returns the mean over time of the fusion's input, all modalities side by side ``(batch, dim)``."""
    means = []
    for part in output.encoded:
        share = part.mask / part.mask.sum(1, keepdim=True).clamp(min=1)
        means.append((part.features.float() * share[..., None]).sum(1))
    return torch.cat(means, dim=-1)


def hidden_dim(model: EmotionModel) -> int:
    """Returns the size of :func:`mean_features` for a model.

    Example:
        >>> from mmemo.models import ConvNeXtEncoder
        >>> hidden_dim(EmotionModel(["anger", "sadness"], audio_encoder=ConvNeXtEncoder(hidden_dim=8)))
        8
    """
    return sum(cast(Any, part).dim for part in model.modalities.values())


class TeacherOutputs(NamedTuple):
    """Outputs of the teachers for every view of the training rows.

    Args:
        position: Manifest row -> row of the tables; -1 for a row that is not trained on.
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
        """Sizes of the vectors."""
        return {"embedding": self.embedding.shape[-1], "hidden": self.hidden.shape[-1]}

    def of(self, batch: EmotionBatch) -> Knowledge:
        """Returns the outputs for the views in a batch."""
        assert batch.view is not None
        rows, views = self.position[batch.row.cpu()], batch.view.cpu() % self.logits.shape[1]
        tables = (self.logits, self.embedding, self.hidden)
        return Knowledge(*(table[rows, views].to(batch.row.device).float() for table in tables))


def teacher_outputs(
    checkpoints: Sequence[Path],
    classes: Sequence[str],
    datamodule: EmotionDataModule,
    trainer: Trainer,
    cross_fitted: bool = False,
) -> TeacherOutputs:
    """Runs teachers on every view of the training rows, or reads their outputs from the cache.

    Args:
        checkpoints: Teachers; their probabilities are averaged, their vectors concatenated.
        classes: Classes of the student, which must be the teachers'.
        datamodule: After its ``setup``.
        trainer: Lightning trainer: device, precision and processes.
        cross_fitted: Use for each row only teachers that were not trained on its speaker; there are no vectors then.

    Raises:
        ManifestError: With ``cross_fitted``, all teachers were trained on some training speaker.
    """
    outputs = [_outputs_of(path, classes, datamodule, trainer, cross_fitted) for path in checkpoints]
    table = datamodule.table
    rows = table.split.train
    position = torch.full((len(table.manifest),), -1)
    position[torch.from_numpy(rows)] = torch.arange(len(rows))
    probs = torch.zeros(len(rows), datamodule.num_views, len(classes))
    num_teachers = torch.zeros(len(rows))
    for output in outputs:
        index = position[torch.from_numpy(output.rows)]
        probs[index] += output.logits.float().softmax(-1)
        num_teachers[index] += 1
    if (num_teachers == 0).any():
        untaught = table.ids(rows[(num_teachers == 0).numpy()].tolist())
        raise ManifestError(
            f"cross_fitted: all teachers were trained on the speakers of {len(untaught)} training rows, such as "
            f"{untaught[0]}; name the folds of a cross-validation, each of which leaves some speakers out"
        )
    logits = (probs / num_teachers[:, None, None]).clamp(min=1e-8).log()
    if cross_fitted:
        no_vectors = logits[..., :0]
        return TeacherOutputs(position, logits, no_vectors, no_vectors)
    embedding = torch.cat([output.embedding for output in outputs], dim=-1)
    return TeacherOutputs(position, logits, embedding, torch.cat([output.hidden for output in outputs], dim=-1))


class CachedOutputs(NamedTuple):
    """Outputs of one teacher, in half precision.

    Args:
        rows: Manifest rows that it ran on.
        logits: ``(row, view, num_classes)``.
        embedding: ``(row, view, dim)``.
        hidden: ``(row, view, dim)``.
    """

    rows: np.ndarray
    logits: Tensor
    embedding: Tensor
    hidden: Tensor


def _outputs_of(
    path: Path, classes: Sequence[str], datamodule: EmotionDataModule, trainer: Trainer, cross_fitted: bool
) -> CachedOutputs:
    model = load_model(path)
    attach_sources(datamodule, model, trainer, MODALITIES, redraw=False)
    augmentation = datamodule.augmentation.fingerprint() if datamodule.augmentation and datamodule.num_views > 1 else ""
    encoders = list(model.fingerprints().values())  # frozen weights are not in the checkpoint's checksum
    options = f"{datamodule.num_views}:{augmentation}:{trainer.precision}:{encoders}"
    cache = FeatureCache(f"teacher-{OUTPUTS_VERSION}:{checksum(path)}:{options}")
    keys = _input_keys(model, datamodule)
    rows = np.asarray(datamodule.table.split.train, int)
    if cross_fitted:
        rows = rows[~Exposure.read(path).matches(datamodule.table)[rows]]
    missing = np.array([row for row in rows if keys[row] not in cache], dtype=int)
    share = missing[trainer.global_rank :: trainer.world_size]
    if len(share):
        _run_teacher(model, cache, keys, datamodule, share, trainer)
    trainer.strategy.barrier("the teacher's outputs are cached")
    dims = [len(classes), model.fusion.dim, hidden_dim(model)]
    outputs = torch.zeros(len(rows), datamodule.num_views, sum(dims), dtype=torch.float16)
    for index, row in enumerate(rows):
        outputs[index] = torch.from_numpy(cache.read(keys[row])[:, 0]).clamp(-HALF_MAX, HALF_MAX)
    logits, embedding, hidden_features = outputs.split(dims, dim=-1)
    order = [model.classes.index(name) for name in classes]
    return CachedOutputs(rows, logits[..., order], embedding.clone(), hidden_features.clone())


def check_teacher(
    path: Path, classes: Sequence[str], datamodule: EmotionDataModule, table: DataTable | None = None
) -> Exposure:
    """Checks that a teacher fits its student and was not trained on the student's test speakers.

    Args:
        path: Checkpoint of the teacher.
        classes: Classes of the student.
        datamodule: Data of the student.
        table: Its table, if it has not been set up.

    Returns:
        The speakers and recordings that the teacher was trained on.

    Raises:
        FileNotFoundError: There is no such checkpoint.
        ValueError: It cannot be read, or its classes are not the student's.
        ManifestError: It was trained on validation or test speakers of the student.
    """
    teacher_classes = load_model(path).classes
    if set(teacher_classes) != set(classes):
        raise ValueError(
            f"{path}: the teacher's classes are {list(teacher_classes)}, the student's are {list(classes)}; set "
            "data.classes to the teacher's, or train a teacher on the student's"
        )
    exposure = Exposure.read(path)
    names = [] if datamodule.allow_speaker_overlap else exposed_test_speakers(exposure, datamodule, table)
    if names:
        raise ManifestError(
            f"{path}: this teacher was trained on the student's test speakers ({', '.join(names[:5])}); use the "
            "teacher of the same fold ({fold} in the path), or set data.allow_speaker_overlap: true"
        )
    return exposure


def exposed_test_speakers(
    exposure: Exposure, datamodule: EmotionDataModule, table: DataTable | None = None
) -> list[str]:  # fmt: skip
    """Returns the validation and test speakers that a model was exposed to, sorted.

    Args:
        exposure: Of a model or its teachers.
        datamodule: Data of the student.
        table: Its table, if it has not been set up.

    Returns:
        Names of speakers; "of" and the id of an utterance without a speaker.
    """
    table = datamodule.table if table is None else table
    sides = [table.split.val, table.split.test]
    if isinstance(datamodule.split, InnerFolds):
        sides.append(datamodule.split.outer(table.manifest).test)  # outer test speakers evaluate the final model
    rows = np.concatenate([np.asarray(side, int) for side in sides])
    shared = table.manifest.frame.iloc[rows[exposure.matches(table)[rows]]]
    return sorted(set(shared["speaker"].fillna("of " + shared["id"])))


def _input_keys(model: EmotionModel, datamodule: EmotionDataModule) -> list[str]:
    """Returns a key per row of everything that the teacher takes as input."""
    table = datamodule.table
    ids = table.manifest.frame["id"].tolist()
    contents = table.contents if model.takes_audio else [""] * len(ids)
    texts = [""] * len(ids)
    if model.takes_text:
        transcripts = transcripts_of(datamodule, augmented=True)
        texts = ["\n".join(transcripts(row, view) for view in range(datamodule.num_views)) for row in range(len(ids))]
    return [text_content("\n".join(map(str, parts))) for parts in zip(ids, contents, texts, strict=True)]


@torch.no_grad()
def _run_teacher(
    model: EmotionModel,
    cache: FeatureCache,
    keys: Sequence[str],
    datamodule: EmotionDataModule,
    rows: np.ndarray,
    trainer: Trainer,
) -> None:
    """Writes the outputs for some rows into the cache."""
    device = trainer.strategy.root_device
    model.eval().to(device)
    contents = datamodule.table.contents
    unreadable: list[int] = []
    profiles = None
    if model.speaker_norms:  # the student learns what the calibrated teacher predicts
        profiles = speaker_profiles(datamodule, model, partial(run_model, model), rows)
    with progress("Teacher outputs", len(rows), trainer.is_global_zero) as advance:
        for batch in datamodule.views_dataloader(rows):
            batch = cast(EmotionBatch, move_data_to_device(batch, device))
            with trainer.precision_plugin.forward_context():
                output = run_model(model, batch if profiles is None else profiles.calibrated(batch))
            assert output.logits is not None
            values = (
                torch.cat([output.logits.float(), output.embedding.float(), mean_features(output)], dim=-1)
                .cpu()
                .numpy()
            )
            values = values.reshape(-1, datamodule.num_views, 1, values.shape[-1])
            is_silent = _lacks_audio(batch).reshape(len(values), -1).all(1).tolist()
            batch_rows = batch.row[:: datamodule.num_views].tolist()
            for row, outputs, silent in zip(batch_rows, values, is_silent, strict=True):
                if silent and contents[row]:
                    unreadable.append(row)
                else:
                    cache.write(keys[row], outputs)
            advance(len(values))
    if unreadable:
        path = datamodule.table.manifest.frame["path"].iloc[unreadable[0]]
        raise ManifestError(
            f"{len(unreadable)} recordings became unreadable while the teacher ran, such as {path}; restore them and "
            "start again: the outputs for all others are kept"
        )


def _lacks_audio(batch: EmotionBatch) -> Tensor:
    """Returns which utterances have an input for audio that is empty ``(batch,)`` bool."""
    masks = [mask for mask in (batch.audio_mask, batch.descriptors_mask) if mask is not None]
    if not masks:
        return torch.zeros(len(batch.row), dtype=torch.bool)
    return ~torch.stack([mask.any(1) for mask in masks]).any(0).cpu()
