"""Cost of each hook: time per training step relative to training without it, on RAVDESS and Whisper base.

    python benchmarks/hook_cost.py

Hooks on features are compared with training from the cache, hooks on the waveform with training that runs Whisper in
every step. Training with and without the hook takes turns in one process, on the same batches.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch
from pytorch_lightning import Trainer
from record import HERE, corpus, record

from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import read_experiment

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base.yaml"
RUN = HERE.parent / "runs" / "bench_hook_cost"
NUM_BATCHES = 8
FEATURES = {"level": "audio_features"}


def hook(name: str, **settings: Any) -> dict[str, Any]:
    """Returns a class of `mmemo.training` with its settings, as in YAML."""
    return {"class_path": f"mmemo.training.{name}", "init_args": settings}


def adversarial(attack: str, **settings: Any) -> dict[str, Any]:
    """Returns adversarial training with an attack."""
    return hook("AdversarialTraining", attack=hook(attack, **settings))


CACHED: dict[str, dict[str, Any]] = {
    "AdversarialTraining, FGSM": adversarial("FGSM", **FEATURES),
    "AdversarialTraining, FGM": adversarial("FGM", **FEATURES),
    "AdversarialTraining, PGD of 3 steps": adversarial("PGD", steps=3, **FEATURES),
    "FreeLB of 3 steps": hook("FreeLB", steps=3, **FEATURES),
    "VirtualAdversarial": hook("VirtualAdversarial", **FEATURES),
    "TRADES, PGD of 3 steps": hook("TRADES", attack=hook("PGD", steps=3, **FEATURES)),
    "DomainAdversarial, speaker": hook("DomainAdversarial", column="speaker"),
}
RAW: dict[str, dict[str, Any]] = {
    "AdversarialTraining, FGSM": adversarial("FGSM", level="waveform"),
    "AdversarialTraining, PGD of 3 steps": adversarial("PGD", level="waveform", steps=3),
    "AdversarialTraining, FGM on log-mel": adversarial("FGM", level="log_mel"),
    "VirtualAdversarial": hook("VirtualAdversarial", level="waveform"),
}


def make_experiment(manifest: str, hooks: list[dict[str, Any]], cached: bool) -> Experiment:
    """Returns an experiment that is ready for single training steps."""
    changes = {
        "data.manifest": manifest, "data.split.init_args.path": str(corpus("ravdess") / "emobox_folds.csv"),
        "model.init_args.hooks": hooks, "model.init_args.cache_features": cached, "model.init_args.one_cycle": False,
    }  # fmt: skip
    experiment = read_experiment(CONFIG, changes)
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_model_summary=False,
        default_root_dir=RUN / "run", use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(experiment.system, experiment.data)
    return experiment


def step_seconds(experiment: Experiment, batch: Any, optimizer: torch.optim.Optimizer) -> float:
    """Takes one training step and returns its seconds."""
    system = experiment.system.train()
    system.log = lambda *arguments, **options: None
    started = time.perf_counter()
    loss = system.training_step(batch, 0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    RUN.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(ravdess(corpus("ravdess")), RUN / "ravdess.csv").write(RUN / "ravdess.csv")
    rows = []
    for cached, hooks in ((True, CACHED), (False, RAW)):
        plain = make_experiment(str(manifest), [], cached)
        batches = [batch for batch, _ in zip(plain.data.train_dataloader(), range(NUM_BATCHES), strict=False)]
        for name, settings in hooks.items():
            hooked = make_experiment(str(manifest), [settings], cached)
            pairs = []
            for experiment in (plain, hooked):
                pairs.append((experiment, torch.optim.AdamW(experiment.system.parameters())))
            num_warmup = 32 if "Domain" in name else 2  # DomainAdversarial first fills its memory of 1024 vectors
            for number in range(num_warmup):
                for experiment, optimizer in pairs if number < 2 else pairs[1:]:
                    step_seconds(experiment, batches[number % NUM_BATCHES], optimizer)
            seconds = [
                [step_seconds(experiment, batch, optimizer) for experiment, optimizer in pairs] for batch in batches
            ]
            without_hook, with_hook = map(statistics.median, zip(*seconds, strict=True))
            rows.append(
                {
                    "hook": name,
                    "inputs": "features from the cache" if cached else "waveforms, frozen Whisper in the step",
                    "times_plain": round(with_hook / without_hook, 2),
                    "milliseconds": round(1000 * with_hook, 1),
                    "milliseconds_plain": round(1000 * without_hook, 1),
                }
            )
            print(rows[-1], flush=True)
    record("hook_cost", {"batch_size": 32, "table": rows})


if __name__ == "__main__":
    main()
