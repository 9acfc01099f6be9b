"""MELD, text only, official splits: MiniLM fine-tuned on GoEmotions, then on MELD.

    python benchmarks/meld_text.py
    python benchmarks/meld_text.py --on val --lr 0.001 --epochs 3    # evaluates settings on the dev split

Settings were chosen on the dev split. The last checkpoint of `configs/meld_minilm.yaml` is evaluated once on the test
split.
"""

from __future__ import annotations

import argparse
import json
import os

import torch
from record import HERE, corpus, record
from two_channel import BACKBONE, RUN, make_text_backbone

from mmemo.data.corpora.meld import meld
from mmemo.data.manifest import Manifest
from mmemo.training.experiment_cli import ExperimentCLI

CONFIG = HERE.parent / "configs" / "meld_minilm.yaml"
MODEL_ID = "model.init_args.model.init_args.text_encoder.init_args.model_id"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", choices=["val", "test"], default="test", help="split to evaluate on")
    parser.add_argument("--lr", type=float, help="learning rate that replaces the config's")
    parser.add_argument("--epochs", type=int, help="number of epochs that replaces the config's")
    parser.add_argument("--backbone", default=str(BACKBONE), help="folder or id of the text encoder")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    if options.backbone == str(BACKBONE):
        make_text_backbone()
    run = HERE.parent / "runs" / "bench_meld"
    manifest = Manifest(meld(corpus("meld")), run / "meld.csv").write(run / "meld.csv")
    settings = ["--config", str(CONFIG), "--data.manifest", str(manifest), "--trainer.default_root_dir", str(run)]
    settings += [f"--{MODEL_ID}", options.backbone]
    if options.lr:
        settings += ["--model.init_args.optimizer.init_args.lr", str(options.lr)]
    if options.epochs:
        settings += ["--trainer.max_epochs", str(options.epochs)]
    cli = ExperimentCLI(["fit", *settings, "--overwrite", "true"])
    if options.on == "val":
        print({name: round(100 * float(value), 2) for name, value in cli.trainer.callback_metrics.items()})
        return
    ExperimentCLI(["test", *settings])
    metrics = json.loads((run / "test_metrics.json").read_text())["metrics"]
    record("meld_text", {name.removeprefix("test/"): round(100 * value, 2) for name, value in metrics.items()})


if __name__ == "__main__":
    main()
