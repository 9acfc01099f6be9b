"""YAML -> experiment, through LightningCLI: the typed constructors are the schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from mmemo.data.clinical_study import ClinicalStudy, read_clinical_study
from mmemo.data.datamodule import EmotionDataModule
from mmemo.files import read_yaml
from mmemo.settings import go_offline
from mmemo.training.experiment import (
    CLASSES_KEY,
    TRAINER_DEFAULTS,
    Experiment,
    check_run_folder,
    fit_callbacks,
    previous_run,
    standard_callbacks,
)
from mmemo.training.recipe import RecipeError, check_arguments, check_classes, innermost
from mmemo.training.run_folder import (
    CONFIG_FILE,
    LAST,
    PredictionFiles,
    PreviousRun,
    RunFiles,
    checkpoint_path,
    fold_folders,
    run_loggers,
)
from mmemo.training.system import EmotionSystem, default_monitor

FIT_ONLY = (
    "ckpt_path",
    "weights_only",
    "overwrite",
    "predictions",
    "gates",
    "embeddings",
    "pseudo_labels",
    "min_confidence",
)
"""Settings of a command that do not belong to an experiment."""


class ExperimentCLI(LightningCLI):
    """LightningCLI with mmemo's defaults: a run folder with config, logs, checkpoints, metrics and predictions.

    Args:
        args: Command line without the program's name, such as ``["fit", "--config", "experiment.yaml"]``, or the
            settings of an experiment.
        run: Whether to run the verb that ``args`` starts with. Otherwise only the parts are built, without a trainer.
    """

    def __init__(self, args: Sequence[str] | Mapping[str, Any], run: bool = True) -> None:
        self._previous: PreviousRun | None = None
        self._run = run
        super().__init__(
            EmotionSystem,
            EmotionDataModule,
            args=dict(args) if isinstance(args, Mapping) else list(args),
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            trainer_defaults={**TRAINER_DEFAULTS, "default_root_dir": "runs/latest"},
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "mmemo", "exit_on_error": False},
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for name, settings in _given_settings(args):
            try:
                check_classes(settings)
                check_arguments(EmotionDataModule, settings.get("data") or {}, "data")
                check_arguments(Trainer, settings.get("trainer") or {}, "trainer")
            except RecipeError as error:
                raise RecipeError(f"{name}{error}") from None
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.classes", CLASSES_KEY)
        parser.add_argument(
            "--predictions", type=str | None, default=None,
            help="File that `predict` writes, .csv or .parquet. Defaults to predictions.csv in the run folder.",
        )  # fmt: skip
        parser.add_argument(
            "--gates", type=str | None, default=None,
            help="File for the gate values of every utterance, .csv or .parquet, written by `predict`.",
        )  # fmt: skip
        parser.add_argument(
            "--embeddings", type=str | None, default=None,
            help="File for the fused vector of every utterance, .csv or .parquet, written by `predict`; see `mmemo "
            "probe`.",
        )  # fmt: skip
        parser.add_argument(
            "--pseudo_labels", type=str | None, default=None,
            help="Manifest that `predict` writes with the predicted emotions as labels, to train on an unlabelled "
            "corpus.",
        )  # fmt: skip
        parser.add_argument(
            "--min_confidence", type=float, default=0.9,
            help="Probability below which a row is left out of --pseudo_labels, in [0, 1].",
        )  # fmt: skip
        parser.add_argument(
            "--checkpoint", type=Literal["best", "last"], default="best",
            help="Checkpoint that `test`, `validate`, `predict` and `crossval` use without --ckpt_path: the best by "
            "--monitor, or the last. With few validation speakers the best is mostly chance.",
        )  # fmt: skip
        parser.add_argument(
            "--monitor", type=str | None, default=None,
            help="Validation metric that chooses the best epoch, such as val/weighted_f1. Defaults to val/uar, or "
            "val/ccc for a model of dimensions.",
        )  # fmt: skip
        parser.add_argument(
            "--patience", type=int | None, default=None,
            help="Stop `fit` after this many epochs without an improvement. By default all epochs are trained.",
        )  # fmt: skip
        parser.add_argument(
            "--study", type=ClinicalStudy | str | None, default=None,
            help="Clinical study: outcome, participants, visits, covariates; or a YAML file that holds them. `mmemo "
            "report` evaluates it.",
        )  # fmt: skip
        parser.add_argument(
            "--offline", type=bool, default=False,
            help="Forbid every network connection, like MMEMO_OFFLINE=1. A study is always offline.",
        )  # fmt: skip
        parser.add_argument("--overwrite", type=bool, default=False, help="Let `fit` replace a run in its folder.")

    @property
    def _settings(self) -> Namespace:
        return self.config[self.subcommand] if self.subcommand else self.config

    @property
    def study(self) -> ClinicalStudy | None:
        """The clinical study, read from its file if the settings name one."""
        study = self._get(self.config_init, "study")
        return read_clinical_study(Path(study)) if isinstance(study, str) else study

    @property
    def _folder(self) -> Path:
        return Path(self._settings.trainer.default_root_dir)

    def before_instantiate_classes(self) -> None:
        settings = self._settings
        if self.subcommand in ("test", "validate"):
            self._shows_metrics, settings.verbose = settings.verbose, False  # Lightning would print 16 digits
        if settings.offline or settings.study is not None:
            go_offline()
        if self.subcommand in ("test", "validate", "predict") and settings.ckpt_path is None:
            settings.ckpt_path = str(checkpoint_path(self._folder, settings.checkpoint))  # never an untrained model
        if self.subcommand == "fit":
            resume = settings.ckpt_path is not None
            check_run_folder(
                self._folder, settings.trainer, resume and settings.ckpt_path == "last", settings.overwrite or resume
            )
            if settings.ckpt_path == "last":
                settings.ckpt_path = str(self._folder / LAST) if (self._folder / LAST).exists() else None

    def before_fit(self) -> None:
        if self._previous is not None:
            self._previous.set_aside()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._settings
        if not self._run:
            return None  # type: ignore[return-value]  # an experiment builds its trainer when it runs
        fitting = self.subcommand == "fit"
        trainer = settings.trainer
        if trainer.logger in (None, True):
            kwargs["logger"] = run_loggers(self._folder, settings.ckpt_path is not None) if fitting else False
        files = PredictionFiles(
            settings.predictions, settings.gates, settings.embeddings, settings.pseudo_labels, settings.min_confidence
        )
        callbacks = standard_callbacks(RunFiles(self._folder, files, self.study), trainer)
        monitor = settings.monitor or default_monitor(settings.data.classes)
        if fitting:
            callbacks += fit_callbacks(self._folder, monitor, trainer)
            self._previous = previous_run(self._folder, settings.ckpt_path is not None, trainer)
            callbacks += [self._previous] if self._previous is not None else []
        else:
            self.save_config_callback = None
        if settings.patience is not None:
            from pytorch_lightning.callbacks import EarlyStopping

            callbacks.append(EarlyStopping(monitor, patience=settings.patience, mode="max"))
        own = self._get(self.config_init, "trainer").callbacks or []
        kwargs["callbacks"] = [*callbacks, *(own if isinstance(own, list) else [own])]
        return super().instantiate_trainer(**kwargs)

    def after_test(self) -> None:
        if self._shows_metrics:
            print_metrics(self.trainer.callback_metrics, self.model.calibration)

    after_validate = after_test

    @property
    def experiment(self) -> Experiment:
        """The parsed experiment."""
        settings = self._settings
        trainer = settings.trainer.as_dict()
        folder = trainer.pop("default_root_dir")
        seed = settings.seed_everything
        return Experiment(
            system=self.model, data=self.datamodule, trainer=trainer, folder=Path(folder),
            seed=0 if seed in (None, True) else int(seed), checkpoint=settings.checkpoint, monitor=settings.monitor,
            patience=settings.patience, study=self.study, offline=settings.offline,
        )  # fmt: skip


@rank_zero_only
def print_metrics(metrics: Mapping[str, Tensor], calibration: str = "") -> None:
    """Prints metric -> value with four decimals, and how the model was calibrated to speakers."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value")
    for name, value in metrics.items():
        table.add_row(name, f"{float(value):.4f}")
    Console().print(table)
    if calibration:
        print(calibration[0].upper() + calibration[1:])


