"""Recordings made cleaner once, before anything else: noise reduced, loudness made the same."""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.progress import track

from mmemo.audio.reader import AudioError, read_audio
from mmemo.data.manifest import Manifest
from mmemo.files import replacing
from mmemo.settings import SAMPLE_RATE

BLOCK_SECONDS = 0.4  # of BS.1770


def denoised(waveform: np.ndarray) -> np.ndarray:
    """Less steady noise, by spectral gating (noisereduce; Sainburg et al. 2020).

    Args:
        waveform: ``(samples,)`` float32 at 16 kHz.
    """
    from noisereduce import reduce_noise

    window = 1024  # of noisereduce; what is shorter has no spectrum to be gated
    padded = np.pad(waveform, (0, max(window - len(waveform), 0)))
    quiet = reduce_noise(y=padded, sr=SAMPLE_RATE, stationary=True, prop_decrease=0.9, n_fft=window)
    return quiet[: len(waveform)].astype(np.float32)


def as_loud_as(waveform: np.ndarray, lufs: float) -> np.ndarray:
    """A loudness by ITU-R BS.1770-4 (pyloudnorm), with the peak kept below full scale; silence stays silent.

    Args:
        waveform: ``(samples,)`` float32 at 16 kHz.
        lufs: Loudness in LUFS, below 0; broadcasting has -23.
    """
    from pyloudnorm import Meter

    seconds = len(waveform) / SAMPLE_RATE
    meter = Meter(SAMPLE_RATE, block_size=min(BLOCK_SECONDS, seconds * 0.999))
    measured = meter.integrated_loudness(waveform.astype(np.float64))
    if not np.isfinite(measured):
        return waveform
    gain = 10 ** ((lufs - measured) / 20)
    peak = float(np.abs(waveform).max(initial=0.0))
    return (waveform * min(gain, 0.99 / max(peak, 1e-9))).astype(np.float32)


def write_cleaned(manifest: Manifest, folder: Path, denoise: bool, loudness_lufs: float | None) -> int:
    """Writes the utterances of a manifest as FLAC files and points it at them; what is there already is kept.

    Broken audio is left to ``mmemo check``.

    Args:
        manifest: Its ``path`` changes; ``start`` and ``end`` become empty, since each file is one utterance.
        folder: Where the files go.
        denoise: Whether to reduce noise.
        loudness_lufs: Loudness in LUFS; none leaves it.

    Returns:
        How many utterances point to a cleaned file.

    Raises:
        ValueError: A loudness that is not below 0.
    """
    import soundfile

    for library, wanted in (("noisereduce", denoise), ("pyloudnorm", loudness_lufs is not None)):
        if wanted and find_spec(library) is None:
            raise ImportError(f"cleaning needs {library}: pip install 'mmemo[cleaning]'")
    if loudness_lufs is not None and not -70 < loudness_lufs < 0:
        raise ValueError(f"--loudness_lufs {loudness_lufs:g}: expected LUFS between -70 and 0, such as -23")
    there = {Path(utterance.path).resolve().parent for utterance in manifest if utterance.path is not None}
    if folder.resolve() in there:
        raise ValueError(f"--cleaned {folder}: the recordings themselves are there; choose another folder")
    num_cleaned = 0
    for row, utterance in enumerate(track(list(manifest), "Cleaning audio", transient=True)):
        if utterance.path is None:
            continue
        try:
            waveform = read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
        except AudioError:
            continue
        content = sha256(waveform.tobytes() + f"{denoise}:{loudness_lufs}".encode()).hexdigest()[:24]
        path = folder / f"{content}.flac"
        if not path.exists():
            if denoise:
                waveform = denoised(waveform)
            if loudness_lufs is not None:
                waveform = as_loud_as(waveform, loudness_lufs)
            with replacing(path) as partial:
                soundfile.write(partial, waveform, SAMPLE_RATE, format="FLAC")
        manifest.frame.loc[row, "path"] = str(path)
        manifest.frame.loc[row, ["start", "end", "channel"]] = np.nan
        num_cleaned += 1
    return num_cleaned
