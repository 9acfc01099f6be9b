from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from mmemo import EmotionDataModule, EmotionModel, EmotionSystem, load_model
from mmemo.evaluation.predictions import read_predictions
from mmemo.export.checkpoint import export_checkpoint
from mmemo.export.runtime import Recognizer
from mmemo.losses import CCCLoss, CrossEntropy, FocalLoss, WeightedSum
from mmemo.models import (
    AcousticDescriptors,
    ConvNeXtEncoder,
    ConvRecurrentEncoder,
    CrossModalAttention,
    DimensionHead,
    FeatureGate,
    GatedMultimodalUnit,
    HardConcreteGate,
    HuggingFaceTextEncoder,
    LowRankFusion,
    WhisperAudioEncoder,
)
from mmemo.report.report import write_report
from mmemo.studies.crossval import crossval
from mmemo.training import LastBlocks, VirtualAdversarial
from mmemo.training.experiment import Experiment
from mmemo.training.experiment_cli import read_experiment
from mmemo.training.recipe import RecipeError, build, recipe_of
from tests.conftest import CLASSES, ROOT


def rebuilt(system: EmotionSystem) -> EmotionSystem:
    return build(EmotionSystem, recipe_of(system))


@pytest.mark.parametrize("fusion", [CrossModalAttention, partial(GatedMultimodalUnit, hidden_dim=8), LowRankFusion])
@pytest.mark.parametrize("gate", [FeatureGate, HardConcreteGate])
def test_a_system_is_rebuilt_from_what_its_checkpoint_stores(
    tiny_whisper: Path, tiny_bert: Path, fusion: object, gate: object
) -> None:
    model = EmotionModel(
        CLASSES, WhisperAudioEncoder(str(tiny_whisper), layers=[1, 2]), HuggingFaceTextEncoder(str(tiny_bert)),
        descriptors=AcousticDescriptors(f0=False), gate=gate, fusion=fusion, dimension_head=DimensionHead,
    )  # fmt: skip
    loss = WeightedSum([FocalLoss(gamma=1.5), CCCLoss()], [1.0, 0.25])
    system = EmotionSystem(
        model, loss, partial(torch.optim.AdamW, lr=0.01), text_finetuning=LastBlocks(1, layer_decay=0.5),
        mixup=0.0, hooks=[VirtualAdversarial(level="audio_features")],
    )  # fmt: skip
    again = rebuilt(system)  # with the default of every argument that was not given
    assert recipe_of(rebuilt(again)) == recipe_of(again)
    assert recipe_of(again.model) == recipe_of(rebuilt(again).model)
    assert recipe_of(again)["init_args"]["optimizer"]["init_args"]["lr"] == 0.01
    assert {name: value.shape for name, value in again.state_dict().items()} == {
        name: value.shape for name, value in system.state_dict().items()
    }


@pytest.mark.weights
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_survives_the_round_trip(config: Path) -> None:
    system = read_experiment(config).system
    again = build(type(system), recipe_of(system))
    assert recipe_of(build(type(again), recipe_of(again))) == recipe_of(again)


def test_a_part_that_forgets_its_argument_is_named() -> None:
    class Forgetful(CrossEntropy):
        def __init__(self, temperature: float = 1.0) -> None:
            super().__init__()

    Forgetful.__module__ = "my_losses"
    with pytest.raises(RecipeError, match=r"does not keep its argument 'temperature'.*self\.temperature = temperature"):
        recipe_of(Forgetful())


def test_a_class_of_a_notebook_is_not_stored(caplog: pytest.LogCaptureFixture) -> None:
    class InNotebook(nn.Module):
        pass

    InNotebook.__module__ = "__main__"
    with pytest.raises(RecipeError, match="move it into a file"):
        recipe_of(InNotebook())


def test_the_whole_way_works_in_python(tiny_corpus: Path, tmp_path: Path) -> None:
    """What a notebook does: train, reload, export, cross-validate and report, without a YAML."""
    data = EmotionDataModule(CLASSES, str(tiny_corpus), batch_size=6)
    model = EmotionModel(CLASSES, ConvNeXtEncoder(num_mels=16, hidden_dim=8, num_blocks=1))
    system = EmotionSystem(model, optimizer=partial(torch.optim.AdamW, lr=0.01))
    trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path,
                      enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False)  # fmt: skip
    trainer.fit(system, data)
    assert 0.0 <= trainer.test(system, data, verbose=False)[0]["test/uar"] <= 1.0
    checkpoint = tmp_path / "model.ckpt"
    trainer.save_checkpoint(checkpoint)
    reloaded = load_model(checkpoint)
    for name, value in reloaded.state_dict().items():
        torch.testing.assert_close(value, system.model.state_dict()[name])
    export_checkpoint(checkpoint, tmp_path / "exported", manifest=tiny_corpus, num_clips=12)
    assert Recognizer(tmp_path / "exported").predict(tiny_corpus.parent / "s0_anger_0.wav").label in CLASSES

    from mmemo.data import GroupKFold

    folds = EmotionDataModule(CLASSES, str(tiny_corpus), batch_size=6, split=GroupKFold(3, num_val_speakers=1))
    untrained = EmotionSystem(EmotionModel(CLASSES, ConvRecurrentEncoder(channels=[4], hidden_dim=8)))
    trainer_settings = {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}
    result = crossval(Experiment(untrained, folds, trainer_settings, tmp_path / "folds"))
    assert len(result.metrics["test/uar"]) == 3
    assert len(read_predictions(tmp_path / "folds").table) == 36
    content = write_report(tmp_path / "folds").content
    assert content.classification is not None
