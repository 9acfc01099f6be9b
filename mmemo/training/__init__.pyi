from .adversarial import TRADES, AdversarialTraining, DomainAdversarial, FreeLB, VirtualAdversarial
from .attacks import FGM, FGSM, PGD
from .closed_form import ClosedFormSystem
from .distillation import DistillationSystem
from .experiment import Experiment
from .experiment_cli import read_experiment
from .finetuning import Full, LastBlocks, LinearProbeFirst, LoRA, LowRank, ProgressiveUnfreezing

__all__ = [
    "FGM",
    "FGSM",
    "PGD",
    "TRADES",
    "AdversarialTraining",
    "ClosedFormSystem",
    "DistillationSystem",
    "DomainAdversarial",
    "Experiment",
    "FreeLB",
    "Full",
    "LastBlocks",
    "LinearProbeFirst",
    "LoRA",
    "LowRank",
    "ProgressiveUnfreezing",
    "VirtualAdversarial",
    "read_experiment",
]
