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
from mmemo.training.adversarial import (
    TRADES,
    AdversarialTraining,
    DomainAdversarial,
    Step,
    VirtualAdversarial,
    _Reversed,
    hook_term,
)
from mmemo.training.experiment import Experiment
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
    written = yaml.safe_load(config.read_text())
    named = [{**hook, "class_path": f"mmemo.training.{hook['class_path']}"} for hook in hooks]
    written["model"]["init_args"] |= {"hooks": named, **settings}
    config.write_text(yaml.safe_dump(written, sort_keys=False))
    return config


def fitted(config: Path, *options: str) -> EmotionSystem:
    return Experiment(["fit", "--config", str(config), "--overwrite", "true", *options]).model


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_trains_and_its_checkpoint_is_an_ordinary_one(tiny_config: Path, name: str) -> None:
    plain = fitted(tiny_config).state_dict()
    trained = fitted(with_hooks(tiny_config, HOOKS[name]))
    assert any(not torch.equal(plain[key], value) for key, value in trained.state_dict().items() if key in plain)
    run = tiny_config.parent / "run"
    log = pd.read_csv(run / "metrics.csv")
    assert (log[f"train/{HOOKS[name]['class_path']}"].dropna() > 0).all()
    Experiment(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    model = load_model(run / "checkpoints/last.ckpt")
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, trained.model.state_dict()[key])


