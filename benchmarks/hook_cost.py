"""What each hook costs: time per training step relative to plain training, on RAVDESS and Whisper base.

    python benchmarks/hook_cost.py

Hooks on features are compared with training from the cache, hooks on the waveform with training that runs Whisper in
every step; each pair is timed in turns, in one process, on the same batches.
"""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

import torch
from record import HERE, corpus, record

from mmemo.data.corpora.ravdess import ravdess
from mmemo.data.manifest import Manifest
from mmemo.training.experiment import Experiment

CONFIG = HERE.parent / "configs" / "ravdess_whisper_base.yaml"
RUN = HERE.parent / "runs" / "bench_hook_cost"
STEPS = 8
FEATURES = {"level": "audio_features"}


def attack(name: str, **settings: Any) -> dict[str, Any]:
    return {"class_path": f"mmemo.training.{name}", "init_args": settings}


def adversarial(name: str, **settings: Any) -> dict[str, Any]:
    return attack("AdversarialTraining", attack=attack(name, **settings))


CACHED: dict[str, dict[str, Any]] = {
    "AdversarialTraining, FGSM": adversarial("FGSM", **FEATURES),
    "AdversarialTraining, FGM": adversarial("FGM", **FEATURES),
    "AdversarialTraining, PGD of 3 steps": adversarial("PGD", steps=3, **FEATURES),
    "FreeLB of 3 steps": attack("FreeLB", steps=3, **FEATURES),
    "VirtualAdversarial": attack("VirtualAdversarial", **FEATURES),
    "TRADES, PGD of 3 steps": attack("TRADES", attack=attack("PGD", steps=3, **FEATURES)),
    "DomainAdversarial, speaker": attack("DomainAdversarial", column="speaker"),
}
RAW: dict[str, dict[str, Any]] = {
    "AdversarialTraining, FGSM": adversarial("FGSM", level="waveform"),
    "AdversarialTraining, PGD of 3 steps": adversarial("PGD", level="waveform", steps=3),
    "AdversarialTraining, FGM on log-mel": adversarial("FGM", level="log_mel"),
    "VirtualAdversarial": attack("VirtualAdversarial", level="waveform"),
}


def prepared(manifest: str, hooks: list[dict[str, Any]], cached: bool) -> Experiment:
    """An experiment whose steps can be taken one by one."""
    experiment = Experiment(
        [
            "fit", "--config", str(CONFIG), "--data.manifest", manifest,
            "--data.split.init_args.path", str(corpus("ravdess") / "emobox_folds.csv"),
            "--model.init_args.hooks", str(hooks), "--model.init_args.cache_features", str(cached).lower(),
            "--model.init_args.one_cycle", "false", "--trainer.default_root_dir", str(RUN / "run"),
            "--trainer.max_steps", "1", "--trainer.logger", "false", "--trainer.enable_checkpointing", "false",
            "--trainer.enable_model_summary", "false", "--overwrite", "true",
        ]
    )  # fmt: skip
    return experiment


def step(experiment: Experiment, batch: Any, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of a training step."""
    system = experiment.model.train()
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
    table = Manifest(ravdess(corpus("ravdess")), RUN / "ravdess.csv").write(RUN / "ravdess.csv")
    rows = []
    for cached, hooks in ((True, CACHED), (False, RAW)):
        plain = prepared(str(table), [], cached)
        batches = [batch for batch, _ in zip(plain.datamodule.train_dataloader(), range(STEPS), strict=False)]
        for name, hook in hooks.items():
            hooked = prepared(str(table), [hook], cached)
            pairs = []
            for experiment in (plain, hooked):
                pairs.append((experiment, torch.optim.AdamW(experiment.model.parameters())))
            filled = 32 if "Domain" in name else 2  # batches until its memory of 1024 vectors is full
            for number in range(filled):
                for experiment, optimizer in pairs if number < 2 else pairs[1:]:
                    step(experiment, batches[number % STEPS], optimizer)
            seconds = [[step(experiment, batch, optimizer) for experiment, optimizer in pairs] for batch in batches]
            without, with_hook = (statistics.median(each) for each in zip(*seconds, strict=True))
            rows.append(
                {
                    "hook": name,
                    "inputs": "features from the cache" if cached else "waveforms, frozen Whisper in the step",
                    "times_plain": round(with_hook / without, 2),
                    "milliseconds": round(1000 * with_hook, 1),
                    "milliseconds_plain": round(1000 * without, 1),
                }
            )
            print(rows[-1], flush=True)
    record("hook_cost", {"batch_size": 32, "table": rows})


if __name__ == "__main__":
    main()
