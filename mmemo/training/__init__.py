"""Where data and models meet: the system, cached features, fine-tuning strategies, the experiment."""

from mmemo.training.adversarial import TRADES, AdversarialTraining, DomainAdversarial, FreeLB, VirtualAdversarial
from mmemo.training.attacks import FGM, FGSM, PGD
from mmemo.training.distillation import DistillationSystem
from mmemo.training.finetuning import Full, LastBlocks, LinearProbeFirst, LoRA, LowRank, ProgressiveUnfreezing

__all__ = [
    "FGM", "FGSM", "PGD", "TRADES", "AdversarialTraining", "DistillationSystem", "DomainAdversarial", "FreeLB",
    "Full", "LastBlocks", "LinearProbeFirst", "LoRA", "LowRank", "ProgressiveUnfreezing", "VirtualAdversarial",
]  # fmt: skip
