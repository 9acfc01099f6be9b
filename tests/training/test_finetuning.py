from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from torch import nn

from mmemo import EmotionModel, EmotionSystem, load_model
from mmemo.audio.reader import read_audio
from mmemo.cli.app import main
from mmemo.models import (
    ASTAudioEncoder,
    ConvRecurrentEncoder,
    HuggingFaceAudioEncoder,
    HuggingFaceTextEncoder,
    WhisperAudioEncoder,
)
from mmemo.training.backbone import save_backbone
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment
from mmemo.training.finetuning import (
    Full,
    LastBlocks,
    LinearProbeFirst,
    LoRA,
    LowRank,
    LowRankLinear,
    ProgressiveUnfreezing,
)
from tests.conftest import ROOT, padded, tone
from tests.models.test_pretrained_encoder import random_model
from tests.models.test_text import random_text_model

AUDIO = ("whisper", "wav2vec2", "wav2vec2-large", "wavlm", "wavlm-large", "hubert", "data2vec", "ast")
TEXT = ("Bert", "Roberta", "XLNet", "MPNet", "DistilBert")


@pytest.fixture
def make(tmp_path: Path, tiny_whisper: Path, tiny_bert: Path) -> Callable[[str], Callable[[], Any]]:
    return lambda kind: builder(kind, tmp_path / "source", tiny_whisper, tiny_bert)


def builder(kind: str, folder: Path, whisper: Path, bert: Path) -> Callable[[], Any]:
    """Returns a function that builds the same pretrained encoder on each call, with hidden states 0, 1 and 2."""
    layers = [0, 1, 2]
    if kind == "whisper":
        return lambda: WhisperAudioEncoder(str(whisper), layers)
    if kind in TEXT:
        random_text_model(kind, folder, bert)
        return lambda: HuggingFaceTextEncoder(str(folder), layers)
    random_model(kind, folder)
    return lambda: (ASTAudioEncoder if kind == "ast" else HuggingFaceAudioEncoder)(str(folder), layers)


