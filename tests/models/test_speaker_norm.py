"""Speaker normalisation: the formula, padding, and what a model without a speaker's statistics does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmemo.models import ConvNeXtEncoder, SpeakerMixture, SpeakerNorm, StatisticsEncoder
from mmemo.models.speaker_norm import speaker_statistics
from tests.conftest import padded, tone


def utterances(count: int, shift: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 1, 4, generator=generator) + shift for _ in range(count)]


def fitted_norm() -> SpeakerNorm:
    norm = SpeakerNorm(num_layers=2, input_dim=4, mean_prior=3.0, deviation_prior=8.0)
    norm.fit_population([utterances(30, shift, seed) for seed, shift in enumerate((-1.0, 0.0, 1.0))])
    return norm


def test_standardisation_follows_the_formula() -> None:
    norm, enrolled = fitted_norm(), utterances(10, 2.0, seed=9)
    own, (population_mean, population_deviation) = torch.stack(enrolled)[:, :, 0], norm.population
    mean = 10 / 13 * own.mean(0) + 3 / 13 * population_mean
    deviation = 10 / 18 * own.std(0, unbiased=False) + 8 / 18 * population_deviation
    features = torch.randn(1, 2, 1, 4)
    result = norm(features, torch.ones(1, 1, dtype=torch.bool), norm.profile(enrolled)[None])
    torch.testing.assert_close(result, (features - mean[None, :, None]) / deviation[None, :, None])


def test_the_population_is_the_average_speaker() -> None:
    speakers = [utterances(30, shift, seed) for seed, shift in enumerate((-1.0, 0.0, 1.0))]
    each = torch.stack([speaker_statistics(speaker) for speaker in speakers])
    torch.testing.assert_close(fitted_norm().population, each.mean(0))


def test_an_unknown_speaker_is_the_population() -> None:
    norm, features, mask = fitted_norm(), torch.randn(3, 2, 1, 4), torch.ones(3, 1, dtype=torch.bool)
    torch.testing.assert_close(norm(features, mask), norm(features, mask, norm.profile([]).expand(3, -1, -1, -1)))


def test_one_utterance_keeps_the_deviation_of_the_population() -> None:
    norm = fitted_norm()
    torch.testing.assert_close(norm.profile(utterances(1))[1], norm.population[1])


def test_more_utterances_move_the_profile_towards_the_speaker() -> None:
    norm, all_utterances = fitted_norm(), utterances(60, 3.0, seed=4)
    own = speaker_statistics(all_utterances)[0]
    distances = [float((norm.profile(all_utterances[:count])[0] - own).norm()) for count in (0, 5, 20, 60)]
    assert distances == sorted(distances, reverse=True)


def test_padding_and_batch_mates_change_no_statistics() -> None:
    encoder = StatisticsEncoder(ConvNeXtEncoder(hidden_dim=8)).eval()
    short, long = tone(0.4), tone(1.1, 220.0)
    with torch.no_grad():
        together, _ = encoder.precompute(*padded([short, long]))
        alone, mask = encoder.precompute(*padded([short]))
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    assert mask.shape == (1, 1)


def test_statistics_are_mean_and_deviation_over_time() -> None:
    inner = ConvNeXtEncoder(hidden_dim=8).eval()
    waveform = padded([tone(0.7)])
    with torch.no_grad():
        pooled, _ = StatisticsEncoder(inner).precompute(*waveform)
        features, _ = inner(*inner.precompute(*waveform))
    frames = features[0, 0].numpy()
    np.testing.assert_allclose(pooled[0, 0, 0], np.concatenate([frames.mean(0), frames.std(0)]), atol=2e-3)


@pytest.mark.parametrize("prior", [{"mean_prior": 0.0}, {"deviation_prior": -1.0}])
def test_priors_must_be_positive(prior: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected above 0"):
        SpeakerNorm(1, 4, **prior)


def scores(
    num_speakers: int, classes: list[int], seed: int, spread: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scores of three classes whose speakers differ in a common offset and in one per class."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.tensor(classes).repeat(num_speakers)
    speaker = torch.arange(num_speakers).repeat_interleave(len(classes))
    offsets = spread * torch.randn(num_speakers, 1, 3, generator=generator) + 0.3 * torch.randn(num_speakers, 3, 3)
    noise = 0.7 * torch.randn(len(target), 3, generator=generator)
    return 2 * torch.eye(3)[target] + offsets[speaker, target] + noise, target, speaker


def test_a_mixture_adapts_to_a_speaker_without_labels() -> None:
    mixture = SpeakerMixture(num_classes=3)
    torch.manual_seed(0)
    mixture.fit(*scores(40, [0, 1, 2] * 8, seed=1))
    logits, target, speaker = scores(40, [0, 1, 2] * 8, seed=2)
    adapted = torch.cat(
        [
            mixture(own, mixture.adapt(own)[None].expand(len(own), 4, 3))
            for own in (logits[speaker == number] for number in range(40))
        ]
    )
    accuracy = [float((result.argmax(1) == target).float().mean()) for result in (mixture(logits), adapted)]
    assert accuracy[1] > accuracy[0] + 0.05


def test_a_speaker_of_one_emotion_keeps_it() -> None:
    torch.manual_seed(0)
    mixture, plain = SpeakerMixture(num_classes=3), SpeakerMixture(num_classes=3)
    logits, target, speaker = scores(40, [0, 1, 2] * 8, seed=1, spread=0.3)
    means = torch.stack([logits[speaker == number].mean(0) for number in range(40)])
    calibrated = logits - means[speaker]  # what standardisation does
    mixture.fit(calibrated, target, speaker, uncalibrated=logits)
    plain.fit(calibrated, target, speaker)
    angry = 2 * torch.eye(3)[torch.zeros(20, dtype=torch.long)] + 0.7 * torch.randn(20, 3)
    standardised = angry - angry.mean(0)
    results = {
        name: model(standardised, model.adapt(standardised, unknown)[None].expand(20, 4, 3)).argmax(1)
        for name, model, unknown in (("guarded", mixture, angry), ("plain", plain, None))
    }
    share = {name: float((predicted == 0).float().mean()) for name, predicted in results.items()}
    assert share["guarded"] > 0.7 > 0.6 > share["plain"]


def test_usual_utterances_are_not_changed_by_the_guard() -> None:
    torch.manual_seed(0)
    mixture = SpeakerMixture(num_classes=3)
    logits, target, speaker = scores(40, [0, 1, 2] * 8, seed=1)
    mixture.fit(logits, target, speaker, uncalibrated=logits)
    others, _, number = scores(40, [0, 1, 2] * 8, seed=2)
    removed = torch.stack([mixture.adapt(others[number == index], others[number == index])[-1] for index in range(40)])
    assert float((removed.norm(dim=1) == 0).float().mean()) > 0.5  # above the higher quantile


def test_a_mixture_that_was_not_fitted_changes_nothing() -> None:
    logits = torch.randn(5, 3)
    mixture = SpeakerMixture(num_classes=3)
    torch.testing.assert_close(mixture(logits), logits)
    assert not mixture.adapt(logits).any()


def test_a_mixture_needs_speakers_with_several_classes() -> None:
    with pytest.raises(ValueError, match="two utterances each of two classes"):
        SpeakerMixture(num_classes=2).fit(torch.randn(4, 2), torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1]))
