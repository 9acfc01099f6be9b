"""Robustness: UAR of a trained model in noise, rooms and channels, with wrong words, and under attack."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule
from mmemo.data.dataset import Sources
from mmemo.evaluation.statistics import speaker_bootstrap, uar
from mmemo.files import checksum, write_json, write_table
from mmemo.labels import UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.models.encoder import Encoder
from mmemo.progress import track
from mmemo.studies.charts import draw_robustness
from mmemo.studies.conditions import CLEAN, ChangedTranscripts, ChangedWaveforms, Condition, reason_to_skip
from mmemo.training.attacks import Attack, PerturbationPoint, add_to_waveform, evaluation_gradients
from mmemo.training.experiment import Experiment
from mmemo.training.feature_cache import FeatureCache
from mmemo.training.features import CachedFeatures, Clip, Waveforms, cache_audio, empty_features, transcripts_of
from mmemo.training.forward import run_model
from mmemo.training.loading import load_model
from mmemo.training.run_folder import checkpoint_path
from mmemo.training.speakers import SpeakerProfiles, speaker_profiles

FOLDER = "robustness"


@dataclass(frozen=True)
class Robustness:
    """Results under all conditions.

    Args:
        table: One row per condition: kind, strength, UAR with its interval, accuracy, and the share of correct answers
            that stay correct.
        skipped: Condition -> why it does not apply to the model.
        takes_text: Whether the model has a text encoder.
        folder: Folder with table, picture and JSON.
    """

    table: pd.DataFrame
    skipped: dict[str, str]
    takes_text: bool
    folder: Path


@dataclass(frozen=True)
class RobustnessSettings:
    """How a model is evaluated.

    Args:
        checkpoint: ``best``, ``last`` or a file. Defaults to the experiment's own choice.
        half_precision: Search attacks in bfloat16; what they find is evaluated in full precision.
        device: ``cpu`` or ``cuda``. Defaults to a GPU if there is one.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There is no such device.

    Example:
        >>> RobustnessSettings(checkpoint="last", device="cpu").torch_device
        device(type='cpu')
    """

    checkpoint: str | None = None
    half_precision: bool = False
    device: str | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"device {self.device!r}: expected cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: PyTorch finds no GPU; remove device")

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def robustness(
    runs: Sequence[Experiment],
    conditions: Sequence[Condition],
    folder: str | Path,
    surrogates: Sequence[Experiment] = (),
    settings: RobustnessSettings | None = None,
) -> Robustness:
    """Evaluates a trained run, or all folds of a cross-validation, on their test rows under all conditions.

    Predictions are stored for each condition, so a killed evaluation can be resumed.

    Args:
        runs: Experiments whose folders hold checkpoints: one, or the folds of a cross-validation.
        conditions: Conditions; ``clean`` is always among them.
        folder: Folder for the results.
        surrogates: Other runs, one per run, against whose models attacks are searched. Attacks that transfer show
            whether a model is robust or only hides its gradient (Athalye et al. 2018,
            <https://arxiv.org/abs/1802.00420>). Defaults to the runs themselves.
        settings: How the models are evaluated.

    Raises:
        ValueError: There are no runs, the model predicts dimensions only, or a surrogate does not fit.
        FileNotFoundError: A run has no checkpoint.
    """
    if not runs:
        raise ValueError('runs is empty; expected experiments such as mmemo.read_runs("runs/my_run") returns')
    folder = Path(folder)
    settings = settings or RobustnessSettings()
    if len(runs) > 1 and settings.checkpoint not in (None, "best", "last"):
        raise ValueError(
            f"checkpoint {settings.checkpoint}: the run has one model per fold, and another fold's model was trained "
            f"on this fold's test speakers; name the folder of one fold, such as {runs[0].folder}"
        )
    by_name = {condition.name: condition for condition in [Condition(CLEAN), *conditions]}
    skipped: dict[str, str] = {}
    keys = ""
    tables: dict[str, list[pd.DataFrame]] = {}
    for index, run in enumerate(runs):
        evaluator = _evaluator(run, surrogates[index] if surrogates else None, settings)
        keys += evaluator.key
        for condition in by_name.values():
            reason = reason_to_skip(evaluator.model, condition, evaluator.surrogate)
            if reason:
                skipped[condition.name] = reason
                continue
            path = evaluator.path(condition)
            if not path.exists():
                title = f"{run.folder.name}: {condition.name}" if len(runs) > 1 else condition.name
                write_table(path, evaluator(condition, title))
            tables.setdefault(condition.name, []).append(pd.read_parquet(path))
    pooled = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    table = summarise(pooled, by_name).assign(model=hashlib.sha256(keys.encode()).hexdigest()[:12])
    table = _with_previous(table, folder)
    write_table(folder / "robustness.csv", table)
    write_json(
        folder / "robustness.json", {"conditions": json.loads(table.to_json(orient="records")), "skipped": skipped}
    )
    draw_robustness(table, folder / "robustness.png")
    return Robustness(table, skipped, evaluator.model.takes_text, folder)


def _evaluator(run: Experiment, surrogate: Experiment | None, settings: RobustnessSettings) -> _Evaluator:
    """Loads the models of a run and its surrogate, and prepares the test rows."""
    path = checkpoint_path(run.folder, settings.checkpoint or run.checkpoint)
    device = settings.torch_device
    model = load_model(path).to(device)
    if model.head is None:
        raise ValueError(f"{path}: robustness compares classes, but this model predicts dimensions only")
    key = checksum(path)
    other = model
    if surrogate is not None:
        other_path = checkpoint_path(surrogate.folder, run.checkpoint)
        other = load_model(other_path).to(device)
        if other.classes != model.classes:
            raise ValueError(
                f"{surrogate.folder}: its classes are {list(other.classes)}, those of {run.folder} are "
                f"{list(model.classes)}"
            )
        if other.modalities.keys() != model.modalities.keys():
            raise ValueError(
                f"{surrogate.folder} takes {', '.join(other.modalities)}, {run.folder} {', '.join(model.modalities)}; "
                "attacks transfer only between models with the same inputs"
            )
        key += checksum(other_path)
    data = run.data.with_split(run.data.split)
    data.test_views = 1
    data.setup("test", run.system.requirements)
    return _Evaluator(model, other, data, settings, run.folder, key)


class _Evaluator:
    """Evaluates one model on one set of test rows, condition by condition."""

    def __init__(
        self,
        model: EmotionModel,
        surrogate: EmotionModel,
        datamodule: EmotionDataModule,
        settings: RobustnessSettings,
        folder: Path,
        key: str,
    ) -> None:
        self.model = model
        self.surrogate = surrogate
        self.datamodule = datamodule
        self.settings = settings
        self.device = settings.torch_device
        self.folder = folder
        table = datamodule.table
        self.waveforms = Waveforms(list(table.manifest), table.contents)
        encoders = {name: model.encoder(name) for name in model.modalities if name != "text"}
        self.features = {name: self._features(encoder) for name, encoder in encoders.items() if encoder.caches}
        self.transcripts = transcripts_of(datamodule, augmented=False)
        self.soundalikes = table.soundalikes()
        self.key = key + self._rows_key()

    def _rows_key(self) -> str:
        """Returns a checksum of ids, labels, transcripts and recordings of the test rows."""
        table = self.datamodule.table
        content = [
            (
                self.transcripts.ids[row],
                int(table.targets.emotion[row]),
                self.transcripts.texts[row],
                table.contents[row] if self.model.takes_audio else "",
            )
            for row in table.split.test
        ]
        if self.model.speaker_norms:  # a prediction also depends on the speaker's other utterances
            speakers = table.manifest.frame[["speaker", "session"]].iloc[table.split.test].to_numpy().tolist()
            return hashlib.sha256(repr((content, speakers, vars(self.datamodule.enrolment))).encode()).hexdigest()
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def path(self, condition: Condition) -> Path:
        """Returns the file of the predictions under a condition."""
        content = f"{self.key}{condition.settings}{self.settings.half_precision}"
        key = hashlib.sha256(content.encode()).hexdigest()[:12]
        return self.folder / FOLDER / "predictions" / f"{condition.name}_{key}.parquet"

    def _features(self, encoder: Encoder) -> CachedFeatures:
        """Returns features of the unchanged recordings, which conditions of the words share."""
        cache = FeatureCache(encoder.fingerprint())
        contents = self.waveforms.contents
        clips = {
            contents[row]: Clip(self.waveforms.utterances[row], content=contents[row])
            for row in self.datamodule.table.split.test.tolist()
            if contents[row]
        }
        cache_audio(encoder, clips, cache, self.device)
        return CachedFeatures(cache, [contents], empty_features(encoder, cache, clips))

    def __call__(self, condition: Condition, title: str) -> pd.DataFrame:
        """Returns id, speaker, target and prediction of each labelled test row."""
        self.datamodule.attach(self._sources(condition))
        profiles = self._profiles()
        loader = self.datamodule.test_dataloader()
        rows, predicted, target = [], [], []
        for batch in track(loader, title, len(loader), self.settings.progress):
            batch = EmotionBatch(*(None if values is None else values.to(self.device) for values in batch))  # type: ignore[arg-type]
            batch = batch if profiles is None else profiles.calibrated(batch)
            output = self._attacked(batch, condition.attack) if condition.attack else self._plain(batch)
            assert output.logits is not None
            rows.append(batch.row.cpu())
            predicted.append(output.logits.argmax(1).cpu())
            target.append(batch.target.cpu())
        frame = self.datamodule.table.manifest.frame.iloc[torch.cat(rows).numpy()]
        table = pd.DataFrame(
            {
                "id": frame["id"].to_numpy(),
                "speaker": frame["speaker"].fillna("").to_numpy(),
                "target": torch.cat(target).numpy(),
                "predicted": torch.cat(predicted).numpy(),
            }
        )
        return table[table["target"] != UNLABELLED].sort_values("id", ignore_index=True)

    def _profiles(self) -> SpeakerProfiles | None:
        """Returns what calibrates the model to the test speakers, from recordings changed by the condition."""
        if not self.model.speaker_norms:
            return None
        forward = partial(run_model, self.model)
        return speaker_profiles(self.datamodule, self.model, forward, self.datamodule.table.split.test)

    def _sources(self, condition: Condition) -> Sources:
        changed = ChangedWaveforms(self.waveforms, condition.effect)
        unchanged = self.features if condition.effect is None and condition.attack is None else {}
        encoder = self.model.encoder("text")
        text = None
        if encoder is not None:
            transcripts = self.transcripts
            text = ChangedTranscripts(
                encoder.tokenize, transcripts.texts, transcripts.ids, condition.words, self.soundalikes
            )
        return Sources(
            audio=unchanged.get("audio", changed) if self.model.encoder("audio") else None,
            descriptors=unchanged.get("descriptors", changed) if self.model.encoder("descriptors") else None,
            text=text,
        )

    @torch.no_grad()
    def _plain(self, batch: EmotionBatch) -> EmotionOutput:
        return run_model(self.model, batch)

    def _attacked(self, batch: EmotionBatch, attack: Attack) -> EmotionOutput:
        point = PerturbationPoint(self.surrogate, attack.level)
        forward = partial(run_model, self.surrogate)
        is_half = self.settings.half_precision
        precision: Any = torch.autocast(self.device.type, torch.bfloat16) if is_half else nullcontext()
        with evaluation_gradients(self.surrogate):
            torch.manual_seed(0)  # the same random start each time
            searched = batch if self.surrogate is self.model else batch.uncalibrated()
            values, mask = point.values(forward, searched)

            def losses(perturbed: Tensor) -> Tensor:
                logits = point.run(forward, searched, perturbed - values).logits
                assert logits is not None
                return nn.functional.cross_entropy(
                    logits.float(), batch.target, ignore_index=UNLABELLED, reduction="none"
                )

            with precision:
                delta = attack.search(losses, values, mask)
        with torch.no_grad():
            if attack.level == "waveform":
                return run_model(self.model, add_to_waveform(batch, delta))
            return PerturbationPoint(self.model, attack.level).run(partial(run_model, self.model), batch, delta)


def summarise(predictions: Mapping[str, pd.DataFrame], conditions: Mapping[str, Condition]) -> pd.DataFrame:
    """Returns one row per condition.

    Args:
        predictions: Condition -> id, speaker, target and prediction of each utterance.
        conditions: Name -> condition.
    """
    clean = predictions[CLEAN]
    is_correct_clean = (clean["target"] == clean["predicted"]).to_numpy()
    rows = []
    for name, table in predictions.items():
        assert table["id"].equals(clean["id"]), "every condition has the same utterances"
        target, predicted = table["target"].to_numpy(), table["predicted"].to_numpy()

        def metric(rows: np.ndarray, target: np.ndarray = target, predicted: np.ndarray = predicted) -> float:
            return uar(target[rows], predicted[rows])

        interval = speaker_bootstrap(metric, table["speaker"].to_numpy())
        is_correct = target == predicted
        rows.append(
            {
                "condition": name,
                "kind": conditions[name].kind,
                "strength": conditions[name].strength,
                "uar": interval.value,
                "uar_low": interval.low,
                "uar_high": interval.high,
                "accuracy": float(is_correct.mean()),
                "kept": float(is_correct[is_correct_clean].mean()) if is_correct_clean.any() else float("nan"),
                "num_utterances": len(table),
            }
        )
    return pd.DataFrame(rows)


def _with_previous(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Adds the conditions under which the same model was evaluated before."""
    path = folder / "robustness.csv"
    if not path.exists():
        return table
    previous = pd.read_csv(path, dtype={"model": str})
    if "model" not in previous or set(previous["model"]) != set(table["model"]):
        return table
    others = previous[~previous["condition"].isin(table["condition"])]
    return pd.concat([table, others], ignore_index=True) if len(others) else table
