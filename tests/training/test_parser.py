from __future__ import annotations

from pathlib import Path

import pytest

from mmemo.cli.main import main

MISTAKES = {
    "a class that is not there": (
        ["--model.init_args.model.init_args.fusion", "mmemo.models.CrosModalAttention"],
        "there is no mmemo.models.CrosModalAttention, did you mean CrossModalAttention?",
    ),
    "an option that is not there": (
        ["--model.init_args.modality_drop", "0.2"],
        "there is no option modality_drop, did you mean modality_dropout?",
    ),
    "an option of the data": (["--data.batchsize", "3"], "did you mean data.batch_size?"),
    "the wrong type": (["--data.batch_size", "many"], "data.batch_size: got many, expected int"),
    "a list without dashes": (
        ["--model.init_args.hooks", "{class_path: mmemo.training.FreeLB}"],
        "hooks is a list: begin each of its entries with a dash",
    ),
    "a class without its package": (
        [
            "--model.init_args.hooks",
            "[{class_path: mmemo.training.AdversarialTraining, init_args: {attack: FGSM}}]",
        ],
        "attack: got FGSM, expected a class_path in full, such as mmemo.training.FGSM",
    ),
    "a class in the place of a list": (
        ["--model.init_args.hooks", "mmemo.training.FreeLB"],
        "hooks: got mmemo.training.FreeLB, expected another class, or a list of them, such as [mmemo.training.FreeLB]",
    ),
    "the wrong type of a union": (["--trainer.max_epochs", "many"], "trainer.max_epochs: got many"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(tiny_config: Path, mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    words, told = MISTAKES[mistake]
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", str(tiny_config), *words])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert told in lines[-1]
    assert not any(line.startswith("usage") for line in lines)


def test_fit_without_an_experiment_asks_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit"]) == 1
    assert "name its YAML: `mmemo fit --config" in capsys.readouterr().err
