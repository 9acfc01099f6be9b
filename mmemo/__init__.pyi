from .data.datamodule import EmotionDataModule
from .export.analysis import analyze
from .export.onnx import export_onnx
from .export.runtime import Recognizer
from .models.emotion_model import EmotionModel
from .report.report import write_report
from .studies.crossval import crossval
from .studies.explanations import explain
from .studies.robustness import robustness
from .studies.tuning import tune
from .training.experiment import Experiment
from .training.experiment_cli import read_experiment, read_runs
from .training.loading import load_model
from .training.system import EmotionSystem

__version__: str
__all__ = [
    "EmotionDataModule",
    "EmotionModel",
    "EmotionSystem",
    "Experiment",
    "Recognizer",
    "analyze",
    "crossval",
    "explain",
    "export_onnx",
    "load_model",
    "read_experiment",
    "read_runs",
    "robustness",
    "tune",
    "write_report",
]
