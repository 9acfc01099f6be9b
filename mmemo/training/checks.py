"""Whether the parts of a system fit together, checked when it is built."""

from __future__ import annotations

from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.losses import Loss
from mmemo.models.emotion_model import EmotionModel


def check_heads(model: EmotionModel, loss: nn.Module) -> None:
    """Checks that the loss trains every head of the model, and only those.

    Raises:
        ValueError: The loss is not one, a head is not trained, or the loss trains a head that the model does not have.
    """
    name = type(loss).__name__
    if not isinstance(loss, Loss):
        raise ValueError(f"{name} is not a loss: it needs required_labels and trained_heads, as those of mmemo.losses")
    trained = set(loss.trained_heads)
    heads = " and ".join(sorted(trained)) or "no head"
    if model.head is not None and "classes" not in trained:
        raise ValueError(
            f"the model predicts classes, but loss {name} trains {heads}; combine it with a loss of classes in "
            "mmemo.losses.WeightedSum, or set data.classes: []"
        )
    if model.head is None and "classes" in trained:
        raise ValueError(f"loss {name} trains classes, but data.classes is empty; name the classes, or use CCCLoss")
    if (model.dimension_head is None) != ("dimensions" not in trained):
        has, lacks = ("a dimension_head", "loss") if model.dimension_head else ("no dimension_head", "model")
        raise ValueError(
            f"the model has {has} and loss {name} trains {heads}; change the {lacks}: weight classes and dimensions "
            "with mmemo.losses.WeightedSum or UncertaintyWeighted"
        )


def check_mixup(model: EmotionModel, reads_raw_text: bool) -> None:
    """Checks that mixup can mix the model's inputs: token ids cannot be mixed.

    Args:
        model: Model to be trained.
        reads_raw_text: Whether text comes as token ids instead of cached features.

    Raises:
        ValueError: The text encoder starts from token ids.
    """
    encoder = model.encoder("text")
    if encoder is not None and (reads_raw_text or not encoder.caches):
        raise ValueError(
            "mixup mixes features, but this text encoder is trained or attacked from its token ids, which cannot be "
            "mixed; set mixup: 0, text_finetuning LastBlocks, or level text_features"
        )


def check_mixing(modality_dropout: float, mixup: float) -> None:
    """Checks the ranges of a system's settings that change its training batches.

    Raises:
        ValueError: A setting is out of range.
    """
    if not 0.0 <= modality_dropout <= 0.5:
        raise ValueError(f"modality_dropout={modality_dropout}, expected 0 to 0.5")
    if mixup < 0:
        raise ValueError(f"mixup={mixup}, expected 0 or more")


def check_finite(loss: Tensor, epoch: int, batch: EmotionBatch, data: EmotionDataModule | None) -> None:
    """Checks that the training loss is a number.

    Args:
        loss: Scalar.
        epoch: Current epoch, from 0.
        batch: The batch, ``row (batch,)``.
        data: Data module that names its utterances; None if they have only row numbers.

    Raises:
        FloatingPointError: The loss is infinite or NaN.
    """
    if not loss.isfinite():
        rows = batch.row.tolist()[:5]
        ids = list(map(str, rows)) if data is None else data.table.ids(rows)
        raise FloatingPointError(
            f"the training loss became {float(loss):g} in epoch {epoch + 1} on utterances {', '.join(ids)}, ...; "
            "lower the optimizer's lr, or set trainer.gradient_clip_val: 1"
        )
