from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from mmemo import EmotionModel, load_model
from mmemo.data import ManifestError
from mmemo.data.batch import EmotionBatch
from mmemo.labels import UNLABELLED
from mmemo.models import AcousticDescriptors, ClassHead, Concatenation, NoGate
from mmemo.training import attacks
from mmemo.training.adversarial import TRADES, AdversarialTraining, DomainAdversarial, VirtualAdversarial, _Reversed
from mmemo.training.experiment_cli import ExperimentCLI
from mmemo.training.hooks import Step, hook_term
from mmemo.training.system import EmotionSystem

PGD: dict[str, Any] = {"class_path": "mmemo.training.PGD", "init_args": {"steps": 2}}
HOOKS: dict[str, dict[str, Any]] = {
    "waveform": {"class_path": "AdversarialTraining", "init_args": {"attack": {"class_path": "mmemo.training.FGSM"}}},
    "log_mel": {
        "class_path": "AdversarialTraining",
        "init_args": {"attack": {"class_path": "mmemo.training.FGM", "init_args": {"level": "log_mel"}}},
    },
    "freelb": {"class_path": "FreeLB"},
    "virtual": {"class_path": "VirtualAdversarial"},
    "trades": {
        "class_path": "TRADES",
        "init_args": {"attack": {**PGD, "init_args": {"steps": 2, "level": "audio_features"}}},
    },
    "domain": {"class_path": "DomainAdversarial", "init_args": {"column": "speaker"}},
}


def with_hooks(config: Path, *hooks: dict[str, Any], **settings: Any) -> Path:
    content = yaml.safe_load(config.read_text())
    resolved = [{**hook, "class_path": f"mmemo.training.{hook['class_path']}"} for hook in hooks]
    content["model"]["init_args"] |= {"hooks": resolved, **settings}
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    return config


def fit_system(config: Path, *options: str) -> EmotionSystem:
    return ExperimentCLI(["fit", "--config", str(config), "--overwrite", "true", *options]).model


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_changes_training_and_its_checkpoint_loads_like_any_other(tiny_config: Path, name: str) -> None:
    plain = fit_system(tiny_config).state_dict()
    trained = fit_system(with_hooks(tiny_config, HOOKS[name]))
    assert any(not torch.equal(plain[key], value) for key, value in trained.state_dict().items() if key in plain)
    run = tiny_config.parent / "run"
    log = pd.read_csv(run / "metrics.csv")
    assert (log[f"train/{HOOKS[name]['class_path']}"].dropna() > 0).all()
    ExperimentCLI(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    model = load_model(run / "checkpoints/last.ckpt")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, trained.model.state_dict()[key])


