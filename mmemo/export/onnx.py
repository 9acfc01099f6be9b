"""EmotionModel -> exported folder: ONNX from waveform to probabilities, in fp32 and int8, checked against PyTorch."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from mmemo.export.card import CARD_FILE, EXAMPLE_FILE, build_config, has_example, render_example, render_model_card
from mmemo.export.graph import WaveformModel, make_exportable
from mmemo.export.runtime import (
    CONFIG_FILE,
    INT8_FILE,
    LABELS_KEY,
    MODEL_FILE,
    TOKENIZER_FILE,
    WEIGHTS_FILE,
    Recognizer,
    labels_checksum,
)
from mmemo.files import checksum, replacing, write_json, write_text
from mmemo.models.emotion_model import EmotionModel
from mmemo.models.encoder import HasMaxSeconds
from mmemo.models.log_mel import HOP_SAMPLES
from mmemo.settings import SAMPLE_RATE

TOLERANCE = 1e-4
"""Largest difference between a probability of the fp32 file and of PyTorch."""
NUM_BATCH_CLIPS = 3
"""Number of clips that are also checked as one padded batch."""
INT8_TOLERANCE = 0.1
"""Largest difference between a dimension of the int8 file and of PyTorch, in [-1, 1]."""
MIN_AGREEMENT = 0.98
"""Share of clips on which the int8 file must predict PyTorch's class; among few clips, one near tie may differ."""
NEAR_TIE_MARGIN = 0.1
"""Largest difference in probability between the two most probable classes of a near tie."""

log = logging.getLogger(__name__)

_FILES = {CONFIG_FILE, MODEL_FILE, INT8_FILE, WEIGHTS_FILE, TOKENIZER_FILE, EXAMPLE_FILE, CARD_FILE}
_BOUNDED = ("probabilities", "dimensions")  # outputs with a fixed range
_OUTPUT_PREFIX = "outer_"
"""Prefix of the outputs' names until no tensor inside the graph has the name without it."""


class Parity(NamedTuple):
    """Agreement of the exported files with PyTorch on real clips.

    Args:
        num_clips: Number of clips.
        largest_difference: Of any probability or dimension between the fp32 file and PyTorch.
        int8_agreement: Share of clips on which the int8 file predicts PyTorch's class; None if there are no classes.
        int8_largest_difference: Of any probability or dimension between the int8 file and PyTorch.
    """

    num_clips: int
    largest_difference: float
    int8_agreement: float | None
    int8_largest_difference: float


class QuantizationError(ValueError):
    """The int8 file differs too much from PyTorch."""


class ExportResult(NamedTuple):
    """Summary of an export.

    Args:
        folder: Exported folder.
        parity: Agreement with PyTorch.
        num_parameters: Parameters of the model, including frozen ones.
        num_bytes: Size of each model file, by name.
    """

    folder: Path
    parity: Parity
    num_parameters: int
    num_bytes: dict[str, int]


