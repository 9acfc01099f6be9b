"""Contents of an exported folder: ``config.json``, the model card and the example script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemo.export.runtime import FORMAT_VERSION, INT8_FILE, MODEL_FILE, TOKENIZER_FILE
from mmemo.labels import DIMENSIONS
from mmemo.models.encoder import HasModelId
from mmemo.settings import SAMPLE_RATE

if TYPE_CHECKING:
    from mmemo.export.graph import WaveformModel

CARD_FILE = "README.md"
EXAMPLE_FILE = "example.py"
HUB_LICENSES = {
    "apache-2.0", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-4.0", "gpl-3.0", "mit",
}  # fmt: skip
"""License ids of the Hugging Face hub that a card may name (<https://huggingface.co/docs/hub/repositories-licenses>)."""


def build_config(graph: WaveformModel, card: dict[str, Any], max_seconds: float | None) -> dict[str, Any]:
    """Returns the content of ``config.json``, except what is known only once the files exist.

    Args:
        graph: Model to export.
        card: Texts for the model card, as for :func:`mmemo.export_onnx`.
        max_seconds: Longest recording that the model accepts, in seconds; None if any length is accepted.
    """
    model = graph.model
    text_encoder = model.encoder("text")
    config = {
        "format_version": FORMAT_VERSION,
        "classes": list(model.classes),
        "dimensions": list(DIMENSIONS) if model.dimension_head is not None else [],
        "sample_rate": SAMPLE_RATE,
        "max_seconds": max_seconds,
        "inputs": graph.input_names,
        "outputs": graph.output_names,
        "num_parameters": sum(parameter.numel() for parameter in graph.parameters()),
        "tokenizer": text_encoder.model_id if isinstance(text_encoder, HasModelId) else "",
        **{name: card.get(name, "") for name in ("license", "training_data", "limits")},
        "metrics": card.get("metrics", {}),
    }
    return {**config, "language": card["language"]} if card.get("language") else config


def has_example(config: dict[str, Any]) -> bool:
    """Returns whether the folder gets an example script: the model takes audio and predicts classes.

    Args:
        config: Content of ``config.json``.
    """
    return "waveform" in config["inputs"] and "probabilities" in config["outputs"]


def render_model_card(config: dict[str, Any], folder: Path) -> str:
    """Renders the folder's README: metadata of the Hugging Face hub, then the text.

    Args:
        config: Complete content of ``config.json``.
        folder: Exported folder, which already holds the two ONNX files.
    """
    from huggingface_hub import ModelCard, ModelCardData

    takes_audio = "waveform" in config["inputs"]
    metadata = ModelCardData(
        language=config.get("language"),
        license=hub_license(config["license"]),
        library_name="mmemo",
        pipeline_tag="audio-classification" if takes_audio else "text-classification",
        tags=[*(["speech-emotion-recognition"] if takes_audio else []), "emotion-recognition", "onnx"],
    )
    return str(ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{_card_text(config, folder)}"))


def hub_license(statement: str) -> str | None:
    """Returns the hub's id of the license that a statement starts with, ``other`` for any other license.

    Args:
        statement: License name, optionally followed by punctuation and an explanation. Empty if it is not known.

    Example:
        >>> hub_license("CC BY-NC-SA 4.0: not for commercial use"), hub_license("ask us"), hub_license("")
        ('cc-by-nc-sa-4.0', 'other', None)
    """
    name = "-".join(re.split(r"[:;,]|\.(?=\s|$)", statement)[0].lower().split())
    if not name:
        return None
    name = {"cc0": "cc0-1.0"}.get(name, name)
    return name if name in HUB_LICENSES else "other"


def _card_text(config: dict[str, Any], folder: Path) -> str:
    takes_audio, takes_text = "waveform" in config["inputs"], "token_ids" in config["inputs"]
    source = "text"
    if takes_audio:
        source = "speech audio and its transcript" if takes_text else "speech audio"
    sizes = "\n".join(
        f"| `{name}` | {(folder / name).stat().st_size / 1000:.0f} kB |" for name in (MODEL_FILE, INT8_FILE)
    )
    metrics = "No metrics were given at export."
    if config["metrics"]:
        rows = [f"| {name} | {value} |" for name, value in config["metrics"].items()]
        metrics = "\n".join(["| metric | value |", "|---|---|", *rows])
    return f"""# {folder.name}

Predicts {", ".join(config["classes"] or config["dimensions"])} from {source}. Exported by mmemo.

| file | size |
|---|---|
{sizes}

{config["num_parameters"]:,} parameters. {_input_text(config)}
{_usage_text(config)}

## Evaluation

{metrics}

{_parity_text(config)}

## Training data

{config["training_data"] or "Not stated."}

## Licence

{config["license"] or "Not stated. The licence of the training data applies."}

## Limits

{config["limits"] or "Not stated."}
"""


def _input_text(config: dict[str, Any]) -> str:
    if "waveform" not in config["inputs"]:
        return "Input: token ids."
    longest = config.get("max_seconds")
    length = f"up to {longest:g} s" if longest else "of any length"
    text = f"Input: mono audio at {config['sample_rate']} Hz, float32, {length}."
    if config["int8"] != "weights":
        text += f" Run `{INT8_FILE}` on one clip at a time, without padding: its activations share one scale per call."
    return text


def _usage_text(config: dict[str, Any]) -> str:
    takes_text = "token_ids" in config["inputs"]
    if not has_example(config):
        text = f"Inputs: {', '.join(config['inputs'])}. Outputs: {', '.join(config['outputs'])}."
    elif takes_text:
        text = (
            f"`python {EXAMPLE_FILE} clip.wav 'its transcript'` needs only numpy, soundfile, onnxruntime and "
            "tokenizers. mmemo's `Recognizer.predict` takes the transcript as its second argument."
        )
    else:
        text = f"`python {EXAMPLE_FILE} clip.wav` needs only numpy, soundfile and onnxruntime."
    if takes_text:
        text += (
            f"\n`{TOKENIZER_FILE}` is the tokenizer of {config['tokenizer']}. The weights file does not include frozen "
            "backbones."
        )
    return text


def _parity_text(config: dict[str, Any]) -> str:
    parity = config["parity"]
    int8_parity = f"dimensions within {parity['int8_largest_difference']:.2g}"
    if parity["int8_agreement"] is not None:
        int8_parity = f"the same class on {100 * parity['int8_agreement']:.1f} %"
    return (
        f"Parity with PyTorch at export, on {parity['num_clips']} real clips: fp32 within "
        f"{parity['largest_difference']:.1e}; int8\n({config['int8']} of matrix products in 8 bits, convolutions in "
        f"fp32): {int8_parity}."
    )


def render_example(config: dict[str, Any]) -> str:
    """Renders the folder's example script.

    Args:
        config: Content of ``config.json``.
    """
    takes_text = "token_ids" in config["inputs"]
    lines = _EXAMPLE.splitlines(keepends=True)
    return (
        "".join(line.removeprefix("+") for line in lines if takes_text or not line.startswith("+"))
        .replace("ARGUMENTS", "clip.wav 'its transcript'" if takes_text else "clip.wav")
        .replace("COUNT", "3" if takes_text else "2")
    )


# Lines that start with + are only for models that take text.
_EXAMPLE = '''"""Predict the emotion of a clip: python example.py ARGUMENTS"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile
+from tokenizers import Tokenizer

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text())
if len(sys.argv) < COUNT:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(folder / "model.int8.onnx")
waveform, sample_rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
if sample_rate != config["sample_rate"]:
    sys.exit(f"{sys.argv[1]}: {sample_rate} Hz; resample it to {config['sample_rate']} Hz first")
waveform = waveform.mean(axis=1)[None]
inputs = {"waveform": waveform, "lengths": np.array([waveform.shape[1]])}
+text = " ".join(sys.argv[2:])
+token_ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids if text else []
+inputs |= {"token_ids": np.array([token_ids or [0]]), "token_lengths": np.array([len(token_ids)])}
(probabilities,) = session.run(["probabilities"], inputs)
for label, probability in zip(config["classes"], probabilities[0], strict=True):
    print(f"{label:<12}{probability:.3f}")
'''
