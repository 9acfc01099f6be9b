"""Checkpoint -> a folder with one ONNX file from waveform to probabilities; fp32 and int8, checked against PyTorch."""

from __future__ import annotations

import copy
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmemo.export.runtime import (
    CONFIG_FILE,
    FORMAT_VERSION,
    INT8_FILE,
    LABELS,
    MODEL_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Recognizer,
    labels_mark,
)
from mmemo.files import checksum, replacing
from mmemo.labels import DIMENSIONS
from mmemo.models.emotion_model import EmotionModel
from mmemo.models.log_mel import HOP_SAMPLES, WINDOW_SAMPLES, LogMel
from mmemo.settings import SAMPLE_RATE

TOLERANCE = 1e-4
"""How far a probability of the fp32 file may be from PyTorch's."""
BATCH_CLIPS = 3
"""Of the clips on which files are checked, those that are also heard together."""
INT8_TOLERANCE = 0.1
"""How far a dimension of the int8 file may be, in [-1, 1]."""
AGREEMENT = 0.98
"""Share of clips for which the int8 file must choose the same class; of fewer than 50, one near tie may differ."""
NEAR_TIE = 0.1
"""How far apart the two likeliest classes of a near tie are, in probability."""
EXAMPLE_FILE = "example.py"
CARD_FILE = "README.md"

_OUTER = "outer_"
"""What outputs are called until no value inside has their names."""

_FAST, _SLOW = 16, 25  # 16 * 25 = 400 samples of a window
assert _FAST * _SLOW == WINDOW_SAMPLES


