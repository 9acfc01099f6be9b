"""One YAML -> trainer, system and data module, through LightningCLI."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd
import torch
import yaml
from jsonargparse import Namespace
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import move_data_to_device, rank_zero_only

from mmemo.data.clinical_study import Study, read_study
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.manifest import private_columns, shown_columns
from mmemo.files import checksum, write_table, write_text
from mmemo.labels import DIMENSIONS
from mmemo.settings import go_offline
from mmemo.training.parser import SentenceParser
from mmemo.training.system import EmotionSystem, Prediction, monitored, prediction_columns

for noise in (
    "isinstance.treespec",
    "Experiment logs directory",
    "The number of training batches",
    "LightningCLI's args parameter",
    "Be aware that when using `ckpt_path`",
    "does not have many workers",
    "The dirpath has changed from",
    "Total length of `list` across ranks is zero",  # num_val_speakers: 0
    "is not supported by the model summary",  # bf16-mixed
):
    warnings.filterwarnings("ignore", f".*{noise}.*")

BEST = Path("checkpoints") / "best.ckpt"
LAST = Path("checkpoints") / "last.ckpt"
ENVIRONMENT_FILE = "environment.json"
PACKAGES = ("mmemo", "torch", "pytorch-lightning", "transformers", "torchmetrics", "numpy", "scikit-learn")
METRICS_FILE = "test_metrics.json"
EMBEDDING = "embedding_"
"""What the columns of a fused vector begin with."""


class Experiment(LightningCLI):
    """LightningCLI with mmemo's defaults: a run folder with config, logs, checkpoints, metrics, predictions.

    Args:
        args: Command line without the program's name, such as ``["fit", "--config", "experiment.yaml"]``.
        run: Whether to carry out the verb that ``args`` starts with; else there is none, and the parts are
            only built.
    """

    def __init__(self, args: Sequence[str], run: bool = True) -> None:
        self._replaced: ReplacedRun | None = None
        for name in ("pytorch_lightning.utilities.rank_zero", "lightning_fabric.utilities.seed"):  # tips and adverts
            logging.getLogger(name).setLevel(logging.WARNING)
        super().__init__(
            EmotionSystem,
            EmotionDataModule,
            args=_with_study(args),
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
            parser_class=SentenceParser,
            parser_kwargs={"prog": "mmemo"},
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.classes", "model.init_args.classes")
        parser.add_argument(
            "--predictions", type=str | None, default=None, help="File that `predict` writes, .csv or .parquet."
        )
        parser.add_argument(
            "--gates", type=str | None, default=None,
            help="File that `predict` writes the gate values of every utterance to, .csv or .parquet; "
            "mmemo.evaluation.gates turns it into a table and a picture.",
        )  # fmt: skip
        parser.add_argument(
            "--embeddings", type=str | None, default=None,
            help="File that `predict` writes the fused vector of every utterance to, .csv or .parquet; `mmemo probe` "
            "says what can be read from it.",
        )  # fmt: skip
        parser.add_argument(
            "--pseudo_labels", type=str | None, default=None,
            help="Manifest that `predict` writes, in which the emotion is the predicted one: a corpus without labels, "
            "ready to be trained on.",
        )  # fmt: skip
        parser.add_argument(
            "--min_confidence", type=float, default=0.9,
            help="Probability below which a row does not get into --pseudo_labels, in [0, 1].",
        )  # fmt: skip
        parser.add_argument(
            "--checkpoint", type=Literal["best", "last"], default="best",
            help="Which checkpoint of the run `test`, `validate`, `predict` and `crossval` judge when no --ckpt_path "
            "is given: the best by --monitor, or the last; "
            "with few validation speakers the best is mostly luck.",
        )  # fmt: skip
        parser.add_argument(
            "--monitor", type=str | None, default=None,
            help="Validation metric that chooses the best epoch, such as val/weighted_f1; when not given val/uar, or "
            "val/ccc for a model of dimensions alone.",
        )  # fmt: skip
        parser.add_argument(
            "--patience", type=int | None, default=None,
            help="Let `fit` stop after this many epochs without a better --monitor; none trains all epochs.",
        )  # fmt: skip
        parser.add_argument(
            "--study", type=Study | None, default=None,
            help="What a health study asks: outcome, participants, visits, covariates, or a YAML file that says so; "
            "`mmemo report` answers.",
        )  # fmt: skip
        parser.add_argument(
            "--offline", type=bool, default=False,
            help="Open no network connection, as MMEMO_OFFLINE=1 does, whatever the environment says; a study never "
            "does.",
        )  # fmt: skip
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Let `fit` replace the run that its folder holds already."
        )

    def before_instantiate_classes(self) -> None:
        config = self._settings
        if config.offline or config.study is not None:
            go_offline()
        judging = self.subcommand in ("test", "validate", "predict")
        if judging and config.ckpt_path is None:  # never a model that was not trained
            path = Path(config.trainer.default_root_dir) / {"best": BEST, "last": LAST}[config.checkpoint]
            if not path.is_file():
                root = Path(config.trainer.default_root_dir)
                if (root / "fold1").is_dir():
                    raise FileNotFoundError(
                        f"{root} is a cross-validation, which has a model for each fold; name one with "
                        f"--ckpt_path {root / 'fold1' / BEST.parent / path.name}"
                    )
                raise FileNotFoundError(
                    f"{path}: no such checkpoint; run `mmemo fit` first, or name one with --ckpt_path"
                )
            config.ckpt_path = str(path)
        if self.subcommand == "fit":
            epochs = config.trainer.max_epochs
            if epochs is not None and epochs < 1 and epochs != -1:
                raise ValueError(f"trainer.max_epochs {epochs}: expected 1 or more, or -1 for no end but --patience")
            _check_run_folder(Path(config.trainer.default_root_dir), config)
            if config.ckpt_path == "last":
                _check_resumable(Path(config.trainer.default_root_dir) / LAST, config)

    def before_fit(self) -> None:
        if self._replaced is not None:
            self._replaced.set_aside()

    @property
    def _settings(self) -> Namespace:
        return self.config[self.subcommand] if self.subcommand else self.config

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._settings
        root = Path(config.trainer.default_root_dir)
        fitting = self.subcommand == "fit"
        if config.trainer.logger in (None, True):
            kwargs["logger"] = _loggers(root, resumes=config.ckpt_path is not None) if fitting else False
        callbacks: list[Callback] = [
            RunFolder(
                root,
                config.predictions,
                config.gates,
                config.embeddings,
                config.pseudo_labels,
                config.min_confidence,
                self._get(self.config_init, "study"),
            )
        ]
        if config.trainer.enable_progress_bar is not False and sys.stderr.isatty():
            callbacks.append(RichProgressBar(leave=False))
        chief = config.monitor or monitored(config.data.classes)
        if fitting and config.trainer.enable_checkpointing is not False:
            folder = root / BEST.parent
            once: dict[str, Any] = {"enable_version_counter": False}
            best: dict[str, Any] = {"monitor": chief, "mode": "max", "save_on_train_epoch_end": False}
            callbacks.append(ModelCheckpoint(folder, filename=BEST.stem, **best, **once))
            # Not save_last, which saves only when the best one improves: a killed run would lose epochs.
            callbacks.append(ModelCheckpoint(folder, filename=LAST.stem, save_on_train_epoch_end=True, **once))
            callbacks.append(RandomState())
        if fitting:
            callbacks.append(FreedMemory())
            if (root / LAST).exists() and config.ckpt_path is None and not config.trainer.fast_dev_run:
                self._replaced = ReplacedRun(root)  # with --overwrite: _check_run_folder has seen to that
                callbacks.append(self._replaced)
        if config.patience is not None:
            callbacks.append(EarlyStopping(chief, patience=config.patience, mode="max"))
        chosen = self._get(self.config_init, "trainer").callbacks or []
        kwargs["callbacks"] = [*callbacks, *(chosen if isinstance(chosen, list) else [chosen])]
        if not fitting:
            self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)


def experiment_of(run: Path, overrides: Sequence[str] = ()) -> Experiment:
    """The parts of a finished run, built anew from its ``config.yaml``; nothing is run.

    Args:
        run: Its folder.
        overrides: Options of ``mmemo fit`` that win over its config.
    """
    config = yaml.safe_load((run / "config.yaml").read_text())
    settings = {name: value for name, value in config.items() if name not in ("ckpt_path", "weights_only")}  # of `fit`
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(settings, file, sort_keys=False)
        file.flush()
        return Experiment(["--config", file.name, *overrides], run=False)


def environment() -> dict[str, Any]:
    """What a run's figures depend on besides its files: versions and machine."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    machine = f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"
    accelerators = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {"versions": versions, "machine": ", ".join([machine, *accelerators])}


