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
from mmemo.training.attacks import FGM, FGSM, PGD, Attack, Level, PerturbationPoint, evaluation_gradients, real
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


def losses(model: EmotionModel, batch: EmotionBatch, point: PerturbationPoint, delta: Tensor) -> Tensor:
    output = point.run(lambda inputs: run(model, inputs), batch, delta)
    assert output.logits is not None
    return nn.functional.cross_entropy(output.logits, batch.target, reduction="none")


def attack_batch(
    model: EmotionModel, batch: EmotionBatch, attack: Attack
) -> tuple[PerturbationPoint, Tensor, Tensor, Tensor]:
    point = PerturbationPoint(model, attack.level)
    with evaluation_gradients(model):
        values, mask = point.values(lambda inputs: run(model, inputs), batch)
        delta = attack.search(lambda perturbed: losses(model, batch, point, perturbed - values), values, mask)
    return point, values, mask, delta


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_raises_the_loss_within_its_budget_and_does_not_change_padding(
    model: EmotionModel, batch: EmotionBatch, kind: type[FGSM], level: Level
) -> None:
    torch.manual_seed(1)
    point, values, mask, delta = attack_batch(model, batch, kind(level, **strength(level)))
    model.eval()
    with torch.no_grad():
        before, after = losses(model, batch, point, torch.zeros_like(delta)), losses(model, batch, point, delta)
    assert (after > before).all()
    assert (delta * ~real(values, mask)).abs().max() == 0
    ratio = delta.flatten(1).norm(dim=1) / (values * real(values, mask)).flatten(1).norm(dim=1)
    allowed = 10 ** (-30 / 20) if level == "waveform" else 0.1
    assert (ratio <= allowed * 1.0001).all()
    if kind is not PGD:
        assert (ratio > 0.8 * allowed).all()


def test_the_perturbation_has_the_requested_snr(model: EmotionModel, batch: EmotionBatch) -> None:
    _, values, mask, delta = attack_batch(model, batch, FGM("waveform", snr_db=45))
    power = (values * mask).square().sum(1) / mask.sum(1)
    noise = delta.square().sum(1) / mask.sum(1)
    torch.testing.assert_close(10 * (power / noise).log10(), torch.full((3,), 45.0), atol=0.05, rtol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_steps_raise_the_loss_further(model: EmotionModel, batch: EmotionBatch, norm: str) -> None:
    point, _, _, single_step = attack_batch(model, batch, (FGSM if norm == "linf" else FGM)("waveform", snr_db=25))
    _, _, _, many_steps = attack_batch(model, batch, PGD("waveform", snr_db=25, steps=20, norm=norm))  # type: ignore[arg-type]
    with torch.no_grad():
        model.eval()
        assert (losses(model, batch, point, many_steps) >= losses(model, batch, point, single_step) - 1e-4).all()


@pytest.mark.parametrize("level", LEVELS)
def test_an_attack_restores_model_and_random_generators(model: EmotionModel, batch: EmotionBatch, level: Level) -> None:
    model.train()
    run(model, batch).embedding.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    assert gradients
    state = copy.deepcopy(model.state_dict())
    waveform, token_ids = batch.audio.clone(), batch.text.clone()  # type: ignore[union-attr]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[union-attr]  # noqa: NPY002
    attack_batch(model, batch, PGD(level, **strength(level), steps=2))
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
    assert torch.equal(batch.text, token_ids)  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attacks_are_as_strong_as_those_of_an_independent_library(norm: str) -> None:
    """With the same budget, start and number of steps, the loss is at least that of adversarial-robustness-toolbox."""
    art_attacks = pytest.importorskip("art.attacks.evasion", reason="pip install mmemo[dev]")
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(40, 32), nn.Tanh(), nn.Linear(32, 4))
    values, target = torch.randn(16, 40), torch.randint(0, 4, (16,))
    mask = torch.ones_like(values, dtype=torch.bool)

    def loss(inputs: Tensor) -> Tensor:
        return nn.functional.cross_entropy(network(inputs), target, reduction="none")

    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (40,), 4, channels_first=True)
    art_norm = np.inf if norm == "linf" else 2
    cases: list[tuple[Attack, str, dict[str, float]]] = [
        ((FGSM if norm == "linf" else FGM)("waveform", snr_db=20), "FastGradientMethod", {}),
        (
            PGD("waveform", snr_db=20, steps=20, step_size=0.125, norm=norm, random_start=False),  # type: ignore[arg-type]
            "ProjectedGradientDescentPyTorch",
            {"max_iter": 20, "num_random_init": 0, "verbose": False},
        ),
    ]
    for ours, name, options in cases:
        delta = ours.search(loss, values, mask)
        limit = (ours.budget.bound if norm == "linf" else ours.budget.radius)(values, mask)  # type: ignore[attr-defined]
        art_inputs = []
        for row in range(len(values)):  # ART has one budget per call, mmemo's is relative to each utterance
            eps = float(limit[row])
            extra = {"eps_step": 0.125 * eps} if "max_iter" in options else {}
            attack = getattr(art_attacks, name)(classifier, norm=art_norm, eps=eps, **options, **extra)
            label = nn.functional.one_hot(target[row : row + 1], 4).numpy().astype(np.float32)
            art_inputs.append(torch.from_numpy(attack.generate(values[row : row + 1].numpy(), label)))
        with torch.no_grad():
            assert (loss(values + delta) >= loss(torch.cat(art_inputs)) - 1e-4).all(), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_strength_is_rejected(bad: float) -> None:
    with pytest.raises(ValueError, match="expected a number of decibels"):
        FGSM("waveform", snr_db=bad)
    with pytest.raises(ValueError, match="expected a number above 0"):
        PGD("audio_features", relative_norm=bad)


def test_invalid_settings_are_rejected(tiny_whisper: str, tiny_bert: str) -> None:
    FGSM("waveform", snr_db=-3)  # noise louder than the speech is allowed
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
    audio_model = EmotionModel(["a", "b"], audio_encoder=ConvRecurrentEncoder())
    with pytest.raises(ValueError, match="needs a model with a text_encoder; this one has only audio"):
        PerturbationPoint(audio_model, "token_embeddings")
    text_model = EmotionModel(["a", "b"], text_encoder=HuggingFaceTextEncoder(str(tiny_bert)))
    with pytest.raises(ValueError, match="needs a model with an audio_encoder"):
        PerturbationPoint(text_model, "waveform")
    descriptor_model = EmotionModel(["a", "b"], audio_encoder=AcousticDescriptors())
    with pytest.raises(ValueError, match="AcousticDescriptors"):
        PerturbationPoint(descriptor_model, "waveform")


def test_a_scalar_training_loss_can_be_attacked(model: EmotionModel, batch: EmotionBatch) -> None:
    """A scalar loss works like one loss per utterance."""
    point = PerturbationPoint(model, "audio_features")
    loss = CrossEntropy()
    with evaluation_gradients(model):
        values, mask = point.values(lambda inputs: run(model, inputs), batch)
        attack = PGD("audio_features", relative_norm=0.1, steps=3)

        def objective(perturbed: Tensor) -> Tensor:
            return loss(point.run(lambda inputs: run(model, inputs), batch, perturbed - values), batch)

        delta = attack.search(objective, values, mask)
        assert loss(point.run(lambda inputs: run(model, inputs), batch, delta), batch) > loss(run(model, batch), batch)
