"""Losses that training minimises.

A loss takes a model's output and the batch it was computed from, and returns a scalar: the mean over the utterances
that have the required label, or 0 if none has. ``required_labels`` names those labels (``emotion``, ``votes``,
``dimensions``), which decides the rows that training can use. ``trained_heads`` names the heads that the loss trains.
:class:`WeightedSum` and :class:`UncertaintyWeighted` combine several losses. The distillation losses compare a student
with its teacher instead; their ``knowledge`` names the output that they compare.
"""

from mmemo.losses.combined import UncertaintyWeighted, WeightedSum, set_class_counts
from mmemo.losses.distillation import DistillationLoss, FeatureHints, Knowledge, RelationalDistances, SoftenedLogits
from mmemo.losses.supervised import (
    BalancedSoftmax,
    CCCLoss,
    CrossEntropy,
    FocalLoss,
    Loss,
    ModelOutput,
    SoftLabels,
    SupervisedContrastive,
    Targets,
)

__all__ = [
    "BalancedSoftmax", "CCCLoss", "CrossEntropy", "DistillationLoss", "FeatureHints", "FocalLoss", "Knowledge",
    "Loss", "ModelOutput",
    "RelationalDistances", "SoftLabels", "SoftenedLogits", "SupervisedContrastive", "Targets", "UncertaintyWeighted",
    "WeightedSum", "set_class_counts",
]  # fmt: skip
