"""Interpretable acoustic descriptors, per frame or as the functionals of eGeMAPS.

Both classes are encoders: use one alone as ``audio_encoder``, or as ``descriptors`` next to a deep audio encoder.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo.models.pooling import MaskedBatchNorm
from mmemo.settings import SAMPLE_RATE

DESCRIPTORS_VERSION = 1
"""Part of every fingerprint; increment it when the values that ``precompute`` returns change."""

HOP_SAMPLES = 320  # 20 ms
WINDOW_SAMPLES = 1024  # 64 ms: at least four periods of the lowest F0
LOWEST_F0, HIGHEST_F0 = 65.0, 500.0  # Hz
BAND_EDGES = (0, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000)  # Hz
NUM_MFCC = 13


class AcousticDescriptors(nn.Module):
    """MFCCs with deltas, energy per band, zero-crossing rate, energy and F0, computed with librosa.

    F0 is estimated by pYIN (Mauch and Dixon 2014). It has two features: semitones above 65 Hz, 0 in unvoiced frames,
    and whether the frame is voiced. All features are standardised by the training set's mean and deviation.
    ``feature_names`` names each feature as ``family/number``; a family is a group for the gates.

    Args:
        f0: Whether to estimate F0, the slowest of the descriptors.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, time, dim)`` at 50 frames a second, mask ``(batch, time)``

    Example:
        >>> descriptors = AcousticDescriptors()
        >>> descriptors.dim
        51
        >>> descriptors.feature_names[-4:]
        ['zero crossings/0', 'energy/0', 'f0/0', 'f0/1']
    """

    caches = True
    differentiable = False  # librosa computes no gradients
    num_layers = 1

    def __init__(self, f0: bool = True) -> None:
        super().__init__()
        self.f0 = f0
        groups = {
            "mfcc": NUM_MFCC,
            "mfcc delta": NUM_MFCC,
            "mfcc delta 2": NUM_MFCC,
            "band energy": len(BAND_EDGES) - 1,
        }
        groups |= {"zero crossings": 1, "energy": 1} | ({"f0": 2} if f0 else {})
        self.feature_names = [f"{name}/{number}" for name, size in groups.items() for number in range(size)]
        self.dim = len(self.feature_names)
        self.norm = MaskedBatchNorm(self.dim)

    def fingerprint(self) -> str:
        """Returns a string of everything that the result of ``precompute`` depends on."""
        return f"descriptors-{DESCRIPTORS_VERSION}:{self.f0}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the descriptors, not yet standardised."""
        clips = [
            samples[:length].detach().cpu().numpy()
            for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True)
        ]
        frames = [torch.from_numpy(self._describe(clip)) for clip in clips]
        return _pad([frame.to(waveform.device) for frame in frames])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.norm(rearrange(features[:, 0], "batch time dim -> (batch time) dim"), mask.flatten())
        return rearrange(flat, "(batch time) dim -> batch 1 time dim", batch=len(mask)), mask

    def _describe(self, waveform: np.ndarray) -> np.ndarray:
        """Descriptors ``(time, dim)`` float32 of one clip; no frames if the waveform is empty."""
        import librosa

        if len(waveform) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        waveform = np.pad(waveform, (0, max(WINDOW_SAMPLES - len(waveform), 0)))
        power = np.abs(librosa.stft(waveform, n_fft=WINDOW_SAMPLES, hop_length=HOP_SAMPLES)) ** 2  # (bin, time)
        mel = librosa.feature.melspectrogram(S=power, sr=SAMPLE_RATE, n_mels=40)
        mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel, amin=1e-8, top_db=None), n_mfcc=NUM_MFCC)
        width = min(9, mfcc.shape[1] - (1 - mfcc.shape[1] % 2))
        deltas = [
            librosa.feature.delta(mfcc, width=width, order=order) if width >= 3 else np.zeros_like(mfcc)
            for order in (1, 2)
        ]
        edges = np.searchsorted(librosa.fft_frequencies(sr=SAMPLE_RATE, n_fft=WINDOW_SAMPLES), BAND_EDGES)
        bands = np.stack([power[low:high].sum(0) for low, high in pairwise(edges)])
        shares = np.log10(bands / np.maximum(bands.sum(0), 1e-8) + 1e-4)
        crossings = librosa.feature.zero_crossing_rate(waveform, frame_length=WINDOW_SAMPLES, hop_length=HOP_SAMPLES)
        energy = np.log10(np.maximum(power.sum(0), 1e-8))[None]
        rows = [mfcc, *deltas, shares, crossings, energy]
        if self.f0:
            f0, voiced, _ = librosa.pyin(
                waveform, fmin=LOWEST_F0, fmax=HIGHEST_F0, sr=SAMPLE_RATE,
                frame_length=WINDOW_SAMPLES, hop_length=HOP_SAMPLES, resolution=0.25,
            )  # fmt: skip
            semitones = 12 * np.log2(np.where(voiced, f0, LOWEST_F0) / LOWEST_F0)
            rows.append(np.stack([semitones, voiced.astype(float)]))
        num_frames = min(row.shape[1] for row in rows)
        features: np.ndarray = np.concatenate([row[:, :num_frames] for row in rows]).T.astype(np.float32)
        return features


class EGeMAPS(nn.Module):
    """The 88 functionals of the extended Geneva Minimalistic Acoustic Parameter Set (Eyben et al. 2016), by openSMILE.

    openSMILE is free only for research and private use, so it is an optional extra: ``pip install 'mmemo[egemaps]'``.

    Raises:
        ImportError: openSMILE is not installed.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, 1, 88)``, mask ``(batch, 1)``

    Example:
        >>> EGeMAPS.dim, EGeMAPS.differentiable
        (88, False)
        >>> EGeMAPS().feature_names[0]  # doctest: +SKIP
        'egemaps/F0semitoneFrom27.5Hz_sma3nz_amean'
    """

    caches = True
    differentiable = False  # openSMILE computes no gradients
    num_layers = 1
    dim = 88

    def __init__(self) -> None:
        super().__init__()
        try:
            import opensmile
        except ImportError:
            raise ImportError("openSMILE is missing; `pip install 'mmemo[egemaps]'`, and check its licence") from None
        self._smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        self.feature_names = [f"egemaps/{name}" for name in self._smile.feature_names]
        self.norm = MaskedBatchNorm(self.dim)

    def fingerprint(self) -> str:
        """Returns a string of everything that the result of ``precompute`` depends on."""
        return f"egemaps-{DESCRIPTORS_VERSION}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the functionals, not yet standardised."""
        rows = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            functionals = np.zeros((0, self.dim), dtype=np.float32)
            if length:
                clip = np.pad(samples[:length].detach().cpu().numpy(), (0, max(SAMPLE_RATE // 10 - length, 0)))
                functionals = self._smile.process_signal(clip, SAMPLE_RATE).to_numpy(dtype=np.float32)
            rows.append(torch.from_numpy(np.nan_to_num(functionals)).to(waveform.device))
        return _pad(rows)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(features[:, 0, 0], mask[:, 0])[:, None, None], mask


def _pad(sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pads sequences ``(time, dim)`` to ``(batch, 1, time, dim)``, with mask ``(batch, time)``; time is at least 1."""
    lengths = torch.tensor([len(sequence) for sequence in sequences], device=sequences[0].device)
    padded = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros(len(sequences), 1, padded.shape[2])
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded[:, None], mask
