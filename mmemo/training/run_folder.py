"""The run folder: file names, loggers, and callbacks that write results and survive a kill."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import move_data_to_device, rank_zero_only

from mmemo.data.clinical_study import ClinicalStudy
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import shown_columns
from mmemo.data.table import DataTable
from mmemo.files import checksum, write_json, write_table, write_text
from mmemo.lightning import is_first_process
from mmemo.training.prediction import Prediction, embedding_table, gate_values, prediction_table
from mmemo.training.system import EmotionSystem
from mmemo.wording import counted

CHECKPOINTS = Path("checkpoints")
BEST = CHECKPOINTS / "best.ckpt"
LAST = CHECKPOINTS / "last.ckpt"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "test_metrics.json"
ENVIRONMENT_FILE = "environment.json"
PREDICTIONS_FILE = "predictions.csv"
PACKAGES = ("mmemo", "torch", "pytorch-lightning", "transformers", "torchmetrics", "numpy", "scikit-learn")
RESULT_FILES = (
    METRICS_FILE, ENVIRONMENT_FILE, CONFIG_FILE, "hparams.yaml", "metrics.csv", "metrics.copy", "robustness", "report",
)  # fmt: skip
"""Files and folders of a run that a new run in the same folder replaces."""


@dataclass(frozen=True)
class PredictionFiles:
    """Files that a prediction writes, each ``.csv`` or ``.parquet``.

    Args:
        predictions: One row per utterance. Defaults to ``predictions.csv`` in the run folder.
        gates: Gate values of every utterance; not written by default.
        embeddings: Fused vector of every utterance; not written by default.
        pseudo_labels: Manifest whose emotions are the predicted ones; not written by default.
        min_confidence: Probability below which a row is left out of ``pseudo_labels``, in [0, 1].
        quiet: Whether to print nothing, because the files will be moved.

    Raises:
        ValueError: ``min_confidence`` is not a probability.
    """

    predictions: str | None = None
    gates: str | None = None
    embeddings: str | None = None
    pseudo_labels: str | None = None
    min_confidence: float = 0.9
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f"min_confidence {self.min_confidence}: expected a probability, 0 to 1")


class RunFiles(Callback):
    """Writes environment, test metrics and predictions into the run folder.

    Args:
        folder: Run folder.
        files: What a prediction writes.
        study: Clinical study that the predictions are for; checked against the data before the work starts.
    """

    def __init__(self, folder: Path, files: PredictionFiles | None = None, study: ClinicalStudy | None = None) -> None:
        self.folder = folder
        self.files = files or PredictionFiles()
        self.study = study
        self.predictions = None  # the table of the last prediction
        self._study_warnings: list[str] = []
        self._batches: list[Prediction] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.study is not None:
            datamodule = _datamodule(trainer)
            self._study_warnings = check_study(self.study, datamodule.table, datamodule.allow_speaker_overlap)
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_json(self.folder / ENVIRONMENT_FILE, environment())

    def _warnings(self, trainer: Trainer, system: EmotionSystem) -> list[str]:
        return [*_datamodule(trainer).table.warnings, *self._study_warnings, *system.warnings]

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        system = cast(EmotionSystem, pl_module)
        checkpoint = Path(str(trainer.ckpt_path))
        confusion = system.test_metrics.confusion
        results = {
            "checkpoint_sha256": checksum(checkpoint) if checkpoint.is_file() else None,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "classes": list(system.model.classes),
            "confusion": None if confusion is None else confusion.tolist(),
            "calibration": system.calibration,
            "warnings": self._warnings(trainer, system),
        }
        write_json(self.folder / METRICS_FILE, results)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        kept = outputs._replace(
            gates=outputs.gates if self.files.gates else None,
            embedding=outputs.embedding if self.files.embeddings else None,
        )
        self._batches.append(move_data_to_device(kept, torch.device("cpu")))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = self._batches
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, batches)
            batches = [batch for process in gathered for batch in process]
        if trainer.is_global_zero:
            system = cast(EmotionSystem, pl_module)
            self._write_predictions(_datamodule(trainer).table, system, Prediction.joined(batches), trainer)

    def _write_predictions(
        self, table: DataTable, system: EmotionSystem, prediction: Prediction, trainer: Trainer
    ) -> None:  # fmt: skip
        model = system.model
        path = Path(self.files.predictions) if self.files.predictions else self.folder / PREDICTIONS_FILE
        warnings = self._warnings(trainer, system)
        enrolled = None if system.profiles is None else system.profiles.num_enrolled
        self.predictions = prediction_table(table, list(model.modalities), prediction, warnings, enrolled)
        write_table(path, self.predictions)
        num_without_text = table.texts().count("")
        lines = [f"Predictions of {counted(len(prediction.row), 'utterance')}: {path}"]
        if num_without_text and model.takes_text:
            lines.insert(
                0, f"{num_without_text} of {len(table.manifest)} utterances have no text; `mmemo transcribe` adds it"
            )
        if self.files.pseudo_labels:
            self._write_pseudo_labels(table, prediction, Path(self.files.pseudo_labels))
        if self.files.gates:
            gates = gate_values(table, prediction, model.feature_names, list(model.modalities), model.layer_weights)
            write_table(self.files.gates, gates)
            lines.append(f"Gate values: {self.files.gates}")
        if self.files.embeddings:
            write_table(self.files.embeddings, embedding_table(table, prediction))
            lines.append(f"Fused vectors: {self.files.embeddings}")
        if not self.files.quiet:
            print("\n".join(lines))

    def _write_pseudo_labels(self, table: DataTable, prediction: Prediction, path: Path) -> None:
        if prediction.probs is None:
            raise ValueError("pseudo labels need a model of classes; this one predicts dimensions only")
        confidence, best = prediction.probs.max(1)
        is_confident = confidence >= self.files.min_confidence
        labelled = table.manifest.subset(prediction.row[is_confident].long().numpy())
        labelled.frame["emotion"] = [table.classes[index] for index in best[is_confident].tolist()]
        labelled.frame["split"] = "train"  # predicted labels must not be used for evaluation
        if len(labelled):
            labelled.write(path)
            print(f"{len(labelled)} of {len(prediction.row)} rows with predicted labels: {path}")
        else:
            print(f"No row reaches the confidence {self.files.min_confidence:g}; lower min_confidence")


def _datamodule(trainer: Trainer) -> EmotionDataModule:
    return cast(EmotionDataModule, trainer.datamodule)  # type: ignore[attr-defined]


def check_study(study: ClinicalStudy, table: DataTable, allow_overlap: bool) -> list[str]:
    """Checks a clinical study against the data.

    Args:
        study: Outcome, participants, covariates.
        table: The data.
        allow_overlap: Whether a participant may be on two sides of the split, with a warning.

    Returns:
        Warnings that every result must carry.

    Raises:
        ValueError: An outcome is not a class, or a column does not exist.
        SplitError: A participant is on two sides of the split.
    """
    study.check(table.classes, shown_columns(table.manifest.frame, study.columns))
    return study.check_split(table.manifest, table.split, allow_overlap)


def environment() -> dict[str, Any]:
    """Returns versions and machine, which results depend on besides the files of a run."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    accelerators = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"versions": versions, "machine": ", ".join([machine, *accelerators])}


