"""Where data and models meet: the system, cached features, fine-tuning strategies, the experiment."""

from mmemo.training.finetuning import Full, LastBlocks, LinearProbeFirst, LoRA, ProgressiveUnfreezing

__all__ = ["Full", "LastBlocks", "LinearProbeFirst", "LoRA", "ProgressiveUnfreezing"]
