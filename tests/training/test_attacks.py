from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mmemo.data.batch import EmotionBatch
from mmemo.losses import CrossEntropy
from mmemo.models import AcousticDescriptors, ConvRecurrentEncoder, HuggingFaceTextEncoder, WhisperAudioEncoder
from mmemo.models.emotion_model import EmotionModel, EmotionOutput
from mmemo.training.attacks import FGM, FGSM, PGD, Attack, Entry, Level, real, undisturbed
from tests.conftest import padded, tone

LEVELS: list[Level] = ["waveform", "log_mel", "audio_features", "token_embeddings", "text_features"]
ATTACKS = [FGSM, FGM, PGD]


def strength(level: Level) -> dict[str, float]:
    return {"snr_db": 30.0} if level == "waveform" else {"relative_norm": 0.1}


@pytest.fixture
def model(tiny_whisper: str, tiny_bert: str) -> EmotionModel:
    torch.manual_seed(0)
    model = EmotionModel(
        ["a", "b", "c"],
        audio_encoder=WhisperAudioEncoder(str(tiny_whisper)),
        text_encoder=HuggingFaceTextEncoder(str(tiny_bert)),
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # the head starts at zero
    return model


@pytest.fixture
def batch() -> EmotionBatch:
    audio, audio_mask = padded([tone(0.5), tone(0.9, 880.0), tone(0.7, 220.0)])
    text = torch.tensor([[2, 5, 6, 3, 0], [2, 7, 3, 0, 0], [2, 4, 8, 9, 3]])
    none = torch.zeros(3, 3)
    return EmotionBatch(
        torch.arange(3), audio, audio_mask, None, None, text, text != 0, torch.tensor([0, 1, 2]), none, none
    )


def run(model: EmotionModel, batch: EmotionBatch) -> EmotionOutput:
    return model(batch.audio, batch.audio_mask, batch.text, batch.text_mask)


def losses(model: EmotionModel, batch: EmotionBatch, entry: Entry, delta: Tensor) -> Tensor:
    output = entry.run(lambda one: run(model, one), batch, delta)
    assert output.logits is not None
    return nn.functional.cross_entropy(output.logits, batch.target, reduction="none")


def attacked(model: EmotionModel, batch: EmotionBatch, attack: Attack) -> tuple[Entry, Tensor, Tensor, Tensor]:
    entry = Entry(model, attack.level)
    with undisturbed(model):
        values, mask = entry.values(lambda one: run(model, one), batch)
        delta = attack.search(lambda near: losses(model, batch, entry, near - values), values, mask)
    return entry, values, mask, delta


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_raises_the_loss_within_its_budget_and_leaves_padding(
    model: EmotionModel, batch: EmotionBatch, kind: type[FGSM], level: Level
) -> None:
    torch.manual_seed(1)
    entry, values, mask, delta = attacked(model, batch, kind(level, **strength(level)))
    model.eval()
    with torch.no_grad():
        before, after = losses(model, batch, entry, torch.zeros_like(delta)), losses(model, batch, entry, delta)
    assert (after > before).all()
    assert (delta * ~real(values, mask)).abs().max() == 0
    ratio = delta.flatten(1).norm(dim=1) / (values * real(values, mask)).flatten(1).norm(dim=1)
    allowed = 10 ** (-30 / 20) if level == "waveform" else 0.1
    assert (ratio <= allowed * 1.0001).all()
    if kind is not PGD:
        assert (ratio > 0.8 * allowed).all()


def test_an_snr_is_kept_to_the_decibel(model: EmotionModel, batch: EmotionBatch) -> None:
    _, values, mask, delta = attacked(model, batch, FGM("waveform", snr_db=45))
    power = (values * mask).square().sum(1) / mask.sum(1)
    noise = delta.square().sum(1) / mask.sum(1)
    torch.testing.assert_close(10 * (power / noise).log10(), torch.full((3,), 45.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_find_worse(model: EmotionModel, batch: EmotionBatch, norm: str) -> None:
    one = attacked(model, batch, (FGSM if norm == "linf" else FGM)("waveform", snr_db=25))
    many = attacked(model, batch, PGD("waveform", snr_db=25, steps=20, norm=norm))  # type: ignore[arg-type]
    with torch.no_grad():
        model.eval()
        assert (losses(model, batch, many[0], many[3]) >= losses(model, batch, one[0], one[3]) - 1e-4).all()


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_left_behind(model: EmotionModel, batch: EmotionBatch, level: Level) -> None:
    model.train()
    run(model, batch).embedding.sum().backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    assert gradients
    state = copy.deepcopy(model.state_dict())
    waveform, words = batch.audio.clone(), batch.text.clone()  # type: ignore[union-attr]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    attacked(model, batch, PGD(level, **strength(level), steps=2))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert random.getstate() == generators[1]
    np.testing.assert_array_equal(np.random.get_state()[1], generators[2])  # noqa: NPY002
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    for name, parameter in model.named_parameters():
        if name in gradients:
            assert torch.equal(parameter.grad, gradients[name]), name  # type: ignore[arg-type]
    assert torch.equal(batch.audio, waveform)  # type: ignore[arg-type]
    assert torch.equal(batch.text, words)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_as_strong_as_an_independent_library(norm: str) -> None:
    """Same budget, same start, same number of steps: the loss is at least that of adversarial-robustness-toolbox."""
    art_attacks = pytest.importorskip("art.attacks.evasion", reason="pip install mmemo[dev]")
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 4))
    values, target = torch.randn(16, 40), torch.randint(0, 4, (16,))
    mask = torch.ones_like(values, dtype=torch.bool)

    def loss(inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(inputs), target, reduction="none")

    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (40,), 4, channels_first=True)
    kind = np.inf if norm == "linf" else 2
    pairs: list[tuple[Attack, str, dict[str, float]]] = [
        ((FGSM if norm == "linf" else FGM)("waveform", snr_db=20), "FastGradientMethod", {}),
        (
            PGD("waveform", snr_db=20, steps=20, step_size=0.125, norm=norm, random_start=False),  # type: ignore[arg-type]
            "ProjectedGradientDescentPyTorch",
            {"max_iter": 20, "num_random_init": 0, "verbose": False},
        ),
    ]
    for ours, name, options in pairs:
        delta = ours.search(loss, values, mask)
        limit = (ours.budget.bound if norm == "linf" else ours.budget.radius)(values, mask)  # type: ignore[attr-defined]
        theirs = []
        for row in range(len(values)):  # their budget is one for all, ours is measured against each utterance
            eps = float(limit[row])
            extra = {"eps_step": 0.125 * eps} if "max_iter" in options else {}
            attack = getattr(art_attacks, name)(classifier, norm=kind, eps=eps, **options, **extra)
            label = nn.functional.one_hot(target[row : row + 1], 4).numpy().astype(np.float32)
            theirs.append(torch.from_numpy(attack.generate(values[row : row + 1].numpy(), label)))
        with torch.no_grad():
            assert (loss(values + delta) >= loss(torch.cat(theirs)) - 1e-4).all(), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_strength_that_is_no_number_is_told(bad: float) -> None:
    with pytest.raises(ValueError, match="expected a number of decibels"):
        FGSM("waveform", snr_db=bad)
    with pytest.raises(ValueError, match="expected a number above 0"):
        PGD("audio_features", relative_norm=bad)


