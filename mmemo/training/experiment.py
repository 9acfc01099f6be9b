"""One YAML -> trainer, system and data module, through LightningCLI."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities import move_data_to_device

from mmemo.data.datamodule import EmotionDataModule
from mmemo.training.system import EmotionSystem, Prediction, prediction_columns

for noise in (
    "isinstance.treespec",
    "Experiment logs directory",
    "The number of training batches",
    "LightningCLI's args parameter",
    "Be aware that when using `ckpt_path`",
    "does not have many workers",
):
    warnings.filterwarnings("ignore", f".*{noise}.*")

BEST = Path("checkpoints") / "best.ckpt"
LAST = Path("checkpoints") / "last.ckpt"
METRICS_FILE = "test_metrics.json"


class Experiment(LightningCLI):
    """LightningCLI with mmemo's defaults: a run folder with config, logs, checkpoints, metrics, predictions.

    Args:
        args: Command line without the program's name, such as ``["fit", "--config", "experiment.yaml"]``.
        run: Whether to carry out the verb that ``args`` starts with; else there is none, and the parts are
            only built.
    """

    def __init__(self, args: Sequence[str], run: bool = True) -> None:
        logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)  # tips and adverts
        super().__init__(
            EmotionSystem,
            EmotionDataModule,
            args=list(args),
            run=run,
            subclass_mode_model=True,
            seed_everything_default=0,
            trainer_defaults={
                "use_distributed_sampler": False,  # BucketSampler divides the utterances itself
                "default_root_dir": "runs/latest",
                "log_every_n_steps": 10,
            },
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"prog": "mmemo"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.classes", "model.init_args.classes")
        parser.add_argument(
            "--predictions", type=str | None, default=None, help="File that `predict` writes, .csv or .parquet."
        )
        parser.add_argument(
            "--checkpoint", type=Literal["best", "last"], default="best",
            help="Which checkpoint `crossval` judges: the best by val/uar, or the last, at the end of an annealed "
            "schedule; with few validation speakers the best is mostly luck.",
        )  # fmt: skip
        parser.add_argument(
            "--patience", type=int | None, default=None,
            help="Stop after this many epochs without a better val/uar; none trains all epochs.",
        )  # fmt: skip
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Let `fit` replace the run that its folder holds already."
        )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand] if self.subcommand else self.config
        root = Path(config.trainer.default_root_dir)
        if self.subcommand == "fit":
            _check_run_folder(root, config)
        if config.trainer.logger in (None, True) and self.subcommand == "fit":
            kwargs["logger"] = [
                CSVLogger(str(root), name="", version=""),
                TensorBoardLogger(str(root), name="", version="tensorboard"),
            ]
        elif config.trainer.logger is None:
            kwargs["logger"] = False
        extra: list[Callback] = [RunFolder(root, config.predictions)]
        if config.trainer.enable_progress_bar is not False and sys.stderr.isatty():
            extra.append(RichProgressBar(leave=False))
        if self.subcommand == "fit" and config.trainer.enable_checkpointing is not False:
            folder = root / BEST.parent
            once: dict[str, Any] = {
                "enable_version_counter": False,
                "save_on_train_epoch_end": False,
            }  # after validation
            extra.append(ModelCheckpoint(folder, filename=BEST.stem, monitor="val/uar", mode="max", **once))
            # Not save_last, which saves only when the best one improves: a killed run would lose epochs.
            extra.append(ModelCheckpoint(folder, filename=LAST.stem, **once))
        if config.patience is not None:
            extra.append(EarlyStopping("val/uar", patience=config.patience, mode="max"))
        kwargs["callbacks"] = [*extra, *(kwargs.get("callbacks") or [])]
        if self.subcommand != "fit":
            self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)


def _check_run_folder(root: Path, config: Namespace) -> None:
    finished = (root / LAST).exists()
    if finished and not config.get("ckpt_path") and not config.overwrite and not config.trainer.fast_dev_run:
        raise FileExistsError(
            f"{root} holds a run already; choose another --trainer.default_root_dir, continue it with "
            "--ckpt_path last, or replace it with --overwrite true"
        )


class RunFolder(Callback):
    """Writes test metrics and predictions of a run as files.

    Args:
        root: The run's folder.
        predictions: File for ``predict``, .csv or .parquet; ``ROOT/predictions.csv`` when not given.
    """

    def __init__(self, root: Path, predictions: str | None = None) -> None:
        self.root = root
        self.predictions = Path(predictions) if predictions else root / "predictions.csv"
        self._parts: list[Prediction] = []

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, EmotionSystem)
        results = {
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "classes": list(pl_module.model.classes),
            "confusion": pl_module.confusion.tolist(),
            "warnings": getattr(trainer.datamodule, "warnings", []),  # type: ignore[attr-defined]
        }
        write_text(self.root / METRICS_FILE, json.dumps(results, indent=1))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        self._parts.append(move_data_to_device(outputs, torch.device("cpu")))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = self._parts
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for process in gathered for part in process]
        if not trainer.is_global_zero:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        write_table(self.predictions, prediction_table(datamodule, parts))
        print(f"Predictions of {sum(len(part.row) for part in parts)} utterances: {self.predictions}")


def prediction_table(datamodule: EmotionDataModule, parts: Sequence[Prediction]) -> pd.DataFrame:
    """One row per utterance: who and what, the likeliest emotion, and every class's probability.

    Args:
        datamodule: Whose rows were predicted.
        parts: Predictions of all batches, in any order.
    """

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)[order]

    order = torch.cat([part.row for part in parts]).argsort()
    merged = Prediction(joined("row"), joined("probs"), joined("audio_probs"), joined("text_probs"))
    rows = datamodule.manifest.frame.iloc[merged.row.long().numpy()]
    confidence, best = merged.probs.max(1)
    table = rows[["id", "speaker", "emotion"]].reset_index(drop=True)
    table["predicted"] = [datamodule.classes[number] for number in best.tolist()]
    table["confidence"] = confidence.numpy()
    probs = {name: values.numpy() for name, values in prediction_columns(datamodule.classes, merged).items()}
    return pd.concat([table, pd.DataFrame(probs)], axis="columns")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Writes .csv or .parquet by the file's ending; nobody ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".parquet":
            table.to_parquet(partial, index=False)
        else:
            table.to_csv(partial, index=False)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file; nobody ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)
