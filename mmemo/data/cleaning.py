"""Manifest -> cleaned copies of its recordings, written once before anything else."""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mmemo.audio.cleaning import normalise_loudness, reduce_noise
from mmemo.audio.reader import AudioError, read_audio
from mmemo.data.manifest import Manifest
from mmemo.files import replacing
from mmemo.progress import track
from mmemo.settings import SAMPLE_RATE


def write_cleaned(manifest: Manifest, folder: Path, denoise: bool, loudness_lufs: float | None) -> int:
    """Writes cleaned utterances as FLAC files and points the manifest to them; existing files are reused.

    Utterances with broken audio are left unchanged; ``mmemo check`` lists them.

    Args:
        manifest: Changed in place: ``path`` names the new file, and ``start``, ``end`` and ``channel`` become empty,
            since each file is one utterance.
        folder: Folder to write to.
        denoise: Whether to reduce noise.
        loudness_lufs: Target loudness in LUFS; None leaves the loudness unchanged.

    Returns:
        Number of utterances that point to a cleaned file.

    Raises:
        ImportError: An optional library is missing.
        ValueError: The loudness is out of range, or the folder contains the original recordings.
    """
    import soundfile

    for library, needed in (("noisereduce", denoise), ("pyloudnorm", loudness_lufs is not None)):
        if needed and find_spec(library) is None:
            raise ImportError(f"cleaning needs {library}: pip install 'mmemo[cleaning]'")
    if loudness_lufs is not None and not -70 < loudness_lufs < 0:
        raise ValueError(f"loudness_lufs {loudness_lufs:g}: expected LUFS between -70 and 0, such as -23")
    originals = {Path(utterance.path).resolve().parent for utterance in manifest if utterance.path is not None}
    if folder.resolve() in originals:
        raise ValueError(f"cleaned {folder}: contains the original recordings; choose another folder")
    num_cleaned = 0
    for row, utterance in enumerate(track(list(manifest), "Cleaning audio")):
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
                waveform = reduce_noise(waveform)
            if loudness_lufs is not None:
                waveform = normalise_loudness(waveform, loudness_lufs)
            with replacing(path) as partial:
                soundfile.write(partial, waveform, SAMPLE_RATE, format="FLAC")
        manifest.frame.loc[row, "path"] = str(path)
        manifest.frame.loc[row, ["start", "end", "channel"]] = np.nan
        num_cleaned += 1
    return num_cleaned
