from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mmemo import load_model
from mmemo.cli.app import main
from mmemo.data import ManifestError
from mmemo.data.manifest import read_manifest
from mmemo.labels import UNLABELLED
from mmemo.losses import SoftenedLogits
from mmemo.studies.crossval import crossval
from mmemo.training.distillation import DistillationSystem
from mmemo.training.experiment_cli import ExperimentCLI, read_experiment
from mmemo.training.exposure import Excerpt, speaker_hash
from mmemo.training.feature_cache import features_root
from mmemo.training.run_folder import LAST, METRICS_FILE
from mmemo.training.system import EmotionSystem
from tests.conftest import CORPORA, ROOT

EFFECTS = [{"class_path": "mmemo.audio.effects.Gain"}, {"class_path": "mmemo.audio.effects.Noise"}]


@pytest.fixture
def teacher(tiny_config: Path) -> Path:
    """The checkpoint of a teacher trained on audio and text."""
    ExperimentCLI(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "3"])
    return tiny_config.parent / "run" / "checkpoints" / "last.ckpt"


def student(config: Path, teacher: str, parts: list[str] | None = None, **settings: Any) -> Path:
    """Writes an experiment that distils the teacher into a small audio model, with three views of each clip."""
    content = yaml.safe_load(config.read_text())
    options = content["model"]["init_args"]
    model = options["model"]["init_args"]
    for name in ("text_encoder", "fusion"):
        model.pop(name, None)
    encoder = {"stem_channels": [2, 4], "hidden_dim": 8, "num_blocks": 1, "num_mels": 16}
    model |= {
        "audio_encoder": {"class_path": "mmemo.models.ConvNeXtEncoder", "init_args": encoder},
        "gate": "mmemo.models.NoGate",
        "fusion": "mmemo.models.Concatenation",
    }
    if parts is not None:
        options["distillation"] = [{"class_path": f"mmemo.losses.{name}"} for name in parts]
    options |= {"teacher": teacher, "by_modality": False, **settings}
    content["model"]["class_path"] = "mmemo.training.DistillationSystem"
    content["data"] |= {
        "augmentation": {"class_path": "mmemo.data.WaveformAugmentation", "init_args": {"effects": EFFECTS}},
        "num_views": 3,
    }
    content["trainer"]["default_root_dir"] = str(config.parent / "student")
    path = config.parent / "student.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def fit_system(config: Path, *options: str) -> DistillationSystem:
    system = ExperimentCLI(["fit", "--config", str(config), "--overwrite", "true", *options]).model
    assert isinstance(system, DistillationSystem)
    return system


@pytest.mark.parametrize(
    "parts",
    [None, ["FeatureHints"], ["RelationalDistances"], ["SoftenedLogits", "FeatureHints", "RelationalDistances"]],
)
def test_the_checkpoint_of_a_student_loads_like_any_other(
    tiny_config: Path, teacher: Path, parts: list[str] | None
) -> None:
    config = student(tiny_config, str(teacher), parts)
    system = fit_system(config)
    path = config.parent / "student" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    saved = checkpoint["state_dict"]
    assert all(name.startswith("model.") for name in saved), "only the student is saved"
    assert bool(checkpoint["projectors"]) == (parts is not None and "FeatureHints" in parts)
    assert not any("whisper" in name or "modalities.text" in name for name in saved)
    model = load_model(path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, system.model.state_dict()[name])
    ExperimentCLI(["test", "--config", str(config), "--ckpt_path", str(path)])


def test_teacher_logits_are_computed_once_per_view_and_equal_its_predictions(tiny_config: Path, teacher: Path) -> None:
    config = student(tiny_config, str(teacher))
    system = fit_system(config)
    teachers = system._teachers
    assert teachers is not None
    assert teachers.logits.shape == (18, 3, 3)
    assert not torch.equal(teachers.logits[:, 0], teachers.logits[:, 1]), "different views must have different logits"
    caches = [note.parent for note in features_root().glob("*/fingerprint.txt") if "teacher-" in note.read_text()]
    stamps = {file: file.stat().st_mtime_ns for cache in caches for file in cache.glob("*/*.npy")}
    reused = fit_system(config)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps, "read from the cache"
    assert reused._teachers is not None
    torch.testing.assert_close(reused._teachers.logits, teachers.logits)
    experiment = ExperimentCLI(
        ["predict", "--config", str(tiny_config), "--ckpt_path", str(teacher), "--data.predict_on", "train",
         "--predictions", str(config.parent / "teacher.csv")]
    )  # fmt: skip
    table = pd.read_csv(config.parent / "teacher.csv")
    predicted = table[[f"prob_{name}" for name in experiment.datamodule.classes]].to_numpy()
    cached = teachers.logits[:, 0].softmax(-1).numpy()
    assert abs(predicted - cached).max() < 5e-3  # kept in half precision


