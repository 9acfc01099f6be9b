"""`mmemo fit | validate | test | predict`: LightningCLI as its users know it."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Runs a verb of the trainer.

    Args:
        argv: The verb and its options.
    """
    from mmemo.training.experiment import Experiment

    Experiment(argv)
    return 0
