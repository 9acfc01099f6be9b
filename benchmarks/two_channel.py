"""Two-channel corpus: audio and text together against each alone, on the union and on each half.

    python benchmarks/two_channel.py              # finished runs are kept

Writes both manifests with Whisper's transcripts, and fine-tunes MiniLM on the training split of GoEmotions
(`configs/goemotions_minilm.yaml`; it contains no sentence of the spoken dev and test clips). Then trains
`configs/two_channel.yaml` with each gate and each fusion. The one with the best dev UAR is the fused model, and is also
trained on each half alone. Every result is that of the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import pandas as pd
import torch
import yaml
from record import HERE, corpus, record
from sklearn.metrics import recall_score, roc_auc_score

from mmemo.cli.app import main as mmemo
from mmemo.data.corpora.goemotions import goemotions
from mmemo.data.corpora.table import table
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment

RUN = HERE.parent / "runs" / "bench_two_channel"
CONFIG = HERE.parent / "configs" / "two_channel.yaml"
TEXT_CONFIG = HERE.parent / "configs" / "goemotions_minilm.yaml"
BACKBONE = RUN / "minilm-goemotions"
FUSIONS = {
    "concatenation": {"class_path": "mmemo.models.Concatenation"},
    "late fusion": {"class_path": "mmemo.models.LateFusion", "init_args": {"num_logits": 7}},
    "gated multimodal unit": {
        "class_path": "mmemo.models.GatedMultimodalUnit",
        "init_args": {"hidden_dim": 128, "per_feature": True},
    },
    "modality gate": None,  # as in the config
    "cross-modal attention": {"class_path": "mmemo.models.CrossModalAttention"},
    "attention bottleneck": {"class_path": "mmemo.models.AttentionBottleneck"},
    "low-rank": {"class_path": "mmemo.models.LowRankFusion"},
}
GATES = {
    "no gate": None,  # as in the config
    "sigmoid": {"class_path": "mmemo.models.FeatureGate"},
    "hard concrete": {"class_path": "mmemo.models.HardConcreteGate"},
    "variable selection": {"class_path": "mmemo.models.VariableSelection"},
}


def make_manifests() -> dict[str, Path]:
    """Writes the manifests of both halves with Whisper's transcripts, once."""
    paths = {name: RUN / f"{name}.csv" for name in ("ravdess", "spoken")}
    acted = read_manifest(make_acted_manifest()).frame
    acted["split"] = acted["speaker"].map(split_of_actors()).fillna("train")
    spoken = table(
        corpus("spoken_words") / "spoken_words.csv",
        columns={"path": "file", "split": "split", "emotion": "emotion", "text": "text"},
        constants={"language": "en"},
        values={"emotion": {"joy": "happiness"}, "split": {"dev": "val"}},
    )
    spoken["speaker"] = spoken["id"]  # the synthetic voice is independent of the label
    if not paths["ravdess"].exists():
        Manifest(acted, make_acted_manifest()).write(paths["ravdess"])
    if not paths["spoken"].exists():
        untranscribed = RUN / "spoken_untranscribed.csv"
        Manifest(spoken, untranscribed).write(untranscribed)
        assert mmemo(["transcribe", str(untranscribed), "--language", "en", "--out", str(paths["spoken"])]) == 0
    comments = read_manifest(make_comments_manifest()).frame
    held_out = set(spoken.loc[spoken["split"] != "train", "id"])
    assert not held_out & set(comments.loc[comments["split"] == "train", "id"])
    return paths


def split_of_actors() -> dict[str, str]:
    """Returns the test and validation actors with their split; all other actors are training speakers."""
    folds = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str).set_index("fold")["test_actors"].str.split()
    return {actor: side for fold, side in (("1", "test"), ("2", "test"), ("3", "val")) for actor in folds[fold]}


def make_trimmed_manifest() -> Path:
    """Writes the manifest of RAVDESS without the silence around each clip, once."""
    path = RUN / "acted_untranscribed.csv"
    if not path.exists():
        assert mmemo(["corpus", "ravdess", str(corpus("ravdess")), "--out", str(path), "--trim-db", "35"]) == 0
    return path