def _with_study(args: Sequence[str]) -> list[str]:
    """A command line with the contents of the file that `--study` names in the place of its name."""
    words = [part for word in args for part in (word.split("=", 1) if word.startswith("--study=") else [word])]
    for place, word in enumerate(words[1:], 1):
        if words[place - 1] == "--study" and word.endswith((".yaml", ".yml", ".json")):
            words[place] = json.dumps(asdict(read_study(Path(word))))
    return words


def _loggers(root: Path, resumes: bool) -> list[Logger]:
    """CSV and TensorBoard logs in the run's folder; a resumed run's CSV goes on where it was."""
    csv_logger = KeptCSVLogger(str(root), name="", version="")
    path = root / "metrics.csv"
    copies = [one.read_text() for one in (path, _copy_of(path)) if resumes and one.exists()]
    before = max(copies, key=len, default="")  # a kill in the middle of a write leaves one of them whole
    if before and getattr(rank_zero_only, "rank", 0) == 0:
        csv_logger.experiment.metrics_keys = before.splitlines()[0].split(",")  # opening it deleted the file
        write_text(path, before)
    return [csv_logger, TensorBoardLogger(str(root), name="tensorboard", version="")]


class KeptCSVLogger(CSVLogger):
    """Lightning's CSV, which it empties and writes anew when a metric is new; a copy stands beside it meanwhile."""

    @rank_zero_only
    def save(self) -> None:
        path = Path(self.experiment.metrics_file_path)
        if path.exists():
            shutil.copyfile(path, _copy_of(path))
        super().save()
        _copy_of(path).unlink(missing_ok=True)


