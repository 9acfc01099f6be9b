"""Emotion prediction with an exported model folder, by onnxruntime and without PyTorch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from mmemo.audio.reader import UNKNOWN_FRAMES, AudioError, libsndfile_path, read_audio
from mmemo.settings import SAMPLE_RATE

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
MODEL_FILE = "model.onnx"
INT8_FILE = "model.int8.onnx"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
LABELS_KEY = "labels"  # in `sha256` of the config: the checksum of the output names
MAX_SECONDS = 300.0  # longest recording for one call; memory grows with its length


class Emotion(NamedTuple):
    """The prediction for one recording.

    Args:
        probabilities: Class -> probability; empty if the model predicts dimensions only.
        embedding: Fused vector ``(dim,)``.
        dimensions: Valence, arousal and dominance -> value in (-1, 1); empty if the model predicts classes only.

    Example:
        >>> emotion = Emotion({"anger": 0.75, "neutral": 0.25}, np.zeros(64), {})
        >>> emotion.label, emotion.confidence
        ('anger', 0.75)
    """

    probabilities: dict[str, float]
    embedding: np.ndarray
    dimensions: dict[str, float]

    def __repr__(self) -> str:  # leaves out the embedding, which is long
        shown = ", ".join(f"{name}={value:.3f}" for name, value in {**self.probabilities, **self.dimensions}.items())
        return f"Emotion({shown})"

    @property
    def label(self) -> str:
        """The most probable class. Raises ValueError for a model of dimensions only."""
        if not self.probabilities:
            raise ValueError("this model predicts dimensions only, so there is no label; use .dimensions")
        return max(self.probabilities, key=lambda name: self.probabilities[name])

    @property
    def confidence(self) -> float:
        """Probability of the most probable class."""
        return self.probabilities[self.label]


class ModelFolderError(ValueError):
    """A model folder that cannot be used. The message gives the problem and the remedy."""


class Recognizer:
    """Predicts emotion from audio with an exported model.

    Args:
        folder: Folder written by ``mmemo export``.
        int8: Use the int8 model; otherwise the fp32 model.
        threads: Number of onnxruntime threads; 0 lets onnxruntime decide.

    Raises:
        ModelFolderError: A file is missing, was changed after the export, or has another format version.

    Example:
        >>> from mmemo.export.analysis import student_folder
        >>> recognizer = Recognizer(student_folder())
        >>> emotion = recognizer.predict(np.zeros(16_000, dtype=np.float32))  # or a file: "clip.wav"
        >>> emotion.label in recognizer.classes
        True
    """

    def __init__(self, folder: str | Path, int8: bool = True, threads: int = 0) -> None:
        import onnxruntime

        if threads < 0:
            raise ValueError(f"threads={threads}: expected 0 or more; 0 lets onnxruntime decide")
        self.folder = Path(folder)
        name = INT8_FILE if int8 else MODEL_FILE
        self.config = _read_config(self.folder, name)
        self.int8 = int8
        content = self._read_verified(name)
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

            self._tokenizer = Tokenizer.from_str(self._read_verified(TOKENIZER_FILE).decode())

    def _read_verified(self, name: str) -> bytes:
        """Reads a file of the folder and compares its checksum with the config's."""
        content = (self.folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.config["sha256"][name]:
            raise ModelFolderError(
                f"{self.folder / name}: changed after the export (its checksum differs from the one in {CONFIG_FILE}); "
                "copy the folder again, or export again"
            )
        return content

    def _check_graph(self) -> None:
        """Compares the graph's inputs, outputs and number of classes with the config's."""
        inputs = [node.name for node in self._session.get_inputs()]
        outputs = {node.name: node.shape for node in self._session.get_outputs()}
        num_classes = outputs["probabilities"][-1] if "probabilities" in outputs else 0
        if inputs != self.inputs or list(outputs) != self.outputs or num_classes != len(self.classes):
            raise ModelFolderError(
                f"{self.folder / CONFIG_FILE}: lists {len(self.classes)} classes, inputs {self.inputs} and outputs "
                f"{self.outputs}, but the model has {num_classes}, {inputs} and {list(outputs)}; copy the folder "
                "again, or export again"
            )

    @property
    def audio_only(self) -> bool:
        """Whether the model takes no text."""
        return "token_ids" not in self.inputs

    def run(self, *inputs: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the ONNX graph directly.

        Args:
            inputs: Arrays in the order of ``self.inputs``, such as ``(batch, samples)`` and lengths ``(batch,)``.

        Returns:
            Output name -> array, such as probabilities ``(batch, class)``.
        """
        values = self._session.run(self.outputs, dict(zip(self.inputs, inputs, strict=True)))
        return dict(zip(self.outputs, values, strict=True))

    def predict(self, audio: str | Path | np.ndarray, text: str | None = None) -> Emotion:
        """Predicts the emotion of one recording.

        Args:
            audio: Audio file, or waveform ``(samples,)`` float32 at 16 kHz.
            text: Transcript, required by a model that takes text and refused by any other; may be empty.

        Raises:
            AudioError: The file cannot be read or is too long.
            ValueError: The array is not a waveform or is too long, or ``text`` is missing or unexpected.
        """
        return self.predict_batch([audio], None if text is None else [text])[0]

    def predict_batch(
        self, recordings: Sequence[str | Path | np.ndarray], texts: Sequence[str] | None = None
    ) -> list[Emotion]:
        """Predicts the emotions of several recordings.

        The fp32 file of an audio-only model runs them as one padded batch; every other model, one at a time.

        Args:
            recordings: Audio files, or waveforms ``(samples,)`` float32 at 16 kHz.
            texts: One transcript per recording, for a model that takes text. Defaults to no text.

        Raises:
            AudioError: A file cannot be read or is too long.
            ValueError: An array is not a waveform or is too long, or ``texts`` is missing or unexpected.
        """
        _require_list("recordings", recordings)
        self._check_texts(len(recordings), texts)
        waveforms = [self._load_waveform(recording) for recording in recordings]
        if texts is not None:
            pairs = zip(waveforms, texts, strict=True)
            return [self._predict_padded([waveform], *self.tokenize(text))[0] for waveform, text in pairs]
        if self.int8 or not waveforms:  # int8 activations share one scale per call, so batch mates would matter
            return [self._predict_padded([waveform])[0] for waveform in waveforms]
        return self._predict_padded(waveforms)

    def _check_texts(self, num_recordings: int, texts: Sequence[str] | None) -> None:
        if self.audio_only and texts is not None:
            raise ValueError(f"{self.folder}: this model takes audio only; leave the text out")
        if texts is not None and not all(isinstance(text, str) for text in texts):
            raise ValueError(f"got {[*texts]}, expected one transcript (str) per recording")
        if texts is not None and len(texts) != num_recordings:
            raise ValueError(f"got {len(texts)} texts for {num_recordings} recordings, expected one each")
        if not self.audio_only and texts is None:
            raise ValueError(
                f"{self.folder}: this model also takes text; pass the transcripts, as in predict(audio, text) or "
                "predict_batch(recordings, texts)"
            )
        if "waveform" not in self.inputs:
            raise ModelFolderError(f"{self.folder}: this model takes text only; use `Recognizer.run`")

    def _load_waveform(self, recording: str | Path | np.ndarray) -> np.ndarray:
        """Returns the waveform of a recording. Refuses a file that is too long before decoding it."""
        if not isinstance(recording, str | Path):
            waveform = _check_waveform(recording)
            self._check_length(len(waveform) / SAMPLE_RATE)
            return waveform
        # `read_audio` raises the better error for a file whose header cannot be read.
        with suppress(soundfile.LibsndfileError, OSError, RuntimeError, TypeError):
            header = soundfile.info(libsndfile_path(recording))
            if header.frames < UNKNOWN_FRAMES:
                self._check_length(header.frames / header.samplerate, recording)
        waveform = read_audio(recording)
        self._check_length(len(waveform) / SAMPLE_RATE, recording)
        return waveform

    def _check_length(self, seconds: float, path: str | Path | None = None) -> None:
        longest = self.config.get("max_seconds") or MAX_SECONDS
        if round(seconds * SAMPLE_RATE) <= longest * SAMPLE_RATE:
            return
        remedy = "use mmemo.analyze, or `stream`" if self.audio_only else "cut it into utterances with one text each"
        problem = f"a recording of {seconds:.0f} s is too long for one call (at most {longest:.0f} s); {remedy}"
        raise ValueError(problem) if path is None else AudioError(f"{path}: {problem}")

    def tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Converts text to the model's token inputs.

        Args:
            text: May be empty.

        Returns:
            Token ids ``(1, token)`` and their number ``(1,)``, int64.

        Raises:
            ValueError: The model takes no text.
        """
        if self._tokenizer is None:
            raise ValueError(f"{self.folder}: this model takes audio only, not text")
        token_ids = self._tokenizer.encode(text).ids if text.strip() else []
        return np.array([token_ids or [0]], dtype=np.int64), np.array([len(token_ids)], dtype=np.int64)

    def _predict_padded(self, waveforms: Sequence[np.ndarray], *tokens: np.ndarray) -> list[Emotion]:
        lengths = [len(waveform) for waveform in waveforms]
        padded = np.zeros((len(waveforms), max(lengths)), dtype=np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        return self._to_emotions(self.run(padded, np.array(lengths, dtype=np.int64), *tokens))

    def predict_files(
        self,
        paths: Iterable[str | Path],
        batch_size: int = 16,
        on_error: Callable[[AudioError], object] | None = None,
    ) -> Iterator[tuple[Path, Emotion]]:
        """Predicts the emotions of files, batch by batch, with an audio-only model.

        Args:
            paths: Audio files.
            batch_size: Number of files that are in memory at once.
            on_error: Called with the error of each file that cannot be read or is too long; that file is skipped.
                Defaults to raising the error.

        Yields:
            Path and prediction of each file, in order.

        Raises:
            AudioError: A file cannot be read or is too long. The files before it are yielded first.
        """
        _require_list("paths", paths)
        batch: list[tuple[Path, np.ndarray]] = []
        for path in map(Path, paths):
            try:
                batch.append((path, self._load_waveform(path)))
            except AudioError as error:
                if on_error is None:
                    yield from self._predict_loaded(batch)
                    raise
                on_error(error)
            if len(batch) == batch_size:
                yield from self._predict_loaded(batch)
                batch = []
        yield from self._predict_loaded(batch)

    def _predict_loaded(self, batch: Sequence[tuple[Path, np.ndarray]]) -> Iterator[tuple[Path, Emotion]]:
        emotions = self.predict_batch([waveform for _, waveform in batch])
        yield from zip([path for path, _ in batch], emotions, strict=True)

    def stream(self, window_seconds: float = 3.0, hop_seconds: float = 0.5) -> Stream:
        """Returns a :class:`Stream` that predicts from live audio.

        Args:
            window_seconds: Length of the window that each prediction covers.
            hop_seconds: Time between predictions.
        """
        return Stream(self, window_seconds, hop_seconds)

    def _to_emotions(self, outputs: dict[str, np.ndarray]) -> list[Emotion]:
        emotions = []
        for row in range(len(outputs["embedding"])):
            probabilities, dimensions = {}, {}
            if self.classes:
                probabilities = dict(zip(self.classes, map(float, outputs["probabilities"][row]), strict=True))
            if "dimensions" in outputs:
                names = self.config["dimensions"]
                dimensions = dict(zip(names, map(float, outputs["dimensions"][row]), strict=True))
            emotions.append(Emotion(probabilities, outputs["embedding"][row], dimensions))
        return emotions


class StreamPrediction(NamedTuple):
    """The prediction for one window of a stream.

    Args:
        seconds: End of the window, from the start of the stream.
        emotion: Prediction for the window.
    """

    seconds: float
    emotion: Emotion


class Stream:
    """Predicts from live audio, one sliding window at a time; memory holds one window.

    Every window gets a prediction, also during pauses. A model without a class for silence then predicts one of its
    emotions. Where pauses matter, push only the segments that :mod:`mmemo.audio.speech` detects, or use
    ``mmemo.analyze``.

    Args:
        recognizer: Audio-only model that predicts each window.
        window_seconds: Length of the window that each prediction covers, above 0.
        hop_seconds: Time between predictions, above 0 and at most ``window_seconds``.

    Raises:
        ModelFolderError: The model also takes text.
        ValueError: A time is out of range.

    Example:
        >>> from mmemo.export.analysis import student_folder
        >>> stream = Recognizer(student_folder()).stream(window_seconds=1.0, hop_seconds=0.5)
        >>> [prediction.seconds for prediction in stream.push(np.zeros(20_000, dtype=np.float32))]
        [0.5, 1.0]
    """

    def __init__(self, recognizer: Recognizer, window_seconds: float = 3.0, hop_seconds: float = 0.5) -> None:
        if not (0 < window_seconds < float("inf") and 0 < hop_seconds <= window_seconds):
            raise ValueError(
                f"window_seconds={window_seconds}, hop_seconds={hop_seconds}: expected seconds above 0, and a hop no "
                "longer than the window"
            )
        if not recognizer.audio_only:
            raise ModelFolderError(f"{recognizer.folder}: this model also takes text, which a stream does not provide")
        self.recognizer = recognizer
        self.window_samples = max(1, round(window_seconds * SAMPLE_RATE))
        self.hop_samples = max(1, round(hop_seconds * SAMPLE_RATE))
        self._window = np.zeros(0, dtype=np.float32)
        self._num_samples = 0  # since the start of the stream

    def push(self, samples: np.ndarray) -> list[StreamPrediction]:
        """Adds samples to the stream and predicts at every hop that they complete.

        Args:
            samples: ``(samples,)`` float32 at 16 kHz, in any number.
        """
        samples = _check_waveform(samples, allow_empty=True)
        predictions = []
        while len(samples):
            missing = self.hop_samples - self._num_samples % self.hop_samples
            piece, samples = samples[:missing], samples[missing:]
            self._window = np.concatenate([self._window, piece])[-self.window_samples :]
            self._num_samples += len(piece)
            if self._num_samples % self.hop_samples == 0:
                emotion = self.recognizer.predict(self._window)
                predictions.append(StreamPrediction(self._num_samples / SAMPLE_RATE, emotion))
        return predictions


def _require_list(name: str, value: object) -> None:
    if isinstance(value, str | Path):
        raise TypeError(f"{name}={str(value)!r}: expected a list; `predict` takes one recording")


def _read_config(folder: Path, model_file: str) -> dict[str, Any]:
    """Returns the validated content of ``config.json``; all files that the recognizer reads exist."""
    if folder.is_file():
        raise ModelFolderError(f"{folder}: a file, expected a folder written by `mmemo export`")
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such folder, expected one written by `mmemo export`")
    _require_files(folder, [CONFIG_FILE, model_file])
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        version = config["format_version"]
        if version == FORMAT_VERSION:
            _check_types(config, model_file)
    except (ValueError, KeyError, TypeError):
        raise ModelFolderError(f"{folder / CONFIG_FILE}: not a config.json of `mmemo export`") from None
    if version != FORMAT_VERSION:
        raise ModelFolderError(
            f"{folder}: has format version {version}, this mmemo reads {FORMAT_VERSION}; export again, or install the "
            "mmemo version that wrote it"
        )
    if LABELS_KEY not in config["sha256"]:
        raise ModelFolderError(f"{folder}: has no checksum of its classes; export again")
    if config["sha256"][LABELS_KEY] != labels_checksum(config):
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: classes or dimensions changed after the export, so predictions would have wrong "
            "labels; copy the folder again, or export again"
        )
    if (rate := config.get("sample_rate")) != SAMPLE_RATE:
        raise ModelFolderError(
            f"{folder / CONFIG_FILE}: sample_rate is {rate} Hz, expected {SAMPLE_RATE} Hz; export again"
        )
    if "token_ids" in config["inputs"]:
        _require_files(folder, [TOKENIZER_FILE])
    return dict(config)


def _check_types(config: dict[str, Any], model_file: str) -> None:
    """Raises ValueError, KeyError or TypeError if the config lacks a field or has one of the wrong type."""
    if len(set(config["classes"])) != len(config["classes"]):
        raise ValueError
    lists = [config[name] for name in ("classes", "inputs", "outputs", "dimensions")]
    if not all(isinstance(values, list) and all(isinstance(value, str) for value in values) for values in lists):
        raise TypeError
    files = [model_file, *([TOKENIZER_FILE] if "token_ids" in config["inputs"] else [])]
    if not all(isinstance(config["sha256"][name], str) for name in files):
        raise TypeError


def labels_checksum(config: dict[str, Any]) -> str:
    """Returns the checksum of the names and order of the outputs.

    Args:
        config: Content of ``config.json``.
    """
    return hashlib.sha256(json.dumps([config["classes"], config["dimensions"]]).encode()).hexdigest()


def _require_files(folder: Path, names: Sequence[str]) -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelFolderError(f"{folder}: lacks {', '.join(missing)}; copy the whole folder, or export again")


def _check_waveform(audio: np.ndarray, allow_empty: bool = False) -> np.ndarray:
    if not isinstance(audio, np.ndarray) or audio.ndim != 1 or audio.dtype.kind not in "f":
        shape = f"{getattr(audio, 'dtype', type(audio).__name__)} {getattr(audio, 'shape', '')}".strip()
        raise ValueError(f"got {shape}, expected a waveform: a float array (samples,) at 16 kHz, mono")
    if not (allow_empty or len(audio)) or not np.isfinite(audio).all():
        raise ValueError("the waveform is empty or holds NaN or infinite samples")
    return np.ascontiguousarray(audio, dtype=np.float32)