def run_loggers(folder: Path, resumes: bool) -> list[Logger]:
    """Returns CSV and TensorBoard loggers; a resumed run appends to its CSV.

    Args:
        folder: Run folder.
        resumes: Whether the run is resumed.
    """
    csv_logger = ResumableCSVLogger(str(folder), name="", version="")
    path = folder / "metrics.csv"
    versions = [file.read_text() for file in (path, _backup_of(path)) if resumes and file.exists()]
    previous = max(versions, key=len, default="")  # a kill during a write leaves one of them complete
    if previous and is_first_process():
        csv_logger.experiment.metrics_keys = previous.splitlines()[0].split(",")  # opening the logger deleted the file
        write_text(path, previous)
    return [csv_logger, TensorBoardLogger(str(folder), name="tensorboard", version="")]


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger with a backup, because it rewrites the file whenever a new metric appears."""

    @rank_zero_only
    def save(self) -> None:
        path = Path(self.experiment.metrics_file_path)
        if path.exists():
            shutil.copyfile(path, _backup_of(path))
        super().save()
        _backup_of(path).unlink(missing_ok=True)


def _backup_of(path: Path) -> Path:
    return path.with_suffix(".copy")


class PreviousRun(Callback):
    """Moves the results of a previous run aside, and restores them if the new run fails before training starts.

    Args:
        folder: Run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.aside = folder / ".previous"

    def set_aside(self) -> None:
        """Moves config, logs and results aside; checkpoints stay until there are new ones."""
        if not is_first_process():
            return
        self.aside.mkdir(exist_ok=True)
        results = [self.folder / name for name in RESULT_FILES]
        results += [*self.folder.glob("predictions.*"), *self.folder.glob("gates.*")]
        for path in results:
            if path.exists():
                _move(path, self.aside / path.name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            shutil.rmtree(self.aside, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and self.aside.exists():
            for path in self.aside.iterdir():
                _move(path, self.folder / path.name)
            self.aside.rmdir()


def _move(path: Path, target: Path) -> None:
    """Moves a file or folder, replacing what is there."""
    if target.is_dir():
        shutil.rmtree(target)
    path.replace(target)


class RandomState(Callback):
    """Stores PyTorch's random state in checkpoints, so that a resumed run continues as if it had not been killed.

    Not with several processes: their states differ, and a checkpoint holds one.
    """

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"torch": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Here, not when training starts: Lightning fetches a resumed run's first batch before that.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return
        torch.set_rng_state(state_dict["torch"].cpu())
        if state_dict["cuda"] and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])


