"""The two-channel corpus: voice and words together against each alone, on the union and on each half.

    python benchmarks/two_channel.py              # what is there already is kept

Makes both manifests with Whisper's transcripts and tunes MiniLM on GoEmotions' training split
(`configs/goemotions_minilm.yaml`: no sentence of the spoken dev and test clips is in it). Then trains
`configs/two_channel.yaml` with every gate and fusion in turn; the one that is best on dev is the fused model, and is
also trained on each half alone. Last checkpoints are judged.
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

from mmemo.cli.main import main as mmemo
from mmemo.data.corpora.goemotions import goemotions
from mmemo.data.corpora.table import table
from mmemo.data.manifest import Manifest, read_manifest
from mmemo.training.experiment import Experiment

RUN = HERE.parent / "runs" / "bench_two_channel"
CONFIG = HERE.parent / "configs" / "two_channel.yaml"
TEXT_CONFIG = HERE.parent / "configs" / "goemotions_minilm.yaml"
BACKBONE = RUN / "minilm-goemotions"
PARTS = "model.init_args.model.init_args"
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


def manifests() -> dict[str, Path]:
    """Both halves with Whisper's words; made once."""
    paths = {name: RUN / f"{name}.csv" for name in ("ravdess", "spoken")}
    frame = read_manifest(acted_manifest()).frame  # without its silence, with Whisper's words
    frame["split"] = frame["speaker"].map(sides()).fillna("train")
    spoken = table(
        corpus("spoken_words") / "spoken_words.csv",
        columns={"path": "file", "split": "split", "emotion": "emotion", "text": "text"},
        constants={"language": "en"},
        values={"emotion": {"joy": "happiness"}, "split": {"dev": "val"}},
    )
    spoken["speaker"] = spoken["id"]  # voices carry no label
    if not paths["ravdess"].exists():
        Manifest(frame, acted_manifest()).write(paths["ravdess"])
    if not paths["spoken"].exists():
        read = Manifest(spoken, RUN / "spoken_untranscribed.csv").write(RUN / "spoken_untranscribed.csv")
        assert mmemo(["transcribe", str(read), "--language", "en", "--out", str(paths["spoken"])]) == 0
    comments = read_manifest(comments_manifest()).frame
    judged = set(spoken.loc[spoken["split"] != "train", "id"])
    assert not judged & set(comments.loc[comments["split"] == "train", "id"])
    return paths


def sides() -> dict[str, str]:
    """Actors who test or validate, and which; the others train."""
    folds = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str).set_index("fold")["test_actors"].str.split()
    return {actor: side for fold, side in (("1", "test"), ("2", "test"), ("3", "val")) for actor in folds[fold]}


def trimmed_manifest() -> Path:
    """RAVDESS without its silence; made once."""
    path = RUN / "acted_untranscribed.csv"
    if not path.exists():
        assert mmemo(["corpus", "ravdess", str(corpus("ravdess")), "--out", str(path), "--trim_db", "35"]) == 0
    return path


def acted_manifest() -> Path:
    """RAVDESS without its silence, with Whisper's words; made once."""
    heard = RUN / "acted.csv"
    if not heard.exists():
        assert mmemo(["transcribe", str(trimmed_manifest()), "--language", "en", "--out", str(heard)]) == 0
    return heard


def comments_manifest() -> Path:
    """GoEmotions as it comes; made once."""
    path = RUN / "goemotions.csv"
    if not path.exists():
        Manifest(goemotions(corpus("goemotions")), path).write(path)
    return path


def text_backbone() -> None:
    """MiniLM tuned on GoEmotions, as a model folder; made once."""
    run = RUN / "goemotions_minilm"
    if not (BACKBONE / "config.json").exists():
        if not (run / "finished").exists():
            resume = ["--ckpt_path", "last"] if (run / "checkpoints/last.ckpt").exists() else []
            settings = ["--data.manifest", str(comments_manifest()), "--trainer.default_root_dir", str(run)]
            Experiment(["fit", "--config", str(TEXT_CONFIG), *settings, *resume])
            (run / "finished").touch()
        assert mmemo(["backbone", str(run / "checkpoints/last.ckpt"), "--out", str(BACKBONE)]) == 0


def train(name: str, changes: dict[str, object], paths: dict[str, Path], halves: tuple[str, ...], on: str) -> Path:
    """Fits the config with some parts changed, unless that is done; predicts one side of the split."""
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
    file = run / "experiment.yaml"
    text = yaml.safe_dump(config, sort_keys=False)
    done = run / "finished"
    if done.exists() and done.read_text() != text.replace(f"predict_on: {on}", ""):
        done.unlink()  # another config than the one that was trained
    file.write_text(text)
    if not done.exists():
        Experiment(["fit", "--config", str(file), "--overwrite", "true"])
        done.write_text(text.replace(f"predict_on: {on}", ""))
    predictions = run / f"{on}.csv"
    if predictions.exists() and predictions.stat().st_mtime > done.stat().st_mtime:
        return predictions
    Experiment(["predict", "--config", str(file), "--predictions", str(predictions)])
    return predictions


