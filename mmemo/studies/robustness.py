"""What a trained model still recognises in noise, in rooms, on the telephone, with misheard words, and under attack."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from mmemo.audio.effects import Effect, Mp3, Noise, Reverb, Telephone, described
from mmemo.data.augmentation import Soundalikes, WordAugmentation, drawing
from mmemo.data.batch import EmotionBatch
from mmemo.data.datamodule import EmotionDataModule, Sources
from mmemo.evaluation.statistics import Interval, speaker_bootstrap, uar
from mmemo.files import checksum, write_table, write_text
from mmemo.labels import UNLABELLED
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.attacks import FGSM, PGD, Attack, Entry, heard_with, undisturbed
from mmemo.training.experiment import BEST, LAST, experiment_of
from mmemo.training.features import (
    CachedFeatures,
    Clip,
    FeatureCache,
    Waveforms,
    cache_audio,
    empty_features,
    words_of,
)
from mmemo.training.system import load_model

log = logging.getLogger(__name__)

CLEAN = "clean"
FOLDER = "robustness"
REVERB_SECONDS = 0.6  # a large living room
MP3_KBPS = 16.0


class Condition(NamedTuple):
    """One way an utterance may reach the model.

    Args:
        kind: Such as ``white``, ``telephone``, ``pgd`` or ``words``.
        strength: dB of signal to noise, or share of wrong words; NaN for a kind that has one strength alone.
        effect: Changes the waveform.
        attack: Changes the waveform against the model.
        words: Changes the transcript; ``error_rate`` nearly 1 and ``empty`` 1 leave none.
    """

    kind: str
    strength: float = float("nan")
    effect: Effect | None = None
    attack: Attack | None = None
    words: WordAugmentation | None = None

    @property
    def name(self) -> str:
        """Kind and strength in one word."""
        if np.isnan(self.strength):
            return self.kind
        return f"{self.kind} {100 * self.strength:g} %" if self.kind == "words" else f"{self.kind} {self.strength:g} dB"

    @property
    def settings(self) -> str:
        """All that it does."""
        parts = [described(part) for part in (self.effect, self.attack, self.words) if part is not None]  # type: ignore[arg-type]
        return " ".join(parts)


def conditions(
    noise_db: Sequence[float] = (20, 15, 10, 5, 0),
    attack_db: Sequence[float] = (45, 35, 25),
    word_errors: Sequence[float] = (0.1, 0.2, 0.4),
    pgd_steps: int = 20,
) -> list[Condition]:
    """All conditions of the report.

    Args:
        noise_db: Signal to noise of white, pink and brown noise, in dB.
        attack_db: The same of attacks on the waveform.
        word_errors: Shares of the words that are wrong, in (0, 1).
        pgd_steps: Steps of projected gradient descent.
    """
    found = [Condition(CLEAN)]
    for colour in ("white", "pink", "brown"):
        found += [Condition(colour, snr, Noise(colour, snr, snr)) for snr in noise_db]  # type: ignore[arg-type]
    found.append(Condition("reverberation", effect=Reverb(REVERB_SECONDS, REVERB_SECONDS)))
    found.append(Condition("telephone", effect=Telephone()))
    found.append(Condition("mp3", effect=Mp3(MP3_KBPS, MP3_KBPS)))
    found += [Condition("fgsm", snr, attack=FGSM("waveform", snr)) for snr in attack_db]
    found += [Condition("pgd", snr, attack=PGD("waveform", snr, steps=pgd_steps)) for snr in attack_db]
    found += [Condition("words", rate, words=WordAugmentation(rate, empty=0.0)) for rate in word_errors]
    found.append(Condition("no words", words=WordAugmentation(0.0, empty=1.0)))
    return found


def possible(model: EmotionModel, condition: Condition, surrogate: EmotionModel | None = None) -> str:
    """Why a model cannot be put to a condition; empty where it can.

    Args:
        model: Trained.
        condition: To be tried.
        surrogate: Model that attacks are searched against; the same when not given.
    """
    if condition.words is not None and model.encoder("text") is None:
        return "the model reads no words"
    if condition.effect is not None and not {"audio", "descriptors"} & set(model.modalities):
        return "the model does not listen"
    if condition.attack is not None:
        try:
            Entry(surrogate or model, condition.attack.level, condition.kind)
        except ValueError as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class ChangedWaveforms:
    """A source of waveforms that an effect has changed, the same each time.

    Args:
        clean: Reads the recordings.
        effect: Changes them; none leaves them.
    """

    clean: Waveforms
    effect: Effect | None

    def __call__(self, row: int, view: int) -> Tensor:
        waveform = self.clean(row, 0)
        if self.effect is None or not len(waveform):
            return waveform
        random = drawing(0, self.clean.contents[row], 1)
        return torch.from_numpy(self.effect.change(waveform.numpy(), random))


@dataclass(frozen=True)
class ChangedWords:
    """A source of token numbers of misheard words, the same each time.

    Args:
        tokenize: Text -> token numbers.
        texts: Transcript of each row.
        names: Id of each row.
        change: Changes them; none leaves them.
        soundalikes: What words are misheard as.
    """

    tokenize: Callable[[str], Tensor]
    texts: Sequence[str]
    names: Sequence[str]
    change: WordAugmentation | None
    soundalikes: Soundalikes

    def __call__(self, row: int, view: int) -> Tensor:
        text = self.texts[row]
        if self.change is not None:
            text = self.change(text, self.names[row], 1, self.soundalikes)
        return self.tokenize(text)


class Robustness(NamedTuple):
    """What a model keeps.

    Args:
        table: One row per condition: kind, strength, uar with its interval, accuracy, share of correct answers kept.
        skipped: Condition -> why the model cannot be put to it.
        reads: Whether the model reads words.
        folder: Where table, picture and JSON are.
    """

    table: pd.DataFrame
    skipped: dict[str, str]
    reads: bool
    folder: Path


def robustness(
    run: Path,
    chosen: Sequence[Condition],
    checkpoint: str | None = None,
    overrides: Sequence[str] = (),
    folds: Sequence[int] = (),
    half_precision: bool = False,
    surrogate: Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Robustness:
    """Puts a run's checkpoint, or those of all folds of a cross-validation, to all conditions on their test rows.

    Predictions are kept for each condition, so a killed report goes on where it was.

    Args:
        run: Folder of ``mmemo fit`` or ``mmemo crossval``.
        chosen: Conditions; ``clean`` is always among them.
        checkpoint: ``best``, ``last`` or a file; that of the run's config when not given.
        overrides: Options of ``mmemo fit`` that win over the run's config, such as another manifest.
        folds: Which folds of a cross-validation; all when empty.
        half_precision: Whether attacks search in bfloat16; what they found is judged in full precision.
        surrogate: Another run with the same classes (and folds), against whose model attacks are searched; the run's
            own when not given. What transfers from it shows whether a model resists, or only hides its gradient
            (Athalye et al. 2018, <https://arxiv.org/abs/1802.00420>).
        device: Where the model runs; a GPU if there is one when not given.
        progress: Whether to draw a progress bar.

    Raises:
        ValueError: The folder holds no run.
    """
    members = members_of(run, folds)
    if len(members) > 1 and checkpoint not in (None, "best", "last"):
        raise ValueError(
            f"--checkpoint {checkpoint}: {run} has a model for each fold, and the one of another fold was trained on "
            f"speakers that this one judges; give the fold's own folder, such as {members[0]}"
        )
    named = {one.name: one for one in [Condition(CLEAN), *chosen]}  # each once
    chosen = list(named.values())
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device {device!r}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda: there is no GPU here that PyTorch can use; leave --device out")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    skipped: dict[str, str] = {}
    stamps = ""
    tables: dict[str, list[pd.DataFrame]] = {}
    for member in members:
        experiment = experiment_of(member, overrides)
        path = checkpoint_of(member, checkpoint or experiment.config.checkpoint)
        model = load_model(path).to(device)
        if model.head is None:
            raise ValueError(f"{path}: robustness compares classes, and this model predicts dimensions alone")
        datamodule = experiment.datamodule
        datamodule.test_views = 1
        datamodule.setup("test")
        datamodule.refuse_empty(bool({"audio", "descriptors"} & set(model.modalities)), "text" in model.modalities)
        stamp = hashlib.sha256(path.read_bytes() + "".join(overrides).encode()).hexdigest()
        other = model
        if surrogate is not None:
            there = checkpoint_of(surrogate / member.relative_to(run), experiment.config.checkpoint)
            other = load_model(there).to(device)
            if other.classes != model.classes:
                raise ValueError(f"{surrogate} tells {list(other.classes)} apart, {run} {list(model.classes)}")
            if other.modalities.keys() != model.modalities.keys():
                raise ValueError(
                    f"{surrogate} takes {', '.join(other.modalities)}, {run} {', '.join(model.modalities)}; attacks "
                    "are carried over between models that take the same"
                )
            stamp += checksum(there)
        judge = _Judge(model, other, datamodule, torch.device(device), half_precision)
        stamp += judge.stamp()
        stamps += stamp
        for condition in chosen:
            reason = possible(model, condition, other)
            if reason:
                skipped[condition.name] = reason
                continue
            mark = hashlib.sha256(f"{stamp}{condition.settings}{half_precision}".encode()).hexdigest()[:12]
            kept = member / FOLDER / "predictions" / f"{condition.name}_{mark}.parquet"
            if not kept.exists():
                title = f"{member.name}: {condition.name}" if len(members) > 1 else condition.name
                write_table(kept, judge(condition, title, progress))
            tables.setdefault(condition.name, []).append(pd.read_parquet(kept))
    pooled = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    table = summarise(pooled, named)
    folder = run / FOLDER
    if surrogate is not None:
        folder /= f"from_{surrogate.name}"
    if folds:
        folder /= "folds_" + "_".join(map(str, folds))
    table = _with_earlier(table.assign(model=hashlib.sha256(stamps.encode()).hexdigest()[:12]), folder)
    write_table(folder / "robustness.csv", table)
    write_text(folder / "robustness.json", json.dumps(_as_json(table, skipped), indent=1))
    draw(table, folder / "robustness.png")
    return Robustness(table, skipped, "text" in model.modalities, folder)


class _Judge:
    """One model on one set of test rows, condition by condition."""

    def __init__(
        self,
        model: EmotionModel,
        surrogate: EmotionModel,
        datamodule: EmotionDataModule,
        device: torch.device,
        half_precision: bool,
    ) -> None:
        self.model = model
        self.surrogate = surrogate
        self.datamodule = datamodule
        self.device = device
        self.half_precision = half_precision
        listens = {"audio", "descriptors"} & set(model.modalities)
        contents = datamodule.inspect_audio(progress=False) if listens else []
        self.waveforms = Waveforms(list(datamodule.manifest), contents)
        self.features = {
            name: self._features(model.encoder(name)) for name in sorted(listens) if model.encoder(name).caches
        }
        self.words = words_of(datamodule, changed=False)
        self.soundalikes = datamodule.soundalikes()

    def stamp(self) -> str:
        """Checksum of what is judged: ids, labels, words and recordings of the test rows."""
        frame = self.datamodule.manifest.frame
        rows = self.datamodule.split.test
        seen = [
            (frame["id"].iat[row], int(self.datamodule.targets[row]), self.words.texts[row])
            + ((self.waveforms.contents[row],) if self.waveforms.contents else ())
            for row in rows
        ]
        return hashlib.sha256(repr(seen).encode()).hexdigest()

    def _features(self, encoder: Any) -> CachedFeatures:
        """Those of the recordings as they are, which need not be computed again for every condition of the words."""
        cache = FeatureCache(encoder.fingerprint())
        test = self.datamodule.split.test.tolist()
        clips = {
            self.waveforms.contents[row]: Clip(self.waveforms.utterances[row], content=self.waveforms.contents[row])
            for row in test
            if self.waveforms.contents[row]
        }
        cache_audio(encoder, clips, cache, self.device)
        return CachedFeatures(cache, [self.waveforms.contents], empty_features(encoder, cache, clips))

    def __call__(self, condition: Condition, title: str, progress: bool) -> pd.DataFrame:
        reader = self.model.encoder("text")
        changed = ChangedWaveforms(self.waveforms, condition.effect)
        unchanged = self.features if condition.effect is None and condition.attack is None else {}
        text = reader and ChangedWords(
            reader.tokenize, self.words.texts, self.words.names, condition.words, self.soundalikes
        )
        self.datamodule.attach(
            Sources(
                audio=unchanged.get("audio", changed) if self.model.encoder("audio") else None,
                descriptors=unchanged.get("descriptors", changed) if self.model.encoder("descriptors") else None,
                text=text or None,
            )
        )
        loader = self.datamodule.test_dataloader()
        rows, predicted, target = [], [], []
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not progress, transient=True) as bar:
            for batch in bar.track(loader, description=title, total=len(loader)):  # type: ignore[arg-type]
                batch = EmotionBatch(*(None if values is None else values.to(self.device) for values in batch))  # type: ignore[arg-type]
                output = self._attacked(batch, condition.attack) if condition.attack else self._plain(batch)
                assert output.logits is not None
                rows.append(batch.row.cpu())
                predicted.append(output.logits.argmax(1).cpu())
                target.append(batch.target.cpu())
        found = torch.cat(rows).numpy()
        frame = self.datamodule.manifest.frame.iloc[found]
        table = pd.DataFrame(
            {
                "id": frame["id"].to_numpy(),
                "speaker": frame["speaker"].fillna("").to_numpy(),
                "target": torch.cat(target).numpy(),
                "predicted": torch.cat(predicted).numpy(),
            }
        )
        return table[table["target"] != UNLABELLED].sort_values("id", ignore_index=True)

    @torch.no_grad()
    def _plain(self, batch: EmotionBatch) -> EmotionOutput:
        return _said(self.model, batch)

    def _attacked(self, batch: EmotionBatch, attack: Attack) -> EmotionOutput:
        entry = Entry(self.surrogate, attack.level)
        forward = partial(_said, self.surrogate)
        search: Any = torch.autocast(self.device.type, torch.bfloat16) if self.half_precision else nullcontext()
        with undisturbed(self.surrogate):
            torch.manual_seed(0)  # the same random start each time
            values, mask = entry.values(forward, batch)

            def losses(perturbed: Tensor) -> Tensor:
                logits = entry.run(forward, batch, perturbed - values).logits
                assert logits is not None
                return nn.functional.cross_entropy(
                    logits.float(), batch.target, ignore_index=UNLABELLED, reduction="none"
                )

            with search:
                delta = attack.search(losses, values, mask)
        with torch.no_grad():
            if attack.level == "waveform":
                return _said(self.model, heard_with(batch, delta))
            return Entry(self.model, attack.level).run(partial(_said, self.model), batch, delta)


def _said(model: EmotionModel, batch: EmotionBatch) -> EmotionOutput:
    return model(batch.audio, batch.audio_mask, batch.text, batch.text_mask, batch.descriptors, batch.descriptors_mask)


def summarise(predictions: dict[str, pd.DataFrame], named: dict[str, Condition]) -> pd.DataFrame:
    """One row per condition.

    Args:
        predictions: Condition -> id, speaker, target and predicted of each utterance.
        named: Condition -> what it is.
    """
    clean = predictions[CLEAN]
    right = (clean["target"] == clean["predicted"]).to_numpy()
    rows = []
    for name, table in predictions.items():
        assert table["id"].equals(clean["id"]), "the same utterances in each condition"
        target, predicted = table["target"].to_numpy(), table["predicted"].to_numpy()
        speakers = table["speaker"].to_numpy()

        def of(rows: np.ndarray, target: np.ndarray = target, predicted: np.ndarray = predicted) -> float:
            return uar(target[rows], predicted[rows])

        found: Interval = speaker_bootstrap(of, speakers)
        correct = target == predicted
        rows.append(
            {
                "condition": name,
                "kind": named[name].kind,
                "strength": named[name].strength,
                "uar": found.value,
                "uar_low": found.low,
                "uar_high": found.high,
                "accuracy": float(correct.mean()),
                "kept": float(correct[right].mean()) if right.any() else float("nan"),
                "num_utterances": len(table),
            }
        )
    return pd.DataFrame(rows)


def draw(table: pd.DataFrame, path: Path) -> None:
    """UAR against strength for noise, attacks and wrong words; the rest as bars.

    Args:
        table: Of :func:`robustness`.
        path: Picture to write.
    """
    from matplotlib.figure import Figure

    from mmemo.files import replacing

    table = table.assign(kind=table["kind"].replace({"no words": "words"}))
    table.loc[table["condition"] == "no words", "strength"] = 1.0
    groups = [
        ("noise", ("white", "pink", "brown"), "signal to noise, dB"),
        ("attack on the waveform", ("fgsm", "pgd"), "signal to perturbation, dB"),
        ("words", ("words",), "wrong words, share"),
        ("channel", ("reverberation", "telephone", "mp3"), ""),
    ]
    groups = [
        (title, tuple(kind for kind in kinds if (table["kind"] == kind).any()), label) for title, kinds, label in groups
    ]
    shown = [group for group in groups if group[1]]
    figure = Figure(figsize=(4.2 * max(len(shown), 1), 3.6), layout="constrained")
    clean = table[table["kind"] == CLEAN].iloc[0]
    for number, (title, kinds, label) in enumerate(shown, start=1):
        axes = figure.add_subplot(1, len(shown), number)
        axes.axhspan(100 * clean["uar_low"], 100 * clean["uar_high"], color="0.9")
        axes.axhline(100 * clean["uar"], color="0.5", linestyle="--", label="clean")
        for position, kind in enumerate(kinds):
            rows = table[table["kind"] == kind].sort_values("strength")
            if len(rows) == 0:
                continue
            spread = 100 * np.stack([rows["uar"] - rows["uar_low"], rows["uar_high"] - rows["uar"]]).clip(min=0)
            x = [position] if not label else rows["strength"]
            axes.errorbar(x, 100 * rows["uar"], spread, marker="o", capsize=3, label=kind)
        if label:
            axes.set_xlabel(label)
            axes.margins(x=0.08)
            strengths = sorted(table[table["kind"].isin(kinds)]["strength"].unique())
            axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
            if "dB" in label:
                axes.invert_xaxis()
        else:
            axes.set_xticks(range(len(kinds)), kinds)
        axes.set_title(title)
        axes.set_ylim(0, 100)
        axes.set_ylabel("UAR, per cent")
        if label:
            axes.legend(frameon=False, fontsize="small")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def _with_earlier(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Conditions that the same model was put to before stay in the report."""
    path = folder / "robustness.csv"
    if not path.exists():
        return table
    earlier = pd.read_csv(path, dtype={"model": str})
    if "model" not in earlier or set(earlier["model"]) != set(table["model"]):
        return table
    others = earlier[~earlier["condition"].isin(table["condition"])]
    return pd.concat([table, others], ignore_index=True) if len(others) else table


def _as_json(table: pd.DataFrame, skipped: dict[str, str]) -> dict[str, Any]:
    rows = json.loads(table.to_json(orient="records"))
    return {"conditions": rows, "skipped": skipped}


def members_of(run: Path, folds: Sequence[int]) -> list[Path]:
    """Folders of the single runs.

    Args:
        run: Folder of ``mmemo fit`` or ``mmemo crossval``.
        folds: Which folds of a cross-validation; all when empty.

    Raises:
        ValueError: There is no run, or no such fold.
    """
    if (run / "config.yaml").is_file():
        if folds:
            raise ValueError(f"{run} is a single run, so there are no folds to choose from")
        return [run]
    found = {path.parent.name: path.parent for path in run.glob("fold*/config.yaml")}
    seeds = sorted(path.parent.parent for path in run.glob("seed*/fold1/config.yaml"))
    if not found and seeds:
        raise ValueError(f"{run} holds several seeds, each a cross-validation; give one of them, such as {seeds[0]}")
    if not found:
        raise ValueError(
            f"{run}: no run of `mmemo fit` or `mmemo crossval` there; expected a folder that holds a config.yaml"
        )
    wanted = [f"fold{number}" for number in folds] or sorted(found, key=lambda name: int(name.removeprefix("fold")))
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ValueError(f"{run} has no {', '.join(missing)}, only {', '.join(sorted(found))}")
    return [found[name] for name in wanted]


def checkpoint_of(member: Path, name: str) -> Path:
    """A run's checkpoint.

    Args:
        member: Folder of a single run.
        name: ``best``, ``last`` or a file.
    """
    if name not in ("best", "last") and not Path(name).is_file():
        raise FileNotFoundError(f"--checkpoint {name}: expected best, last or a file that is there")
    path = member / {"best": BEST, "last": LAST}.get(name, Path(name).resolve())
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; run `mmemo fit` first, or name one with --checkpoint")
    return path
