"""RAVDESS, published folds 1 and 2: a plain and a defended model under attack and noise.

    python benchmarks/robustness.py      # finished runs are kept
    python benchmarks/robustness.py --inner --set model.init_args.model.init_args.audio_encoder.init_args.range_db=60

The second form evaluates any settings of the defence on the 16 actors outside folds 1 and 2 only, in four grouped
folds; `python benchmarks/robustness.py --inner plain` evaluates the plain model there. The plain model is
`configs/ravdess_whisper_base.yaml`, the defended model `configs/ravdess_robust.yaml`. Attacks have full access to the
defended model. They search in bfloat16; the results are evaluated in float32. A second attack checks that the defence
is robust and does not merely mask its gradient: it is computed on a copy of the defended model without the clipping of
faint sounds, and applied to the defended model.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
from pathlib import Path

import pandas as pd
import torch
import yaml
from record import HERE, corpus, record

from mmemo.cli.output import parse_pairs
from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.studies.conditions import conditions
from mmemo.studies.crossval import crossval
from mmemo.studies.robustness import FOLDER, RobustnessSettings, robustness
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment, read_runs

RUN = HERE.parent / "runs" / "bench_robustness"
CONFIGS = {"plain": "ravdess_whisper_base.yaml", "defended": "ravdess_robust.yaml"}
FOLDS = (1, 2)
HALF_PRECISION = RobustnessSettings(half_precision=True)
WHISPER_RANGE_DB = 80.0


def fit(name: str, manifest: Path) -> Path:
    """Trains both folds of a config; finished folds are kept."""
    for fold in FOLDS:
        folder = RUN / name / f"fold{fold}"
        config = HERE.parent / "configs" / CONFIGS[name]
        finished = folder / "finished"
        if finished.exists() and finished.read_text() == config.read_text():
            continue
        settings = ["--data.manifest", str(manifest), "--data.split.init_args.fold", str(fold)]
        settings += ["--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv")]
        output = ["--trainer.default_root_dir", str(folder), "--overwrite", "true"]
        ExperimentCLI(["fit", "--config", str(config), *settings, *output])
        finished.write_text(config.read_text())
    return RUN / name


def make_surrogate(run: Path) -> Path:
    """Copies a run with the full range of the log-mel spectrogram, so that clipping does not mask the gradient."""
    for fold in FOLDS:
        source, target = run / f"fold{fold}", RUN / "opened" / f"fold{fold}"
        (target / "checkpoints").mkdir(parents=True, exist_ok=True)
        checkpoint = torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)
        surrogate = copy.deepcopy(checkpoint)
        encoder = surrogate["system"]["init_args"]["model"]["init_args"]["audio_encoder"]["init_args"]
        suffix = f":{encoder['range_db']:g} dB"
        assert surrogate["encoders"]["audio"].endswith(suffix)
        surrogate["encoders"]["audio"] = surrogate["encoders"]["audio"].removesuffix(suffix)
        encoder["range_db"] = WHISPER_RANGE_DB
        torch.save(surrogate, target / "checkpoints" / "last.ckpt")
        (target / "config.yaml").write_text((source / "config.yaml").read_text())
    return RUN / "opened"


def make_manifest() -> Path:
    """Writes the manifest of RAVDESS without transcripts, once."""
    path = RUN / "ravdess.csv"
    if not path.exists():
        RUN.mkdir(parents=True, exist_ok=True)
        Manifest(ravdess(corpus("ravdess")), path).write(path)
    return path


def evaluate_settings(name: str, settings: list[str], with_pgd: bool) -> None:
    """Cross-validates settings on the actors that are in neither test fold."""
    table = pd.read_csv(make_manifest(), dtype=str)
    folds = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"]
    test_actors = [actor for fold in FOLDS for actor in folds[fold - 1].split()]
    run = RUN / f"inner_{name}_{hashlib.sha256(' '.join(settings).encode()).hexdigest()[:8]}"
    run.mkdir(parents=True, exist_ok=True)
    path = RUN / "training_side.csv"
    if not path.exists():
        table[~table["speaker"].isin(test_actors)].to_csv(path, index=False)
    config = yaml.safe_load((HERE.parent / "configs" / CONFIGS[name]).read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 4, "num_val_speakers": 0},
    }
    config["data"]["manifest"] = str(path)
    config_path = run.with_suffix(".yaml")
    config_path.write_text(yaml.safe_dump(config, sort_keys=False))
    crossval(read_experiment(config_path, parse_pairs(settings, "--set")), run)
    kinds = ("clean", "white", "fgsm", *(["pgd"] if with_pgd else []))
    chosen = [condition for condition in conditions(noise_db=(10,), attack_db=(45,)) if condition.kind in kinds]
    result = robustness(read_runs(run), chosen, run / FOLDER, settings=HALF_PRECISION).table
    print(name, settings)
    print(result[["condition", "uar", "kept"]].round(4).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--inner", nargs="?", const="defended", choices=sorted(CONFIGS), help="evaluate settings of this model"
    )
    parser.add_argument("--pgd", action="store_true", help="with --inner: also evaluate the 20-step attack (slow)")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="with --inner: settings as KEY=VALUE")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.inner:
        evaluate_settings(options.inner, options.set, options.pgd)
        return
    manifest = make_manifest()
    chosen = [condition for condition in conditions((10,), (45,)) if "words" not in condition.kind]
    tables, uar = {}, {}
    for name in CONFIGS:
        run = fit(name, manifest)
        table = robustness(read_runs(run), chosen, run / FOLDER, settings=HALF_PRECISION).table.set_index("condition")
        tables[name] = table
        uar[name] = 100 * table["uar"]
    attacks = [condition for condition in chosen if condition.kind == "pgd"]
    run, surrogates = RUN / "defended", read_runs(make_surrogate(RUN / "defended"))
    folder = run / FOLDER / "from_opened"
    transferred = robustness(read_runs(run), attacks, folder, surrogates, HALF_PRECISION).table

    def kept(table: pd.DataFrame, condition: str) -> float:
        return round(100 * float(table.loc[condition, "kept"]), 2)

    plain, defended = tables["plain"], tables["defended"]
    record(
        "robustness",
        {
            "kept_fgsm45_plain": kept(plain, "fgsm 45 dB"),
            "kept_fgsm45": kept(defended, "fgsm 45 dB"),
            "kept_pgd45_plain": kept(plain, "pgd 45 dB"),
            "kept_pgd45": kept(defended, "pgd 45 dB"),
            "kept_pgd45_from_opened": kept(transferred.set_index("condition"), "pgd 45 dB"),
            "clean_plain": round(float(uar["plain"]["clean"]), 2),
            "clean": round(float(uar["defended"]["clean"]), 2),
            "clean_cost_points": round(float(uar["plain"]["clean"] - uar["defended"]["clean"]), 2),
            "noise10_loss_plain": round(float(uar["plain"]["clean"] - uar["plain"]["white 10 dB"]), 2),
            "noise10_loss": round(float(uar["defended"]["clean"] - uar["defended"]["white 10 dB"]), 2),
            "table": [
                {
                    "condition": name,
                    "uar_plain": round(float(uar["plain"][name]), 1),
                    "uar": round(float(uar["defended"][name]), 1),
                    "kept_plain": round(100 * float(plain.loc[name, "kept"]), 1),
                    "kept": round(100 * float(defended.loc[name, "kept"]), 1),
                }
                for name in plain.index
            ],
        },
    )


if __name__ == "__main__":
    main()