@pytest.mark.parametrize("name", ["waveform", "freelb", "virtual", "trades"])
def test_a_hook_with_a_negligible_weight_changes_training_negligibly(tiny_config: Path, name: str) -> None:
    """The hook changes neither batch statistics nor random numbers nor gradients of the main loss."""
    # Plain gradient descent, because Adam would amplify the rounding error of a zero gradient to a full step.
    content = yaml.safe_load(tiny_config.read_text())
    content["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    tiny_config.write_text(yaml.safe_dump(content, sort_keys=False))
    no_cache = ["--model.init_args.cache_features", "false"]
    plain = fit_system(tiny_config, *no_cache).state_dict()
    hook = {**HOOKS[name], "init_args": {**HOOKS[name].get("init_args", {}), "weight": 1e-12}}
    hooked = fit_system(with_hooks(tiny_config, hook), *no_cache).state_dict()
    for key, value in plain.items():
        torch.testing.assert_close(hooked[key], value, atol=1e-5, rtol=1e-5, msg=key)


def make_step(number: int = 0) -> tuple[EmotionSystem, Step]:
    """Returns a model in training mode, with dropout and batch statistics, and one step of it on random features."""
    torch.manual_seed(0)
    head = partial(ClassHead, dropout=0.5)
    encoder = AcousticDescriptors(f0=False)
    model = EmotionModel(["anger", "neutral", "sadness"], encoder, gate=NoGate, fusion=Concatenation, head=head)
    system = EmotionSystem(model).train()
    dim = cast(Any, system.model.encoder("audio")).dim
    mask = torch.arange(9) < torch.tensor([9, 5, 7, 9])[:, None]
    batch = EmotionBatch(
        row=torch.arange(4), target=torch.tensor([0, 1, 2, 1]), dimensions=torch.zeros(4, 3), votes=torch.zeros(4, 3),
        audio=torch.randn(4, 1, 9, dim) * mask[:, None, :, None], audio_mask=mask, descriptors=None,
        descriptors_mask=None, text=None, text_mask=None,
    )  # fmt: skip
    output = system(batch)
    loss = partial(system.loss, batch=batch)
    return system, Step(system.model, system.forward, batch, output, loss, 0.5, number)


@pytest.mark.parametrize("make", [VirtualAdversarial, lambda **options: TRADES(attacks.PGD(steps=2, **options))])
def test_the_smoothing_loss_is_zero_without_a_perturbation(make: Any) -> None:
    """The two forward passes differ only in the perturbation, not in dropout or batch statistics."""
    _, step = make_step()
    tiny = hook_term(make(level="audio_features", relative_norm=1e-7), step)
    large = hook_term(make(level="audio_features", relative_norm=0.5), step)
    assert abs(tiny.item()) < 1e-4 < large.item()


def test_the_loss_under_attack_is_higher() -> None:
    system, step = make_step()
    hook = AdversarialTraining(attacks.FGSM("audio_features", relative_norm=0.3))
    negligible = AdversarialTraining(attacks.FGSM("audio_features", relative_norm=1e-7))
    assert hook_term(hook, step).item() > hook_term(negligible, step).item() + 0.01
    assert system.training


def test_a_hook_draws_new_random_numbers_in_each_step_and_restores_the_generator() -> None:
    before = torch.get_rng_state()
    drawn = []

    class Draws(nn.Module):
        def forward(self, step: Step) -> torch.Tensor:
            drawn.append(float(torch.rand(())))
            return torch.zeros(())

    for number in (0, 1):
        _, step = make_step(number)
        before = torch.get_rng_state()
        for index in (0, 1):
            hook_term(Draws(), step, index)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 4


def test_several_hooks_are_combined_and_resumed(tiny_config: Path) -> None:
    config = with_hooks(tiny_config, HOOKS["virtual"], HOOKS["domain"], HOOKS["virtual"])
    uninterrupted = fit_system(config).state_dict()
    log = pd.read_csv(config.parent / "run" / "metrics.csv")
    assert {"train/VirtualAdversarial_1", "train/VirtualAdversarial_2", "train/DomainAdversarial/accuracy"} <= set(log)
    run = ["--trainer.default_root_dir", str(config.parent / "again")]
    ExperimentCLI(["fit", "--config", str(config), *run, "--trainer.limit_train_batches", "1.0"])
    checkpoint = config.parent / "again" / "checkpoints" / "last.ckpt"
    resumed = ExperimentCLI(["fit", "--config", str(config), *run, "--ckpt_path", str(checkpoint)]).model.state_dict()
    torch.testing.assert_close(resumed, uninterrupted)
    assert any(name.startswith("hooks.1.classifier") for name in resumed)


def test_hooks_work_with_lora_and_mixup(tiny_config: Path) -> None:
    lora = {"class_path": "mmemo.training.LoRA", "init_args": {"rank": 2}}
    system = fit_system(
        with_hooks(tiny_config, HOOKS["waveform"], HOOKS["virtual"], audio_finetuning=lora, mixup=0.3),
    )
    assert system.model.encoder("audio").trained is not None


def test_gradient_reversal_multiplies_the_gradient_by_a_negative_number() -> None:
    values = torch.randn(4, 3, requires_grad=True)
    _Reversed.apply(values, 0.25).pow(2).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(values.grad, -0.5 * values.detach())


def test_an_unlabelled_corpus_is_used_in_training(tiny_config: Path, tiny_corpus: Path) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    other = table[table["speaker"].isin(["s0", "s1", "s4"])]
    other_path = tiny_corpus.parent / "other.csv"
    other.to_csv(other_path, index=False)
    main_path = tiny_corpus.parent / "main.csv"
    table[~table["speaker"].isin(["s0", "s1", "s4"])].to_csv(main_path, index=False)
    config = with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": "corpus"}})
    content = yaml.safe_load(config.read_text())
    del content["data"]["manifest"]
    content["data"]["corpora"] = [{"manifest": str(main_path)}, {"manifest": str(other_path), "unlabelled": True}]
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    experiment = ExperimentCLI(["fit", "--config", str(config)])
    batches = list(experiment.datamodule.train_dataloader())
    rows = torch.cat([batch.row for batch in batches]).tolist()
    targets = torch.cat([batch.target for batch in batches])
    corpus = experiment.datamodule.table.manifest.frame["corpus"].iloc[rows]
    assert (corpus == "other").sum() == 12
    other_targets = targets[torch.tensor((corpus == "other").to_numpy())]
    assert (other_targets == UNLABELLED).all()
    assert experiment.datamodule.table.class_counts.sum() == (corpus == "main").sum()
    ExperimentCLI(["test", "--config", str(config)])  # its test rows are evaluated with their labels


def test_an_invalid_domain_column_is_rejected_before_training(tiny_config: Path) -> None:
    for column, message in (
        ("hospital", "DomainAdversarial needs column 'hospital'"),
        ("language", "needs two or more"),
    ):
        config = with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": column}})
        with pytest.raises(ManifestError, match=message):
            fit_system(config)


def test_a_class_that_is_not_a_hook_is_rejected(tiny_config: Path) -> None:
    config = with_hooks(tiny_config, {"class_path": "TRADES"})
    content = yaml.safe_load(config.read_text())
    content["model"]["init_args"]["hooks"] = [{"class_path": "mmemo.losses.CrossEntropy"}]
    config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="CrossEntropy is not a hook; expected one of mmemo"):
        ExperimentCLI(["--config", str(config)], run=False)