def test_each_row_of_a_batch_gets_the_teacher_logits_of_its_view(tiny_config: Path, teacher: Path) -> None:
    system = fit_system(student(tiny_config, str(teacher)))
    teachers = system._teachers
    assert teachers is not None
    batch = next(iter(system.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    knowledge = teachers.of(batch)
    for index, (row, view) in enumerate(zip(batch.row.tolist(), batch.view.tolist(), strict=True)):
        torch.testing.assert_close(knowledge.logits[index], teachers.logits[teachers.position[row], view].float())
    assert len(set(batch.view.tolist())) > 1


def test_several_teachers_are_averaged_and_the_fold_is_filled_in(tiny_config: Path, teacher: Path) -> None:
    first_path = teacher.rename(teacher.with_name("fold1.ckpt"))
    ExperimentCLI(["fit", "--config", str(tiny_config), "--overwrite", "true", "--seed_everything", "7"])
    first = fit_system(student(tiny_config, str(first_path.with_name("fold{fold}.ckpt"))))._teachers
    second = fit_system(student(tiny_config, str(teacher)))._teachers
    both = fit_system(student(tiny_config, [str(first_path), str(teacher)]))._teachers  # type: ignore[arg-type]
    assert first is not None
    assert second is not None
    assert both is not None
    mean = (first.logits.softmax(-1) + second.logits.softmax(-1)) / 2
    torch.testing.assert_close(both.logits.softmax(-1), mean, atol=1e-5, rtol=1e-4)
    assert both.dims["embedding"] == first.dims["embedding"] + second.dims["embedding"]


def test_distillation_on_inner_folds_is_rejected(tiny_config: Path, teacher: Path) -> None:
    config = student(tiny_config, str(teacher.rename(teacher.with_name("fold1.ckpt")).with_name("fold{fold}.ckpt")))
    content = yaml.safe_load(config.read_text())
    outer = {"class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 2}}
    content["data"]["split"] = {"class_path": "mmemo.data.InnerFolds", "init_args": {"outer": outer, "num_folds": 2}}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="inner folds of `mmemo tune` and nested have no teachers"):
        fit_system(config)


def test_unlabelled_clips_are_distilled(tiny_config: Path, tiny_corpus: Path, teacher: Path) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table.loc[table["speaker"] == "s0", "emotion"] = None
    path = tiny_corpus.parent / "partly_labelled.csv"
    table.to_csv(path, index=False)
    config = student(tiny_config, str(teacher), mixup=0.4)
    system = fit_system(config, "--data.manifest", str(path))
    assert system.requirements.unlabelled
    rows = torch.cat([batch.row for batch in system.trainer.datamodule.train_dataloader()])  # type: ignore[attr-defined]
    assert len(rows) == 18
    datamodule: Any = system.trainer.datamodule
    unlabelled = set(datamodule.table.manifest.frame.index[datamodule.table.manifest.frame["emotion"].isna()])
    batches = datamodule.train_dataloader()
    batch = next(batch for batch in batches if any(int(row) in unlabelled for row in batch.row))
    keep = torch.tensor([int(row) in unlabelled for row in batch.row])
    batch = type(batch)(*(None if values is None else values[keep] for values in batch))
    assert (batch.target == UNLABELLED).all()
    system.zero_grad()
    output = system(batch)
    distillation_loss = system.criterion(output, batch)
    distillation_loss.backward()
    gradients = [parameter.grad for parameter in system.model.parameters() if parameter.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in gradients) > 0, "distillation must give gradients without labels"
    assert float(EmotionSystem.criterion(system, output, batch)) == 0, "there must be no loss from labels"
    teachers = system._teachers
    assert teachers is not None
    knowledge, student_logits = teachers.of(batch), output.logits
    assert float(distillation_loss) == pytest.approx(
        float(SoftenedLogits()(knowledge._replace(logits=student_logits), knowledge)), rel=1e-4
    )


def test_mixup_weights_the_distillation_losses_of_both_clips(
    tiny_config: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fit_system(student(tiny_config, str(teacher), mixup=0.4))
    datamodule: Any = system.trainer.datamodule
    batch = next(iter(datamodule.train_dataloader()))
    calls: list[Any] = []
    criterion = DistillationSystem.criterion

    def record(self: DistillationSystem, output: Any, targets: Any) -> torch.Tensor:
        calls.append((targets.row.tolist(), float(criterion(self, output, targets))))
        return criterion(self, output, targets)

    monkeypatch.setattr(DistillationSystem, "criterion", record)
    monkeypatch.setattr(system, "log", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.25))
    loss = float(system.training_step(batch, 0))
    (first_rows, first_loss), (second_rows, second_loss) = calls
    assert sorted(first_rows) == sorted(second_rows)
    assert loss == pytest.approx(0.25 * first_loss + 0.75 * second_loss, rel=1e-4)


def test_an_interrupted_distillation_resumes_with_the_same_result(
    tiny_config: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = yaml.safe_load(tiny_config.read_text())
    content["trainer"]["max_epochs"] = 3
    tiny_config.write_text(yaml.safe_dump(content))
    config = student(tiny_config, str(teacher), ["FeatureHints"])
    uninterrupted = fit_system(config).state_dict()

    def interrupt(self: DistillationSystem) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DistillationSystem, "on_train_epoch_start", interrupt)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fit_system(config)
    checkpoint = config.parent / "student" / "checkpoints" / "last.ckpt"
    resumed = ExperimentCLI(["fit", "--config", str(config), "--ckpt_path", str(checkpoint)]).model.state_dict()
    assert any(name.startswith("distillation.") for name in uninterrupted)
    torch.testing.assert_close(resumed, uninterrupted)


def test_a_run_does_not_depend_on_whether_teacher_outputs_were_cached(
    tiny_config: Path, teacher: Path, fresh_cache: Path
) -> None:
    config = student(tiny_config, str(teacher))
    cold, warm = fit_system(config).state_dict(), fit_system(config).state_dict()
    for name, value in cold.items():
        torch.testing.assert_close(warm[name], value, atol=1e-5, rtol=1e-4)


def test_teacher_logits_follow_the_order_of_the_classes(tiny_config: Path, teacher: Path) -> None:
    teachers = fit_system(student(tiny_config, str(teacher)))._teachers
    reordered = fit_system(student(tiny_config, str(teacher)), "--data.classes", "[sadness, anger, neutral]")._teachers
    assert teachers is not None
    assert reordered is not None
    torch.testing.assert_close(reordered.logits, teachers.logits[..., [2, 0, 1]])


def test_a_teacher_trained_on_test_speakers_is_rejected(
    tiny_config: Path, tiny_corpus: Path, teacher: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    swapped = {"s0": "test", "s4": "train"}
    table["split"] = [swapped.get(name, side) for name, side in zip(table["speaker"], table["split"], strict=True)]
    path = tiny_corpus.parent / "swapped.csv"
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError, match=r"trained on the student's test speakers \(s0\)"):
        fit_system(student(tiny_config, str(teacher)), "--data.manifest", str(path))
    allowed = ["--data.manifest", str(path), "--data.allow_speaker_overlap", "true"]
    config = student(tiny_config, str(teacher))
    fit_system(config, *allowed)
    predictions = tmp_path / "test_predictions.csv"
    common = ["--config", str(config), *allowed]
    ExperimentCLI(["test", *common])
    ExperimentCLI(["predict", *common, "--data.predict_on", "test", "--predictions", str(predictions)])
    warning = "the student or its teachers were trained on its test speakers: s0"
    results = json.loads((config.parent / "student" / METRICS_FILE).read_text())
    assert results["warnings"] == [warning], "results must carry the warning"
    assert set(pd.read_csv(predictions)["warning"]) == {warning}
    renamed = ["--data.manifest", "null", "--data.corpora", json.dumps([{"manifest": str(path), "name": "again"}])]
    with pytest.raises(ManifestError, match=r"trained on the student's test speakers \(again/s0\)"):
        fit_system(student(tiny_config, str(teacher)), *renamed)
    table["start"], table["end"] = 0.05, 0.3  # trimmed, so that the audio differs, and in another corpus
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError, match=r"trained on the student's test speakers \(again/s0\)"):
        fit_system(student(tiny_config, str(teacher)), *renamed)


def test_crossval_checks_the_teacher_of_each_fold(tiny_config: Path, teacher: Path, tmp_path: Path) -> None:
    split = {"class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 2}}
    config = student(tiny_config, str(tmp_path / "teachers" / "fold{fold}" / LAST))
    for path in (tiny_config, config):
        content = yaml.safe_load(path.read_text())
        content["data"]["split"] = split
        path.write_text(yaml.safe_dump(content))
    crossval(read_experiment(tiny_config), tmp_path / "teachers")
    first, second = (tmp_path / "teachers" / f"fold{fold}" / LAST for fold in (1, 2))
    original = second.read_bytes()
    second.write_bytes(first.read_bytes())  # trained on the test speakers of fold 2
    with pytest.raises(ManifestError, match="trained on the student's test speakers"):
        crossval(read_experiment(config), tmp_path / "students")
    assert not (tmp_path / "students").exists(), "the error must come before any fold is trained"
    second.write_bytes(original)
    crossval(read_experiment(config), tmp_path / "students")
    ExperimentCLI(["fit", "--config", str(tmp_path / "teachers" / "fold2" / "config.yaml"), "--overwrite", "true",
                "--seed_everything", "7"])  # fmt: skip
    with pytest.raises(ValueError, match=r"was started with other .*fold2"):
        crossval(read_experiment(config), tmp_path / "students")


def test_an_empty_distillation_list_is_rejected(tiny_config: Path, teacher: Path) -> None:
    with pytest.raises(ValueError, match="distillation is an empty list"):
        fit_system(student(tiny_config, str(teacher), []))


def test_excerpts_overlap_if_one_is_a_trimmed_version_of_the_other() -> None:
    whole, first = Excerpt(None, 0.0, math.inf), Excerpt(0, 0.0, 2.0)
    assert whole.overlaps(first)
    assert first.overlaps(Excerpt(None, 0.3, 1.9))
    assert not first.overlaps(Excerpt(0, 0.9, 5.0)), "another speaker of a dialogue, who starts before the end"
    assert not Excerpt(None, 5.0, 15.0).overlaps(Excerpt(None, 9.0, 9.5)), "a backchannel of another speaker"
    assert not first.overlaps(Excerpt(0, 1.5, 5.0)), "the next utterance, cut slightly too early"
    assert not first.overlaps(Excerpt(0, 2.0, 4.0))
    assert not first.overlaps(Excerpt(1, 0.0, 2.0)), "the channel of another speaker"
    assert whole.overlaps(whole)


def test_a_student_stores_the_training_speakers_of_its_teachers_teacher(
    tiny_config: Path, tiny_corpus: Path, teacher: Path
) -> None:
    """The exposure that a teacher inherited is passed on to its student."""
    frame = read_manifest(tiny_corpus).frame
    exposed = torch.load(teacher, weights_only=True)["exposure"]["speakers"]
    all_speakers = sorted(frame["speaker"].dropna().unique())
    assert 0 < len(exposed) < len(all_speakers)
    teacher_checkpoint = torch.load(teacher, weights_only=True)
    teacher_checkpoint["exposure"]["speakers"] = sorted({*exposed, speaker_hash("another speaker")})
    torch.save(teacher_checkpoint, teacher)
    fit_system(student(tiny_config, str(teacher)))
    student_checkpoint = tiny_config.parent / "student" / "checkpoints" / "last.ckpt"
    assert speaker_hash("another speaker") in torch.load(student_checkpoint, weights_only=True)["exposure"]["speakers"]


def test_a_recording_that_became_unreadable_is_reported_and_not_cached(
    tiny_config: Path, teacher: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = student(tiny_config, str(teacher))
    with monkeypatch.context() as patch:
        everywhere = "mmemo.training.teachers._lacks_audio"
        patch.setattr(everywhere, lambda batch: torch.ones(len(batch.row), dtype=torch.bool))
        with pytest.raises((ManifestError, SystemExit), match=r"became unreadable while the teacher ran|^1$"):
            fit_system(config)
    system = fit_system(config)  # the teacher processes now what was not cached
    assert system._teachers is not None
    assert system._teachers.logits.abs().sum() > 0


def test_cross_fitting_uses_the_teachers_that_were_not_trained_on_the_speaker(
    tiny_config: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / name) for name in table["path"]]
    teachers = []
    for left_out in (["s0"], ["s1", "s2"]):
        path = tmp_path / f"without_{left_out[0]}.csv"
        table[~table["speaker"].isin(left_out)].to_csv(path, index=False)
        run = tmp_path / f"without_{left_out[0]}"
        ExperimentCLI(
            ["fit", "--config", str(tiny_config), "--data.manifest", str(path), "--trainer.default_root_dir", str(run)]
        )
        teachers.append(str(run / "checkpoints" / "last.ckpt"))
    single_teachers = [fit_system(student(tiny_config, teacher))._teachers for teacher in teachers]
    system = fit_system(student(tiny_config, teachers, cross_fitted=True))  # type: ignore[arg-type]
    rows = system.trainer.datamodule.table.split.train  # type: ignore[attr-defined]
    speakers = pd.read_csv(tiny_corpus, dtype=str)["speaker"].iloc[rows]
    assert system._teachers is not None
    for row, (speaker, logits) in enumerate(zip(speakers, system._teachers.logits, strict=True)):
        expected = single_teachers[0 if speaker == "s0" else 1]
        assert expected is not None
        torch.testing.assert_close(logits.softmax(-1), expected.logits[row].softmax(-1))
    assert system._teachers.dims == {"embedding": 0, "hidden": 0}
    with pytest.raises(ManifestError, match="trained on the speakers of 12 training rows, such as s1_"):
        fit_system(student(tiny_config, teachers[0], cross_fitted=True))
    with pytest.raises(ValueError, match="FeatureHints uses the teacher's vectors"):
        fit_system(student(tiny_config, teachers, ["FeatureHints"], cross_fitted=True))  # type: ignore[arg-type]


def test_invalid_settings_are_rejected(
    tiny_config: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_teacher = yaml.safe_load(student(tiny_config, str(teacher)).read_text())
    del no_teacher["model"]["init_args"]["teacher"]
    (tmp_path / "no_teacher.yaml").write_text(yaml.safe_dump(no_teacher))
    assert main(["fit", "--config", str(tmp_path / "no_teacher.yaml")]) == 1
    assert "DistillationSystem has no teacher" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"is a folder; name a checkpoint, such as .*\.ckpt"):
        fit_system(student(tiny_config, str(teacher.parent.parent)))
    truncated = tmp_path / "truncated.ckpt"
    truncated.write_bytes(teacher.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"not a checkpoint of .* or an incomplete copy of one"):
        load_model(truncated)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        fit_system(student(tiny_config, str(tmp_path / "none.ckpt")))
    with pytest.raises(ValueError, match="would see new ones"):
        fit_system(student(tiny_config, str(teacher), cache_features=False))
    with pytest.raises(ValueError, match="CrossEntropy is not a distillation loss"):
        fit_system(student(tiny_config, str(teacher), ["CrossEntropy"]))
    config = student(tiny_config, str(teacher))
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"classes": ["anger", "sadness"], "label_map": {"neutral": None}}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="the teacher's classes are"):
        fit_system(config)
    content = yaml.safe_load(student(tiny_config, str(teacher)).read_text())
    model = yaml.safe_load(tiny_config.read_text())["model"]["init_args"]["model"]
    content["model"]["init_args"]["model"] = model
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="the student has a text encoder, but audio_only is true"):
        fit_system(config)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.corpora