def inputs(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(encoder, HuggingFaceTextEncoder):
        ids = torch.tensor([[2, 5, 6, 3, 0], [2, 7, 8, 9, 3], [0] * 5])
        return ids, torch.tensor([[True] * 4 + [False], [True] * 5, [False] * 5])
    return padded([tone(0.6), tone(0.9), torch.zeros(0)])


def encode(encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return encoder(*encoder.precompute(*inputs(encoder)))


@pytest.mark.parametrize("first_block", [0, 1, 2])
@pytest.mark.parametrize("kind", AUDIO + TEXT)
def test_features_do_not_depend_on_the_first_unfrozen_block(
    kind: str, first_block: int, make: Callable[[str], Callable[[], Any]]
) -> None:
    build = make(kind)
    frozen, tuned = build().eval(), build()
    tuned.unfreeze(first_block)
    tuned.eval()
    expected, expected_mask = encode(frozen)
    features, features_mask = encode(tuned)
    assert features_mask.equal(expected_mask)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)
    assert features[2].isfinite().all()


@pytest.mark.parametrize("first_block", [0, 2])
@pytest.mark.parametrize("kind", AUDIO + TEXT)
def test_only_unfrozen_blocks_get_gradients(
    kind: str, first_block: int, make: Callable[[str], Callable[[], Any]]
) -> None:
    tuned = make(kind)()
    tuned.unfreeze(first_block)
    blocks = tuned.block_parameters()
    assert set(blocks) <= set(range(first_block, 3))
    assert 2 in blocks
    features, _ = encode(tuned)
    (features * torch.randn(features.shape)).sum().backward()
    trainable = {id(parameter) for parameters in blocks.values() for parameter in parameters}
    for parameters in blocks.values():
        grads = [parameter.grad for parameter in parameters]
        assert all(grad is not None for grad in grads), "DDP waits for missing gradients"
        assert any(grad.abs().sum() > 0 for grad in grads)
    for parameter in tuned.parameters():
        assert (parameter.grad is None) or id(parameter) in trainable


def test_states_below_the_first_unfrozen_block_have_their_own_cache(tiny_whisper: Path) -> None:
    encoders = [WhisperAudioEncoder(str(tiny_whisper), [1, 2], frame_average=4) for _ in range(3)]
    encoders[1].unfreeze(2)
    encoders[2].unfreeze(0)
    assert encoders[0].fingerprint() != encoders[1].fingerprint()
    assert [encoder.caches for encoder in encoders] == [True, True, False]
    states, _ = encoders[1].precompute(*inputs(encoders[1]))
    assert states.shape[1] == 1, "state 1 is a selected layer and the input of block 2"


def test_lora_starts_from_the_pretrained_model_and_trains_only_its_updates(tiny_whisper: Path) -> None:
    frozen, tuned = (WhisperAudioEncoder(str(tiny_whisper), [2]) for _ in range(2))
    LoRA(rank=2, num_blocks=1).prepare(tuned)
    torch.testing.assert_close(encode(tuned)[0], encode(frozen)[0], atol=1e-4, rtol=1e-3)
    trainable = [name for name, parameter in tuned.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert any("q_proj" in name for name in trainable)
    assert any("v_proj" in name for name in trainable)


@pytest.mark.parametrize("kind", ["whisper", "wavlm", "wav2vec2-large", "ast", "Bert", "XLNet"])
@pytest.mark.parametrize("strategy", [LastBlocks(1), Full(), LoRA(2, num_blocks=1), LowRank(2, num_blocks=1)])
def test_a_saved_backbone_gives_the_features_of_the_tuned_encoder(
    kind: str, strategy: LastBlocks, tmp_path: Path, make: Callable[[str], Callable[[], Any]]
) -> None:
    if isinstance(strategy, LoRA) and kind == "XLNet":
        pytest.skip("XLNet's projections are not linear modules")
    tuned = make(kind)()
    strategy.prepare(tuned)
    torch.manual_seed(1)
    for parameters in tuned.block_parameters().values():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.eval()
    folder = save_backbone(tuned, tmp_path / "saved")
    reloaded = type(tuned)(str(folder), [0, 1, 2]).eval()
    torch.testing.assert_close(encode(reloaded)[0], encode(tuned)[0], atol=1e-4, rtol=1e-3)
    if isinstance(tuned, HuggingFaceTextEncoder):
        assert reloaded.tokenizer is not None


def test_low_rank_layers_start_as_the_best_approximation_on_their_inputs() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 96)
    activations = torch.randn(5, 40, 8) @ torch.randn(8, 64) * 3  # eight directions of 64
    narrow = LowRankLinear(linear, 8).train()
    torch.testing.assert_close(narrow(activations), linear(activations), atol=2e-2, rtol=1e-2)
    left, values, right = torch.linalg.svd(linear.weight.data)
    truncated = left[:, :8] * values[:8] @ right[:8]  # closest to the matrix itself, for any inputs
    svd_error = activations @ (linear.weight - truncated).T
    assert (narrow(activations) - linear(activations)).norm() < 0.01 * svd_error.norm()
    fitted = narrow.narrow.weight.clone()
    narrow(torch.randn(3, 64))
    assert narrow.narrow.weight.equal(fitted)  # fitted only once
    assert narrow.product(activations).allclose(narrow(activations), atol=1e-4)
    assert LowRankLinear.factored(linear, 39) is linear  # rank 39 would not save parameters
    few_inputs = LowRankLinear(linear, 8).train()
    assert few_inputs(activations[0, :3]).isfinite().all()


def configure(tiny_config: Path, **settings: Any) -> Path:
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["init_args"] |= settings
    config["trainer"]["max_epochs"] = 3
    tiny_config.write_text(yaml.safe_dump(config))
    return tiny_config


def strategy(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": f"mmemo.training.{name}", "init_args": options}


STRATEGIES = {
    "frozen": ({}, set()),
    "last blocks": ({"audio_finetuning": strategy("LastBlocks", num_blocks=1)}, {"audio.encoder.trained.layers.2"}),
    "lora": ({"audio_finetuning": strategy("LoRA", rank=2, num_blocks=1)}, {"lora_A", "lora_B"}),
    "low rank": (
        {"audio_finetuning": strategy("LowRank", rank=2, num_blocks=1)},
        {"q_proj.narrow", "q_proj.widen", "fc2.narrow", "audio.encoder.trained.layers.2"},
    ),
    "text": ({"text_finetuning": strategy("LastBlocks", num_blocks=1)}, {"text.encoder.trained.0"}),
    "probe first": (
        {"audio_finetuning": strategy("LinearProbeFirst", probe_epochs=1, num_blocks=1)},
        {"audio.encoder.trained.layers.2"},
    ),
    "unfreezing": (
        {"audio_finetuning": strategy("ProgressiveUnfreezing", num_blocks=2)},
        {"audio.encoder.trained.layers.2", "audio.encoder.trained.layers.1"},
    ),
    "full": (
        {"audio_finetuning": strategy("Full"), "text_finetuning": strategy("Full")},
        {"audio.encoder.trained", "text.encoder.trained"},
    ),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_one_setting_and_the_checkpoint_holds_only_trained_blocks(name: str, tiny_config: Path) -> None:
    settings, trained = STRATEGIES[name]
    configure(tiny_config, **settings)
    start = ExperimentCLI(["--config", str(tiny_config)], run=False).model.state_dict()
    cli = ExperimentCLI(["fit", "--config", str(tiny_config)])
    run = Path(cli.config.fit.trainer.default_root_dir)
    saved = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    encoder_keys = {key for key in saved if ".encoder." in key and "log_mel" not in key}
    allowed = {*trained, "audio.encoder.trained.layer_norm"} if trained else set()  # the norm of the last block
    assert all(any(part in key for part in allowed) for key in encoder_keys)
    for part in trained:
        changed = [key for key in encoder_keys if part in key and not saved[key].equal(start[key])]
        assert changed, f"{part} was not trained"
    reloaded = load_model(run / "checkpoints/last.ckpt").state_dict()
    current = cli.model.model.state_dict()
    assert all(reloaded[key].equal(current[key]) for key in current)


def test_each_block_is_unfrozen_in_its_epoch(tiny_config: Path) -> None:
    configure(tiny_config, audio_finetuning=strategy("ProgressiveUnfreezing", num_blocks=2, epochs_per_block=1))
    tiny_config.write_text(tiny_config.read_text().replace("max_epochs: 3", "max_epochs: 3\n  limit_val_batches: 0"))
    start = ExperimentCLI(["--config", str(tiny_config)], run=False).model.state_dict()
    changed: dict[int, set[str]] = {}

    class RecordChanges(__import__("pytorch_lightning").Callback):  # type: ignore[misc]
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            state = pl_module.state_dict()
            changed[trainer.current_epoch] = {
                key.split("trained.layers.")[1][0]
                for key in state
                if "trained.layers." in key and not state[key].equal(start[key])
            }

    experiment = read_experiment(tiny_config)
    experiment.trainer["callbacks"] = [RecordChanges()]
    experiment.fit()
    assert changed == {0: set(), 1: {"2"}, 2: {"1", "2"}}


def test_lower_blocks_have_lower_learning_rates() -> None:
    decay = LastBlocks(3, lr_ratio=0.5, layer_decay=0.1)
    assert [decay.learning_rate_ratio(block, 4) for block in (4, 3, 2)] == pytest.approx([0.5, 0.05, 0.005])
    assert [ProgressiveUnfreezing(2, epochs_per_block=3).first_epoch(block, 4) for block in (4, 3)] == [3, 6]
    assert LinearProbeFirst(probe_epochs=7).first_epoch(1, 4) == 7


def test_invalid_settings_are_rejected_at_start_up(tiny_whisper: Path, tiny_config: Path) -> None:
    encoder = WhisperAudioEncoder(str(tiny_whisper), [0, 1, 2])
    with pytest.raises(ValueError, match=r"LoRA\(targets=\['kproj'\]\).*no such linear module.*k_proj"):
        LoRA(targets=["kproj"]).prepare(encoder)
    with pytest.raises(ValueError, match=r"num_blocks=5\).*runs 2 blocks"):
        ProgressiveUnfreezing(num_blocks=5).prepare(encoder)
    with pytest.raises(ValueError, match="trained from scratch"):
        EmotionSystem(EmotionModel(["a", "b"], ConvRecurrentEncoder()), audio_finetuning=Full())
    with pytest.raises(ValueError, match="decay in"):
        LastBlocks(layer_decay=1.5)
    configure(tiny_config, audio_finetuning=strategy("LinearProbeFirst", probe_epochs=9))
    with pytest.raises(ValueError, match=r"unfreezes its last block in epoch 10, but trainer.max_epochs is 3"):
        ExperimentCLI(["fit", "--config", str(tiny_config)])


def test_the_backbone_verb_exports_a_tuned_encoder(
    tiny_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configure(tiny_config, text_finetuning=strategy("Full"))
    run = Path(ExperimentCLI(["fit", "--config", str(tiny_config)]).config.fit.trainer.default_root_dir)
    checkpoint, out = str(run / "checkpoints/last.ckpt"), tmp_path / "tuned"
    assert main(["backbone", checkpoint, "--modality", "audio", "--out", str(out)]) == 1
    assert "its audio encoder was not fine-tuned, only text" in capsys.readouterr().err
    assert main(["backbone", checkpoint, "--out", str(out)]) == 0
    tuned = load_model(checkpoint).encoder("text").eval()
    reloaded = HuggingFaceTextEncoder(str(out)).eval()
    torch.testing.assert_close(encode(reloaded)[0], encode(tuned)[0], atol=1e-5, rtol=1e-4)
    assert main(["backbone", checkpoint, "--out", str(out)]) == 1
    assert "already holds a model" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_rejected(tiny_config: Path) -> None:
    run = Path(ExperimentCLI(["fit", "--config", str(tiny_config)]).config.fit.trainer.default_root_dir)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    tiny_config.write_text(tiny_config.read_text().replace("hidden_dim: 16", "hidden_dim: 8"))
    system = ExperimentCLI(["--config", str(tiny_config)], run=False).model
    with pytest.raises(ValueError, match=r"belongs to another architecture: \d+ of its tensors do not fit"):
        system.on_load_checkpoint(checkpoint)


def test_dropout_is_active_in_an_encoder_that_is_tuned(tiny_config: Path) -> None:
    configure(tiny_config, text_finetuning=strategy("Full"))
    model = ExperimentCLI(["--config", str(tiny_config)], run=False).model.model
    dropouts = [part for part in model.encoder("text").trained.modules() if isinstance(part, nn.Dropout)]
    assert dropouts
    assert all(part.training for part in dropouts)


@pytest.mark.weights
def test_pretrained_encoders_do_not_depend_on_the_first_unfrozen_block() -> None:
    waveform = torch.from_numpy(read_audio(ROOT / "demo" / "clips" / "finn_anger_2.flac"))[None]
    mask = torch.ones_like(waveform, dtype=torch.bool)
    for first_block in (0, 3):
        frozen, tuned = (WhisperAudioEncoder(layers=[2, 3, 4], frame_average=4).eval() for _ in range(2))
        tuned.unfreeze(first_block)
        tuned.eval()
        with torch.inference_mode():
            expected, features = (encoder(*encoder.precompute(waveform, mask))[0] for encoder in (frozen, tuned))
        torch.testing.assert_close(features, expected, atol=1e-3, rtol=1e-3)
    frozen_text, tuned_text = (HuggingFaceTextEncoder(layers=[3, 6]).eval() for _ in range(2))
    tuned_text.unfreeze(5)
    tuned_text.eval()
    ids = frozen_text.tokenize("Shut up and give it back, now!")[None]
    with torch.inference_mode():
        mask = torch.ones_like(ids, dtype=torch.bool)
        expected, features = (encoder(*encoder.precompute(ids, mask))[0] for encoder in (frozen_text, tuned_text))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.weights
def test_pretrained_whisper_and_minilm_are_tuned_on_speech(tmp_path: Path) -> None:
    """Combines LoRA for audio, the last block for text, acoustic descriptors, and a gate over all three."""
    manifest = tmp_path / "manifest.csv"
    columns = ["path=file", "emotion=label", "speaker=voice", "split=set", "text=words"]
    table = pd.read_csv(ROOT / "demo" / "clips.csv")
    table["words"] = "The words of " + table["voice"] + " on a day of " + table["label"]
    table["file"] = [str(ROOT / "demo" / path) for path in table["file"]]
    table.groupby("set").head(12).to_csv(tmp_path / "clips.csv", index=False)
    assert main(["corpus", "table", str(tmp_path / "clips.csv"), "--out", str(manifest), "--columns", *columns]) == 0
    config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    parts = config["model"]["init_args"]["model"]["init_args"]
    parts["descriptors"] = "mmemo.models.AcousticDescriptors"
    parts["fusion"] = {"class_path": "mmemo.models.GatedMultimodalUnit", "init_args": {"per_feature": False}}
    parts["gate"] = "mmemo.models.HardConcreteGate"
    config["model"]["init_args"]["audio_finetuning"] = strategy("LoRA", rank=4)
    config["model"]["init_args"]["text_finetuning"] = strategy("LastBlocks", num_blocks=1)
    config["data"] |= {"manifest": str(manifest), "augmentation": "mmemo.data.WaveformAugmentation", "num_views": 2}
    config["trainer"] |= {"max_epochs": 2, "default_root_dir": str(tmp_path / "run"), "enable_progress_bar": False}
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(config))
    ExperimentCLI(["fit", "--config", str(path)])
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    trained = {key for key in torch.load(checkpoint, weights_only=True)["state_dict"] if ".trained." in key}
    assert any("lora_" in key for key in trained)
    assert not any("base_layer" in key for key in trained)
    assert main(["predict", "--config", str(path), "--gates", str(tmp_path / "gates.parquet")]) == 0
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    weights = predictions[["weight_audio", "weight_descriptors", "weight_text"]]
    assert weights.sum(axis="columns").to_numpy() == pytest.approx(1.0)
    gates = pd.read_parquet(tmp_path / "gates.parquet")
    assert {"descriptors/f0/0", "descriptors/mfcc/12"} <= set(gates)
