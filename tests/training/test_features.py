from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mmemo.audio.reader import inspect_audio
from mmemo.data.manifest import read_manifest
from mmemo.models import HuggingFaceTextEncoder, WhisperAudioEncoder
from mmemo.training.feature_cache import FeatureCache, cache_sizes, clear_cache
from mmemo.training.features import Clip, cache_audio, cache_text, text_content


def test_cached_features_equal_the_output_of_the_encoder(tiny_corpus: Path, tiny_whisper: Path, tmp_path: Path) -> None:
    encoder = WhisperAudioEncoder(str(tiny_whisper), [0, 2])
    clips = {inspect_audio(row.path).content: Clip(row) for row in read_manifest(tiny_corpus)}  # type: ignore[arg-type]
    cache = FeatureCache(encoder.fingerprint(), tmp_path)
    assert cache_audio(encoder, clips, cache, progress=False) == 36
    assert cache_audio(encoder, clips, cache, progress=False) == 0, "no clip may be computed twice"
    from mmemo.audio.reader import read_audio

    for content, (utterance, _, _) in clips.items():
        waveform = torch.from_numpy(read_audio(utterance.path))[None]  # type: ignore[arg-type]
        with torch.inference_mode():
            expected, _ = encoder.precompute(waveform, torch.ones_like(waveform, dtype=torch.bool))
        stored = cache.read(content)
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, expected[0], atol=2e-2, rtol=2e-3)
    assert not list(tmp_path.rglob("*.partial"))


def test_text_features_are_cached(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = HuggingFaceTextEncoder(str(tiny_bert))
    texts = {text_content(text): text for text in ("go away now", "i miss you so", "the shop")}
    cache = FeatureCache(encoder.fingerprint(), tmp_path)
    assert cache_text(encoder, texts, cache, progress=False) == 3
    assert cache.read(text_content("the shop")).shape == (3, 4, 16)
    assert text_content("") == ""


def test_each_choice_of_layers_has_its_own_cache(tiny_whisper: Path, tiny_bert: Path, tmp_path: Path) -> None:
    encoders = [WhisperAudioEncoder(str(tiny_whisper), layers) for layers in ([0], [1], [0, 1])]
    encoders.append(WhisperAudioEncoder(str(tiny_whisper), [0], frame_average=2))
    assert len({FeatureCache(encoder.fingerprint(), tmp_path).folder for encoder in encoders}) == 4


def test_features_beyond_half_precision_are_stored_in_single_precision(tmp_path: Path) -> None:
    cache = FeatureCache("large", tmp_path)
    large = np.full((1, 2, 3), 1e6, dtype=np.float32)
    cache.write("aa", large)
    np.testing.assert_array_equal(cache.read("aa"), large)


def test_features_are_memory_mapped_and_writing_to_them_does_not_change_the_file(tmp_path: Path) -> None:
    cache = FeatureCache("f", tmp_path)
    cache.write("aa", np.ones((1, 2, 3), np.float32))
    mapped = cache.read("aa")
    assert isinstance(mapped, np.memmap)
    torch.from_numpy(mapped).fill_(5)
    assert cache.read("aa").max() == 1


WRITER = """
import sys
import numpy as np
from pathlib import Path
from mmemo.training.feature_cache import FeatureCache
cache = FeatureCache("shared", Path(sys.argv[1]))
for number in range(300):
    cache.write(f"{number:02d}", np.full((2, 50, 8), number, np.float32))
"""


def test_processes_that_share_a_cache_never_read_a_partial_file(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, tmp_path]) for _ in range(2)]
    cache = FeatureCache("shared", tmp_path)
    while any(writer.poll() is None for writer in writers):
        for number in range(0, 300, 37):
            if f"{number:02d}" in cache:
                assert (cache.read(f"{number:02d}") == number).all()
    assert [writer.wait() for writer in writers] == [0, 0]
    (size,) = cache_sizes(tmp_path)
    assert (size.num_files, size.fingerprint) == (300, "shared")


def test_cache_sizes_are_reported_and_caches_are_cleared(tmp_path: Path) -> None:
    for name in ("small", "large"):
        FeatureCache(name, tmp_path).write("aa", np.zeros((1, 10 if name == "small" else 1000, 4)))
    large, small = cache_sizes(tmp_path)
    assert (large.fingerprint, small.fingerprint) == ("large", "small")
    assert large.num_bytes > 8000
    assert clear_cache(small.name, tmp_path) == small.num_bytes
    assert [size.fingerprint for size in cache_sizes(tmp_path)] == ["large"]
    with pytest.raises(ValueError, match="no feature cache 'typo'"):
        clear_cache("typo", tmp_path)
    clear_cache(root=tmp_path)
    assert cache_sizes(tmp_path) == []