class PlainLogMel(nn.Module):
    """:class:`LogMel` in additions and multiplications alone, which every ONNX runtime has and computes alike.

    The Fourier transform of 400 samples is done as 25 of 16 and then 16 of 25 (Cooley and Tukey 1965): a third of the
    work of one product with a matrix, and a few kilobytes of constants in the place of 1.3 megabytes.

    Args:
        log_mel: What is replaced.

    Shape:
        as of :class:`LogMel`
    """

    def __init__(self, log_mel: LogMel) -> None:
        super().__init__()
        self.range_db = log_mel.range_db
        self.window: Tensor
        self.inner_cos: Tensor
        self.inner_sin: Tensor
        self.twist_cos: Tensor
        self.twist_sin: Tensor
        self.outer_cos: Tensor
        self.outer_sin: Tensor
        self.filters: Tensor
        n = torch.arange(WINDOW_SAMPLES, dtype=torch.float64)
        window = (0.5 - 0.5 * torch.cos(2 * math.pi * n / WINDOW_SAMPLES)).view(_FAST, _SLOW)
        inner = 2 * math.pi * torch.outer(torch.arange(_FAST), torch.arange(_FAST)) / _FAST
        twist = 2 * math.pi * torch.outer(torch.arange(_FAST), torch.arange(_SLOW)) / WINDOW_SAMPLES
        outer = 2 * math.pi * torch.outer(torch.arange(_SLOW), torch.arange(_SLOW)) / _SLOW
        for name, values in {
            "window": window, "inner_cos": inner.cos(), "inner_sin": -inner.sin(), "twist_cos": twist.cos(),
            "twist_sin": -twist.sin(), "outer_cos": outer.cos(), "outer_sin": -outer.sin(),
            "filters": log_mel.filters.double().T,
        }.items():  # fmt: skip
            self.register_buffer(name, values.float(), persistent=False)

    def forward(self, waveform: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        half, unit = WINDOW_SAMPLES // 2, HOP_SAMPLES // 2
        batch, num_samples = waveform.shape
        num_frames = (num_samples + HOP_SAMPLES - 1) // HOP_SAMPLES
        waveform = waveform * mask
        padded = nn.functional.pad(waveform, (0, WINDOW_SAMPLES + 2 * HOP_SAMPLES))
        samples = torch.cat([padded[:, 1 : half + 1].flip(1), padded], dim=1)
        # A window of 400 samples is five units of 80, and begins two units after the one before.
        units = samples[:, : (num_frames * 2 + 3) * unit].reshape(batch, num_frames * 2 + 3, unit)
        frames = torch.cat([units[:, place : place + 2 * num_frames : 2] for place in range(5)], dim=-1)
        frames = frames.reshape(batch, num_frames, _FAST, _SLOW) * self.window  # sample 25 a + b at (a, b)
        real, imaginary = self.inner_cos @ frames, self.inner_sin @ frames  # (batch, frame, c, b)
        real, imaginary = (
            real * self.twist_cos - imaginary * self.twist_sin, real * self.twist_sin + imaginary * self.twist_cos
        )  # fmt: skip
        real, imaginary = real.transpose(2, 3), imaginary.transpose(2, 3)  # (batch, frame, b, c)
        spectrum_real = self.outer_cos @ real - self.outer_sin @ imaginary  # (batch, frame, d, c): bin 16 d + c
        spectrum_imaginary = self.outer_cos @ imaginary + self.outer_sin @ real
        power = (spectrum_real.square() + spectrum_imaginary.square()).reshape(batch, num_frames, WINDOW_SAMPLES)
        mel = (self.filters @ power[:, :, : half + 1].transpose(1, 2)).transpose(1, 2)
        log_mel = mel.clamp(min=1e-10).log() / math.log(10)
        frame_mask = torch.arange(num_frames, device=mask.device) < (
            (mask.sum(1, keepdim=True) + HOP_SAMPLES - 1) // HOP_SAMPLES
        )
        loudest = torch.where(frame_mask[..., None], log_mel, -10.0).amax((1, 2), keepdim=True)
        log_mel = (torch.maximum(log_mel, loudest - self.range_db / 10) + 4.0) / 4.0
        return torch.where(frame_mask[..., None], log_mel, 0.0), frame_mask


class WaveformModel(nn.Module):
    """A model from waveforms, and token numbers where it reads, to a tuple of named tensors.

    Encoders of the Whisper family hear up to 30 s so; the others any length.

    Args:
        model: Trained.

    Shape:
        waveform ``(batch, samples)`` at 16 kHz, lengths ``(batch,)`` in samples, and for a model that reads token_ids
        ``(batch, token)``, token_lengths ``(batch,)`` -> tensors named ``output_names``
    """

    def __init__(self, model: EmotionModel) -> None:
        super().__init__()
        self.model = model
        self.frozen = nn.ModuleList(frozen_parts(model))
        self.listens = bool({"audio", "descriptors"} & set(model.modalities))
        self.reads = "text" in model.modalities
        self.input_names = [*(["waveform", "lengths"] if self.listens else [])]
        self.input_names += ["token_ids", "token_lengths"] if self.reads else []
        self.output_names = ["probabilities", "logits"] if model.head is not None else []
        self.output_names += ["dimensions"] if model.dimension_head is not None else []
        self.output_names += ["embedding"]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.input_names, inputs, strict=True))
        audio = audio_mask = text = text_mask = None
        if self.listens:
            audio = given["waveform"]
            audio_mask = torch.arange(audio.shape[1], device=audio.device) < given["lengths"][:, None]
        if self.reads:
            text = given["token_ids"]
            text_mask = torch.arange(text.shape[1], device=text.device) < given["token_lengths"][:, None]
        has = self.model.modalities
        output = self.model(
            audio if "audio" in has else None, audio_mask, text, text_mask,
            audio if "descriptors" in has else None, audio_mask,
        )  # fmt: skip
        found = [] if output.logits is None else [output.logits.softmax(-1), output.logits]
        found += [] if output.dimensions is None else [output.dimensions]
        return (*found, output.embedding)


def frozen_parts(model: EmotionModel) -> list[nn.Module]:
    """Pretrained weights that a model uses without counting them as its own.

    Args:
        model: Whose encoders are meant.
    """
    backbones: list[Any] = [getattr(part, "_backbone", None) for part in model.modules()]
    return [one.on(torch.device("cpu")) for one in backbones if one is not None]


