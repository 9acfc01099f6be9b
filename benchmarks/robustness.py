"""RAVDESS, published folds 1 and 2: what a model keeps under attack and in noise, plain and defended.

    python benchmarks/robustness.py      # what is there already is kept
    python benchmarks/robustness.py --inner --set --model.init_args.model.init_args.audio_encoder.init_args.range_db 60

The second form judges any settings of the defence on the 16 actors outside folds 1 and 2 alone, in four grouped folds
of their own; `python benchmarks/robustness.py --inner plain` judges the undefended model there. Plain is
`configs/ravdess_whisper_base.yaml`, defended `configs/ravdess_robust.yaml`. Attacks see the whole defended model; they
search in bfloat16, and what they find is judged in full. As a check that the defence resists, and does not merely hide
its gradient, it is also attacked with what was found against itself with the clipping of faint sounds taken out.
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

from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.studies.crossval import crossval
from mmemo.studies.robustness import conditions, robustness
from mmemo.training.experiment import Experiment

RUN = HERE.parent / "runs" / "bench_robustness"
CONFIGS = {"plain": "ravdess_whisper_base.yaml", "defended": "ravdess_robust.yaml"}
FOLDS = (1, 2)
OPEN_RANGE_DB = 80.0  # Whisper's own


def fit(name: str, manifest: Path) -> Path:
    """Both folds of a config; made once."""
    for fold in FOLDS:
        folder = RUN / name / f"fold{fold}"
        config = HERE.parent / "configs" / CONFIGS[name]
        done = folder / "finished"
        if done.exists() and done.read_text() == config.read_text():
            continue
        settings = ["--data.manifest", str(manifest), "--data.split.init_args.fold", str(fold)]
        settings += ["--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv")]
        out = ["--trainer.default_root_dir", str(folder), "--overwrite", "true"]
        Experiment(["fit", "--config", str(config), *settings, *out])
        done.write_text(config.read_text())
    return RUN / name


def opened(run: Path) -> Path:
    """The same weights with the whole range of the log-mel spectrogram: a surrogate whose gradient hides nothing."""
    for fold in FOLDS:
        source, target = run / f"fold{fold}", RUN / "opened" / f"fold{fold}"
        (target / "checkpoints").mkdir(parents=True, exist_ok=True)
        checkpoint = torch.load(source / "checkpoints" / "last.ckpt", weights_only=True)
        changed = copy.deepcopy(checkpoint)
        encoder = changed["hyper_parameters"]["model"]["init_args"]["audio_encoder"]["init_args"]
        clipped = f":{encoder['range_db']:g} dB"
        assert changed["encoders"]["audio"].endswith(clipped)
        changed["encoders"]["audio"] = changed["encoders"]["audio"].removesuffix(clipped)
        encoder["range_db"] = OPEN_RANGE_DB
        torch.save(changed, target / "checkpoints" / "last.ckpt")
        (target / "config.yaml").write_text((source / "config.yaml").read_text())
    return RUN / "opened"


def manifest() -> Path:
    """RAVDESS without words; made once."""
    table = RUN / "ravdess.csv"
    if not table.exists():
        RUN.mkdir(parents=True, exist_ok=True)
        Manifest(ravdess(corpus("ravdess")), table).write(table)
    return table


def inner(name: str, settings: list[str], with_pgd: bool) -> None:
    """Judges settings on actors whom neither test fold has."""
    table = pd.read_csv(manifest(), dtype=str)
    folds = pd.read_csv(corpus("ravdess") / "emobox_folds.csv", dtype=str)["test_actors"]
    held_out = [actor for fold in FOLDS for actor in folds[fold - 1].split()]
    run = RUN / f"inner_{name}_{hashlib.sha256(' '.join(settings).encode()).hexdigest()[:8]}"
    run.mkdir(parents=True, exist_ok=True)
    path = RUN / "training_side.csv"
    if not path.exists():
        table[~table["speaker"].isin(held_out)].to_csv(path, index=False)
    config = yaml.safe_load((HERE.parent / "configs" / CONFIGS[name]).read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 4, "num_val_speakers": 0},
    }
    config["data"]["manifest"] = str(path)
    changed = run.with_suffix(".yaml")
    changed.write_text(yaml.safe_dump(config, sort_keys=False))
    crossval(changed, run, settings)
    kinds = ("clean", "white", "fgsm", *(["pgd"] if with_pgd else []))
    chosen = [one for one in conditions(noise_db=(10,), attack_db=(45,)) if one.kind in kinds]
    result = robustness(run, chosen, half_precision=True).table
    print(name, settings)
    print(result[["condition", "uar", "kept"]].round(4).to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inner", nargs="?", const="defended", choices=sorted(CONFIGS))
    parser.add_argument("--pgd", action="store_true", help="with --inner: PGD-20 too, which takes longest")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    if options.inner:
        inner(options.inner, options.set, options.pgd)
        return
    table = manifest()
    chosen = [one for one in conditions(noise_db=(10,), attack_db=(45,)) if "words" not in one.kind]
    found, uar = {}, {}
    for name in CONFIGS:
        run = fit(name, table)
        result = robustness(run, chosen, half_precision=True).table.set_index("condition")
        found[name] = result
        uar[name] = 100 * result["uar"]
    attacks = [one for one in chosen if one.kind == "pgd"]
    surrogate = opened(RUN / "defended")
    transferred = robustness(RUN / "defended", attacks, half_precision=True, surrogate=surrogate).table

    def kept(table: object, condition: str) -> float:
        return round(100 * float(table.loc[condition, "kept"]), 2)  # type: ignore[attr-defined]

    plain, defended = found["plain"], found["defended"]
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