def export_onnx(
    model: EmotionModel,
    folder: str | Path,
    waveforms: Sequence[np.ndarray],
    texts: Sequence[str] = (),
    card: dict[str, Any] | None = None,
) -> ExportResult:
    """Exports a model to a folder: ONNX in fp32 and int8, weights, config, model card and example script.

    An earlier export in the folder is replaced only after the new files have passed all checks.

    Args:
        model: Trained model, for example from ``mmemo.load_model``.
        folder: Folder to create, or an earlier export.
        waveforms: Real clips ``(samples,)`` float32 at 16 kHz on which the files are checked. Use various lengths.
        texts: Their transcripts, for a model that takes text. Missing ones are empty.
        card: Texts for the model card: ``license``, ``training_data``, ``limits``, ``metrics`` (name -> value) and
            ``language`` (ISO 639 code, or a list of them). Defaults to a card without them.

    Raises:
        ValueError: There are no clips or more texts than clips, the folder holds other files or cannot be written, the
            model cannot be represented in ONNX, or a file differs too much from PyTorch.
    """
    folder = Path(folder)
    if not waveforms:
        raise ValueError("export_onnx checks its files on real clips; pass at least one waveform")
    if len(texts) > len(waveforms):
        raise ValueError(
            f"export_onnx got {len(texts)} texts for {len(waveforms)} waveforms; pass one text per waveform"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file, expected a folder")
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")} if folder.is_dir() else set()
    if others := sorted(names - _FILES):
        raise ValueError(f"{folder}: holds other files ({', '.join(others[:3])}); choose an empty or new folder")
    if model.speaker_norms:
        log.warning("%s: exported as for an unknown speaker; model folders do not calibrate to speakers", folder)
    encoder = model.encoder("audio")
    max_seconds = encoder.max_seconds if isinstance(encoder, HasMaxSeconds) else None
    if max_seconds is not None:
        waveforms = [waveform[: int(max_seconds * SAMPLE_RATE)] for waveform in waveforms]
    try:
        target = folder.resolve()  # "." and links have no usable name of their own
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(  # on the same file system, so that files can be moved
            prefix=f".{target.name}.", dir=target if target.is_dir() else target.parent
        )
    except OSError as error:
        raise ValueError(f"{folder}: cannot write there ({error.strerror})") from None
    with temporary as temporary_name:
        new = Path(temporary_name) / target.name
        new.mkdir()
        result = _write_files(model, new, waveforms, texts, card or {}, max_seconds)
        folder.mkdir(exist_ok=True)
        _replace_files(new, folder)
    return result._replace(folder=folder)


def _replace_files(source: Path, target: Path) -> None:
    """Moves a complete export over an earlier one. Without a config.json, the folder counts as incomplete."""
    (target / CONFIG_FILE).unlink(missing_ok=True)
    names = {path.name for path in source.iterdir()}
    for name in sorted(_FILES - names):
        (target / name).unlink(missing_ok=True)
    for name in sorted(names, key=lambda name: name == CONFIG_FILE):  # the config last
        (source / name).replace(target / name)


def _write_files(
    model: EmotionModel,
    folder: Path,
    waveforms: Sequence[np.ndarray],
    texts: Sequence[str],
    card: dict[str, Any],
    max_seconds: float | None,
) -> ExportResult:
    """Writes all files of a model into an empty folder and checks them."""
    tokenizer = _tokenizer_json(model) if "text" in model.modalities else None
    transcripts = [*texts, *[""] * (len(waveforms) - len(texts))]
    inputs = [_graph_inputs(model, *clip) for clip in zip(waveforms, transcripts, strict=True)]
    reference = WaveformModel(model.eval())
    with torch.no_grad():
        expected = [
            {name: output.numpy() for name, output in zip(reference.output_names, reference(*clip), strict=True)}
            for clip in inputs
        ]
    _write_graph(WaveformModel(make_exportable(model)), inputs, folder / MODEL_FILE)
    _write_weights(model, folder / WEIGHTS_FILE)
    files = [MODEL_FILE, INT8_FILE, WEIGHTS_FILE]
    if tokenizer is not None:
        write_text(folder / TOKENIZER_FILE, tokenizer)
        files.append(TOKENIZER_FILE)
    config = build_config(reference, card, max_seconds)
    for weights_only in (False, True):
        _quantize(folder / MODEL_FILE, folder / INT8_FILE, weights_only)
        config["int8"] = "weights" if weights_only else "weights and activations"
        config["sha256"] = {**{name: checksum(folder / name) for name in files}, LABELS_KEY: labels_checksum(config)}
        write_json(folder / CONFIG_FILE, config)
        try:
            parity = _check_parity(folder, inputs, expected)
            break
        except QuantizationError:
            if weights_only:
                raise
    config["parity"] = parity._asdict()
    write_json(folder / CONFIG_FILE, config)
    if has_example(config):
        write_text(folder / EXAMPLE_FILE, render_example(config))
    write_text(folder / CARD_FILE, render_model_card(config, folder))
    sizes = {name: (folder / name).stat().st_size for name in files}
    return ExportResult(folder, parity, config["num_parameters"], sizes)


def _graph_inputs(model: EmotionModel, waveform: np.ndarray, text: str) -> tuple[Tensor, ...]:
    """Returns the inputs of the graph for one clip, in the order of ``WaveformModel.input_names``."""
    inputs: list[Tensor] = []
    if {"audio", "descriptors"} & set(model.modalities):
        inputs += [torch.from_numpy(waveform)[None], torch.tensor([len(waveform)])]
    if "text" in model.modalities:
        token_ids = model.encoder("text").tokenize(text)
        length = len(token_ids)
        inputs += [(token_ids if length else torch.zeros(1, dtype=torch.long))[None], torch.tensor([length])]
    return tuple(inputs)


def _write_graph(model: WaveformModel, inputs: Sequence[tuple[Tensor, ...]], path: Path) -> None:
    """Writes the fp32 file, with dynamic batch size and lengths."""
    # Trace two copies of the longest clip: the tracer treats an axis of size 1 as a constant.
    traced: list[Tensor] = []
    for index in range(0, len(model.input_names), 2):
        longest, length = max((clip[index : index + 2] for clip in inputs), key=lambda pair: pair[0].shape[1])
        if model.input_names[index] == "waveform":  # given whole frames, the tracer would require them of every clip
            samples = longest.shape[1]
            odd = max(samples - (samples - HOP_SAMPLES // 2 - 1) % (4 * HOP_SAMPLES), 4 * HOP_SAMPLES + 1)
            longest, length = nn.functional.pad(longest, (0, odd - samples)), length.clamp(max=odd)
        traced += [torch.cat([longest, longest]), torch.cat([length, length])]
    batch = torch.export.Dim("batch", min=1, max=4096)
    axes: list[dict[int, Any]] = []
    for name in model.input_names:
        time = torch.export.Dim.AUTO if name in ("waveform", "token_ids") else None
        axes.append({0: batch} if time is None else {0: batch, 1: time})
    with replacing(path) as partial, _quiet(), torch.no_grad():
        try:
            torch.onnx.export(
                model,
                tuple(traced),
                str(partial),
                input_names=model.input_names,
                output_names=[_OUTPUT_PREFIX + name for name in model.output_names],
                dynamic_shapes=(tuple(axes),),
                dynamo=True,
                external_data=False,
                optimize=True,
            )
        except torch.onnx.OnnxExporterError as error:
            encoders = " and ".join(type(model.model.encoder(name)).__name__ for name in model.model.modalities)
            raise ValueError(
                f"cannot export {encoders} to ONNX with dynamic batch size and lengths: {_root_cause(error)}; use "
                "ConvNeXtEncoder, VGGEncoder, ResNetEncoder, WhisperAudioEncoder or ConvRecurrentEncoder(cell='lstm')"
            ) from error
        _clean_graph(partial)


def _root_cause(error: BaseException) -> str:
    """Returns the first line of the innermost error's message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _clean_graph(path: Path) -> None:
    """Removes the exporter's notes on each node's origin and gives the outputs their final names.

    The notes take half the file and hold paths of this machine. Tensors inside the graph may already have the outputs'
    names, so those are renamed.
    """
    import onnx

    model = onnx.load(path)
    outputs = [output.name.removeprefix(_OUTPUT_PREFIX) for output in model.graph.output]
    renamed = {name: f"inner_{name}" for name in outputs} | {_OUTPUT_PREFIX + name: name for name in outputs}
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    for output in model.graph.output:
        output.name = renamed[output.name]
    model.graph.ClearField("value_info")
    model.graph.ClearField("metadata_props")
    model.ClearField("metadata_props")
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _quantize(source: Path, target: Path, weights_only: bool) -> None:
    """Writes the int8 file: matrix products in 8 bits, everything else in fp32.

    Args:
        source: fp32 file.
        target: File to write.
        weights_only: Quantise the weights only. Otherwise activations are quantised dynamically too, which loses too
            much precision in large encoders with a few huge activations.
    """
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


def _check_parity(
    folder: Path, inputs: Sequence[tuple[Tensor, ...]], expected: Sequence[Mapping[str, np.ndarray]]
) -> Parity:
    """Compares every output with PyTorch's. Unbounded ones (logits, embedding) are compared relative to their size."""
    fp32, int8 = _run_clips(folder, False, inputs), _run_clips(folder, True, inputs)
    for name in expected[0]:
        size = 1.0 if name in _BOUNDED else max(1.0, _largest(outputs[name] for outputs in expected))
        difference = _largest_difference(fp32, expected, name) / size
        if not difference <= TOLERANCE:  # also refuses NaN
            raise ValueError(
                f"{MODEL_FILE}: {name} differ from PyTorch by {difference:.2g}, expected at most {TOLERANCE:g}"
            )
    _check_batch(folder, inputs[:NUM_BATCH_CLIPS], expected[:NUM_BATCH_CLIPS])
    difference, int8_difference = (
        max(_largest_difference(outputs, expected, name) for name in expected[0] if name in _BOUNDED)
        for outputs in (fp32, int8)
    )
    if "probabilities" not in expected[0]:
        if not int8_difference <= INT8_TOLERANCE:
            raise QuantizationError(
                f"{INT8_FILE}: dimensions differ from PyTorch by {int8_difference:.2g}, expected at most "
                f"{INT8_TOLERANCE:g}"
            )
        return Parity(len(inputs), difference, None, int8_difference)
    share, enough = class_agreement(
        [outputs["probabilities"] for outputs in int8], [outputs["probabilities"] for outputs in expected]
    )
    if not enough:
        raise QuantizationError(
            f"{INT8_FILE}: predicts another class than PyTorch on {1 - share:.1%} of {len(inputs)} clips, expected at "
            f"most {1 - MIN_AGREEMENT:.0%}"
        )
    return Parity(len(inputs), difference, share, int8_difference)


def _run_clips(folder: Path, int8: bool, inputs: Sequence[tuple[Tensor, ...]]) -> list[dict[str, np.ndarray]]:
    recognizer = Recognizer(folder, int8=int8, threads=1)
    return [recognizer.run(*(array.numpy() for array in clip)) for clip in inputs]


def _check_batch(
    folder: Path, inputs: Sequence[tuple[Tensor, ...]], expected: Sequence[Mapping[str, np.ndarray]]
) -> None:
    """Checks that clips of several lengths, padded to one batch, give the same outputs as each clip alone."""
    batch = []
    for index, arrays in enumerate(zip(*inputs, strict=True)):
        longest = max(array.shape[-1] for array in arrays)
        if index % 2 == 0:  # waveforms or token ids; the lengths need no padding
            arrays = tuple(nn.functional.pad(array, (0, longest - array.shape[1])) for array in arrays)
        batch.append(torch.cat(arrays).numpy())
    outputs = Recognizer(folder, int8=False, threads=1).run(*batch)
    for name in expected[0]:
        alone = np.concatenate([clip[name] for clip in expected])
        difference = _largest([outputs[name] - alone]) / max(1.0, _largest([alone]))
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{MODEL_FILE}: {name} of {len(inputs)} clips in a batch differ from those of each clip alone by "
                f"{difference:.2g}, expected at most {TOLERANCE:g}"
            )


def class_agreement(probs: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> tuple[float, bool]:
    """Compares the predicted classes of the int8 file with PyTorch's.

    A single disagreement on a near tie is accepted, since among a few clips it is no evidence of a defect.

    Args:
        probs: Probabilities of the int8 file, ``(1, class)`` for each clip.
        expected: Probabilities of PyTorch, likewise.

    Returns:
        Share of clips with the same class, in [0, 1], and whether it is high enough.
    """
    pairs = enumerate(zip(probs, expected, strict=True))
    different = [index for index, (exported, original) in pairs if exported.argmax() != original.argmax()]
    share = 1 - len(different) / len(expected)
    near_tie = len(different) == 1 and float(np.ptp(np.sort(expected[different[0]].ravel())[-2:])) <= NEAR_TIE_MARGIN
    return share, share >= MIN_AGREEMENT or near_tie


def _largest_difference(
    outputs: Sequence[Mapping[str, np.ndarray]], expected: Sequence[Mapping[str, np.ndarray]], name: str
) -> float:
    return _largest(output[name] - reference[name] for output, reference in zip(outputs, expected, strict=True))


def _largest(arrays: Iterable[np.ndarray]) -> float:
    """Returns the largest absolute value, or NaN if there is any NaN."""
    return float(np.max([np.abs(array).max() for array in arrays]))


def _write_weights(model: EmotionModel, path: Path) -> None:
    from safetensors.torch import save_file

    with replacing(path) as partial:
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
        partial.chmod(0o644)


def _tokenizer_json(model: EmotionModel) -> str:
    """Returns the text encoder's tokenizer as JSON of the ``tokenizers`` package."""
    encoder = model.encoder("text")
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{encoder.model_id}: has only a slow tokenizer, which cannot be exported; choose a text model with a fast "
            "tokenizer"
        )
    tokenizer = Tokenizer.from_str(backend.to_str())
    tokenizer.no_padding()
    tokenizer.enable_truncation(encoder.max_tokens)
    return str(tokenizer.to_str())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporters' output and warnings, and restores the logging setup that they change."""
    disabled, level, handlers = logging.root.manager.disable, logging.root.level, list(logging.root.handlers)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        logging.root.setLevel(level)  # onnxruntime's quantisers configure logging when they are imported
        logging.root.handlers[:] = handlers