def simplified(model: EmotionModel) -> EmotionModel:
    """A copy in operations that ONNX has: the spectrogram without complex numbers, attention without fused kernels.

    Args:
        model: Trained; it stays as it is.
    """
    model = copy.deepcopy(model)
    for root in (model, *frozen_parts(model)):
        for part in root.modules():
            settings: Any = getattr(part, "config", None)
            if hasattr(settings, "_attn_implementation"):
                settings._attn_implementation = "eager"
            for name, child in list(part.named_children()):
                if isinstance(child, LogMel):
                    setattr(part, name, PlainLogMel(child))
    return model


class Parity(NamedTuple):
    """How the exported files agree with PyTorch on real clips.

    Args:
        num_clips: How many.
        largest_difference: Of any probability between the fp32 file and PyTorch.
        int8_agreement: Share of clips for which the int8 file chooses the same class; None without classes.
        int8_largest_difference: Of any probability between the int8 file and PyTorch.
    """

    num_clips: int
    largest_difference: float
    int8_agreement: float | None
    int8_largest_difference: float


class RoundingError(ValueError):
    """The int8 file is too far from PyTorch."""


class Exported(NamedTuple):
    """What an export wrote.

    Args:
        folder: Where.
        parity: How it agrees with PyTorch.
        num_parameters: Of the model, frozen ones included.
        num_bytes: File name -> bytes.
    """

    folder: Path
    parity: Parity
    num_parameters: int
    num_bytes: dict[str, int]


def export_onnx(
    model: EmotionModel,
    folder: Path,
    waveforms: Sequence[np.ndarray],
    texts: Sequence[str] = (),
    card: dict[str, Any] | None = None,
) -> Exported:
    """Writes the folder of a model: ONNX in fp32 and int8, weights, labels, model card, example.

    Args:
        model: In eval mode, as from ``mmemo.load_model``.
        folder: To be made; an export in it is replaced.
        waveforms: Real clips ``(samples,)`` at 16 kHz, of odd lengths, on which the files are checked.
        texts: Their transcripts, for a model that reads.
        card: What the model card says besides: ``license``, ``training_data``, ``metrics``, ``limits``.

    Raises:
        ValueError: Without clips, where the folder holds other files, where ONNX has no words for a part of the model,
            or a file does not agree with PyTorch.
    """
    if not waveforms:
        raise ValueError("export checks its files on real clips; give it some")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder to write into")
    ours = {CONFIG_FILE, MODEL_FILE, INT8_FILE, WEIGHTS_FILE, TOKENIZER_FILE, EXAMPLE_FILE, CARD_FILE}
    there = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    others = sorted(there - ours)
    if others:
        raise ValueError(f"{folder}: holds other files ({', '.join(others[:3])}); choose a folder for the model alone")
    max_seconds = getattr(model.encoder("audio"), "max_seconds", None)
    if max_seconds is not None:
        waveforms = [waveform[: int(max_seconds * SAMPLE_RATE)] for waveform in waveforms]
    try:
        place = folder.resolve()  # of "." or a link too
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = tempfile.TemporaryDirectory(
            prefix=f".{place.name}.", dir=place if place.is_dir() else place.parent
        )  # on the file system where they will be
    except OSError as error:
        raise ValueError(f"{folder}: nothing can be written there ({error.strerror})") from None
    with beside as name:
        made = Path(name) / place.name
        made.mkdir()
        exported = _written(model, made, waveforms, texts, card or {}, max_seconds)
        folder.mkdir(exist_ok=True)  # what was there stays until all is well
        (folder / CONFIG_FILE).unlink(missing_ok=True)  # a folder that is half moved has none
        files = {path.name for path in made.iterdir()}
        for name in sorted(ours - files):
            (folder / name).unlink(missing_ok=True)
        for name in sorted(files, key=lambda name: name == CONFIG_FILE):
            (made / name).replace(folder / name)
    return exported._replace(folder=folder)