def test_bad_settings_are_told(tiny_whisper: str, tiny_bert: str) -> None:
    FGSM("waveform", snr_db=-3)  # louder than the voice: allowed
    for build, message in (
        (lambda: FGM("audio_features", relative_norm=-0.1), r"relative_norm=-0\.1"),
        (lambda: FGSM("waveform", relative_norm=0.1), "snr_db, not relative_norm"),
        (lambda: FGSM("log_mel", snr_db=40), "relative_norm, not snr_db"),
        (lambda: FGSM("pixels"), "waveform, log_mel"),  # type: ignore[arg-type]
        (lambda: PGD(steps=0), "steps=0"),
        (lambda: PGD(step_size=0.0), "step_size=0"),
    ):
        with pytest.raises(ValueError, match=message):
            build()
    listens = EmotionModel(["a", "b"], audio_encoder=ConvRecurrentEncoder())
    with pytest.raises(ValueError, match="needs a model with a text_encoder; this one takes audio alone"):
        Entry(listens, "token_embeddings")
    reads = EmotionModel(["a", "b"], text_encoder=HuggingFaceTextEncoder(str(tiny_bert)))
    with pytest.raises(ValueError, match="needs a model with an audio_encoder"):
        Entry(reads, "waveform")
    measured = EmotionModel(["a", "b"], audio_encoder=AcousticDescriptors())
    with pytest.raises(ValueError, match="no gradient comes back through AcousticDescriptors"):
        Entry(measured, "waveform")


def test_the_loss_of_training_can_be_attacked(model: EmotionModel, batch: EmotionBatch) -> None:
    """A scalar objective works as one per utterance does."""
    entry = Entry(model, "audio_features")
    loss = CrossEntropy()
    with undisturbed(model):
        values, mask = entry.values(lambda one: run(model, one), batch)
        attack = PGD("audio_features", relative_norm=0.1, steps=3)
        delta = attack.search(
            lambda near: loss(entry.run(lambda one: run(model, one), batch, near - values), batch), values, mask
        )
        assert loss(entry.run(lambda one: run(model, one), batch, delta), batch) > loss(run(model, batch), batch)