@pytest.mark.parametrize("name", ["waveform", "freelb", "virtual", "trades"])
def test_a_hook_of_next_to_no_weight_changes_next_to_nothing(tiny_config: Path, name: str) -> None:
    """Batch statistics, random draws and gradients are as they would have been without it."""
    # Plain gradient descent: Adam would blow the rounding of gradients that are zero up to whole steps.
    written = yaml.safe_load(tiny_config.read_text())
    written["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    tiny_config.write_text(yaml.safe_dump(written, sort_keys=False))
    raw = ["--model.init_args.cache_features", "false"]
    plain = fitted(tiny_config, *raw).state_dict()
    hook = {**HOOKS[name], "init_args": {**HOOKS[name].get("init_args", {}), "weight": 1e-12}}
    hooked = fitted(with_hooks(tiny_config, hook), *raw).state_dict()
    for key, value in plain.items():
        torch.testing.assert_close(hooked[key], value, atol=1e-5, rtol=1e-5, msg=key)


def a_step(number: int = 0) -> tuple[EmotionSystem, Step]:
    """A model in training mode, dropout and batch statistics on, and one step of it on made-up features."""
    torch.manual_seed(0)
    head = partial(ClassHead, dropout=0.5)
    system = EmotionSystem(
        ["anger", "neutral", "sadness"],
        lambda classes: EmotionModel(
            classes, AcousticDescriptors(f0=False), gate=NoGate, fusion=Concatenation, head=head
        ),
    ).train()
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
def test_without_a_perturbation_there_is_nothing_to_smooth(make: Any) -> None:
    """The two sides differ by the perturbation alone, not by dropout or by whose statistics are used."""
    _, step = a_step()
    tiny = hook_term(make(level="audio_features", relative_norm=1e-7), step)
    large = hook_term(make(level="audio_features", relative_norm=0.5), step)
    assert abs(tiny.item()) < 1e-4 < large.item()


def test_the_loss_under_attack_is_above_the_one_without() -> None:
    system, step = a_step()
    hook = AdversarialTraining(attacks.FGSM("audio_features", relative_norm=0.3))
    nearly = AdversarialTraining(attacks.FGSM("audio_features", relative_norm=1e-7))
    assert hook_term(hook, step).item() > hook_term(nearly, step).item() + 0.01
    assert system.training


def test_a_hook_draws_anew_in_each_step_and_leaves_the_generator() -> None:
    before = torch.get_rng_state()
    drawn = []

    class Draws(nn.Module):
        def forward(self, step: Step) -> torch.Tensor:
            drawn.append(float(torch.rand(())))
            return torch.zeros(())

    for number in (0, 1):
        _, step = a_step(number)
        before = torch.get_rng_state()
        for place in (0, 1):
            hook_term(Draws(), step, place)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(set(drawn)) == 4


def test_hooks_add_up_and_resume(tiny_config: Path) -> None:
    config = with_hooks(tiny_config, HOOKS["virtual"], HOOKS["domain"], HOOKS["virtual"])
    whole = fitted(config).state_dict()
    log = pd.read_csv(config.parent / "run" / "metrics.csv")
    assert {"train/VirtualAdversarial_1", "train/VirtualAdversarial_2", "train/DomainAdversarial/accuracy"} <= set(log)
    run = ["--trainer.default_root_dir", str(config.parent / "again")]
    Experiment(["fit", "--config", str(config), *run, "--trainer.limit_train_batches", "1.0"])
    first = config.parent / "again" / "checkpoints" / "last.ckpt"
    resumed = Experiment(["fit", "--config", str(config), *run, "--ckpt_path", str(first)]).model.state_dict()
    torch.testing.assert_close(resumed, whole)
    assert any(name.startswith("hooks.1.classifier") for name in resumed)


def test_works_with_lora_on_the_waveform_and_mixup(tiny_config: Path) -> None:
    lora = {"class_path": "mmemo.training.LoRA", "init_args": {"rank": 2}}
    system = fitted(
        with_hooks(tiny_config, HOOKS["waveform"], HOOKS["virtual"], audio_finetuning=lora, mixup=0.3),
    )
    assert system.model.encoder("audio").trained is not None


def test_the_reversed_gradient_is_the_gradient_times_a_negative_number() -> None:
    values = torch.randn(4, 3, requires_grad=True)
    _Reversed.apply(values, 0.25).pow(2).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(values.grad, -0.5 * values.detach())


def test_an_unlabelled_corpus_takes_part(tiny_config: Path, tiny_corpus: Path) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    other = table[table["speaker"].isin(["s0", "s1", "s4"])]
    path = tiny_corpus.parent / "other.csv"
    other.to_csv(path, index=False)
    main = tiny_corpus.parent / "main.csv"
    table[~table["speaker"].isin(["s0", "s1", "s4"])].to_csv(main, index=False)
    config = with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": "corpus"}})
    written = yaml.safe_load(config.read_text())
    del written["data"]["manifest"]
    written["data"]["corpora"] = [{"manifest": str(main)}, {"manifest": str(path), "unlabelled": True}]
    config.write_text(yaml.safe_dump(written, sort_keys=False))
    experiment = Experiment(["fit", "--config", str(config)])
    batches = list(experiment.datamodule.train_dataloader())
    rows = torch.cat([batch.row for batch in batches]).tolist()
    targets = torch.cat([batch.target for batch in batches])
    corpus = experiment.datamodule.manifest.frame["corpus"].iloc[rows]
    assert (corpus == "other").sum() == 12
    hidden = targets[torch.tensor((corpus == "other").to_numpy())]
    assert (hidden == UNLABELLED).all()
    assert experiment.datamodule.class_counts().sum() == (corpus == "main").sum()
    Experiment(["test", "--config", str(config)])  # its test rows are judged by their labels


def test_domains_that_cannot_be_told_apart_are_refused_at_the_door(tiny_config: Path) -> None:
    for column, message in (
        ("hospital", "asks for column 'hospital', found only"),
        ("language", "needs two or more"),
    ):
        config = with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": column}})
        with pytest.raises(ManifestError, match=message):
            fitted(config)


def test_what_is_no_hook_is_told(tiny_config: Path) -> None:
    config = with_hooks(tiny_config, {"class_path": "TRADES"})
    written = yaml.safe_load(config.read_text())
    written["model"]["init_args"]["hooks"] = [{"class_path": "mmemo.losses.CrossEntropy"}]
    config.write_text(yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(ValueError, match="CrossEntropy is not a hook; expected one of mmemo"):
        Experiment(["--config", str(config)], run=False)


def test_an_unlabelled_corpus_that_nobody_would_hear_is_refused(tiny_config: Path, tiny_corpus: Path) -> None:
    written = yaml.safe_load(tiny_config.read_text())
    del written["data"]["manifest"]
    sideless = tiny_corpus.parent / "sideless.csv"
    pd.read_csv(tiny_corpus, dtype=str).drop(columns="split").to_csv(sideless, index=False)
    written["data"]["corpora"] = [{"manifest": str(tiny_corpus)}, {"manifest": str(sideless), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(ManifestError, match=r"puts none of its 36 rows on the training side; give them split train"):
        fitted(tiny_config)


def test_a_corpus_whose_hidden_labels_nothing_needs_is_refused(tiny_config: Path, tiny_corpus: Path) -> None:
    written = yaml.safe_load(tiny_config.read_text())
    del written["data"]["manifest"]
    other = tiny_corpus.parent / "other.csv"
    pd.read_csv(tiny_corpus, dtype=str).to_csv(other, index=False)
    written["data"]["corpora"] = [{"manifest": str(tiny_corpus)}, {"manifest": str(other), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(ManifestError, match=r"other\.csv: unlabelled is true, but nothing learns from rows without"):
        fitted(tiny_config)
    written["data"]["corpora"] = [{"manifest": str(other), "unlabelled": True}]
    tiny_config.write_text(yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(ManifestError, match="every corpus is unlabelled"):
        fitted(with_hooks(tiny_config, {**HOOKS["domain"], "init_args": {"column": "speaker"}}))


def test_the_emotion_is_no_domain() -> None:
    with pytest.raises(ValueError, match="would unlearn what the model is for"):
        DomainAdversarial("emotion")


def test_bad_settings_are_told_at_start_up(tiny_config: Path) -> None:
    written = yaml.safe_load(tiny_config.read_text())
    del written["model"]["init_args"]["model"]["init_args"]["text_encoder"]
    tiny_config.write_text(yaml.safe_dump(written, sort_keys=False))
    with pytest.raises(ValueError, match="FreeLB: level token_embeddings needs a model with a text_encoder"):
        Experiment(["--config", str(with_hooks(tiny_config, HOOKS["freelb"]))], run=False)
    with pytest.raises(ValueError, match=r"weight=-1\.0\), expected a number above 0"):
        DomainAdversarial("speaker", weight=-1.0)
