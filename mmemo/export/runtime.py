"""An exported folder -> emotions of recordings, by onnxruntime; no PyTorch is imported."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from mmemo.audio.reader import UNKNOWN_FRAMES, AudioError, read_audio, system_name

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
LABELS = "labels"  # the checksum of what the outputs mean
SAMPLE_RATE = 16_000
MAX_SECONDS = 300.0  # heard at once; memory grows with it


class Emotion(NamedTuple):
    """What a model says of one recording.

    Args:
        probabilities: Class -> probability; empty for a model of dimensions alone.
        embedding: The fused vector ``(dim,)``.
        dimensions: Valence, arousal, dominance -> value in (-1, 1), where the model was trained on them.
    """

    probabilities: dict[str, float]
    embedding: np.ndarray
    dimensions: dict[str, float]

    def __repr__(self) -> str:  # without a hundred numbers
        shown = ", ".join(f"{name}={value:.3f}" for name, value in {**self.probabilities, **self.dimensions}.items())
        return f"Emotion({shown})"

    @property
    def label(self) -> str:
        """The likeliest class."""
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        """Its probability."""
        return max(self.probabilities.values())


class ModelFolderError(ValueError):
    """A model folder that cannot be used; the message says what is wrong with it and what to do."""


class Recognizer:
    """Runs an exported student on audio.

    Args:
        folder: Of ``mmemo export``.
        int8: Run the small file; else the one in full precision.
        threads: Of onnxruntime; it decides when 0.

    Raises:
        ModelFolderError: A file is missing, was changed on disk, or is of another version; or the model needs words.

    Example:
        >>> recognizer = Recognizer("checkpoints/mmemo-student")
        >>> recognizer.predict("clip.wav").label
        'happiness'
    """

    def __init__(self, folder: str | Path, int8: bool = True, threads: int = 0) -> None:
        import onnxruntime

        if threads < 0:
            raise ValueError(f"threads={threads}: expected a number, or 0 to let onnxruntime decide")
        self.folder = Path(folder)
        name = INT8_FILE if int8 else MODEL_FILE
        self.config = _config(self.folder, name)
        self.int8 = int8
        content = self._read(name)
        self.classes: list[str] = self.config["classes"]
        self.inputs: list[str] = self.config["inputs"]
        self.outputs: list[str] = self.config["outputs"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._check_graph()
        self._tokenizer = None
        if not self.audio_only:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_str(self._read(TOKENIZER_FILE).decode())

    def _read(self, name: str) -> bytes:
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.config["sha256"][name]:
            raise ModelFolderError(
                f"{self.folder / name}: was changed since it was exported (its checksum is not that of {CONFIG_FILE}); "
                "copy the folder again, or export anew"
            )
        return content

    def _check_graph(self) -> None:
        inputs = [one.name for one in self._session.get_inputs()]
        outputs = {one.name: one.shape for one in self._session.get_outputs()}
        num_classes = outputs["probabilities"][-1] if "probabilities" in outputs else 0
        if inputs != self.inputs or list(outputs) != self.outputs or num_classes != len(self.classes):
            raise ModelFolderError(
                f"{self.folder / CONFIG_FILE}: names {len(self.classes)} classes, inputs {self.inputs} and outputs "
                f"{self.outputs}, and the model beside it has {num_classes}, {inputs} and {list(outputs)}; copy the "
                "folder again, or export anew"
            )

    @property
    def audio_only(self) -> bool:
        """Whether the model needs no words."""
        return "token_ids" not in self.inputs

    def run(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """The graph as it is: inputs in the order of ``inputs`` -> output name -> array."""
        found = self._session.run(self.outputs, dict(zip(self.inputs, inputs, strict=True)))
        return dict(zip(self.outputs, found, strict=True))

    def predict(self, audio: str | Path | np.ndarray, text: str | None = None) -> Emotion:
        """Emotion of one recording.

        Args:
            audio: File, or waveform ``(samples,)`` float32 at 16 kHz.
            text: What is said in it, for a model that also reads; may be empty.

        Raises:
            AudioError: The file cannot be read.
            ValueError: The recording is no waveform or too long, or words are missing or not wanted.
        """
        return self.predict_batch([audio], None if text is None else [text])[0]

    def predict_batch(
        self, recordings: Sequence[str | Path | np.ndarray], texts: Sequence[str] | None = None
    ) -> list[Emotion]:
        """Emotions of several recordings; in full precision those of a model that hears alone are computed together.

        Args:
            recordings: Files, or waveforms ``(samples,)`` float32 at 16 kHz.
            texts: What is said in each, for a model that also reads.
        """
        _refuse_one("recordings", recordings)
        if self.audio_only and texts is not None:
            raise ValueError(f"{self.folder}: this model hears audio alone; leave the words out")
        if texts is not None and not all(isinstance(text, str) for text in texts):
            raise ValueError(f"got {[*texts]}, expected the words of each recording as text")
        if not self.audio_only and texts is not None and len(texts) != len(recordings):
            raise ValueError(
                f"got {len(texts)} texts for {len(recordings)} recordings; each needs its own, maybe empty"
            )
        if not self.audio_only and texts is None:
            raise ValueError(
                f"{self.folder}: this model reads words too; give the words of each recording, as in "
                "predict(audio, text) or predict_batch(recordings, texts)"
            )
        if "waveform" not in self.inputs:
            raise ModelFolderError(f"{self.folder}: this model reads words alone; use `Recognizer.run`")
        waveforms = [self._waveform(one) for one in recordings]
        if texts is not None:
            return [
                emotion
                for waveform, text in zip(waveforms, texts, strict=True)
                for emotion in self._emotions(
                    self.run(waveform[None], np.array([len(waveform)], dtype=np.int64), *self.tokens(text))
                )
            ]
        if self.int8 or not waveforms:  # quantisation takes its scale from all that is in a batch: one at a time
            return [emotion for waveform in waveforms for emotion in self._together([waveform])]
        return self._together(waveforms)

    def _waveform(self, recording: str | Path | np.ndarray) -> np.ndarray:
        """A recording as the model takes it; refuses one that is too long, a file before it is read."""
        if not isinstance(recording, str | Path):
            waveform = _checked(recording)
            if problem := self._too_long(len(waveform) / SAMPLE_RATE):
                raise ValueError(problem)
            return waveform
        with suppress(soundfile.LibsndfileError, OSError, RuntimeError, TypeError):  # `read_audio` says it better
            stored = soundfile.info(system_name(recording))
            if stored.frames < UNKNOWN_FRAMES and (problem := self._too_long(stored.frames / stored.samplerate)):
                raise AudioError(f"{recording}: {problem}")
        waveform = read_audio(recording)
        if problem := self._too_long(len(waveform) / SAMPLE_RATE):
            raise AudioError(f"{recording}: {problem}")
        return waveform

    def _too_long(self, seconds: float) -> str:
        """Why a recording cannot be heard at once; empty when it can."""
        longest = self.config.get("max_seconds") or MAX_SECONDS
        if round(seconds * SAMPLE_RATE) <= longest * SAMPLE_RATE:
            return ""
        instead = "use mmemo.analyze, or `stream`" if self.audio_only else "cut it into utterances, each with its words"
        return f"a recording of {seconds:.0f} s is too long to be heard at once (at most {longest:.0f} s); {instead}"

    def tokens(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Words as the model takes them: ``token_ids (1, token)`` and ``token_lengths (1,)``, int64.

        Args:
            text: May be empty.
        """
        if self._tokenizer is None:
            raise ValueError(f"{self.folder}: this model hears audio alone and takes no words")
        token_ids = self._tokenizer.encode(text).ids if text.strip() else []
        return np.array([token_ids or [0]], dtype=np.int64), np.array([len(token_ids)], dtype=np.int64)

    def _together(self, waveforms: Sequence[np.ndarray]) -> list[Emotion]:
        longest = max(len(one) for one in waveforms)
        padded = np.zeros((len(waveforms), longest), dtype=np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        return self._emotions(self.run(padded, np.array([len(one) for one in waveforms], dtype=np.int64)))

    def predict_files(
        self,
        paths: Iterable[str | Path],
        batch_size: int = 16,
        on_error: Callable[[AudioError], object] | None = None,
    ) -> Iterator[tuple[Path, Emotion]]:
        """Emotions of files, a batch at a time, of a model that hears audio alone.

        Args:
            paths: Files.
            batch_size: How many are read, and in full precision computed, together.
            on_error: Told of each file that cannot be read or is too long, which is left out; such a file is an error
                when not given.

        Raises:
            AudioError: A file cannot be read or is too long, after what was said of those before it.
        """
        _refuse_one("paths", paths)
        batch: list[tuple[Path, np.ndarray]] = []
        for path in map(Path, paths):
            try:
                batch.append((path, self._waveform(path)))
            except AudioError as error:
                if on_error is None:
                    yield from self._of_files(batch)
                    raise
                on_error(error)
            if len(batch) == batch_size:
                yield from self._of_files(batch)
                batch = []
        yield from self._of_files(batch)

    def _of_files(self, batch: Sequence[tuple[Path, np.ndarray]]) -> Iterator[tuple[Path, Emotion]]:
        emotions = self.predict_batch([waveform for _, waveform in batch])
        yield from zip([path for path, _ in batch], emotions, strict=True)

    def stream(self, window_seconds: float = 3.0, hop_seconds: float = 0.5) -> Stream:
        """Takes samples as they come and gives a probability for each hop.

        Args:
            window_seconds: How much of the latest sound is heard each time.
            hop_seconds: How often.
        """
        return Stream(self, window_seconds, hop_seconds)

    def _emotions(self, found: dict[str, np.ndarray]) -> list[Emotion]:
        emotions = []
        for row in range(len(found["embedding"])):
            probabilities, dimensions = {}, {}
            if self.classes:
                probabilities = dict(zip(self.classes, map(float, found["probabilities"][row]), strict=True))
            if "dimensions" in found:
                names = self.config["dimensions"]
                dimensions = dict(zip(names, map(float, found["dimensions"][row]), strict=True))
            emotions.append(Emotion(probabilities, found["embedding"][row], dimensions))
        return emotions


class Moment(NamedTuple):
    """What is heard at a moment of a stream.

    Args:
        seconds: Since its beginning, where the window ends.
        emotion: Of the window.
    """

    seconds: float
    emotion: Emotion


class Stream:
    """Samples come in pieces of any size; memory holds one window.

    Every window is judged, speech or not: a model that never learned silence says something of it too. Where pauses
    matter, push what ``mmemo.audio.speech.speech`` finds, or use ``mmemo.analyze``.

    Args:
        recognizer: Hears each window.
        window_seconds: How much of the latest sound is heard each time, above 0.
        hop_seconds: How often, above 0, at most ``window_seconds``.
    """

    def __init__(self, recognizer: Recognizer, window_seconds: float = 3.0, hop_seconds: float = 0.5) -> None:
        if not (0 < window_seconds < float("inf") and 0 < hop_seconds <= window_seconds):
            raise ValueError(
                f"window_seconds={window_seconds}, hop_seconds={hop_seconds}: expected seconds above 0, and a hop no "
                "longer than the window, so that nothing is missed"
            )
        if not recognizer.audio_only:
            raise ModelFolderError(f"{recognizer.folder}: this model reads words too; a stream has none")
        self.recognizer = recognizer
        self.window = max(1, round(window_seconds * SAMPLE_RATE))
        self.hop = max(1, round(hop_seconds * SAMPLE_RATE))
        self._latest = np.zeros(0, dtype=np.float32)
        self._heard = 0

    def push(self, samples: np.ndarray) -> list[Moment]:
        """Takes samples in and says what was heard at each hop that they complete.

        Args:
            samples: ``(samples,)`` float32 at 16 kHz, in any number.
        """
        samples = _checked(samples, may_be_empty=True)
        moments = []
        while len(samples):
            missing = self.hop - self._heard % self.hop
            piece, samples = samples[:missing], samples[missing:]
            self._latest = np.concatenate([self._latest, piece])[-self.window :]
            self._heard += len(piece)
            if self._heard % self.hop == 0:
                moments.append(Moment(self._heard / SAMPLE_RATE, self.recognizer.predict(self._latest)))
        return moments


def _refuse_one(name: str, given: object) -> None:
    if isinstance(given, str | Path):
        raise TypeError(f"{name}={str(given)!r}: expected a list; `predict` takes one recording")


def _config(folder: Path, model_file: str) -> dict[str, Any]:
    """What ``config.json`` says, checked; the files that will be read are there."""
    if folder.is_file():
        raise ModelFolderError(f"{folder}: a file, expected a folder that `mmemo export` wrote from a checkpoint")
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder, expected one of `mmemo export`")
    _refuse_missing(folder, [CONFIG_FILE, model_file])
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        version = config["format_version"]
        if version == FORMAT_VERSION:
            if len(set(config["classes"])) != len(config["classes"]):
                raise ValueError
            lists = [config[name] for name in ("classes", "inputs", "outputs", "dimensions")]
            if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
                raise TypeError
            read = [model_file, *([TOKENIZER_FILE] if "token_ids" in config["inputs"] else [])]
            if not all(isinstance(config["sha256"][name], str) for name in read):
                raise TypeError
    except (ValueError, KeyError, TypeError):
        raise ModelFolderError(f"{folder / CONFIG_FILE}: not the config.json of `mmemo export`") from None
    if version != FORMAT_VERSION:
        raise ModelFolderError(
            f"{folder}: has format version {version}, this mmemo reads {FORMAT_VERSION}; export it anew, or install "
            "the mmemo that made it"
        )
    if LABELS not in config["sha256"]:
        raise ModelFolderError(f"{folder}: was exported without a checksum of its classes; export it anew")
    if config["sha256"][LABELS] != labels_mark(config):
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: its classes or dimensions were changed since it was exported, and answers would "
            "bear wrong names; copy the folder again, or export anew"
        )
    if config.get("sample_rate") != SAMPLE_RATE:
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: says {config.get('sample_rate')} Hz, expected {SAMPLE_RATE} Hz; export anew"
        )
    if "token_ids" in config["inputs"]:
        _refuse_missing(folder, [TOKENIZER_FILE])
    return dict(config)


def labels_mark(config: dict[str, Any]) -> str:
    """Checksum of the names of the outputs, in order.

    Args:
        config: The content of ``config.json``.
    """
    return hashlib.sha256(json.dumps([config["classes"], config["dimensions"]]).encode()).hexdigest()


def _refuse_missing(folder: Path, names: Sequence[str]) -> None:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ModelFolderError(f"{folder}: lacks {', '.join(missing)}; copy the whole folder, or export anew")


def _checked(audio: np.ndarray, may_be_empty: bool = False) -> np.ndarray:
    if not isinstance(audio, np.ndarray) or audio.ndim != 1 or audio.dtype.kind not in "f":
        shape = f"{getattr(audio, 'dtype', type(audio).__name__)} {getattr(audio, 'shape', '')}".strip()
        raise ValueError(f"got {shape}, expected a waveform: a float array (samples,) at 16 kHz, mono")
    if not (may_be_empty or len(audio)) or not np.isfinite(audio).all():
        raise ValueError("the waveform is empty or holds NaN or infinite samples")
    return np.ascontiguousarray(audio, dtype=np.float32)
