"""Where each class lies for a speaker: a Gaussian mixture over class scores, adapted without labels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIZES = (1, 3, 5, 10, 20, 40)
"""Numbers of enrolled utterances for which the usual variety is estimated."""

DRAWS = 10
"""Random draws of each training speaker and size."""

MIXED_QUANTILE, SINGLE_QUANTILE = 0.02, 0.75
"""From the first quantile of the variety of training speakers on, nothing is added; up to the second quantile of the
variety of single classes, everything is. Chosen on held-out training speakers of RAVDESS."""


class SpeakerMixture(nn.Module):
    """Rescores class scores by what a Gaussian mixture infers from the speaker's unlabelled utterances.

    The scores of class c and speaker s are normal with mean ``class_mean[c] + offset[s] + offset[s, c]`` and a common
    covariance. Both offsets have Gaussian priors, estimated from training speakers that the scores were not trained
    on. For a new speaker, expectation maximisation alternates between the probable class of each utterance and the
    offsets. The result is a weighted sum of the scores and of the change that the offsets make to the log-likelihoods.
    The two weights minimise the cross-entropy of the same training speakers. This is probabilistic linear discriminant
    analysis (Ioffe 2006, <https://doi.org/10.1007/11744085_41>) with unknown classes.

    If the enrolled utterances have fewer emotions than those of almost all training speakers, their average is not the
    voice alone, and standardisation has removed the emotion too. The mixture then adds it again: the mean scores of
    the classes, weighted by how much more probable than usual each class is in the enrolled utterances.

    It assumes speakers like those of training: do not use it across corpora or languages.

    Args:
        num_classes: Number of classes.
        speaker_scale: Factor on the prior covariance of a speaker's common offset, above 0.
        temperature: Factor on the log-likelihoods in the estimation, above 0; below 1 makes it less certain of the
            classes.
        iterations: Rounds of expectation maximisation, 1 or more.
        mean_prior: That of the model's ``SpeakerNorm``, above 0.

    Raises:
        ValueError: A setting is out of range.

    Shape:
        logits ``(batch, num_classes)``, offsets ``(batch, num_classes + 1, num_classes)``: one row of scores for each
        class, and one that is added to all utterances -> logits ``(batch, num_classes)``

    Example:
        >>> mixture = SpeakerMixture(num_classes=2)
        >>> target, speaker = torch.arange(200) % 2, torch.arange(200) // 20
        >>> shift = torch.randn(10, generator=torch.Generator().manual_seed(0))[speaker, None]
        >>> logits = 4 * nn.functional.one_hot(target, 2) + shift * torch.tensor([1.0, -1.0])
        >>> mixture.fit(logits + 0.1 * torch.randn(200, 2), target, speaker)
        >>> shifted = logits[:20] + torch.tensor([5.0, -5.0])  # an unusual voice
        >>> offsets = mixture.adapt(shifted)
        >>> bool((mixture(shifted, offsets[None].expand(20, 3, 2)).argmax(1) == target[:20]).all())
        True
    """

    def __init__(
        self,
        num_classes: int,
        speaker_scale: float = 0.3,
        temperature: float = 0.5,
        iterations: int = 5,
        mean_prior: float = 3.0,
    ) -> None:  # fmt: skip
        super().__init__()
        if min(speaker_scale, temperature, mean_prior) <= 0 or iterations < 1:
            raise ValueError(
                f"SpeakerMixture(speaker_scale={speaker_scale}, temperature={temperature}, iterations={iterations}, "
                f"mean_prior={mean_prior}), expected numbers above 0, and iterations 1 or more"
            )
        self.speaker_scale = speaker_scale
        self.temperature = temperature
        self.iterations = iterations
        self.class_means: Tensor  # (class, score)
        self.precision: Tensor  # inverse covariance of an utterance's scores
        self.speaker_precision: Tensor  # inverse covariance of the speakers' common offsets
        self.class_precision: Tensor  # inverse covariance of their offsets per class
        self.mean_prior = mean_prior
        self.shares: Tensor  # weights of the scores and of the change (2,)
        self.uncalibrated_share: Tensor  # weight of uncalibrated scores
        self.usual: Tensor  # mean probability of each class for training speakers (class,)
        self.variety: Tensor  # up to the first all is added, from the second on nothing, for each size (size, 2)
        self.fitted: Tensor
        self.register_buffer("shares", torch.ones(2))
        self.register_buffer("uncalibrated_share", torch.ones(()))
        self.register_buffer("usual", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("variety", torch.zeros(len(SIZES), 2))
        self.register_buffer("class_means", torch.eye(num_classes))
        for name in ("precision", "speaker_precision", "class_precision"):
            self.register_buffer(name, torch.eye(num_classes))
        self.register_buffer("fitted", torch.tensor(False))

    def fit(
        self,
        logits: Tensor,
        target: Tensor,
        speaker: Tensor,
        weights: Tensor | None = None,
        uncalibrated: Tensor | None = None,
    ) -> None:
        """Estimates the mixture from scores of utterances that the scores were not trained on.

        Args:
            logits: Scores ``(utterance, num_classes)``.
            target: Class indices ``(utterance,)``.
            speaker: Index of each speaker ``(utterance,)``.
            weights: Weight of each utterance ``(utterance,)``. Defaults to 1.
            uncalibrated: Scores of the same utterances as for an unknown speaker. Without them, enrolled utterances
                of few emotions are not recognised.

        Raises:
            ValueError: No speaker has two classes with two utterances each.
        """
        logits = centred(logits.double())
        weights = torch.ones(len(logits)).to(logits) if weights is None else weights.to(logits)
        membership = nn.functional.one_hot(target, len(self.class_means)) * weights[:, None]  # (utterance, class)
        means = membership.T @ logits / membership.sum(0).clamp(min=1e-9)[:, None]
        residual = logits - means[target]
        common: list[Tensor] = []
        specific: list[Tensor] = []
        inverse_counts: list[float] = []
        within, degrees = torch.zeros(len(means), len(means)).to(means), torch.zeros(()).to(means)
        for name in speaker.unique():
            of_speaker = speaker == name
            groups = [residual[of_speaker & (target == index)] for index in target[of_speaker].unique()]
            groups = [group for group in groups if len(group) > 1]
            if len(groups) < 2:
                continue
            offsets = torch.stack([group.mean(0) for group in groups])
            common.append(offsets.mean(0))
            specific.append(offsets - offsets.mean(0))
            share = weights[of_speaker].mean()
            for group, offset in zip(groups, offsets, strict=True):
                within = within + share * (group - offset).T @ (group - offset)
                degrees = degrees + share * (len(group) - 1)
                inverse_counts.append(1 / len(group))
        if not common:
            raise ValueError(
                "SpeakerMixture needs training speakers with two utterances each of two classes or more; remove "
                "speaker_mixture, or name the speakers in the manifest"
            )
        covariance = within / degrees
        pooled = torch.cat(specific)
        noise = covariance * (sum(inverse_counts) / len(inverse_counts))  # of the mean of a few utterances
        between_classes = _shrunk(_positive(pooled.T @ pooled / len(pooled) - 0.9 * noise))
        between = _shrunk(torch.stack(common).T @ torch.stack(common) / len(common))
        ridge = 1e-4 * logits.var() * torch.eye(len(covariance)).to(covariance)
        self.class_means.copy_(means)
        self.precision.copy_(torch.linalg.inv(_shrunk(covariance) + between_classes / 2 + ridge))
        self.speaker_precision.copy_(torch.linalg.inv(self.speaker_scale * between + ridge))
        self.class_precision.copy_(torch.linalg.inv(between_classes + ridge))
        self.fitted.fill_(True)
        changes = torch.zeros_like(logits)
        for name in speaker.unique():
            own = logits[speaker == name]
            changes[speaker == name] = self._changes(own, self.adapt(own)[:-1]).double()
        self.shares.copy_(_best_shares(logits, changes, target, weights))
        if uncalibrated is not None:
            self._fit_variety(centred(uncalibrated.double()), target, speaker, weights)

    def _fit_variety(self, scores: Tensor, target: Tensor, speaker: Tensor, weights: Tensor) -> None:
        """Estimates how many classes the enrolled utterances of training speakers usually seem to have."""
        self.uncalibrated_share.copy_(_best_shares(scores, torch.zeros_like(scores), target, weights)[0])
        probs = (self.uncalibrated_share * scores).softmax(-1).to(self.usual)
        speakers = [probs[speaker == name] for name in speaker.unique()]
        self.usual.copy_(torch.stack([own.mean(0) for own in speakers]).mean(0))
        groups = [
            probs[(speaker == name) & (target == index)] for name in speaker.unique() for index in target.unique()
        ]
        single = torch.stack([variety(group.mean(0)) for group in groups if len(group)]).quantile(SINGLE_QUANTILE)
        generator = torch.Generator().manual_seed(0)
        for row, size in enumerate(SIZES):
            draws = [
                variety(own[torch.randperm(len(own), generator=generator)[:size]].mean(0))
                for own in speakers
                for _ in range(DRAWS)
            ]
            high = torch.stack(draws).quantile(MIXED_QUANTILE)
            self.variety[row] = torch.stack([torch.minimum(single, high - 1e-3), high])

    def _removed(self, uncalibrated: Tensor) -> Tensor:
        """Returns the scores that standardisation has removed with the voice ``(score,)``; zeros for usual utterances.

        Args:
            uncalibrated: Scores of the enrolled utterances as for an unknown speaker ``(utterance, num_classes)``.
        """
        count = len(uncalibrated)
        probs = (self.uncalibrated_share * centred(uncalibrated)).softmax(-1).mean(0)
        low, high = self.variety[sum(size <= count for size in SIZES) - 1]
        certainty = ((high - variety(probs)) / (high - low).clamp(min=1e-6)).clamp(0, 1)
        removed: Tensor = certainty * count / (count + self.mean_prior) * (probs - self.usual) @ self.class_means
        return removed

    def adapt(self, logits: Tensor, uncalibrated: Tensor | None = None) -> Tensor:
        """Returns a speaker's offsets ``(num_classes + 1, score)``, by expectation maximisation without labels.

        Args:
            logits: Scores of the speaker's enrolled utterances ``(utterance, num_classes)``; none gives zeros.
            uncalibrated: Their scores as for an unknown speaker. Without them, the last row is zeros.
        """
        offsets = torch.zeros_like(self.class_means)
        if not len(logits) or not self.fitted:
            return torch.cat([offsets, offsets[:1]])
        removed = offsets[0] if uncalibrated is None else self._removed(uncalibrated.to(offsets))
        scores = centred(logits.to(self.class_means)) + removed
        common = torch.zeros(len(self.class_means)).to(scores)
        for _ in range(self.iterations):
            # Without the scores themselves, which would be counted twice: their errors would confirm each other.
            probs = (self.temperature * self._log_likelihoods(scores, common + offsets)).softmax(-1)
            counts = probs.sum(0)
            unexplained = scores.sum(0) - counts @ (self.class_means + offsets)
            common = torch.linalg.solve(
                self.speaker_precision + len(scores) * self.precision, self.precision @ unexplained
            )
            sums = probs.T @ scores - counts[:, None] * (self.class_means + common)  # (class, score)
            systems = self.class_precision + counts[:, None, None] * self.precision
            offsets = torch.linalg.solve(systems, sums @ self.precision.T)
        return torch.cat([common + offsets, removed[None]])

    def _log_likelihoods(self, scores: Tensor, offsets: Tensor) -> Tensor:
        """Returns ``(utterance, class)`` up to a constant, from centred scores ``(utterance, score)``.

        Args:
            scores: Centred scores.
            offsets: ``(class, score)``, or one of each utterance ``(utterance, class, score)``.
        """
        weighted = (self.class_means + offsets) @ self.precision
        return (scores[:, None] * weighted).sum(-1) - ((self.class_means + offsets) * weighted).sum(-1) / 2

    def forward(self, logits: Tensor, offsets: Tensor | None = None) -> Tensor:
        if offsets is None:
            offsets = self.class_means.new_zeros(1, len(self.class_means) + 1, len(self.class_means))
        scores = centred(logits) + offsets[:, -1]
        rescored = self.shares[0] * scores + self.shares[1] * self._changes(scores, offsets[:, :-1])
        return torch.where(self.fitted, rescored, logits)

    def _changes(self, scores: Tensor, offsets: Tensor) -> Tensor:
        """Returns how much the offsets change each class's log-likelihood ``(utterance, class)``."""
        scores = scores.to(self.class_means)
        return self._log_likelihoods(scores, offsets) - self._log_likelihoods(scores, torch.zeros_like(offsets))


def variety(probs: Tensor) -> Tensor:
    """Returns the effective number of classes, the exponential of the entropy ``()``, of probabilities ``(class,)``."""
    effective: Tensor = torch.special.entr(probs).sum().exp()
    return effective


def centred(logits: Tensor) -> Tensor:
    """Returns scores ``(..., num_classes)`` with a mean of zero, which leaves their softmax unchanged."""
    return logits - logits.mean(-1, keepdim=True)


def _positive(matrix: Tensor) -> Tensor:
    """Returns the nearest positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    nearest: Tensor = (vectors * values.clamp(min=0)) @ vectors.T
    return nearest


def _shrunk(covariance: Tensor, share: float = 0.05) -> Tensor:
    """Returns a covariance shrunk towards a multiple of the identity."""
    identity = torch.eye(len(covariance)).to(covariance) * covariance.diagonal().mean()
    return (1 - share) * covariance + share * identity


def _best_shares(scores: Tensor, changes: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Returns the weights ``(2,)`` of scores and changes with which their softmax fits the classes best, 0 or more."""
    logarithms = torch.zeros(2, dtype=scores.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([logarithms], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        combined = logarithms[0].exp() * scores + logarithms[1].exp() * changes
        value = (weights * nn.functional.cross_entropy(combined, target, reduction="none")).sum() / weights.sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return logarithms.detach().exp()