def _written(
    model: EmotionModel,
    folder: Path,
    waveforms: Sequence[np.ndarray],
    texts: Sequence[str],
    card: dict[str, Any],
    max_seconds: float | None,
) -> Exported:
    """Writes all files of a model into an empty folder, and checks them."""
    tokenizer = _tokenizer(model) if "text" in model.modalities else None
    inputs = [_inputs(model, waveform, text) for waveform, text in _paired(waveforms, texts)]
    wrapped = WaveformModel(model.eval())
    num_parameters = sum(parameter.numel() for parameter in wrapped.parameters())
    with torch.no_grad():
        wanted = [[part.numpy() for part in wrapped(*one)] for one in inputs]
    _trace(WaveformModel(simplified(model)), inputs, folder / MODEL_FILE)
    _save_weights(model, folder / WEIGHTS_FILE)
    files = [MODEL_FILE, INT8_FILE, WEIGHTS_FILE]
    if tokenizer is not None:
        _write(folder / TOKENIZER_FILE, tokenizer)
        files.append(TOKENIZER_FILE)
    config = {
        "format_version": FORMAT_VERSION,
        "classes": list(model.classes),
        "dimensions": list(DIMENSIONS) if model.dimension_head is not None else [],
        "sample_rate": SAMPLE_RATE,
        "max_seconds": max_seconds,
        "inputs": wrapped.input_names,
        "outputs": wrapped.output_names,
        "num_parameters": num_parameters,
        "tokenizer": getattr(model.encoder("text"), "model_id", ""),
        **{name: card.get(name, "") for name in ("license", "training_data", "limits")},
        "metrics": card.get("metrics", {}),
    }
    for weights_only in (False, True):
        _quantize(folder / MODEL_FILE, folder / INT8_FILE, weights_only)
        config["int8"] = "weights" if weights_only else "weights and activations"
        config["sha256"] = {**{name: checksum(folder / name) for name in files}, LABELS: labels_mark(config)}
        _write(folder / CONFIG_FILE, json.dumps(config, indent=1))
        try:
            parity = _parity(folder, inputs, wanted, wrapped.output_names)
            break
        except RoundingError:
            if weights_only:
                raise
    config["parity"] = parity._asdict()
    _write(folder / CONFIG_FILE, json.dumps(config, indent=1))
    if _has_example(config):
        _write(folder / EXAMPLE_FILE, example(config))
    _write(folder / CARD_FILE, model_card(config, folder))
    return Exported(folder, parity, num_parameters, {name: (folder / name).stat().st_size for name in files})


def _paired(waveforms: Sequence[np.ndarray], texts: Sequence[str]) -> list[tuple[np.ndarray, str]]:
    return list(zip(waveforms, [*texts, *[""] * (len(waveforms) - len(texts))], strict=True))


def _inputs(model: EmotionModel, waveform: np.ndarray, text: str) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    if {"audio", "descriptors"} & set(model.modalities):
        found += [torch.from_numpy(waveform)[None], torch.tensor([len(waveform)])]
    if "text" in model.modalities:
        token_ids = model.encoder("text").tokenize(text)
        length = len(token_ids)
        found += [(token_ids if length else torch.zeros(1, dtype=torch.long))[None], torch.tensor([length])]
    return tuple(found)


