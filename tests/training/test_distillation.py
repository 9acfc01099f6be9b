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
from mmemo.cli.main import main
from mmemo.data import ManifestError
from mmemo.data.manifest import read_manifest
from mmemo.labels import UNLABELLED
from mmemo.losses import SoftenedLogits
from mmemo.studies.crossval import crossval
from mmemo.training import distillation
from mmemo.training.distillation import DistillationSystem
from mmemo.training.experiment import LAST, METRICS_FILE, Experiment
from mmemo.training.exposure import Stretch, speaker_mark
from mmemo.training.features import features_root
from mmemo.training.system import EmotionSystem
from tests.conftest import CORPORA, ROOT

EFFECTS = [{"class_path": "mmemo.audio.effects.Gain"}, {"class_path": "mmemo.audio.effects.Noise"}]


@pytest.fixture
def teacher(tiny_config: Path) -> Path:
    """A teacher of voice and words."""
    Experiment(["fit", "--config", str(tiny_config), "--trainer.max_epochs", "3"])
    return tiny_config.parent / "run" / "checkpoints" / "last.ckpt"


def student(config: Path, teacher: str, parts: list[str] | None = None, **settings: Any) -> Path:
    """An experiment that distils it, on three views of each clip."""
    written = yaml.safe_load(config.read_text())
    options = written["model"]["init_args"]
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
    written["model"]["class_path"] = "mmemo.training.DistillationSystem"
    written["data"] |= {
        "augmentation": {"class_path": "mmemo.data.WaveformAugmentation", "init_args": {"effects": EFFECTS}},
        "num_views": 3,
    }
    written["trainer"]["default_root_dir"] = str(config.parent / "student")
    path = config.parent / "student.yaml"
    path.write_text(yaml.safe_dump(written, sort_keys=False))
    return path


def fitted(config: Path, *options: str) -> DistillationSystem:
    system = Experiment(["fit", "--config", str(config), "--overwrite", "true", *options]).model
    assert isinstance(system, DistillationSystem)
    return system


@pytest.mark.parametrize(
    "parts",
    [None, ["FeatureHints"], ["RelationalDistances"], ["SoftenedLogits", "FeatureHints", "RelationalDistances"]],
)
def test_a_student_learns_and_its_checkpoint_is_an_ordinary_one(
    tiny_config: Path, teacher: Path, parts: list[str] | None
) -> None:
    config = student(tiny_config, str(teacher), parts)
    system = fitted(config)
    path = config.parent / "student" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    saved = checkpoint["state_dict"]
    assert all(name.startswith("model.") for name in saved), "the student alone"
    assert bool(checkpoint["projectors"]) == (parts is not None and "FeatureHints" in parts)
    assert not any("whisper" in name or "modalities.text" in name for name in saved)
    model = load_model(path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, system.model.state_dict()[name])
    Experiment(["test", "--config", str(config), "--ckpt_path", str(path)])


def test_the_teacher_hears_each_view_once_and_says_what_it_would_say_now(tiny_config: Path, teacher: Path) -> None:
    config = student(tiny_config, str(teacher))
    system = fitted(config)
    lessons = system._lessons
    assert lessons is not None
    assert lessons.logits.shape == (18, 3, 3)
    assert not torch.equal(lessons.logits[:, 0], lessons.logits[:, 1]), "views differ"
    caches = [note.parent for note in features_root().glob("*/fingerprint.txt") if "teacher-" in note.read_text()]
    stamps = {file: file.stat().st_mtime_ns for cache in caches for file in cache.glob("*/*.npy")}
    again = fitted(config)
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps, "read from the cache"
    assert again._lessons is not None
    torch.testing.assert_close(again._lessons.logits, lessons.logits)
    predicted = Experiment(
        ["predict", "--config", str(tiny_config), "--ckpt_path", str(teacher), "--data.predict_on", "train",
         "--predictions", str(config.parent / "teacher.csv")]
    )  # fmt: skip
    table = pd.read_csv(config.parent / "teacher.csv")
    said = table[[f"prob_{name}" for name in predicted.datamodule.classes]].to_numpy()
    heard = lessons.logits[:, 0].softmax(-1).numpy()
    assert abs(said - heard).max() < 5e-3  # kept in half precision