def _copy_of(path: Path) -> Path:
    return path.with_suffix(".copy")


def _check_run_folder(root: Path, config: Namespace) -> None:
    finished = (root / LAST).exists()
    if finished and not config.get("ckpt_path") and not config.overwrite and not config.trainer.fast_dev_run:
        raise FileExistsError(
            f"{root} holds a run already; choose another --trainer.default_root_dir, continue it with "
            "--ckpt_path last, or replace it with --overwrite true"
        )


def _check_resumable(path: Path, config: Namespace) -> None:
    """A learning-rate schedule knows its length, so a run goes on with the max_epochs that it began with."""
    settings = path.parent.parent / "config.yaml"
    if not path.exists() or not settings.exists():
        return
    began = yaml.safe_load(settings.read_text())["trainer"]["max_epochs"]
    if began != config.trainer.max_epochs:
        raise ValueError(
            f"{path.parent.parent} began with trainer.max_epochs {began}, now it is {config.trainer.max_epochs}; "
            "continue with the same, or begin another run"
        )


class ReplacedRun(Callback):
    """Keeps what a folder says of its run until the run that is to replace it begins to train; else puts it back.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.aside = root / ".replaced"

    def set_aside(self) -> None:
        """Moves config, logs and figures out of the way; checkpoints stay until there are others."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return
        self.aside.mkdir(exist_ok=True)
        said = (
            METRICS_FILE,
            ENVIRONMENT_FILE,
            "config.yaml",
            "hparams.yaml",
            "metrics.csv",
            "metrics.copy",
            "robustness",
            "report",
        )
        for path in (
            *(self.root / name for name in said),
            *self.root.glob("predictions.*"),
            *self.root.glob("gates.*"),
        ):
            if path.exists():
                _move(path, self.aside / path.name)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            shutil.rmtree(self.aside, ignore_errors=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and self.aside.exists():
            for path in self.aside.iterdir():
                _move(path, self.root / path.name)
            self.aside.rmdir()


def _move(path: Path, place: Path) -> None:
    """In the place of what is there."""
    if place.is_dir():
        shutil.rmtree(place)
    path.replace(place)


class RandomState(Callback):
    """Keeps PyTorch's random state in checkpoints, so that a killed run goes on as if nothing had happened.

    Not with several processes, whose states differ and of which a checkpoint has one.
    """

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {"torch": torch.get_rng_state(), "cuda": cuda}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Now, not when training starts: Lightning fetches a resumed run's first batch before that.
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return
        torch.set_rng_state(state_dict["torch"].cpu())
        if state_dict["cuda"] and len(state_dict["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["cuda"]])


class FreedMemory(Callback):
    """Gives freed memory back to the system now and then.

    Batches of all lengths leave holes in the heap that glibc keeps: fine-tuning an encoder on the CPU grew to several
    times what it needs.
    """

    every_n_batches = 20

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        if trainer.fit_loop.batch_idx % self.every_n_batches == self.every_n_batches - 1:
            give_back_memory()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        give_back_memory()


def give_back_memory() -> None:
    """Returns freed pages of the heap to the system, where the C library is glibc; elsewhere nothing happens."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class RunFolder(Callback):
    """Writes test metrics and predictions of a run as files.

    Args:
        root: The run's folder.
        predictions: File for ``predict``, .csv or .parquet; ``ROOT/predictions.csv`` when not given.
        gates: File for the gate values; not written when not given.
        embeddings: File for the fused vectors; not written when not given.
        pseudo_labels: File for a manifest labelled by the predictions; not written when not given.
        min_confidence: Probability below which a row is not labelled so, in [0, 1].
        study: What the predictions shall answer, which is checked before the work.
    """

    def __init__(
        self,
        root: Path,
        predictions: str | None = None,
        gates: str | None = None,
        embeddings: str | None = None,
        pseudo_labels: str | None = None,
        min_confidence: float = 0.9,
        study: Study | None = None,
    ) -> None:
        if not 0.0 <= min_confidence <= 1.0:
            raise ValueError(f"--min_confidence {min_confidence}: expected a probability, 0 to 1")
        self.root = root
        self.gates = Path(gates) if gates else None
        self.embeddings = Path(embeddings) if embeddings else None
        self.predictions = Path(predictions) if predictions else root / "predictions.csv"
        self.pseudo_labels = Path(pseudo_labels) if pseudo_labels else None
        self.min_confidence = min_confidence
        self.study = study
        self._parts: list[Prediction] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.study is not None:
            datamodule = trainer.datamodule  # type: ignore[attr-defined]
            self.study.check(datamodule.classes, shown_columns(datamodule.manifest.frame, self.study.columns))
            overlap = datamodule.allow_speaker_overlap
            datamodule.warnings += self.study.check_split(datamodule.manifest, datamodule.split, overlap)
        if stage == "fit" and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_text(self.root / ENVIRONMENT_FILE, json.dumps(environment(), indent=1))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, EmotionSystem)
        judged = Path(str(trainer.ckpt_path))
        results = {
            "checkpoint_sha256": checksum(judged) if judged.is_file() else None,
            "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
            "classes": list(pl_module.model.classes),
            "confusion": None if pl_module.confusion is None else pl_module.confusion.tolist(),
            "warnings": getattr(trainer.datamodule, "warnings", []),  # type: ignore[attr-defined]
        }
        write_text(self.root / METRICS_FILE, json.dumps(results, indent=1))

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts = []

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        kept = outputs._replace(
            gates=outputs.gates if self.gates else None, embedding=outputs.embedding if self.embeddings else None
        )
        self._parts.append(move_data_to_device(kept, torch.device("cpu")))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = self._parts
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, parts)
            parts = [part for process in gathered for part in process]
        if not trainer.is_global_zero:
            return
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        model = cast(EmotionSystem, pl_module).model
        merged = merge(parts)
        write_table(self.predictions, prediction_table(datamodule, list(model.modalities), merged))
        wordless = int((datamodule.manifest.frame["text"].fillna("").str.strip() == "").sum())
        if wordless and model.encoder("text") is not None:
            print(f"{wordless} of {len(datamodule.manifest)} utterances have no words; `mmemo transcribe` writes them")
        print(f"Predictions of {len(merged.row)} utterances: {self.predictions}")
        if self.pseudo_labels is not None:
            if merged.probs is None:
                raise ValueError("--pseudo_labels needs a model of classes; this one predicts dimensions alone")
            confidence, best = merged.probs.max(1)
            sure = confidence >= self.min_confidence
            labelled = datamodule.manifest.subset(merged.row[sure].long().numpy())
            labelled.frame["emotion"] = [datamodule.classes[number] for number in best[sure].tolist()]
            labelled.frame["split"] = "train"  # such labels are no evidence
            if len(labelled):
                labelled.write(self.pseudo_labels)
                print(f"{len(labelled)} of {len(merged.row)} rows labelled as predicted: {self.pseudo_labels}")
            else:
                print(f"No row is predicted with {self.min_confidence:g} or more; lower --min_confidence")
        if self.gates is not None:
            assert merged.gates is not None
            table = pd.DataFrame(merged.gates.float().numpy(), columns=model.feature_names)
            if merged.modality_weights is not None:
                names = [f"{modality}/weight/0" for modality in model.modalities]
                table = table.join(pd.DataFrame(merged.modality_weights.float().numpy(), columns=names))
            table = table.assign(**{name: float(weight) for name, weight in model.layer_weights.items()})
            ids = datamodule.manifest.frame[["id", "emotion"]].iloc[merged.row.long().numpy()].reset_index(drop=True)
            write_table(self.gates, pd.concat([ids, table], axis="columns"))
            print(f"Gate values: {self.gates}")
        if self.embeddings is not None:
            write_table(self.embeddings, embedding_table(datamodule, merged))
            print(f"Fused vectors: {self.embeddings}")


def merge(parts: Sequence[Prediction]) -> Prediction:
    """Predictions of several batches as one, in the order of the manifest.

    Args:
        parts: Of all batches, in any order.
    """
    order = torch.cat([part.row for part in parts]).argsort()
    columns = zip(*parts, strict=True)
    joined: list[Any] = [None if values[0] is None else torch.cat(values)[order] for values in columns]
    return Prediction(*joined)


def prediction_table(
    datamodule: EmotionDataModule, modalities: Sequence[str], prediction: Prediction
) -> pd.DataFrame:  # fmt: skip
    """One row per utterance: who and what, the likeliest emotion, every class's probability, the dimensions.

    Args:
        datamodule: Whose rows were predicted.
        modalities: Those of the model, in its order.
        prediction: Of all of them.
    """
    rows = datamodule.manifest.frame.iloc[prediction.row.long().numpy()]
    table = rows[["id", "speaker", "emotion"]].reset_index(drop=True)
    sides = datamodule.sides()
    table.insert(2, "side", [sides.get(row, "") for row in prediction.row.tolist()])  # train rows are no evidence
    if prediction.probs is not None:
        confidence, best = prediction.probs.max(1)
        table["predicted"] = [datamodule.classes[number] for number in best.tolist()]
        table["confidence"] = confidence.numpy()
    if prediction.dimensions is not None:
        table[list(DIMENSIONS)] = rows[list(DIMENSIONS)].to_numpy()
    if datamodule.warnings:
        table["warning"] = "; ".join(datamodule.warnings)
    columns = prediction_columns(datamodule.classes, modalities, prediction)
    numbers = {name: values.float().numpy() for name, values in columns.items()}
    return pd.concat([table, pd.DataFrame(numbers)], axis="columns")


def embedding_table(datamodule: EmotionDataModule, prediction: Prediction) -> pd.DataFrame:
    """One row per utterance: all that the manifest says of it but its words and where its audio is, side, vector.

    Args:
        datamodule: Whose rows were predicted.
        prediction: Of all of them.
    """
    assert prediction.embedding is not None
    frame = datamodule.manifest.frame.iloc[prediction.row.long().numpy()].reset_index(drop=True)
    frame = frame.drop(columns=private_columns(datamodule.manifest.frame)).dropna(axis="columns", how="all")
    sides = datamodule.sides()
    vectors = prediction.embedding.float().numpy()
    numbers = pd.DataFrame(vectors, columns=[f"{EMBEDDING}{number}" for number in range(vectors.shape[1])])
    side = pd.Series([sides.get(row, "") for row in prediction.row.tolist()], name="side")
    return pd.concat([frame, side, numbers], axis="columns")