def test_an_unlabelled_corpus_without_training_rows_is_rejected(tiny_config: Path, tiny_corpus: Path) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    del content["data"]["manifest"]
    unsplit = tiny_corpus.parent / "unsplit.csv"
    pd.read_csv(tiny_corpus, dtype=str).drop(columns="split").to_csv(unsplit, index=False)
    content["data"]["corpora"] = [{"manifest": str(tiny_corpus)}, {"manifest": str(unsplit), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ManifestError, match=r"36 rows"):
        fit_system(with_hooks(tiny_config, HOOKS["domain"]))


def test_an_unlabelled_corpus_is_rejected_if_nothing_is_trained_on_it(tiny_config: Path, tiny_corpus: Path) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    del content["data"]["manifest"]
    other = tiny_corpus.parent / "other.csv"
    pd.read_csv(tiny_corpus, dtype=str).to_csv(other, index=False)
    content["data"]["corpora"] = [{"manifest": str(tiny_corpus)}, {"manifest": str(other), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ManifestError, match=r"other\.csv: unlabelled is true, but nothing learns from rows without"):
        fit_system(tiny_config)
    content["data"]["corpora"] = [{"manifest": str(other), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ManifestError, match="every corpus is unlabelled"):
        fit_system(with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": "speaker"}}))


def test_emotion_is_rejected_as_domain() -> None:
    with pytest.raises(ValueError, match="would remove the emotion itself"):
        DomainAdversarial("emotion")


def test_invalid_settings_are_rejected_at_start_up(tiny_config: Path) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    del content["model"]["init_args"]["model"]["init_args"]["text_encoder"]
    tiny_config.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(ValueError, match="FreeLB: level token_embeddings needs a model with a text_encoder"):
        ExperimentCLI(["--config", str(with_hooks(tiny_config, HOOKS["freelb"]))], run=False)
    with pytest.raises(ValueError, match=r"weight=-1\.0\), expected a number above 0"):
        DomainAdversarial("speaker", weight=-1.0)