def _given_settings(args: Sequence[str] | Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the settings of each YAML of a command line with its name, or the settings themselves."""
    if isinstance(args, Mapping):
        return [("", args)]
    words = [part for word in args for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    files = [Path(words[index + 1]) for index, word in enumerate(words[:-1]) if word in ("--config", "-c")]
    return [(f"{path}: ", read_settings(path)) for path in files]


def read_settings(path: Path) -> dict[str, Any]:
    """Reads the settings of a YAML file.

    Raises:
        ValueError: There is no such file, or it is not a YAML of settings.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, expected the YAML of an experiment")
    return read_yaml(path)


def read_experiment(config: str | Path, changes: Mapping[str, Any] | None = None) -> Experiment:
    """Reads an experiment from its YAML, or from the ``config.yaml`` of a run.

    Args:
        config: YAML file, or run folder.
        changes: Settings that replace those of the YAML, such as ``{"trainer.max_epochs": 5}``.

    Raises:
        ValueError: There is no such file, or a setting does not fit.

    Example:
        >>> import tempfile
        >>> import yaml
        >>> parts = {"audio_encoder": {"class_path": "mmemo.models.ConvNeXtEncoder"}}
        >>> model = {"class_path": "mmemo.EmotionModel", "init_args": parts}
        >>> settings = {
        ...     "model": {"class_path": "mmemo.EmotionSystem", "init_args": {"model": model}},
        ...     "data": {"manifest": "clips.csv", "classes": ["anger", "sadness"]},
        ... }
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/audio.yaml").write_text(yaml.safe_dump(settings))
        ...     read_experiment(f"{folder}/audio.yaml", {"data.batch_size": 8}).data.batch_size
        8
    """
    path = Path(config)
    path = path / CONFIG_FILE if path.is_dir() else path
    return build_experiment(changed_settings(read_settings(path), changes or {}), str(path))


def build_experiment(settings: Mapping[str, Any], name: str = "experiment") -> Experiment:
    """Builds an experiment from settings in the layout of a YAML.

    Args:
        settings: Nested settings.
        name: File that they come from, for the error message.

    Raises:
        ValueError: A setting does not fit its class, or a class cannot be imported.
    """
    from jsonargparse import ArgumentError

    kept = {key: value for key, value in settings.items() if key not in FIT_ONLY}
    try:
        return ExperimentCLI(kept, run=False).experiment
    except (ArgumentError, ValueError) as error:
        raise ValueError(f"{name}: {innermost(error)}") from None


def change_experiment(experiment: Experiment, changes: Mapping[str, Any]) -> Experiment:
    """Returns an experiment with other settings; the original is not changed.

    Args:
        experiment: The original.
        changes: Settings, such as ``{"model.init_args.mixup": 0.2}``.

    Raises:
        ValueError: A setting does not exist or does not fit.
    """
    return build_experiment(changed_settings(experiment.settings(), changes)) if changes else experiment


def changed_settings(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of nested settings with some values replaced.

    Args:
        settings: Nested dictionaries.
        changes: Dotted key -> value. A class path replaces a whole part; its ``init_args`` are kept only if the class
            stays the same.

    Example:
        >>> changed_settings({"data": {"split": "a.Split"}}, {"data.split.init_args.fold": 2})
        {'data': {'split': {'class_path': 'a.Split', 'init_args': {'fold': 2}}}}
    """
    result: dict[str, Any] = {key: _copied(value) for key, value in settings.items()}
    for key, value in changes.items():
        *parents, last = key.split(".")
        parent = result
        for name in parents:
            inner = parent.get(name)
            if isinstance(inner, str):
                inner = {"class_path": inner}
            parent[name] = inner = inner if isinstance(inner, dict) else {}
            parent = inner
        previous = parent.get(last)
        if isinstance(previous, dict) and previous.get("class_path") == value:
            continue
        parent[last] = value
    return result


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(part) for key, part in value.items()}
    return [_copied(part) for part in value] if isinstance(value, list) else value


def read_runs(
    folder: str | Path, folds: Sequence[int] = (), changes: Mapping[str, Any] | None = None
) -> list[Experiment]:
    """Reads the experiment of a finished run, or those of all folds of a cross-validation.

    Args:
        folder: Folder of ``mmemo fit`` or ``mmemo crossval``.
        folds: Which folds of a cross-validation. Defaults to all.
        changes: Settings that replace the stored ones, such as another ``data.manifest``.

    Raises:
        ValueError: There is no run, or no such fold.
    """
    runs = []
    for run in fold_folders(Path(folder), folds):
        experiment = read_experiment(run, changes)
        runs.append(replace(experiment, folder=run))  # the folder may have been moved
    return runs