def test_the_batch_gets_what_was_said_of_its_own_view(tiny_config: Path, teacher: Path) -> None:
    system = fitted(student(tiny_config, str(teacher)))
    lessons = system._lessons
    assert lessons is not None
    batch = next(iter(system.trainer.datamodule.train_dataloader()))  # type: ignore[attr-defined]
    taught = lessons.of(batch)
    for number, (row, view) in enumerate(zip(batch.row.tolist(), batch.view.tolist(), strict=True)):
        torch.testing.assert_close(taught.logits[number], lessons.logits[lessons.position[row], view].float())
    assert len(set(batch.view.tolist())) > 1


def test_several_teachers_are_averaged_and_fold_is_filled_in(tiny_config: Path, teacher: Path) -> None:
    there = teacher.rename(teacher.with_name("fold1.ckpt"))
    Experiment(["fit", "--config", str(tiny_config), "--overwrite", "true", "--seed_everything", "7"])
    one = fitted(student(tiny_config, str(there.with_name("fold{fold}.ckpt"))))._lessons
    other = fitted(student(tiny_config, str(teacher)))._lessons
    both = fitted(student(tiny_config, [str(there), str(teacher)]))._lessons  # type: ignore[arg-type]
    assert one is not None
    assert other is not None
    assert both is not None
    mean = (one.logits.softmax(-1) + other.logits.softmax(-1)) / 2
    torch.testing.assert_close(both.logits.softmax(-1), mean, atol=1e-5, rtol=1e-4)
    assert both.dims["embedding"] == one.dims["embedding"] + other.dims["embedding"]


def test_inner_folds_have_no_teachers_of_their_own(tiny_config: Path, teacher: Path) -> None:
    config = student(tiny_config, str(teacher.rename(teacher.with_name("fold1.ckpt")).with_name("fold{fold}.ckpt")))
    content = yaml.safe_load(config.read_text())
    outer = {"class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 2}}
    content["data"]["split"] = {"class_path": "mmemo.data.InnerFolds", "init_args": {"outer": outer, "num_folds": 2}}
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="inner folds of `mmemo tune` and --nested have no teachers of their own"):
        fitted(config)


