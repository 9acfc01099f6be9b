"""Speaker normalisation: features standardised by the statistics of the speaker's own unlabelled utterances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo.models.encoder import Encoder, HasLayers
from mmemo.models.pooling import weighted_statistics

STATISTICS_VERSION = 1
"""Part of the fingerprint; raise it when ``precompute`` returns other numbers."""


class StatisticsEncoder(nn.Module):
    """Wraps a frozen encoder: each hidden state becomes one vector, its mean and standard deviation over time.

    The cache then holds a few kilobytes per utterance, and :class:`SpeakerNorm` standardises utterances, not frames.

    Args:
        encoder: A frozen encoder, such as ``WhisperAudioEncoder``.

    Raises:
        ValueError: It is not an encoder.

    Shape:
        waveform and mask ``(batch, samples)`` -> features ``(batch, layer, 1, 2 * encoder.dim)``, mask ``(batch, 1)``

    Example:
        >>> from mmemo.models import ConvNeXtEncoder
        >>> encoder = StatisticsEncoder(ConvNeXtEncoder(hidden_dim=8)).eval()
        >>> waveform = torch.randn(2, 16_000)
        >>> features, mask = encoder.precompute(waveform, torch.ones_like(waveform, dtype=torch.bool))
        >>> features.shape[:3], features.shape[3] == encoder.dim, mask.shape
        (torch.Size([2, 1, 1]), True, torch.Size([2, 1]))
    """

    caches = True

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        if not isinstance(encoder, Encoder):
            raise ValueError(f"StatisticsEncoder({type(encoder).__name__}): expected an audio encoder of mmemo.models")
        self.encoder = encoder
        self.dim = 2 * encoder.dim
        self.num_layers = encoder.num_layers
        self.differentiable = encoder.differentiable
        self.feature_names = [f"{name}/{index}" for name in ("mean", "deviation") for index in range(encoder.dim)]
        if isinstance(encoder, HasLayers):
            self.layers = list(encoder.layers)

    def fingerprint(self) -> str:
        """Returns everything that ``precompute`` depends on."""
        return f"statistics-{STATISTICS_VERSION}:{self.encoder.fingerprint()}"

    def precompute(self, inputs: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Runs the encoder and pools each hidden state.

        Shape:
            waveform, mask ``(batch, samples)`` -> ``(batch, layer, 1, dim)``, mask ``(batch, 1)``
        """
        features, mask = self.encoder(*self.encoder.precompute(inputs, mask))
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)  # (batch, time)
        layers = features.shape[1]
        pooled = weighted_statistics(
            rearrange(features, "batch layer time dim -> (batch layer) time dim"),
            weights.repeat_interleave(layers, 0)[..., None],
        )
        return rearrange(pooled, "(batch layer) dim -> batch layer 1 dim", layer=layers), mask.any(1, keepdim=True)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return features, mask


class SpeakerNorm(nn.Module):
    """Standardises features by the mean and deviation of the speaker, shrunk towards the training population.

    With n utterances of a speaker of mean m and deviation s, and a population of mean M and deviation S,
    ``(x - (w m + (1 - w) M)) / (v s + (1 - v) S)`` with w = n / (n + mean_prior), v = n / (n + deviation_prior).
    A speaker without utterances is standardised by the population. No label is used.

    It assumes that a speaker's utterances vary in emotion: what is constant in them is taken for the voice.

    Args:
        num_layers: Number of hidden states.
        input_dim: Size of their feature axis.
        mean_prior: Utterances that the population's mean counts as, above 0.
        deviation_prior: The same for its deviation.

    Raises:
        ValueError: A prior is not above 0.

    Shape:
        features ``(batch, layer, time, dim)``, mask ``(batch, time)`` bool, speaker ``(batch, 2, layer, dim)``: mean
        and deviation -> features ``(batch, layer, time, dim)``

    Example:
        >>> norm = SpeakerNorm(num_layers=1, input_dim=4)
        >>> utterances = [torch.randn(1, 1, 4) + 3 for _ in range(50)]
        >>> speaker = norm.profile(utterances)
        >>> shifted = norm(torch.full((1, 1, 1, 4), 3.0), torch.ones(1, 1, dtype=torch.bool), speaker[None])
        >>> bool(shifted.abs().mean() < 0.5)  # 3 is this speaker's average, so it becomes almost 0
        True
    """

    def __init__(
        self, num_layers: int, input_dim: int, mean_prior: float = 3.0, deviation_prior: float = 8.0
    ) -> None:  # fmt: skip
        super().__init__()
        if min(mean_prior, deviation_prior) <= 0:
            raise ValueError(
                f"SpeakerNorm(mean_prior={mean_prior}, deviation_prior={deviation_prior}), expected above 0"
            )
        self.mean_prior = mean_prior
        self.deviation_prior = deviation_prior
        self.population: Tensor  # mean and deviation (2, layer, dim)
        population = torch.stack([torch.zeros(num_layers, input_dim), torch.ones(num_layers, input_dim)])
        self.register_buffer("population", population)

    def fit_population(self, speakers: Sequence[Sequence[Tensor]]) -> None:
        """Sets the population to the average of the training speakers, each counting once.

        Args:
            speakers: Features ``(layer, time, dim)`` of each utterance of each speaker.

        Raises:
            ValueError: There are no speakers.
        """
        if not speakers:
            raise ValueError("SpeakerNorm: the training side has no speakers; fill in the column speaker")
        statistics = torch.stack([speaker_statistics(utterances) for utterances in speakers])
        population = statistics.mean(0)
        self.population.copy_(torch.stack([population[0], population[1].clamp(min=1e-6)]))

    def profile(self, utterances: Sequence[Tensor]) -> Tensor:
        """Returns a speaker's mean and deviation, shrunk towards the population ``(2, layer, dim)``.

        Args:
            utterances: Features ``(layer, time, dim)`` of each enrolled utterance; none gives the population.
        """
        count = len(utterances)
        if not count:
            return self.population
        statistics = speaker_statistics(utterances).to(self.population)
        shares = [count / (count + prior) for prior in (self.mean_prior, self.deviation_prior)]
        if sum(utterance.shape[1] for utterance in utterances) < 2:
            shares[1] = 0.0  # a single vector has no deviation
        share = torch.tensor(shares).to(statistics)[:, None, None]
        return share * statistics + (1 - share) * self.population

    def forward(self, features: Tensor, mask: Tensor, speaker: Tensor | None = None) -> Tensor:
        if speaker is None:
            speaker = self.population[None].expand(len(features), -1, -1, -1)
        mean, deviation = speaker[:, 0, :, None], speaker[:, 1, :, None]  # (batch, layer, 1, dim)
        return (features - mean) / deviation * mask[:, None, :, None]


def speaker_statistics(utterances: Sequence[Tensor]) -> Tensor:
    """Returns the mean and the standard deviation over all time steps of all utterances ``(2, layer, dim)``.

    Args:
        utterances: Features ``(layer, time, dim)``, at least one time step in all.
    """
    features = torch.cat([utterance.float() for utterance in utterances], dim=1)
    return torch.stack([features.mean(1), features.std(1, unbiased=False)])
