"""RAVDESS, published folds 1 and 2: what a model keeps under attack and in noise, plain and defended.

    python benchmarks/robustness.py      # what is there already is kept

Plain is `configs/ravdess_whisper_base.yaml`, defended `configs/ravdess_robust.yaml`, whose settings were chosen on the
actors of fold 3 by models that saw none of folds 1 to 3. Attacks see the whole defended model. As a check that it
resists, and does not merely hide its gradient, it is also attacked with what was found against itself with the clipping
of faint sounds taken out.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import torch
from record import HERE, corpus, record

from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.evaluation.robustness import conditions, robustness
from mmemo.training.experiment import Experiment

RUN = HERE.parent / "runs" / "bench_robustness"
CONFIGS = {"plain": "ravdess_whisper_base.yaml", "defended": "ravdess_robust.yaml"}
FOLDS = (1, 2)
OPEN_RANGE_DB = 80.0  # Whisper's own


def fit(name: str, manifest: Path) -> Path:
    """Both folds of a config; made once."""
    for fold in FOLDS:
        folder = RUN / name / f"fold{fold}"
        if (folder / "finished").exists():
            continue
        settings = ["--data.manifest", str(manifest), "--data.split.init_args.fold", str(fold)]
        settings += ["--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv")]
        config = HERE.parent / "configs" / CONFIGS[name]
        out = ["--trainer.default_root_dir", str(folder), "--overwrite", "true"]
        Experiment(["fit", "--config", str(config), *settings, *out])
        (folder / "finished").touch()
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


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    table = RUN / "ravdess.csv"
    if not table.exists():
        Manifest(ravdess(corpus("ravdess")), table).write(table)
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