def make_acted_manifest() -> Path:
    """Writes the manifest of trimmed RAVDESS with Whisper's transcripts, once."""
    path = RUN / "acted.csv"
    if not path.exists():
        assert mmemo(["transcribe", str(make_trimmed_manifest()), "--language", "en", "--out", str(path)]) == 0
    return path


def make_comments_manifest() -> Path:
    """Writes the manifest of GoEmotions, once."""
    path = RUN / "goemotions.csv"
    if not path.exists():
        Manifest(goemotions(corpus("goemotions")), path).write(path)
    return path


def make_text_backbone() -> None:
    """Fine-tunes MiniLM on GoEmotions and saves it as a model folder, once."""
    run = RUN / "goemotions_minilm"
    if not (BACKBONE / "config.json").exists():
        if not (run / "finished").exists():
            resume = ["--ckpt_path", "last"] if (run / "checkpoints/last.ckpt").exists() else []
            settings = ["--data.manifest", str(make_comments_manifest()), "--trainer.default_root_dir", str(run)]
            ExperimentCLI(["fit", "--config", str(TEXT_CONFIG), *settings, *resume])
            (run / "finished").touch()
        assert mmemo(["backbone", str(run / "checkpoints/last.ckpt"), "--out", str(BACKBONE)]) == 0


def train(name: str, changes: dict[str, object], paths: dict[str, Path], halves: tuple[str, ...], on: str) -> Path:
    """Trains the config with some parts changed, unless a finished run exists; returns its predictions.

    Args:
        name: Name of the run.
        changes: Part of the model -> its class and settings; None removes the part.
        paths: Half -> its manifest.
        halves: Halves of the corpus to train on.
        on: Split to predict, ``val`` or ``test``.
    """
    run = RUN / name.replace(" ", "_")
    config = yaml.safe_load(CONFIG.read_text())
    config["trainer"]["default_root_dir"] = str(run)
    config["data"]["corpora"] = [
        {"manifest": str(paths[half]), "name": half, "label_map": {"calm": None} if half == "ravdess" else {}}
        for half in halves
    ]
    config["data"]["predict_on"] = on
    parts = config["model"]["init_args"]["model"]["init_args"]
    parts["text_encoder"]["init_args"]["model_id"] = str(BACKBONE)
    for part, value in changes.items():
        parts[part] = value
    run.mkdir(parents=True, exist_ok=True)
    path = run / "experiment.yaml"
    text = yaml.safe_dump(config, sort_keys=False)
    finished = run / "finished"
    if finished.exists() and finished.read_text() != text.replace(f"predict_on: {on}", ""):
        finished.unlink()  # this run was trained with another config
    path.write_text(text)
    if not finished.exists():
        ExperimentCLI(["fit", "--config", str(path), "--overwrite", "true"])
        finished.write_text(text.replace(f"predict_on: {on}", ""))
    predictions = run / f"{on}.csv"
    if predictions.exists() and predictions.stat().st_mtime > finished.stat().st_mtime:
        return predictions
    ExperimentCLI(["predict", "--config", str(path), "--predictions", str(predictions)])
    return predictions


def uar_by_half(predictions: pd.DataFrame) -> dict[str, float]:
    """Returns the UAR in percent on the union and on each half."""
    columns = [name for name in predictions if name.startswith("prob_")]
    predicted = predictions[columns].idxmax(axis="columns").str.removeprefix("prob_")
    halves = predictions["id"].str.split("/").str[0]
    assert set(halves) <= {"ravdess", "spoken"}
    uar = {"union": 100 * recall_score(predictions["emotion"], predicted, average="macro")}
    for half in halves.unique():
        rows = halves == half
        uar[half] = 100 * recall_score(predictions.loc[rows, "emotion"], predicted[rows], average="macro")
    return {name: round(float(value), 2) for name, value in uar.items()}


