"""Interpretable acoustic descriptors: what a phonetician would measure, frame by frame or summed up by eGeMAPS.

Each is an encoder like the others: usable alone as ``audio_encoder``, or as ``descriptors`` beside a deep one.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from mmemo.models.pooling import MaskedBatchNorm
from mmemo.settings import SAMPLE_RATE

DESCRIPTORS_VERSION = 1
"""Part of every fingerprint; raise it when ``precompute`` starts to return other numbers."""

HOP_SAMPLES = 320  # 20 ms
WINDOW_SAMPLES = 1024  # 64 ms: two periods of the lowest voice
LOWEST_F0, HIGHEST_F0 = 65.0, 500.0  # Hz
BAND_EDGES = (0, 250, 500, 1000, 2000, 3000, 4000, 6000, 8000)  # Hz
NUM_MFCC = 13


class AcousticDescriptors(nn.Module):
    """MFCCs with deltas, the energy's distribution over bands, zero-crossing rate, energy and F0 (by librosa).

    F0 is found by pYIN (Mauch and Dixon 2014) in semitones above 65 Hz, 0 where nothing is voiced, with a second number
    for whether it is. All are standardised by the training set's mean and deviation. ``feature_names`` says what each
    is, as ``family/number``; gates take a family for a group.

    Args:
        f0: Whether to look for F0.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, time, dim)`` at 50 frames a second, mask ``(batch, time)``
    """

    caches = True
    differentiable = False  # librosa and openSMILE give no gradients
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
        """All that ``precompute`` depends on."""
        return f"descriptors-{DESCRIPTORS_VERSION}:{self.f0}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The descriptors as measured, before they are standardised."""
        clips = [
            samples[:length].detach().cpu().numpy()
            for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True)
        ]
        frames = [torch.from_numpy(self._describe(clip)) for clip in clips]
        return _padded([frame.to(waveform.device) for frame in frames])

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.norm(rearrange(features[:, 0], "batch time dim -> (batch time) dim"), mask.flatten())
        return rearrange(flat, "(batch time) dim -> batch 1 time dim", batch=len(mask)), mask

    def _describe(self, waveform: np.ndarray) -> np.ndarray:
        """``(time, dim)`` float32; without frames for an empty waveform."""
        import librosa

        if len(waveform) == 0:
            return np.zeros((0, self.dim), dtype=np.float32)
        waveform = np.pad(waveform, (0, max(WINDOW_SAMPLES - len(waveform), 0)))
        size: dict[str, Any] = {"n_fft": WINDOW_SAMPLES, "hop_length": HOP_SAMPLES}
        power = np.abs(librosa.stft(waveform, **size)) ** 2  # (bin, time)
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
            found, voiced, _ = librosa.pyin(
                waveform, fmin=LOWEST_F0, fmax=HIGHEST_F0, sr=SAMPLE_RATE,
                frame_length=WINDOW_SAMPLES, hop_length=HOP_SAMPLES, resolution=0.25,
            )  # fmt: skip
            semitones = 12 * np.log2(np.where(voiced, found, LOWEST_F0) / LOWEST_F0)
            rows.append(np.stack([semitones, voiced.astype(float)]))
        num_frames = min(row.shape[1] for row in rows)
        return np.concatenate([row[:, :num_frames] for row in rows]).T.astype(np.float32)


class EGeMAPS(nn.Module):
    """The 88 functionals of the extended Geneva minimalistic acoustic parameter set (Eyben et al. 2016), by openSMILE.

    openSMILE is free for research and private use alone, so it is no part of mmemo: ``pip install 'mmemo[egemaps]'``.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, mask ``(batch, samples)`` bool
        -> features ``(batch, 1, 1, 88)``, mask ``(batch, 1)``
    """

    caches = True
    differentiable = False  # librosa and openSMILE give no gradients
    num_layers = 1
    dim = 88

    def __init__(self) -> None:
        super().__init__()
        try:
            import opensmile
        except ImportError:
            raise ImportError("openSMILE is missing; `pip install 'mmemo[egemaps]'`, and mind its licence") from None
        self._smile = opensmile.Smile(opensmile.FeatureSet.eGeMAPSv02, opensmile.FeatureLevel.Functionals)
        self.feature_names = [f"egemaps/{name}" for name in self._smile.feature_names]
        self.norm = MaskedBatchNorm(self.dim)

    def fingerprint(self) -> str:
        """All that ``precompute`` depends on."""
        return f"egemaps-{DESCRIPTORS_VERSION}"

    def precompute(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The functionals as measured, before they are standardised."""
        rows = []
        for samples, length in zip(waveform, mask.sum(1).tolist(), strict=True):
            found = np.zeros((0, self.dim), dtype=np.float32)
            if length:
                clip = np.pad(samples[:length].detach().cpu().numpy(), (0, max(SAMPLE_RATE // 10 - length, 0)))
                found = self._smile.process_signal(clip, SAMPLE_RATE).to_numpy(dtype=np.float32)
            rows.append(torch.from_numpy(np.nan_to_num(found)).to(waveform.device))
        return _padded(rows)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(features[:, 0, 0], mask[:, 0])[:, None, None], mask


def _padded(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """List of ``(time, dim)`` -> ``(batch, 1, time, dim)`` and mask; at least one frame long."""
    lengths = torch.tensor([len(item) for item in frames], device=frames[0].device)
    padded = nn.utils.rnn.pad_sequence(frames, batch_first=True)
    if padded.shape[1] == 0:
        padded = padded.new_zeros(len(frames), 1, padded.shape[2])
    mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
    return padded[:, None], mask
