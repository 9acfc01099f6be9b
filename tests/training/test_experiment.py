"""Fitting, reloading, testing and predicting: from a YAML file to a predictions file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytorch_lightning import Callback, LightningModule, Trainer

from mmemo import load_model
from mmemo.data import EmotionBatch, ManifestError, read_manifest
from mmemo.data.batch import Example, collate
from mmemo.evaluation.gates import gate_table, read_gates
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment
from mmemo.training.mixing import drop_modalities, mixup
from mmemo.training.system import EmotionSystem
from tests.conftest import CLASSES

ROOT = Path(__file__).parent.parent.parent


def fit(config: Path, *options: str) -> Path:
    ExperimentCLI(["fit", "--config", str(config), *options])
    return config.parent / "run"


def fit_system(config: Path, *options: str) -> EmotionSystem:
    return ExperimentCLI(["fit", "--config", str(config), *options]).model


def test_a_reloaded_model_gives_the_same_logits(tiny_config: Path) -> None:
    experiment = ExperimentCLI(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "2"])
    batch = next(iter(experiment.datamodule.val_dataloader()))
    with torch.inference_mode():
        before = experiment.model.eval()(batch).logits
        model = load_model(tiny_config.parent / "run" / "checkpoints" / "last.ckpt")
        after = model(batch.audio, batch.audio_mask, batch.text, batch.text_mask).logits
    torch.testing.assert_close(after, before)
    assert model.classes == tuple(CLASSES)


def test_neither_padding_nor_batch_mates_change_a_prediction(tiny_config: Path) -> None:
    run = fit(tiny_config)
    predict = ["predict", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    for size in (1, 7, 36):
        ExperimentCLI([*predict, "--data.batch_size", str(size), "--predictions", str(run / f"{size}.csv")])
    single, batches, full_batch = (pd.read_csv(run / f"{size}.csv") for size in (1, 7, 36))
    probs = [name for name in single if "prob_" in name]
    assert len(probs) == 9, "fused, audio-only, text-only"
    np.testing.assert_allclose(batches[probs], single[probs], atol=1e-5)
    np.testing.assert_allclose(full_batch[probs], single[probs], atol=1e-5)
    assert single["id"].tolist() == full_batch["id"].tolist()
    np.testing.assert_allclose(single[probs[:3]].sum(1), 1, atol=1e-5)
    text_only = single[[name for name in probs if name.startswith("text_")]]
    without_text = single["id"].str.endswith("_0")
    assert text_only[without_text].nunique().max() == 1, "without text, all text-only predictions must be equal"


def test_the_run_folder_is_complete(tiny_config: Path) -> None:
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/best.ckpt")])
    results = json.loads((run / "test_metrics.json").read_text())
    views = {"test", "test_audio_only", "test_text_only"}
    assert {name.split("/")[0] for name in results["metrics"]} == views
    assert np.sum(results["confusion"]) == 12
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["seed_everything"] == 0
    assert pd.read_csv(run / "metrics.csv")["val/uar"].notna().sum() == 2
    assert list((run / "tensorboard").glob("events*"))
    assert (run / "checkpoints" / "best.ckpt").exists()


def test_a_checkpoint_stores_trained_weights_but_no_backbone(tiny_config: Path) -> None:
    run = fit(tiny_config)
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if "backbone" in name or "encoder.layers" in name]
    assert checkpoint["system"]["class_path"] == "mmemo.EmotionSystem", "settings must be stored as plain values"


def test_training_learns_an_easy_corpus(tiny_config: Path) -> None:
    run = fit(tiny_config, "--trainer.max_epochs", "60")
    ExperimentCLI(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert json.loads((run / "test_metrics.json").read_text())["metrics"]["test/uar"] >= 0.7


def test_the_same_seed_gives_the_same_model(tiny_config: Path) -> None:
    first = fit_system(tiny_config).state_dict()
    second = fit_system(tiny_config, "--overwrite", "true").state_dict()
    other = fit_system(tiny_config, "--overwrite", "true", "--seed_everything", "1").state_dict()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor)
    assert any(not torch.equal(other[name], tensor) for name, tensor in first.items())


def test_a_run_is_replaced_only_when_the_new_run_starts_to_train(tiny_config: Path) -> None:
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config)])
    before = {name: (run / name).read_text() for name in ("config.yaml", "metrics.csv", "test_metrics.json")}
    with pytest.raises((ValueError, SystemExit), match=r"no\.csv"):
        fit(tiny_config, "--overwrite", "true", "--seed_everything", "1", "--data.manifest", "no.csv")
    assert {name: (run / name).read_text() for name in before} == before
    fit(tiny_config, "--overwrite", "true", "--seed_everything", "1")
    assert not (run / "test_metrics.json").exists(), "metrics of the replaced model must be deleted"
    assert not (run / ".previous").exists()
    assert yaml.safe_load((run / "config.yaml").read_text())["seed_everything"] == 1


def test_cached_features_give_the_same_predictions_as_the_encoders(tiny_config: Path) -> None:
    run = fit(tiny_config)
    predict = ["predict", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    ExperimentCLI([*predict, "--predictions", str(run / "cached.csv")])
    no_cache = ["--model.init_args.cache_features", "false", "--predictions", str(run / "raw.csv")]
    ExperimentCLI([*predict, *no_cache])
    cached, computed = pd.read_csv(run / "cached.csv"), pd.read_csv(run / "raw.csv")
    probs = [name for name in cached if "prob_" in name]
    np.testing.assert_allclose(computed[probs], cached[probs], atol=5e-3)  # the cache is in half precision


@pytest.mark.parametrize("kept", ["audio", "text"])
def test_a_model_of_one_modality_is_trained_and_tested(tiny_config: Path, kept: str) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    parts = config["model"]["init_args"]["model"]["init_args"]
    del parts["text_encoder" if kept == "audio" else "audio_encoder"]
    tiny_config.write_text(yaml.safe_dump(config))
    if kept == "text":  # half of the clips have no text
        with pytest.raises(ManifestError, match=r"no input for the model \(text\): 's0_anger_0'.*empty_rows"):
            fit(tiny_config)
        config["data"]["empty_rows"] = "keep"
        tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config), "--ckpt_path", str(run / "checkpoints/last.ckpt")])
    assert set(json.loads((run / "test_metrics.json").read_text())["metrics"]) == {
        "test/uar", "test/accuracy", "test/macro_f1", "test/weighted_f1",
    }  # fmt: skip


def test_predict_uses_the_checkpoint_of_the_run_and_never_an_untrained_model(tiny_config: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run `mmemo fit` first"):
        ExperimentCLI(["test", "--config", str(tiny_config)])
    run = fit(tiny_config)
    best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    ExperimentCLI(["predict", "--config", str(tiny_config), *best, "--predictions", str(run / "named.csv")])
    ExperimentCLI(["predict", "--config", str(tiny_config), "--predictions", str(run / "own.csv")])
    pd.testing.assert_frame_equal(pd.read_csv(run / "own.csv"), pd.read_csv(run / "named.csv"))


def test_user_callbacks_are_kept_and_patience_stops_early(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "pytorch_lightning.callbacks.LearningRateMonitor"}]
    tiny_config.write_text(yaml.safe_dump(config))
    options = ["--patience", "2", "--trainer.max_epochs", "50", "--model.init_args.optimizer.init_args.lr", "0"]
    experiment = ExperimentCLI(["fit", "--config", str(tiny_config), *options])
    names = [type(callback).__name__ for callback in experiment.trainer.callbacks]
    assert "LearningRateMonitor" in names
    assert "RunFiles" in names
    assert experiment.trainer.current_epoch < 50, "training must stop, because the model does not improve"


def test_a_model_predicts_a_manifest_without_labels_or_splits(tiny_config: Path, tiny_corpus: Path) -> None:
    fit(tiny_config)
    table = pd.read_csv(tiny_corpus)
    table["path"] = [str(tiny_corpus.parent / path) for path in table["path"]]
    table[["id", "path"]].to_csv(tiny_config.parent / "new.csv", index=False)
    options = ["--data.manifest", str(tiny_config.parent / "new.csv"), "--data.label_map", '{"anger": "anger"}']
    ExperimentCLI(["predict", "--config", str(tiny_config), *options])
    predictions = pd.read_csv(tiny_config.parent / "run" / "predictions.csv")
    assert len(predictions) == 36
    assert predictions["emotion"].isna().all()


def test_a_run_without_validation_speakers_is_trained_and_tested(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["split"] = {
        "class_path": "mmemo.data.GroupKFold",
        "init_args": {"num_folds": 3, "num_val_speakers": 0},
    }
    tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config), "--checkpoint", "last"])
    assert (run / "test_metrics.json").exists()


def test_a_model_is_trained_in_mixed_precision(tiny_config: Path) -> None:
    run = fit(tiny_config, "--trainer.precision", "bf16-mixed")
    assert pd.read_csv(run / "metrics.csv")["train/loss"].dropna().gt(0).all()


def test_classes_in_another_order_than_in_the_checkpoint_are_rejected(tiny_config: Path) -> None:
    fit(tiny_config)
    with pytest.raises(ValueError, match=r"the checkpoint's classes: found"):
        ExperimentCLI(["predict", "--config", str(tiny_config), "--data.classes", "[neutral, anger, sadness]"])


def test_a_run_resumes_only_with_the_number_of_epochs_it_started_with(tiny_config: Path) -> None:
    fit(tiny_config)
    with pytest.raises(ValueError, match=r"started with trainer\.max_epochs 2, now it is 3"):
        fit(tiny_config, "--ckpt_path", "last", "--trainer.max_epochs", "3")


def test_an_existing_run_is_not_replaced_unless_asked(tiny_config: Path) -> None:
    fit(tiny_config)
    with pytest.raises(FileExistsError, match=r"already holds a run.*--ckpt_path last"):
        fit(tiny_config)


def test_a_class_without_training_rows_is_rejected(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match="no training row has emotion fear"):
        fit(tiny_config, "--data.classes+", "fear")


def run_mmemo(*arguments: str, cache: Path | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "mmemo", *map(str, arguments)], cwd=ROOT, env=environment)


@pytest.mark.slow
def test_a_killed_run_resumes_with_the_same_result(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["init_args"] |= {"mixup": 0.4, "modality_dropout": 0.2}
    tiny_config.write_text(yaml.safe_dump(config))
    # Both runs use a process of their own with one thread, because two threads sum in another order.
    common = ["fit", "--config", tiny_config, "--trainer.max_epochs", "40"]
    assert run_mmemo(*common).wait(600) == 0
    run = tiny_config.parent / "killed"
    options = [*common, "--trainer.default_root_dir", run]
    process = run_mmemo(*options)
    while not (run / "checkpoints" / "last.ckpt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stopped = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["epoch"]
    assert stopped < 39, "the run must be killed before its end"
    assert run_mmemo(*options, "--ckpt_path", "last").wait(600) == 0
    resumed = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert resumed["epoch"] == 39
    assert resumed["global_step"] == 40 * 3
    uar = pd.read_csv(run / "metrics.csv").dropna(subset="val/uar")
    assert uar["epoch"].tolist()[-1] == 39
    assert uar["epoch"].min() == 0, "metrics from before the kill must be kept"
    uninterrupted = torch.load(tiny_config.parent / "run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert uninterrupted.keys() == resumed["state_dict"].keys()
    for name, value in uninterrupted.items():
        torch.testing.assert_close(resumed["state_dict"][name], value, msg=lambda text, name=name: f"{name}: {text}")


def test_a_log_that_was_being_rewritten_is_restored_from_its_copy(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    run = fit(tiny_config)
    log = run / "metrics.csv"
    assert not log.with_suffix(".copy").exists()
    complete = log.read_text()
    log.rename(log.with_suffix(".copy"))
    log.write_text("")
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert last["epoch"] + 1 == config["trainer"]["max_epochs"]
    ExperimentCLI(["fit", "--config", str(tiny_config), "--ckpt_path", "last"])
    assert log.read_text().startswith(complete.splitlines()[0])
    assert set(complete.splitlines()) <= set(log.read_text().splitlines())


@pytest.mark.slow
def test_two_processes_give_the_metrics_of_one_process(tiny_config: Path) -> None:
    parts = ["--model.init_args.model.init_args.fusion.init_args.dropout", "0"]
    parts += ["--model.init_args.model.init_args.head", "mmemo.models.ClassHead"]
    parts += ["--model.init_args.model.init_args.head.init_args.dropout", "0"]
    results = {}
    for processes in (1, 2):
        run = tiny_config.parent / f"run{processes}"
        common = ["--config", tiny_config, "--trainer.default_root_dir", run, *parts]
        common += ["--trainer.devices", processes, "--trainer.strategy", "ddp" if processes > 1 else "auto"]
        tested = [*common, "--ckpt_path", tiny_config.parent / "run1" / "checkpoints" / "last.ckpt"]
        for verb, options in (("fit", common), ("test", tested), ("predict", tested)):
            if processes == 1:
                ExperimentCLI([verb, *map(str, options)])
            else:
                assert run_mmemo(verb, *options).wait(600) == 0
        results[processes] = (
            pd.read_csv(run / "metrics.csv"),
            json.loads((run / "test_metrics.json").read_text()),
            pd.read_csv(run / "predictions.csv"),
        )
    (fit1, test1, predictions1), (fit2, test2, predictions2) = results[1], results[2]
    assert test1 == test2
    assert np.sum(test2["confusion"]) == 12, "every utterance must be counted once"
    assert predictions2["id"].tolist() == predictions1["id"].tolist()
    probs = [name for name in predictions1 if "prob_" in name]
    np.testing.assert_allclose(predictions2[probs], predictions1[probs], atol=1e-5)
    for name in ("train/loss", "val/loss", "val/uar"):
        np.testing.assert_allclose(fit2[name].dropna(), fit1[name].dropna(), atol=1e-3)


def test_two_processes_fine_tune_an_encoder(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    strategy = {"class_path": "mmemo.training.ProgressiveUnfreezing", "init_args": {"num_blocks": 2}}
    config["model"]["init_args"]["audio_finetuning"] = strategy
    config["trainer"]["max_epochs"] = 3
    tiny_config.write_text(yaml.safe_dump(config))
    common = ["--config", tiny_config, "--trainer.devices", 2, "--trainer.strategy"]
    assert run_mmemo("fit", *common, "ddp").wait(600) == 1, "plain ddp does not accept unused blocks"
    assert run_mmemo("fit", *common, "ddp_find_unused_parameters_true").wait(600) == 0
    saved = torch.load(tiny_config.parent / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    start = ExperimentCLI(["--config", str(tiny_config)], run=False).model.state_dict()
    tuned = [key for key in saved if ".trained.layers." in key]
    assert any(not saved[key].equal(start[key]) for key in tuned)


def test_probabilities_are_averaged_over_test_views_and_each_utterance_counts_once(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["data"] |= {"augmentation": "mmemo.data.WaveformAugmentation", "num_views": 3}
    tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    common = ["--config", str(tiny_config), "--data.predict_on", "test"]
    ExperimentCLI(["predict", *common, "--predictions", str(run / "one.csv")])
    ExperimentCLI(["predict", *common, "--data.test_views", "3", "--predictions", str(run / "three.csv")])
    ExperimentCLI(["test", "--config", str(tiny_config), "--data.test_views", "3"])
    single, averaged = pd.read_csv(run / "one.csv"), pd.read_csv(run / "three.csv")
    assert single["id"].tolist() == averaged["id"].tolist()
    probs = averaged.filter(regex="^prob_")
    np.testing.assert_allclose(probs.sum(axis="columns"), 1.0, rtol=1e-5)
    assert not np.allclose(probs, single.filter(regex="^prob_"), atol=1e-6)
    results = json.loads((run / "test_metrics.json").read_text())
    assert np.sum(results["confusion"]) == 12
    assert results["metrics"]["test/accuracy"] == pytest.approx((averaged["predicted"] == averaged["emotion"]).mean())


@pytest.mark.parametrize("cached", [True, False])
def test_mixup_trains_on_mixed_inputs(tiny_config: Path, cached: bool) -> None:
    settings = ["--model.init_args.mixup", "0.4", "--model.init_args.cache_features", str(cached).lower()]
    if not cached:
        with pytest.raises(ValueError, match="cannot be mixed; set mixup: 0"):
            ExperimentCLI(["fit", "--config", str(tiny_config), *settings])
        config = yaml.safe_load(tiny_config.read_text())
        del config["model"]["init_args"]["model"]["init_args"]["text_encoder"]
        tiny_config.write_text(yaml.safe_dump(config))
    cli = ExperimentCLI(["fit", "--config", str(tiny_config), *settings])
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])


def test_mixed_inputs_are_weighted_sums_with_the_union_of_both_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    def example(value: float, length: int) -> Example:
        audio = torch.full((2, length, 3), value)
        return Example(int(value), audio, None, None, 0, torch.zeros(2), torch.zeros(3))

    batch = collate([example(1.0, 2), example(5.0, 4), example(9.0, 0)])
    monkeypatch.setattr(torch, "randperm", lambda size, device=None: torch.tensor([1, 2, 0]))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda distribution: torch.tensor(0.75))
    result = mixup(batch, 0.4)
    assert result.second.row.tolist() == [5, 9, 1]
    mixed = result.inputs
    assert mixed.row.tolist() == [1, 5, 9]
    assert mixed.audio is not None
    assert mixed.audio[0, 0, :, 0].tolist() == [0.75 + 1.25, 0.75 + 1.25, 1.25, 1.25]
    assert mixed.audio[1, 1, :, 2].tolist() == [3.75] * 4, "the other utterance has no audio"
    assert mixed.audio_mask is not None
    assert mixed.audio_mask.sum(1).tolist() == [4, 4, 2]


def test_modality_dropout_never_drops_the_last_modality() -> None:
    has_audio = torch.ones(400, 1, dtype=torch.bool)
    has_text = torch.arange(400)[:, None] < 200  # the second half has no text
    zeros = torch.zeros(400, 1, 1, 16)
    batch = EmotionBatch(torch.arange(400), zeros, has_audio, None, None, zeros, has_text, has_audio[:, 0].long(),
                         zeros[:, 0, 0], zeros[:, 0, 0, :3])  # fmt: skip
    torch.manual_seed(0)
    dropped = drop_modalities(batch, 0.5)
    assert dropped.audio_mask is not None
    assert dropped.text_mask is not None
    audio, text = dropped.audio_mask[:, 0], dropped.text_mask[:, 0]
    assert audio[200:].all(), "an utterance without text must keep its audio"
    assert (audio | text).all()
    assert 70 < int((~audio[:200]).sum()) < 130
    assert 70 < int((~text[:200]).sum()) < 130


def test_each_block_has_its_own_learning_rate_in_the_schedule(tiny_config: Path) -> None:
    strategy = {"class_path": "mmemo.training.Full", "init_args": {"lr_ratio": 0.5, "layer_decay": 0.1}}
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["init_args"]["audio_finetuning"] = strategy
    tiny_config.write_text(yaml.safe_dump(config))
    cli = ExperimentCLI(["fit", "--config", str(tiny_config)])
    groups = cli.trainer.optimizers[0].param_groups
    highest = {group.get("block"): group["max_lr"] for group in groups}
    assert highest == pytest.approx({None: 0.01, 2: 0.005, 1: 0.0005, 0: 0.00005})
    num_optimized = sum(parameter.numel() for group in groups for parameter in group["params"])
    num_trainable = sum(parameter.numel() for parameter in cli.model.parameters() if parameter.requires_grad)
    assert num_optimized == num_trainable, "each trainable parameter must be in one group"


def test_soft_labels_are_trained_on_tied_votes(tiny_config: Path, tmp_path: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    table = pd.read_csv(config["data"]["manifest"])
    table["path"] = [str(Path(config["data"]["manifest"]).parent / path) for path in table["path"]]
    for name in CLASSES:
        table[f"votes_{name}"] = 3 * (table["emotion"] == name)
    table["votes_boredom"] = 1
    table.loc[:5, [f"votes_{name}" for name in CLASSES]] = 1
    table.loc[:5, "emotion"] = None
    table.to_csv(tmp_path / "votes.csv", index=False)
    config["data"] |= {"corpora": [{"manifest": str(tmp_path / "votes.csv"), "label_map": {"boredom": None}}]}
    del config["data"]["manifest"]
    config["data"]["balanced"] = True
    config["model"]["init_args"]["loss"] = "mmemo.losses.SoftLabels"
    tiny_config.write_text(yaml.safe_dump(config))
    cli = ExperimentCLI(["fit", "--config", str(tiny_config)])
    rows = {int(row) for batch in cli.datamodule.train_dataloader() for row in batch.row}
    assert rows & set(range(6)), "rows with tied votes must be in training batches"
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert cli.datamodule.table.targets.votes[0].tolist() == pytest.approx([1 / 3] * 3)


def test_a_hard_concrete_gate_closes_within_an_ordinary_schedule(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    gate = {"class_path": "mmemo.models.HardConcreteGate", "init_args": {"penalty": 2.0, "warmup_steps": 5}}
    config["model"]["init_args"]["model"]["init_args"]["gate"] = gate
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 0.002
    config["trainer"]["max_epochs"] = 80
    tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    last = ["--checkpoint", "last", "--gates", str(run / "gates.csv")]
    ExperimentCLI(["predict", "--config", str(tiny_config), *last])
    table = gate_table(read_gates(run / "gates.csv"))
    features = table[~table["group"].str.startswith("layer mix")]
    assert 0 < features["open"].mean() < 0.9


def test_the_supervised_contrastive_loss_alone_is_rejected(tiny_config: Path) -> None:
    with pytest.raises(ValueError, match="loss SupervisedContrastive trains no head"):
        ExperimentCLI(
            ["fit", "--config", str(tiny_config), "--model.init_args.loss", "mmemo.losses.SupervisedContrastive"]
        )


def test_a_run_with_progressive_unfreezing_resumes(tiny_config: Path) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    strategy = {"class_path": "mmemo.training.ProgressiveUnfreezing", "init_args": {"num_blocks": 2}}
    config["model"]["init_args"] |= {"audio_finetuning": strategy, "one_cycle": False}
    config["trainer"] |= {"max_epochs": 4, "limit_val_batches": 0}
    tiny_config.write_text(yaml.safe_dump(config))

    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(path)
            trainer.should_stop = True

    path = tiny_config.parent / "stopped.ckpt"
    stopped = read_experiment(tiny_config)
    trainer = Trainer(
        max_epochs=4,
        limit_val_batches=0,
        callbacks=[Stop()],
        logger=False,
        use_distributed_sampler=False,
        default_root_dir=path.parent,
    )
    trainer.fit(stopped.system, stopped.data)
    assert not any(".trained." in key for key in torch.load(path, weights_only=True)["state_dict"])
    resumed = ExperimentCLI(["fit", "--config", str(tiny_config), "--ckpt_path", str(path)])
    assert resumed.trainer.current_epoch == 4
    saved = torch.load(tiny_config.parent / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any("trained.layers.1." in key for key in saved)


def with_dimensions(tiny_config: Path, tmp_path: Path, **model: object) -> Path:
    """Adds valence, arousal and dominance to the tiny experiment. All three depend on the pitch."""
    config = yaml.safe_load(tiny_config.read_text())
    table = pd.read_csv(config["data"]["manifest"])
    table["path"] = [str(Path(config["data"]["manifest"]).parent / path) for path in table["path"]]
    for name, sign in (("valence", -1), ("arousal", 1), ("dominance", 1)):
        table[name] = sign * table["emotion"].map({"anger": 0.8, "neutral": 0.0, "sadness": -0.6})
    table.loc[0, "arousal"] = None
    table.to_csv(tmp_path / "dimensions.csv", index=False)
    config["data"]["manifest"] = str(tmp_path / "dimensions.csv")
    config["model"]["init_args"]["model"]["init_args"]["dimension_head"] = "mmemo.models.DimensionHead"
    config["model"]["init_args"] |= model
    tiny_config.write_text(yaml.safe_dump(config))
    return tiny_config


@pytest.mark.parametrize("combination", ["WeightedSum", "UncertaintyWeighted"])
def test_classes_and_dimensions_are_trained_together(tiny_config: Path, tmp_path: Path, combination: str) -> None:
    losses = {"losses": [{"class_path": "mmemo.losses.CrossEntropy"}, {"class_path": "mmemo.losses.CCCLoss"}]}
    loss = {"class_path": f"mmemo.losses.{combination}", "init_args": losses}
    with_dimensions(tiny_config, tmp_path, loss=loss)
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config)])
    metrics = json.loads((run / "test_metrics.json").read_text())["metrics"]
    assert {"test/uar", "test/ccc", "test/ccc_valence", "test/mae_dominance", "test_audio_only/ccc"} <= set(metrics)
    ExperimentCLI(["predict", "--config", str(tiny_config)])
    predictions = pd.read_csv(run / "predictions.csv")
    assert predictions[["predicted_valence", "predicted_arousal", "predicted_dominance"]].abs().max().max() <= 1


def test_the_best_epoch_of_a_dimensional_model_is_chosen_by_ccc(tiny_config: Path, tmp_path: Path) -> None:
    with_dimensions(tiny_config, tmp_path, loss="mmemo.losses.CCCLoss")
    config = yaml.safe_load(tiny_config.read_text())
    config["data"]["classes"] = []
    config["trainer"]["max_epochs"] = 60
    tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    ExperimentCLI(["test", "--config", str(tiny_config)])
    results = json.loads((run / "test_metrics.json").read_text())
    assert results["metrics"]["test/ccc"] > 0.6
    assert "test/uar" not in results["metrics"]
    assert results["confusion"] is None


def test_a_loss_that_does_not_match_the_heads_is_rejected(tiny_config: Path, tmp_path: Path) -> None:
    config = tiny_config.read_text()
    with pytest.raises(ValueError, match=r"has a dimension_head and loss CrossEntropy trains classes; change the loss"):
        ExperimentCLI(["fit", "--config", str(with_dimensions(tiny_config, tmp_path))])
    tiny_config.write_text(config)
    with pytest.raises(ValueError, match="the model predicts classes, but loss CCCLoss trains dimensions"):
        ExperimentCLI(["fit", "--config", str(tiny_config), "--model.init_args.loss", "mmemo.losses.CCCLoss"])


def test_a_non_finite_loss_stops_training_and_names_the_utterances(tiny_config: Path) -> None:
    settings = ["--model.init_args.optimizer.init_args.lr", "1e30", "--model.init_args.one_cycle", "false"]
    with pytest.raises(
        FloatingPointError, match=r"training loss became (nan|inf).*utterances s\d_.*lower the optimizer"
    ):
        ExperimentCLI(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "9", *settings])


PARTS = [
    {"gate": {"class_path": "mmemo.models.HardConcreteGate", "init_args": {"warmup_steps": 2}}},
    {"gate": {"class_path": "mmemo.models.VariableSelection"}},
    {"fusion": {"class_path": "mmemo.models.GatedMultimodalUnit", "init_args": {"hidden_dim": 8}}},
    {"fusion": {"class_path": "mmemo.models.LowRankFusion", "init_args": {"output_dim": 8}}},
    {"fusion": {"class_path": "mmemo.models.AttentionBottleneck", "init_args": {"hidden_dim": 8, "num_heads": 2}}},
    {
        "fusion": {"class_path": "mmemo.models.LateFusion", "init_args": {"num_logits": 3}},
        "head": {"class_path": "mmemo.models.NoHead"},
    },
    {"descriptors": {"class_path": "mmemo.models.AcousticDescriptors", "init_args": {"f0": False}}},
    {"audio_encoder": {"class_path": "mmemo.models.AcousticDescriptors", "init_args": {"f0": False}}},
    {"audio_encoder": {"class_path": "mmemo.models.ConvRecurrentEncoder", "init_args": {"channels": [4, 8]}}},
    {"audio_encoder": {"class_path": "mmemo.models.ResNetEncoder", "init_args": {"channels": [4, 8]}}},
]


@pytest.mark.parametrize("parts", PARTS, ids=lambda parts: str(next(iter(parts.values()))["class_path"]).split(".")[-1])
def test_a_part_is_replaced_by_changing_its_class_path(tiny_config: Path, parts: dict[str, object]) -> None:
    config = yaml.safe_load(tiny_config.read_text())
    config["model"]["init_args"]["model"]["init_args"] |= parts
    config["model"]["init_args"]["modality_dropout"] = 0.2
    tiny_config.write_text(yaml.safe_dump(config))
    run = fit(tiny_config)
    ExperimentCLI(["predict", "--config", str(tiny_config), "--gates", str(run / "gates.parquet")])
    predictions = pd.read_csv(run / "predictions.csv")
    assert len(predictions) == 36
    if "weight_audio" in predictions:
        np.testing.assert_allclose(predictions.filter(like="weight_").sum(axis="columns"), 1.0, rtol=1e-5)
    table = gate_table(read_gates(run / "gates.parquet"))
    assert set(table["modality"]) >= {"audio", "text"}
    assert table["mean"].between(0, 1).all()


def test_predictions_are_written_as_pseudo_labels(tiny_config: Path, tmp_path: Path) -> None:
    run = fit(tiny_config)
    pseudo = tmp_path / "elsewhere" / "pseudo.csv"
    common = ["--config", str(tiny_config), "--pseudo_labels", str(pseudo)]
    ExperimentCLI(["predict", *common, "--min_confidence", "0.0"])
    labelled = read_manifest(pseudo)
    predicted = pd.read_csv(run / "predictions.csv")["predicted"]
    assert labelled.frame["emotion"].tolist() == predicted.tolist()
    assert all(row.path is not None and row.path.is_file() for row in labelled), "paths are relative to the new file"
    threshold = float(pd.read_csv(run / "predictions.csv")["confidence"].median())
    ExperimentCLI(["predict", *common, "--min_confidence", str(threshold)])
    assert 0 < len(read_manifest(pseudo)) < 36


@pytest.mark.parametrize("block", ["", "study: "])
def test_a_study_can_be_read_from_its_own_file(tiny_config: Path, block: str) -> None:
    path = tiny_config.parent / "study.yaml"
    path.write_text(block + "{outcome: [sadness], how: mean}")
    for options in (["--study", str(path)], [f"--study={path}"]):
        study = ExperimentCLI(["--config", str(tiny_config), *options], run=False).study
        assert (study.outcome, study.how, study.participant) == (["sadness"], "mean", "speaker")
    path.write_text("outcomes: [sadness]")
    with pytest.raises(ValueError, match="has no block `study`"):
        ExperimentCLI(["--config", str(tiny_config), "--study", str(path)], run=False).study  # noqa: B018
    path.write_text("study: {outcome: [sadness")
    with pytest.raises(ValueError, match=r"study\.yaml line 1: not valid YAML \("):
        ExperimentCLI(["--config", str(tiny_config), "--study", str(path)], run=False).study  # noqa: B018
    with pytest.raises(ValueError, match="no such file, expected a YAML with a block `study`"):
        ExperimentCLI(["--config", str(tiny_config), "--study", "nothing.yaml"], run=False).study  # noqa: B018


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_kept_by_the_heap_is_returned_to_the_system() -> None:
    code = """
import torch
from mmemo.training.run_folder import trim_memory
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e6
before = resident()
blocks = [torch.ones(250_000 + 1000 * number) for number in range(400)]
kept = blocks[9::10]  # includes the last block, so that the heap cannot shrink by itself
del blocks
held = resident() - before
trim_memory()
print(held, resident() - before)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(32 << 20)}  # else it depends on earlier frees
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    kept, remaining = map(float, result.stdout.split())
    assert kept > 150, "the heap must keep memory for this test to be meaningful"
    assert remaining < kept / 4