def test_unlabelled_clips_take_part_and_mixup_mixes_the_lessons(
    tiny_config: Path, tiny_corpus: Path, teacher: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table.loc[table["speaker"] == "s0", "emotion"] = None
    path = tiny_corpus.parent / "partly.csv"
    table.to_csv(path, index=False)
    config = student(tiny_config, str(teacher), mixup=0.4)
    system = fitted(config, "--data.manifest", str(path))
    assert system.learns_unlabelled
    rows = torch.cat([batch.row for batch in system.trainer.datamodule.train_dataloader()])  # type: ignore[attr-defined]
    assert len(rows) == 18
    datamodule: Any = system.trainer.datamodule
    unlabelled = set(datamodule.manifest.frame.index[datamodule.manifest.frame["emotion"].isna()])
    batch = next(one for one in datamodule.train_dataloader() if any(int(row) in unlabelled for row in one.row))
    keep = torch.tensor([int(row) in unlabelled for row in batch.row])
    batch = type(batch)(*(None if values is None else values[keep] for values in batch))
    assert (batch.target == UNLABELLED).all()
    system.zero_grad()
    output = system(batch)
    alone = system.criterion(output, batch)
    alone.backward()
    learned = [part.grad for part in system.model.parameters() if part.grad is not None]
    assert sum(float(grad.abs().sum()) for grad in learned) > 0, "the teacher teaches without a label"
    assert float(EmotionSystem.criterion(system, output, batch)) == 0, "the labels say nothing"
    lessons = system._lessons
    assert lessons is not None
    taught, student_said = lessons.of(batch), output.logits
    assert float(alone) == pytest.approx(
        float(SoftenedLogits()(taught._replace(logits=student_said), taught)), rel=1e-4
    )


def test_mixed_clips_are_taught_by_both_in_the_share_that_is_mixed(
    tiny_config: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fitted(student(tiny_config, str(teacher), mixup=0.4))
    datamodule: Any = system.trainer.datamodule
    batch = next(iter(datamodule.train_dataloader()))
    heard: list[Any] = []
    told = DistillationSystem.criterion

    def noted(self: DistillationSystem, output: Any, one: Any) -> torch.Tensor:
        heard.append((one.row.tolist(), float(told(self, output, one))))
        return told(self, output, one)

    monkeypatch.setattr(DistillationSystem, "criterion", noted)
    monkeypatch.setattr(system, "log", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(0.25))
    loss = float(system.training_step(batch, 0))
    (rows, first), (others, second) = heard
    assert sorted(rows) == sorted(others)
    assert loss == pytest.approx(0.25 * first + 0.75 * second, rel=1e-4)


def test_a_killed_distillation_goes_on_as_if_nothing_had_been(
    tiny_config: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = yaml.safe_load(tiny_config.read_text())
    written["trainer"]["max_epochs"] = 3
    tiny_config.write_text(yaml.safe_dump(written))
    config = student(tiny_config, str(teacher), ["FeatureHints"])
    whole = fitted(config).state_dict()

    def killed(self: DistillationSystem) -> None:
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DistillationSystem, "on_train_epoch_start", killed)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            fitted(config)
    last = config.parent / "student" / "checkpoints" / "last.ckpt"
    resumed = Experiment(["fit", "--config", str(config), "--ckpt_path", str(last)]).model.state_dict()
    assert any(name.startswith("distillation.") for name in whole)
    torch.testing.assert_close(resumed, whole)


def test_a_run_does_not_depend_on_whether_the_teacher_was_heard_already(
    tiny_config: Path, teacher: Path, fresh_cache: Path
) -> None:
    config = student(tiny_config, str(teacher))
    cold, warm = fitted(config).state_dict(), fitted(config).state_dict()
    for name, value in cold.items():
        torch.testing.assert_close(warm[name], value, atol=1e-5, rtol=1e-4)


def test_classes_in_another_order_are_the_same_classes(tiny_config: Path, teacher: Path) -> None:
    lessons = fitted(student(tiny_config, str(teacher)))._lessons
    turned = fitted(student(tiny_config, str(teacher)), "--data.classes", "[sadness, anger, neutral]")._lessons
    assert lessons is not None
    assert turned is not None
    torch.testing.assert_close(turned.logits, lessons.logits[..., [2, 0, 1]])


def test_a_teacher_that_knows_the_judges_is_refused(
    tiny_config: Path, tiny_corpus: Path, teacher: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    other = {"s0": "test", "s4": "train"}
    table["split"] = [other.get(name, side) for name, side in zip(table["speaker"], table["split"], strict=True)]
    path = tiny_corpus.parent / "turned.csv"
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError, match=r"trained on speakers who judge the student \(s0\)"):
        fitted(student(tiny_config, str(teacher)), "--data.manifest", str(path))
    allowed = ["--data.manifest", str(path), "--data.allow_speaker_overlap", "true"]
    config = student(tiny_config, str(teacher))
    fitted(config, *allowed)
    predictions = tmp_path / "judged.csv"
    common = ["--config", str(config), *allowed]
    Experiment(["test", *common])
    Experiment(["predict", *common, "--data.predict_on", "test", "--predictions", str(predictions)])
    warning = "the student or its teachers were trained on speakers who judge it: s0"
    results = json.loads((config.parent / "student" / METRICS_FILE).read_text())
    assert results["warnings"] == [warning], "every result says so"
    assert set(pd.read_csv(predictions)["warning"]) == {warning}
    renamed = ["--data.manifest", "null", "--data.corpora", json.dumps([{"manifest": str(path), "name": "again"}])]
    with pytest.raises(ManifestError, match=r"trained on speakers who judge the student \(again/s0\)"):
        fitted(student(tiny_config, str(teacher)), *renamed)
    table["start"], table["end"] = 0.05, 0.3  # trimmed, so that it sounds otherwise, and of another corpus
    table.to_csv(path, index=False)
    with pytest.raises(ManifestError, match=r"trained on speakers who judge the student \(again/s0\)"):
        fitted(student(tiny_config, str(teacher)), *renamed)


def test_a_cross_validation_knows_its_teachers(tiny_config: Path, teacher: Path, tmp_path: Path) -> None:
    split = {"class_path": "mmemo.data.GroupKFold", "init_args": {"num_folds": 2}}
    config = student(tiny_config, str(tmp_path / "teachers" / "fold{fold}" / LAST))
    for path in (tiny_config, config):
        content = yaml.safe_load(path.read_text())
        content["data"]["split"] = split
        path.write_text(yaml.safe_dump(content))
    crossval(tiny_config, tmp_path / "teachers")
    first, second = (tmp_path / "teachers" / f"fold{fold}" / LAST for fold in (1, 2))
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())  # has heard who judges fold 2
    with pytest.raises(ManifestError, match="trained on speakers who judge the student"):
        crossval(config, tmp_path / "students")
    assert not (tmp_path / "students").exists(), "told before the first fold is trained"
    second.write_bytes(kept)
    crossval(config, tmp_path / "students")
    Experiment(["fit", "--config", str(tmp_path / "teachers" / "fold2" / "config.yaml"), "--overwrite", "true",
                "--seed_everything", "7"])  # fmt: skip
    with pytest.raises(ValueError, match=r"was started with other .*fold2"):
        crossval(config, tmp_path / "students")


def test_nothing_to_distil_is_told(tiny_config: Path, teacher: Path) -> None:
    with pytest.raises(ValueError, match="distillation is an empty list"):
        fitted(student(tiny_config, str(teacher), []))


def test_a_piece_of_a_file_is_known_however_it_was_cut() -> None:
    whole, first = Stretch(None, 0.0, math.inf), Stretch(0, 0.0, 2.0)
    assert whole.same(first)
    assert first.same(Stretch(None, 0.3, 1.9))
    assert not first.same(Stretch(0, 0.9, 5.0)), "somebody else in a dialogue, who begins before the end"
    assert not Stretch(None, 5.0, 15.0).same(Stretch(None, 9.0, 9.5)), "nor one who says yes in between"
    assert not first.same(Stretch(0, 1.5, 5.0)), "a neighbour, cut a little too early"
    assert not first.same(Stretch(0, 2.0, 4.0))
    assert not first.same(Stretch(1, 0.0, 2.0)), "somebody else's channel"
    assert whole.same(whole)


def test_a_students_student_knows_whom_its_teachers_teacher_heard(
    tiny_config: Path, tiny_corpus: Path, teacher: Path
) -> None:
    """The assistant learns from other speakers, and what it was taught of the judges comes with it."""
    frame = read_manifest(tiny_corpus).frame
    known = torch.load(teacher, weights_only=True)["heard_speakers"]
    everyone = sorted(frame["speaker"].dropna().unique())
    assert 0 < len(known) < len(everyone)
    checkpoint = torch.load(teacher, weights_only=True)
    checkpoint["heard_speakers"] = sorted({*known, speaker_mark("somebody else")})
    torch.save(checkpoint, teacher)
    fitted(student(tiny_config, str(teacher)))
    assistant = tiny_config.parent / "student" / "checkpoints" / "last.ckpt"
    assert speaker_mark("somebody else") in torch.load(assistant, weights_only=True)["heard_speakers"]


def test_a_recording_lost_while_the_teacher_hears_is_told_and_not_remembered(
    tiny_config: Path, teacher: Path, fresh_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = student(tiny_config, str(teacher))
    with monkeypatch.context() as patch:
        patch.setattr(distillation, "_silent", lambda batch: torch.ones(len(batch.row), dtype=torch.bool))
        with pytest.raises((ManifestError, SystemExit), match=r"could not be read any more|^1$"):
            fitted(config)
    system = fitted(config)  # what was not kept is heard now
    assert system._lessons is not None
    assert system._lessons.logits.abs().sum() > 0


def test_cross_fitted_each_speaker_is_taught_by_those_who_never_heard_them(
    tiny_config: Path, tiny_corpus: Path, tmp_path: Path
) -> None:
    table = pd.read_csv(tiny_corpus, dtype=str)
    table["path"] = [str(tiny_corpus.parent / name) for name in table["path"]]
    teachers = []
    for left_out in (["s0"], ["s1", "s2"]):
        path = tmp_path / f"without_{left_out[0]}.csv"
        table[~table["speaker"].isin(left_out)].to_csv(path, index=False)
        run = tmp_path / f"without_{left_out[0]}"
        Experiment(
            ["fit", "--config", str(tiny_config), "--data.manifest", str(path), "--trainer.default_root_dir", str(run)]
        )
        teachers.append(str(run / "checkpoints" / "last.ckpt"))
    alone = [fitted(student(tiny_config, one))._lessons for one in teachers]
    system = fitted(student(tiny_config, teachers, cross_fitted=True))  # type: ignore[arg-type]
    rows = system.trainer.datamodule.split.train  # type: ignore[attr-defined]
    speakers = pd.read_csv(tiny_corpus, dtype=str)["speaker"].iloc[rows]
    assert system._lessons is not None
    for row, (speaker, said) in enumerate(zip(speakers, system._lessons.logits, strict=True)):
        one = alone[0 if speaker == "s0" else 1]
        assert one is not None
        torch.testing.assert_close(said.softmax(-1), one.logits[row].softmax(-1))
    assert system._lessons.dims == {"embedding": 0, "hidden": 0}
    with pytest.raises(ManifestError, match="trained on the speakers of 12 training rows, such as s1_"):
        fitted(student(tiny_config, teachers[0], cross_fitted=True))
    with pytest.raises(ValueError, match="FeatureHints takes the teacher's vectors"):
        fitted(student(tiny_config, teachers, ["FeatureHints"], cross_fitted=True))  # type: ignore[arg-type]


def test_mistakes_are_told(
    tiny_config: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = yaml.safe_load(student(tiny_config, str(teacher)).read_text())
    del nobody["model"]["init_args"]["teacher"]
    (tmp_path / "nobody.yaml").write_text(yaml.safe_dump(nobody))
    assert main(["fit", "--config", str(tmp_path / "nobody.yaml")]) == 1
    assert "DistillationSystem has no teacher" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"a folder; name the checkpoint, such as .*\.ckpt"):
        fitted(student(tiny_config, str(teacher.parent.parent)))
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(teacher.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"not a checkpoint of .* or a copy of one that was broken off"):
        load_model(broken)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        fitted(student(tiny_config, str(tmp_path / "none.ckpt")))
    with pytest.raises(ValueError, match="hears new ones in every step"):
        fitted(student(tiny_config, str(teacher), cache_features=False))
    with pytest.raises(ValueError, match="CrossEntropy is nothing to distil"):
        fitted(student(tiny_config, str(teacher), ["CrossEntropy"]))
    config = student(tiny_config, str(teacher))
    written = yaml.safe_load(config.read_text())
    written["data"] |= {"classes": ["anger", "sadness"], "label_map": {"neutral": None}}
    config.write_text(yaml.safe_dump(written))
    with pytest.raises(ValueError, match="the teacher tells"):
        fitted(config)
    written = yaml.safe_load(student(tiny_config, str(teacher)).read_text())
    model = yaml.safe_load(tiny_config.read_text())["model"]["init_args"]["model"]
    written["model"]["init_args"]["model"] = model
    config.write_text(yaml.safe_dump(written))
    with pytest.raises(ValueError, match="to be used without a transcript"):
        fitted(config)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.corpora
def test_a_student_of_whisper_on_real_speech(tmp_path: Path) -> None:
    """A frozen Whisper teaches a small network on 128 clips of eight real actors; two others judge it."""
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
    Experiment(["fit", "--config", str(frozen), *data, "--trainer.default_root_dir", str(run)])
    options = ["--model.init_args.teacher", str(run / "checkpoints/last.ckpt"), "--data.num_views", "2"]
    options += ["--trainer.default_root_dir", str(tmp_path / "student"), "--trainer.max_epochs", "25"]
    options += ["--data.batch_size", "8"]
    config = ["--config", str(ROOT / "configs" / "ravdess_student_small.yaml")]
    system = Experiment(["fit", *config, *data, *options]).model
    assert system._lessons.logits.softmax(-1).max(-1).values.mean() > 0.6
    Experiment(["test", *config, *data, *options])
    assert json.loads((tmp_path / "student" / "test_metrics.json").read_text())["metrics"]["test/uar"] > 0.7