def test_a_student_of_whisper_is_trained_on_real_speech(tmp_path: Path) -> None:
    """Distils a frozen Whisper into a small network on 128 clips of eight actors, and tests it on two other actors."""
    manifest = tmp_path / "ravdess.csv"
    assert main(["corpus", "ravdess", str(CORPORA / "ravdess"), "--out", str(manifest)]) == 0
    table = pd.read_csv(manifest, dtype=str)
    table = table[(table["speaker"] <= "11") & table["emotion"].isin(["anger", "sadness"])]
    table["split"] = table["speaker"].map({"09": "val", "10": "test", "11": "test"}).fillna("train")
    table.to_csv(manifest, index=False)
    data = [
        "--data.manifest", str(manifest), "--data.classes", "[anger, sadness]",
        "--data.split", "mmemo.data.OfficialSplit",
    ]  # fmt: skip
    run = tmp_path / "teacher"
    frozen = ROOT / "configs" / "ravdess_whisper_base.yaml"
    ExperimentCLI(["fit", "--config", str(frozen), *data, "--trainer.default_root_dir", str(run)])
    options = ["--model.init_args.teacher", str(run / "checkpoints/last.ckpt"), "--data.num_views", "2"]
    options += ["--trainer.default_root_dir", str(tmp_path / "student"), "--trainer.max_epochs", "25"]
    options += ["--data.batch_size", "8"]
    config = ["--config", str(ROOT / "configs" / "ravdess_student_small.yaml")]
    system = ExperimentCLI(["fit", *config, *data, *options]).model
    assert system._teachers.logits.softmax(-1).max(-1).values.mean() > 0.6
    ExperimentCLI(["test", *config, *data, *options])
    assert json.loads((tmp_path / "student" / "test_metrics.json").read_text())["metrics"]["test/uar"] > 0.7
