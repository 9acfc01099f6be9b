"""One experiment as objects: data, system and trainer. A fold, a trial or a condition is a changed copy."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import Logger

from mmemo.data.clinical_study import ClinicalStudy
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.splits import Splitter
from mmemo.data.table import DataTable
from mmemo.files import write_text
from mmemo.lightning import lightning_runs
from mmemo.settings import go_offline
from mmemo.training.progress_lines import ProgressLines
from mmemo.training.recipe import Recipe, build, recipe_of
from mmemo.training.run_folder import (
    BEST,
    CONFIG_FILE,
    LAST,
    METRICS_FILE,
    MemoryTrimming,
    PredictionFiles,
    PreviousRun,
    RandomState,
    RunFiles,
    checkpoint_path,
    read_metrics,
    run_loggers,
)
from mmemo.training.system import EmotionSystem, default_monitor

TRAINER_DEFAULTS: dict[str, Any] = {
    "use_distributed_sampler": False,  # BucketSampler divides the utterances itself
    "log_every_n_steps": 10,
}
CLASSES_KEY = "model.init_args.model.init_args.classes"


@dataclass(frozen=True)
class Experiment:
    """Data, system and trainer settings of one run.

    ``fit``, ``test`` and ``predict`` work in the run folder, like the command-line verbs of these names.

    Args:
        system: Model, loss and optimizer.
        data: Manifest, split and batches.
        trainer: Arguments of ``pytorch_lightning.Trainer``, such as ``{"max_epochs": 30}``.
        folder: Run folder.
        seed: Seed of weights, dropout and augmentation.
        checkpoint: Checkpoint to test and predict with: the best by ``monitor``, or the last. With few validation
            speakers the best is mostly chance.
        monitor: Validation metric that chooses the best epoch. Defaults to ``val/uar``, or ``val/ccc`` for a model of
            dimensions.
        patience: Stop after this many epochs without an improvement. By default all epochs are trained.
        study: Clinical study that the predictions are for.
        offline: Forbid every network connection, like ``MMEMO_OFFLINE=1``; a study always does.

    Example:
        >>> from mmemo import EmotionDataModule, EmotionModel, EmotionSystem
        >>> from mmemo.models import ConvNeXtEncoder
        >>> classes = ["anger", "sadness"]
        >>> system = EmotionSystem(EmotionModel(classes, audio_encoder=ConvNeXtEncoder(hidden_dim=8)))
        >>> experiment = Experiment(system, EmotionDataModule(classes, "clips.csv"), {"max_epochs": 2})
        >>> experiment.settings()["trainer"]["max_epochs"]
        2
    """

    system: EmotionSystem
    data: EmotionDataModule
    trainer: Mapping[str, Any] = field(default_factory=dict)
    folder: Path = Path("runs/latest")
    seed: int = 0
    checkpoint: Literal["best", "last"] = "best"
    monitor: str | None = None
    patience: int | None = None
    study: ClinicalStudy | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))

    @property
    def best_metric(self) -> str:
        """Validation metric that chooses the best epoch."""
        return self.monitor or default_monitor(self.data.classes)

    @property
    def num_processes(self) -> int:
        """Number of processes that train one model."""
        return self._trainer([], False).world_size

    def settings(self) -> Recipe:
        """Returns the experiment as plain settings, in the layout of a YAML.

        Raises:
            RecipeError: A part does not keep its constructor arguments.
        """
        model = recipe_of(self.system)
        model["init_args"]["model"]["init_args"].pop("classes")  # those of the data
        return {
            "seed_everything": self.seed,
            "checkpoint": self.checkpoint,
            "monitor": self.monitor,
            "patience": self.patience,
            "study": None if self.study is None else asdict(self.study),
            "offline": self.offline,
            "model": model,
            "data": recipe_of(self.data)["init_args"],
            "trainer": {**recipe_of(dict(self.trainer)), "default_root_dir": str(self.folder)},
        }

    def fresh(self) -> Experiment:
        """Returns a copy with an untrained system, whose weights depend on the seed only."""
        recipe = recipe_of(self.system)
        trainer = copy.deepcopy(dict(self.trainer))
        seed_everything(self.seed, workers=True, verbose=False)
        return replace(self, system=build(EmotionSystem, recipe), trainer=trainer)

    def with_split(self, split: Splitter, folder: Path) -> Experiment:
        """Returns an untrained copy on another split, such as a fold of a cross-validation.

        Args:
            split: How rows are divided.
            folder: Run folder of the copy.
        """
        return replace(self, data=self.data.with_split(split), folder=folder).fresh()

    def with_fold(self, fold: int, folder: Path) -> Experiment:
        """Returns an untrained copy on a fold of the same split.

        Args:
            fold: Fold, counted from 1.
            folder: Run folder of the copy.
        """
        split = copy.deepcopy(self.data.split)
        split.fold = fold
        return self.with_split(split, folder)

    def prepared_table(self, split: Splitter | None = None) -> DataTable:
        """Returns the table that training would use, without changing anything; raises what training would raise.

        Args:
            split: Another split. Defaults to the experiment's own.
        """
        data = self.data if split is None else self.data.with_split(split)
        return data.prepare("fit", self.system.requirements, inspect_audio=False)

    def fit(self, resume: bool = False, overwrite: bool = False) -> Trainer:
        """Trains the system in place, and writes config, logs and checkpoints into the run folder.

        Args:
            resume: Continue after the last epoch of a killed run in the folder.
            overwrite: Replace a run in the folder.

        Raises:
            FileExistsError: The folder holds a run, and neither ``resume`` nor ``overwrite`` is set.
            ValueError: A resumed run was started with another number of epochs.
        """
        check_run_folder(self.folder, self.trainer, resume, overwrite)
        callbacks = fit_callbacks(self.folder, self.best_metric, self.trainer)
        previous = previous_run(self.folder, resume, self.trainer)
        if previous is not None:
            previous.set_aside()
            callbacks.append(previous)
        write_text(self.folder / CONFIG_FILE, yaml.safe_dump(self.settings(), sort_keys=False))
        trainer = self._trainer(callbacks, run_loggers(self.folder, resume))
        with lightning_runs():
            trainer.fit(self.system, datamodule=self.data, ckpt_path=str(self.folder / LAST) if resume else None)
        return trainer

    def test(self) -> dict[str, float]:
        """Tests the chosen checkpoint, and writes ``test_metrics.json``.

        Returns:
            Metric, such as ``test/uar`` -> value.

        Raises:
            FileNotFoundError: The run folder has no checkpoint.
        """
        trainer = self._trainer([], False)
        path = checkpoint_path(self.folder, self.checkpoint)
        with lightning_runs():
            trainer.test(self.system, datamodule=self.data, ckpt_path=str(path), verbose=False)
        return read_metrics(self.folder)

    def predict(
        self, rows: Literal["all", "train", "val", "test"] = "all", files: PredictionFiles | None = None
    ) -> pd.DataFrame:
        """Predicts with the chosen checkpoint, and writes the predictions.

        Args:
            rows: All rows, or those of one side of the split.
            files: Files to write.

        Returns:
            One row per utterance.

        Raises:
            FileNotFoundError: The run folder has no checkpoint.
        """
        data = copy.copy(self.data)
        data.predict_on = rows
        output = RunFiles(self.folder, files, self.study)
        trainer = self._trainer([], False, output)
        path = checkpoint_path(self.folder, self.checkpoint)
        with lightning_runs():
            trainer.predict(self.system, datamodule=data, ckpt_path=str(path), return_predictions=False)
        return output.predictions if output.predictions is not None else pd.DataFrame()

    def _trainer(
        self, callbacks: list[Callback], loggers: list[Logger] | Literal[False], files: RunFiles | None = None
    ) -> Trainer:
        if self.offline or self.study is not None:
            go_offline()
        arguments: dict[str, Any] = {**TRAINER_DEFAULTS, **self.trainer}
        for name, kind in (("callbacks", Callback), ("logger", Logger)):
            arguments[name] = _built(arguments.get(name), kind)
        own = arguments["callbacks"] or []
        standard = standard_callbacks(files or RunFiles(self.folder, None, self.study), arguments)
        if self.patience is not None:
            callbacks = [*callbacks, EarlyStopping(self.best_metric, patience=self.patience, mode="max")]
        arguments["callbacks"] = [*standard, *callbacks, *(own if isinstance(own, list) else [own])]
        if arguments["logger"] in (None, True):
            arguments["logger"] = loggers
        arguments["default_root_dir"] = str(self.folder)
        return Trainer(**arguments)


def _built(value: Any, kind: type) -> Any:
    """Builds callbacks or loggers that are given as ``class_path`` and ``init_args``."""
    if isinstance(value, list):
        return [_built(part, kind) for part in value]
    return build(kind, value) if isinstance(value, dict) and "class_path" in value else value


def standard_callbacks(files: RunFiles, trainer: Mapping[str, Any]) -> list[Callback]:
    """Returns the callbacks of every verb: result files, and a progress bar, or lines where there is no terminal."""
    if trainer.get("enable_progress_bar") is False:
        return [files]
    return [files, RichProgressBar(leave=False) if sys.stderr.isatty() else ProgressLines()]


def fit_callbacks(folder: Path, monitor: str, trainer: Mapping[str, Any]) -> list[Callback]:
    """Returns the callbacks of training: checkpoints, random state, memory.

    Args:
        folder: Run folder.
        monitor: Validation metric that chooses the best epoch.
        trainer: Arguments of the trainer.
    """
    callbacks: list[Callback] = []
    if trainer.get("enable_checkpointing") is not False:
        parent = folder / BEST.parent
        callbacks += [
            ModelCheckpoint(
                parent, filename=BEST.stem, monitor=monitor, mode="max", save_on_train_epoch_end=False,
                enable_version_counter=False,
            ),
            # Not save_last, which saves only when the best improves: a killed run would lose epochs.
            ModelCheckpoint(parent, filename=LAST.stem, save_on_train_epoch_end=True, enable_version_counter=False),
            RandomState(),
        ]  # fmt: skip
    return [*callbacks, MemoryTrimming()]


def previous_run(folder: Path, resume: bool, trainer: Mapping[str, Any]) -> PreviousRun | None:
    """Returns the callback that protects a previous run in the folder; None if there is none or it is resumed."""
    if (folder / LAST).exists() and not resume and not trainer.get("fast_dev_run"):
        return PreviousRun(folder)
    return None


def check_run_folder(folder: Path, trainer: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Checks that a run may be written into a folder.

    Args:
        folder: Run folder.
        trainer: Arguments of the trainer.
        resume: Whether the run in the folder is resumed.
        overwrite: Whether a run in the folder may be replaced.

    Raises:
        FileExistsError: The folder holds a run that would be overwritten.
        ValueError: The number of epochs is not positive, or not the one that a resumed run was started with.
    """
    epochs = trainer.get("max_epochs")
    if epochs is not None and epochs < 1 and epochs != -1:
        raise ValueError(f"trainer.max_epochs {epochs}: expected 1 or more, or -1 for no limit but patience")
    if (folder / LAST).exists() and not resume and not overwrite and not trainer.get("fast_dev_run"):
        raise FileExistsError(
            f"{folder} already holds a run; choose another trainer.default_root_dir, resume it with "
            "--ckpt_path last, or replace it with --overwrite true"
        )
    config = folder / CONFIG_FILE
    if resume and config.exists() and (folder / LAST).exists():
        started = (yaml.safe_load(config.read_text()).get("trainer") or {}).get("max_epochs")
        if started != epochs:  # the learning-rate schedule depends on it
            raise ValueError(
                f"{folder} was started with trainer.max_epochs {started}, now it is {epochs}; resume it with the same "
                "number, or start another run"
            )


__all__ = [
    "BEST", "CONFIG_FILE", "LAST", "METRICS_FILE", "Experiment", "check_run_folder", "fit_callbacks", "previous_run",
    "standard_callbacks",
]  # fmt: skip