def uar(predictions: pd.DataFrame, view: str = "") -> dict[str, float]:
    """UAR in per cent on the union and on each half."""
    columns = [name for name in predictions if name.startswith(f"{view}prob_")]
    said = predictions[columns].idxmax(axis="columns").str.removeprefix(f"{view}prob_")
    halves = predictions["id"].str.split("/").str[0]
    assert set(halves) <= {"ravdess", "spoken"}
    scores = {"union": 100 * recall_score(predictions["emotion"], said, average="macro")}
    for half in halves.unique():
        rows = halves == half
        scores[half] = 100 * recall_score(predictions.loc[rows, "emotion"], said[rows], average="macro")
    return {name: round(float(score), 2) for name, score in scores.items()}


def cost(name: str) -> tuple[int, float]:
    """Trained parameters, and milliseconds per clip from cached features, one clip at a time."""
    cli = Experiment(["--config", str(RUN / name.replace(" ", "_") / "experiment.yaml")], run=False)
    model = cli.model.model.eval()
    audio, text = torch.randn(1, 3, 40, 512), torch.randn(1, 1, 16, 384)
    masks = torch.ones(1, 40, dtype=torch.bool), torch.ones(1, 16, dtype=torch.bool)
    with torch.inference_mode():
        for attempt in range(60):
            if attempt == 10:
                started = time.perf_counter()
            model(audio, masks[0], text, masks[1])
    milliseconds = 1000 * (time.perf_counter() - started) / 50
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad), milliseconds


def draw(predictions: pd.DataFrame, path: Path) -> None:
    """How far the gate believes the voice, in each half."""
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
    paths = manifests()
    text_backbone()
    both = ("ravdess", "spoken")

    parts = [("fusion", name, value) for name, value in FUSIONS.items()]
    parts += [("gate", name, value) for name, value in GATES.items() if value is not None]
    rows, changed = [], {}
    for part, name, value in parts:
        changes: dict[str, object] = {} if value is None else {part: value}
        if name == "late fusion":
            changes["head"] = {"class_path": "mmemo.models.NoHead"}
        changed[name] = changes
        on_dev = uar(pd.read_csv(train(name, changes, paths, both, "val")))["union"]
        scores = uar(pd.read_csv(train(name, changes, paths, both, "test")))
        num_parameters, milliseconds = cost(name)
        row = {
            "part": part,
            "name": name,
            "uar_dev": on_dev,
            **{f"uar_{half}": score for half, score in scores.items()},
        }
        rows.append(row | {"parameters": num_parameters, "milliseconds": round(milliseconds, 2)})
        print(rows[-1], flush=True)

    chosen = str(max(rows, key=lambda row: float(str(row["uar_dev"])))["name"])  # by dev alone
    found = {"fused": uar(pd.read_csv(train(chosen, changed[chosen], paths, both, "test")))}
    concatenation = {"fusion": FUSIONS["concatenation"]}
    for name, gone in (("audio", "text_encoder"), ("text", "audio_encoder")):
        found[name] = uar(pd.read_csv(train(f"{name} alone", {**concatenation, gone: None}, paths, both, "test")))
    for half in both:
        own = train(f"only {half} {chosen}", changed[chosen], paths, (half,), "test")
        found[f"only_{half}"] = uar(pd.read_csv(own))
    best_alone = max(found["audio"]["union"], found["text"]["union"])
    gated = pd.read_csv(train("modality gate", {}, paths, both, "test"))
    gate_auc = float(roc_auc_score(gated["id"].str.startswith("ravdess/"), gated["weight_audio"]))
    figures: dict[str, object] = {
        "chosen_on_dev": chosen,
        "gain_over_better_alone": round(found["fused"]["union"] - best_alone, 2),
        "gate_auc": round(gate_auc, 4),
    }
    for half in both:
        figures[f"fused_minus_only_{half}"] = round(found["fused"][half] - found[f"only_{half}"][half], 2)
    for name, scores in found.items():
        for half, score in scores.items():
            figures[f"uar_{name}" if half == "union" else f"uar_{name}_{half}"] = score
    figures["table"] = rows
    (HERE / "pictures").mkdir(exist_ok=True)
    draw(gated, HERE / "pictures" / "two_channel_gate.png")
    record("two_channel", figures)


if __name__ == "__main__":
    main()