def measure_size(name: str) -> tuple[int, float]:
    """Returns the number of trained parameters, and the milliseconds per clip from cached features, without batching.

    Args:
        name: Name of the run.
    """
    model = read_experiment(RUN / name.replace(" ", "_") / "experiment.yaml").system.model.eval()
    audio, text = torch.randn(1, 3, 40, 512), torch.randn(1, 1, 16, 384)
    audio_mask, text_mask = torch.ones(1, 40, dtype=torch.bool), torch.ones(1, 16, dtype=torch.bool)
    with torch.inference_mode():
        for number in range(60):
            if number == 10:  # the first rounds are a warm-up
                started = time.perf_counter()
            model(audio, audio_mask, text, text_mask)
    milliseconds = 1000 * (time.perf_counter() - started) / 50
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad), milliseconds


def draw_gate(predictions: pd.DataFrame, path: Path) -> None:
    """Draws how the modality gate weights the audio in each half."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3))
    axes = figure.subplots()
    halves = predictions["id"].str.split("/").str[0]
    for half, label in (
        ("ravdess", "emotion in the voice (RAVDESS)"),
        ("spoken", "emotion in the words (spoken words)"),
    ):
        axes.hist(predictions.loc[halves == half, "weight_audio"], bins=40, range=(0, 1), alpha=0.7, label=label)
    axes.set_xlabel("weight of the voice")
    axes.set_ylabel("test clips")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    paths = make_manifests()
    make_text_backbone()
    both = ("ravdess", "spoken")

    parts = [("fusion", name, value) for name, value in FUSIONS.items()]
    parts += [("gate", name, value) for name, value in GATES.items() if value is not None]
    rows, changes_of = [], {}
    for part, name, value in parts:
        changes: dict[str, object] = {} if value is None else {part: value}
        if name == "late fusion":
            changes["head"] = {"class_path": "mmemo.models.NoHead"}
        changes_of[name] = changes
        dev_uar = uar_by_half(pd.read_csv(train(name, changes, paths, both, "val")))["union"]
        test_uar = uar_by_half(pd.read_csv(train(name, changes, paths, both, "test")))
        num_parameters, milliseconds = measure_size(name)
        row = {
            "part": part,
            "name": name,
            "uar_dev": dev_uar,
            **{f"uar_{half}": value for half, value in test_uar.items()},
        }
        rows.append(row | {"parameters": num_parameters, "milliseconds": round(milliseconds, 2)})
        print(rows[-1], flush=True)

    best = str(max(rows, key=lambda row: float(str(row["uar_dev"])))["name"])  # dev UAR only
    uar = {"fused": uar_by_half(pd.read_csv(train(best, changes_of[best], paths, both, "test")))}
    concatenation = {"fusion": FUSIONS["concatenation"]}
    for name, removed in (("audio", "text_encoder"), ("text", "audio_encoder")):
        changes = {**concatenation, removed: None}
        uar[name] = uar_by_half(pd.read_csv(train(f"{name} alone", changes, paths, both, "test")))
    for half in both:
        half_predictions = train(f"only {half} {best}", changes_of[best], paths, (half,), "test")
        uar[f"only_{half}"] = uar_by_half(pd.read_csv(half_predictions))
    better_alone = max(uar["audio"]["union"], uar["text"]["union"])
    gated = pd.read_csv(train("modality gate", {}, paths, both, "test"))
    gate_auc = float(roc_auc_score(gated["id"].str.startswith("ravdess/"), gated["weight_audio"]))
    values: dict[str, object] = {
        "chosen_on_dev": best,
        "gain_over_better_alone": round(uar["fused"]["union"] - better_alone, 2),
        "gate_auc": round(gate_auc, 4),
    }
    for half in both:
        values[f"fused_minus_only_{half}"] = round(uar["fused"][half] - uar[f"only_{half}"][half], 2)
    for name, halves in uar.items():
        for half, value in halves.items():
            values[f"uar_{name}" if half == "union" else f"uar_{name}_{half}"] = value
    values["table"] = rows
    (HERE / "pictures").mkdir(exist_ok=True)
    draw_gate(gated, HERE / "pictures" / "two_channel_gate.png")
    record("two_channel", values)


if __name__ == "__main__":
    main()