def _trace(wrapped: WaveformModel, inputs: Sequence[tuple[Tensor, ...]], path: Path) -> None:
    """Writes the fp32 file; batch and lengths stay open."""
    # A batch of 2 of the longest: of an axis of 1 the tracer would make a constant.
    other: list[Tensor] = []
    for place in range(0, len(wrapped.input_names), 2):
        longest, length = max((one[place : place + 2] for one in inputs), key=lambda one: one[0].shape[1])
        if wrapped.input_names[place] == "waveform":  # a whole number of frames it would take for a rule
            samples = longest.shape[1]
            odd = max(samples - (samples - HOP_SAMPLES // 2 - 1) % (4 * HOP_SAMPLES), 4 * HOP_SAMPLES + 1)
            longest, length = nn.functional.pad(longest, (0, odd - samples)), length.clamp(max=odd)
        other += [torch.cat([longest, longest]), torch.cat([length, length])]
    batch = torch.export.Dim("batch", min=1, max=4096)
    axes: list[dict[int, Any]] = []
    for name in wrapped.input_names:
        long = torch.export.Dim.AUTO if name in ("waveform", "token_ids") else None
        axes.append({0: batch} if long is None else {0: batch, 1: long})
    with replacing(path) as partial, _quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                wrapped,
                tuple(other),
                str(partial),
                input_names=wrapped.input_names,
                output_names=[_OUTER + name for name in wrapped.output_names],
                dynamic_shapes=(tuple(axes),),
                dynamo=True,
                external_data=False,
                optimize=True,
            )
        except torch.onnx.OnnxExporterError as error:
            encoders = " and ".join(type(wrapped.model.encoder(name)).__name__ for name in wrapped.model.modalities)
            raise ValueError(
                f"a model of {encoders} cannot be written as ONNX with batch and lengths open: {_cause(error)}; "
                "ConvNeXtEncoder, VGGEncoder, ResNetEncoder, WhisperAudioEncoder and ConvRecurrentEncoder(cell='lstm') "
                "can"
            ) from error
        _strip(partial)


def _cause(error: BaseException) -> str:
    """The first line of what went wrong at the bottom of it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _strip(path: Path) -> None:
    """Takes out what the exporter notes of where each node comes from: half the file, and paths of this machine; and
    gives the outputs their names, which values inside may have by chance.
    """
    import onnx

    graph = onnx.load(path)
    outputs = [output.name.removeprefix(_OUTER) for output in graph.graph.output]
    renamed = {name: f"inner_{name}" for name in outputs} | {_OUTER + name: name for name in outputs}
    for node in graph.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for output in graph.graph.output:
        output.name = renamed[output.name]
    graph.graph.ClearField("value_info")
    graph.graph.ClearField("metadata_props")
    graph.ClearField("metadata_props")
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _quantize(source: Path, target: Path, weights_only: bool) -> None:
    """Weights of matrix products in 8 bits; what surrounds them is quantised as it comes, or, where that rounds too
    much away, as in large encoders with a few huge activations, not at all."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with replacing(target) as partial, _quiet():
        if weights_only:
            import onnx
            from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

            quantizer = MatMulNBitsQuantizer(onnx.load(source), bits=8, block_size=32, is_symmetric=True)
            quantizer.process()
            onnx.save(quantizer.model.model, partial)
            return
        quantize_dynamic(
            source, partial, op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )  # fmt: skip


def _check_batch(
    folder: Path, inputs: Sequence[tuple[Tensor, ...]], wanted: Sequence[Sequence[np.ndarray]], names: Sequence[str]
) -> None:
    """Clips of several lengths, padded to one batch, get the answers that they get alone."""
    together = []
    for place, part in enumerate(zip(*inputs, strict=True)):
        longest = max(one.shape[-1] for one in part)
        padded = [one if place % 2 else torch.nn.functional.pad(one, (0, longest - one.shape[1])) for one in part]
        together.append(torch.cat(padded).numpy())
    found = Recognizer(folder, int8=False, threads=1).run(*together)
    for number, name in enumerate(names):
        alone = np.concatenate([one[number] for one in wanted])
        apart = _largest([found[name] - alone]) / max(1.0, _largest([alone]))
        if not apart <= TOLERANCE:
            raise ValueError(
                f"{MODEL_FILE}: {name} of {len(inputs)} clips in a batch differ from those of each alone by "
                f"{apart:.2g}, expected at most {TOLERANCE:g}"
            )


def _parity(
    folder: Path, inputs: Sequence[tuple[Tensor, ...]], wanted: Sequence[Sequence[np.ndarray]], names: Sequence[str]
) -> Parity:
    """Compares every output; those without bounds (logits, embedding) relative to their size."""
    found = {}
    for int8 in (False, True):
        recognizer = Recognizer(folder, int8=int8, threads=1)
        found[int8] = [recognizer.run(*(part.numpy() for part in one)) for one in inputs]
    for number, name in enumerate(names):
        size = 1.0 if name in ("probabilities", "dimensions") else max(1.0, _largest(one[number] for one in wanted))
        apart = _largest(one[name] - two[number] for one, two in zip(found[False], wanted, strict=True)) / size
        if not apart <= TOLERANCE:  # a NaN is not
            raise ValueError(f"{MODEL_FILE}: {name} differ from PyTorch by {apart:.2g}, expected at most {TOLERANCE:g}")
    _check_batch(folder, inputs[:BATCH_CLIPS], wanted[:BATCH_CLIPS], names)
    bounded = [(number, name) for number, name in enumerate(names) if name in ("probabilities", "dimensions")]
    apart, int8_apart = (
        max(
            _largest(one[name] - two[number] for one, two in zip(found[int8], wanted, strict=True))
            for number, name in bounded
        )
        for int8 in (False, True)
    )
    if "probabilities" not in names:
        if not int8_apart <= INT8_TOLERANCE:
            raise RoundingError(
                f"{INT8_FILE}: dimensions differ from PyTorch by {int8_apart:.2g}, expected at most {INT8_TOLERANCE:g}"
            )
        return Parity(len(inputs), apart, None, int8_apart)
    share, enough = agreement([one["probabilities"] for one in found[True]], [one[0] for one in wanted])
    if not enough:
        raise RoundingError(
            f"{INT8_FILE}: chooses another class than PyTorch on {1 - share:.1%} of {len(inputs)} clips, "
            f"expected at most {1 - AGREEMENT:.0%}"
        )
    return Parity(len(inputs), apart, share, int8_apart)


def agreement(said: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> tuple[float, bool]:
    """Share of clips of the same class, and whether that is enough: of a few, one near tie is no evidence.

    Args:
        said: Probabilities ``(1, class)`` of each clip.
        wanted: Those of PyTorch.
    """
    other = [number for number, (one, two) in enumerate(zip(said, wanted, strict=True)) if one.argmax() != two.argmax()]
    share = 1 - len(other) / len(wanted)
    near_tie = len(other) == 1 and float(np.ptp(np.sort(wanted[other[0]].ravel())[-2:])) <= NEAR_TIE
    return share, share >= AGREEMENT or near_tie


def _largest(arrays: Iterable[np.ndarray]) -> float:
    """Of all values, without their signs; NaN if one is."""
    return float(np.max([np.abs(array).max() for array in arrays]))


def _has_example(config: dict[str, Any]) -> bool:
    return "waveform" in config["inputs"] and "probabilities" in config["outputs"]


def _save_weights(model: EmotionModel, path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
        partial.chmod(0o644)


def _tokenizer(model: EmotionModel) -> str:
    """What turns words into numbers, as a file of the light package tokenizers."""
    encoder = model.encoder("text")
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{encoder.model_id}: its tokenizer is written in Python alone and cannot be exported; choose a text model "
            "with a fast tokenizer"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(encoder.max_tokens)
    return str(tokenizer.to_str())


def _write(path: Path, text: str) -> None:
    with replacing(path) as partial:
        partial.write_text(text)


@contextmanager
def _quiet() -> Any:
    """Exporters talk a lot; what goes wrong is raised."""
    disabled, level, handlers = logging.root.manager.disable, logging.root.level, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.setLevel(level)  # onnxruntime's quantisers set up logging when they are imported
        logging.root.handlers[:] = handlers


def model_card(config: dict[str, Any], folder: Path) -> str:
    """The folder's README, from what its ``config.json`` knows.

    Args:
        config: The content of ``config.json``.
        folder: Where it is.
    """
    parity = config["parity"]
    sizes = "\n".join(
        f"| `{name}` | {(folder / name).stat().st_size / 1000:.0f} kB |" for name in (MODEL_FILE, INT8_FILE)
    )
    metrics = "\n".join(f"| {name} | {value} |" for name, value in config["metrics"].items())
    measured = f"| figure | value |\n|---|---|\n{metrics}" if metrics else "None were given at export."
    agreement = parity["int8_agreement"]
    eight = f"{config['int8']} of matrix products in 8 bits, convolutions whole"
    int8_said = f"dimensions within {parity['int8_largest_difference']:.2g}"
    if agreement is not None:
        int8_said = f"the same class on {100 * agreement:.1f} %"
    words = "token_ids" in config["inputs"]
    example = f"`python {EXAMPLE_FILE} clip.wav` needs numpy, soundfile and onnxruntime alone."
    if words:
        example = f"`python {EXAMPLE_FILE} clip.wav 'what is said'` needs tokenizers too; mmemo's `Recognizer.predict` "
        example += "takes the words as its second argument."
    if not _has_example(config):
        example = f"Inputs: {', '.join(config['inputs'])}; outputs: {', '.join(config['outputs'])}."
    if words:
        example += (
            f"\nWords become numbers by `{TOKENIZER_FILE}`, that of {config['tokenizer']}. The weights file lacks "
        )
        example += "what is frozen."
    hears = "waveform" in config["inputs"]
    reads = ("the waveform and the words" if hears else "words alone") if words else "audio alone"
    longest = config.get("max_seconds")
    length = f"up to {longest:g} s" if longest else "of any length"
    input_said = f"Input: mono, {config['sample_rate']} Hz, float32, {length}." if hears else "Input: token numbers."
    if hears and config["int8"] != "weights":
        input_said += f" Give `{INT8_FILE}` one clip at a time, without padding: its 8 bits share one scale per call."
    return f"""# {folder.name}

Recognises {", ".join(config["classes"] or config["dimensions"])} in speech, from {reads}. Made by mmemo.

| file | size |
|---|---|
{sizes}

{config["num_parameters"]:,} parameters. {input_said}
{example}

## Measured

{measured}

Parity at export, on {parity["num_clips"]} real clips: fp32 within {parity["largest_difference"]:.1e} of PyTorch; int8
({eight}): {int8_said}.

## Training data

{config["training_data"] or "Not stated."}

## Licence

{config["license"] or "Not stated: that of the training data applies."}

## Limits

{config["limits"] or "Not stated."}
"""


def example(config: dict[str, Any]) -> str:
    """The folder's example, from what its ``config.json`` knows.

    Args:
        config: The content of ``config.json``.
    """
    words = "token_ids" in config["inputs"]
    lines = _EXAMPLE.splitlines(keepends=True)
    return (
        "".join(line.removeprefix("+") for line in lines if words or not line.startswith("+"))
        .replace("CLIP", "clip.wav 'what is said'" if words else "clip.wav")
        .replace("COUNT", "3" if words else "2")
    )


_EXAMPLE = '''"""Emotion of a clip: python example.py CLIP"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
+from tokenizers import Tokenizer

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text())
if len(sys.argv) < COUNT:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(here / "model.int8.onnx")
waveform, sample_rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
if sample_rate != config["sample_rate"]:
    sys.exit(f"{sys.argv[1]}: {sample_rate} Hz; resample it to {config['sample_rate']} Hz first")
waveform = waveform.mean(axis=1)[None]
inputs = {"waveform": waveform, "lengths": np.array([waveform.shape[1]])}
+words = " ".join(sys.argv[2:])
+token_ids = Tokenizer.from_file(str(here / "tokenizer.json")).encode(words).ids if words else []
+inputs |= {"token_ids": np.array([token_ids or [0]]), "token_lengths": np.array([len(token_ids)])}
(probabilities,) = session.run(["probabilities"], inputs)
for label, probability in zip(config["classes"], probabilities[0], strict=True):
    print(f"{label:<12}{probability:.3f}")
'''