class MemoryTrimming(Callback):
    """Returns freed memory to the system every few batches.

    Batches of many lengths leave holes in the heap that glibc keeps. Without this, fine-tuning an encoder on the CPU
    takes several times the memory that it needs.
    """

    every_n_batches = 20

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.fit_loop.batch_idx % self.every_n_batches == self.every_n_batches - 1:
            trim_memory()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trim_memory()


def trim_memory() -> None:
    """Returns freed pages of the heap to the system; does nothing where the C library is not glibc."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def read_metrics(folder: Path) -> dict[str, float]:
    """Returns the test metrics of a run, name -> value."""
    metrics: dict[str, float] = json.loads((folder / METRICS_FILE).read_text())["metrics"]
    return metrics


def checkpoint_path(folder: Path, name: str) -> Path:
    """Returns a checkpoint of a run.

    Args:
        folder: Run folder.
        name: ``best``, ``last`` or a file.

    Raises:
        FileNotFoundError: There is no such checkpoint.
    """
    names = {"best": BEST, "last": LAST}
    path = folder / names[name] if name in names else Path(name)
    if not path.is_file():
        if (folder / "fold1").is_dir() and name in names:
            raise FileNotFoundError(
                f"{folder} is a cross-validation with one model per fold; name a checkpoint, such as "
                f"{folder / 'fold1' / CHECKPOINTS / path.name}"
            )
        raise FileNotFoundError(f"{path}: no such checkpoint; run `mmemo fit` first, or name a .ckpt file")
    return path


def fold_folders(folder: Path, folds: Sequence[int] = ()) -> list[Path]:
    """Returns the run folders of a single run or of a cross-validation.

    Args:
        folder: Folder of ``mmemo fit`` or ``mmemo crossval``.
        folds: Which folds of a cross-validation. Defaults to all.

    Raises:
        ValueError: There is no run, or no such fold.
    """
    if (folder / CONFIG_FILE).is_file() and not any(folder.glob(f"fold*/{CONFIG_FILE}")):
        if folds:
            raise ValueError(f"{folder} is a single run without folds")
        return [folder]
    existing = {path.parent.name: path.parent for path in folder.glob(f"fold*/{CONFIG_FILE}")}
    seeds = sorted(path.parent.parent for path in folder.glob(f"seed*/fold1/{CONFIG_FILE}"))
    if not existing and seeds:
        raise ValueError(f"{folder} holds one cross-validation per seed; name one of them, such as {seeds[0]}")
    if not existing:
        raise ValueError(
            f"{folder}: not a run of `mmemo fit` or `mmemo crossval`; expected a folder with {CONFIG_FILE}"
        )
    wanted = [f"fold{fold}" for fold in folds] or sorted(existing, key=lambda name: int(name.removeprefix("fold")))
    missing = [name for name in wanted if name not in existing]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}, only {', '.join(sorted(existing))}")
    return [existing[name] for name in wanted]
