"""`mmemo fit | validate | test | predict`: LightningCLI as its users know it."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Runs a verb of the trainer.

    Args:
        argv: The verb and its options.
    """
    from mmemo.training.experiment import Experiment

    named = any(word.split("=")[0] in ("--config", "-c", "--help", "-h", "--print_config") for word in argv)
    if not named:
        raise ValueError(f"which experiment? name its YAML: `mmemo {argv[0]} --config configs/demo.yaml`")
    Experiment(argv)
    return 0
