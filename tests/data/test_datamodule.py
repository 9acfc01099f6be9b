from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmemo.data import Corpus, EmotionDataModule, ManifestError, WaveformAugmentation
from mmemo.data.dataset import Sources
from mmemo.data.splits import SplitError
from mmemo.data.table import Requirements
from mmemo.labels import UNLABELLED
from tests.audio.test_reader import BAD, make_bad
from tests.conftest import CLASSES


def ready(manifest: Path, **settings: object) -> EmotionDataModule:
    datamodule = EmotionDataModule(CLASSES, str(manifest), **settings)  # type: ignore[arg-type]
    datamodule.setup("fit", Requirements(audio=True, text=True))
    datamodule.attach(Sources(audio=Zeros(10), text=Zeros(3)))
    return datamodule


def edited(manifest: Path, tmp_path: Path, **columns: object) -> Path:
    frame = pd.read_csv(manifest)
    frame["path"] = [str(manifest.parent / path) for path in frame["path"]]
    for name, value in columns.items():
        frame[name] = value
    frame.to_csv(tmp_path / "edited.csv", index=False)
    return tmp_path / "edited.csv"


def test_every_row_of_a_side_is_served_once(tiny_corpus: Path) -> None:
    datamodule = ready(tiny_corpus, batch_size=5)
    for loader, rows in (
        (datamodule.train_dataloader(), datamodule.table.split.train),
        (datamodule.val_dataloader(), datamodule.table.split.val),
        (datamodule.test_dataloader(), datamodule.table.split.test),
    ):
        seen = torch.cat([batch.row for batch in loader])
        assert sorted(seen.tolist()) == sorted(rows.tolist())


def test_worker_processes_serve_the_same_batches(tiny_corpus: Path) -> None:
    alone = [batch.row.tolist() for batch in ready(tiny_corpus, batch_size=5).train_dataloader()]
    workers = ready(tiny_corpus, batch_size=5, num_workers=2)
    workers.attach(Sources(audio=Zeros(10), text=Zeros(3)))
    assert [batch.row.tolist() for batch in workers.train_dataloader()] == alone


class Zeros:
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, row: int, view: int) -> torch.Tensor:
        return torch.zeros(self.length)


def test_targets_follow_the_order_of_classes(tiny_corpus: Path) -> None:
    datamodule = ready(tiny_corpus)
    for row, target in zip(datamodule.table.manifest, datamodule.table.targets.emotion, strict=True):
        assert CLASSES[target] == row.emotion


def test_a_label_outside_the_classes_is_an_error_until_it_is_mapped(tiny_corpus: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_corpus)
    manifest = edited(tiny_corpus, tmp_path, emotion=frame["emotion"].replace("anger", "disgust"))
    with pytest.raises(ManifestError, match=r"has emotion 'disgust', expected one of data\.classes"):
        ready(manifest)
    with pytest.raises(ManifestError, match=r"is 'neutrel' in data.classes misspelt\? Otherwise add"):
        EmotionDataModule(classes=["neutrel", "disgust"], manifest=str(manifest)).setup("fit")
    assert (ready(manifest, label_map={"disgust": "anger"}).table.targets.emotion == 0).sum() == 12
    with pytest.raises(ManifestError, match="label_map names"):
        ready(manifest, label_map={"boredom": None})
    with pytest.raises(ManifestError, match="no training row has emotion anger"):
        ready(manifest, label_map={"disgust": None})


def test_unlabelled_rows_are_predicted_but_not_trained_on(tiny_corpus: Path, tmp_path: Path) -> None:
    emotion = pd.read_csv(tiny_corpus)["emotion"]
    emotion[0] = None
    datamodule = ready(edited(tiny_corpus, tmp_path, emotion=emotion))
    assert datamodule.table.targets.emotion[0] == UNLABELLED
    assert 0 not in torch.cat([batch.row for batch in datamodule.train_dataloader()])
    datamodule.setup("predict")
    assert 0 in torch.cat([batch.row for batch in datamodule.predict_dataloader()])


def test_a_speaker_on_two_sides_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    manifest = edited(tiny_corpus, tmp_path, speaker="same")
    with pytest.raises(SplitError, match="allow_speaker_overlap"):
        ready(manifest)
    datamodule = ready(manifest, allow_speaker_overlap=True)
    assert any("speakers not separated" in warning for warning in datamodule.table.warnings)


def test_broken_audio_is_refused_or_left_out_as_the_config_says(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(tiny_corpus.parent / path) for path in pd.read_csv(tiny_corpus)["path"]]
    for row, kind in enumerate(BAD):
        paths[row] = str(make_bad(tmp_path, kind))
    manifest = edited(tiny_corpus, tmp_path, path=paths)
    with pytest.raises(ManifestError, match=f"{len(BAD)} utterances have unusable audio") as error:
        ready(manifest)
    for reason in BAD.values():
        assert reason in str(error.value)
    assert paths[0] not in str(error.value), "offline, as a study is, files have no names"
    with monkeypatch.context() as online:
        online.setenv("MMEMO_OFFLINE", "0")
        with pytest.raises(ManifestError) as error:
            ready(manifest)
    assert paths[0] in str(error.value)

    with caplog.at_level(logging.WARNING):
        datamodule = ready(manifest, broken_audio="skip")
    contents = datamodule.table.contents
    assert all(contents[row] == "" for row in range(len(BAD)))
    assert f"{len(BAD)} utterances with broken audio left out" in datamodule.table.warnings
    served = torch.cat([batch.row for batch in datamodule.train_dataloader()]).tolist()
    assert min(served) >= len(BAD)
    datamodule.setup("predict", Requirements(audio=True, text=True))
    assert sorted(np.concatenate([datamodule.predicted_rows, range(len(BAD))])) == list(range(36))


def test_a_recording_on_two_sides_is_refused_as_a_speaker_is(tiny_corpus: Path, tmp_path: Path) -> None:
    paths = [str(tiny_corpus.parent / path) for path in pd.read_csv(tiny_corpus)["path"]]
    paths[35] = paths[0]
    manifest = edited(tiny_corpus, tmp_path, path=paths)
    with pytest.raises(
        ManifestError, match=r"1 recordings are on two sides of the split: s5_sadness_1 \(train and test\)"
    ):
        ready(manifest)
    datamodule = ready(manifest, allow_speaker_overlap=True)
    assert any("recordings are on two sides" in warning for warning in datamodule.table.warnings)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_goes_bad_during_training_does_not_end_it(
    tiny_corpus: Path, tmp_path: Path, num_workers: int
) -> None:
    from mmemo.training.features import Waveforms

    datamodule = ready(tiny_corpus, num_workers=num_workers, batch_size=4)
    utterances = list(datamodule.table.manifest)
    utterances[0] = type(utterances[0])("gone", tmp_path / "gone.wav")
    datamodule.attach(Sources(audio=Waveforms(utterances, ["content"] * 36)))
    targets = {
        int(index): int(target)
        for batch in datamodule.train_dataloader()
        for index, target in zip(batch.row, batch.target, strict=True)
    }
    assert len(targets) == 18
    assert targets[0] == UNLABELLED
    assert sum(target == UNLABELLED for target in targets.values()) == 1


def other_corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    emotion = pd.read_csv(tiny_corpus)["emotion"].replace({"anger": "frustration", "sadness": "boredom"})
    return edited(tiny_corpus, tmp_path, emotion=emotion)


def test_several_corpora_keep_their_speakers_apart_and_have_label_maps_of_their_own(
    tiny_corpus: Path, tmp_path: Path
) -> None:
    other = Corpus(str(other_corpus(tiny_corpus, tmp_path)), {"frustration": "anger", "boredom": None}, "other")
    datamodule = EmotionDataModule(CLASSES, corpora=[Corpus(str(tiny_corpus)), other])
    datamodule.setup("fit")
    frame = datamodule.table.manifest.frame
    assert frame["corpus"].value_counts().to_dict() == {"manifest": 36, "other": 24}
    assert set(frame["emotion"]) == set(CLASSES)
    assert frame["speaker"].nunique() == 12, "speaker s0 of one corpus is not that of the other"
    assert frame["id"].is_unique
    assert len(datamodule.table.split.train) == 18 + 12
    assert all(row.path.is_file() for row in datamodule.table.manifest if row.path)
    with pytest.raises(ManifestError, match=r"label_map of corpus 'other' names \['calm'\]"):
        EmotionDataModule(CLASSES, corpora=[Corpus(other.manifest, {"calm": None}, "other")]).setup("fit")
    with pytest.raises(ManifestError, match="has emotion 'frustration'"):
        EmotionDataModule(CLASSES, corpora=[Corpus(other.manifest, {"boredom": None})]).setup("fit")
    with pytest.raises(ManifestError, match="two corpora called 'manifest'"):
        EmotionDataModule(CLASSES, corpora=[Corpus(str(tiny_corpus)), Corpus(str(tiny_corpus))]).setup("fit")
    with pytest.raises(ValueError, match="needs either a manifest or corpora"):
        EmotionDataModule(CLASSES)


def test_a_label_map_that_loses_a_class_is_told(tiny_corpus: Path, tmp_path: Path) -> None:
    lossy = Corpus(str(other_corpus(tiny_corpus, tmp_path)), {"frustration": "sadness", "boredom": "sadness"})
    datamodule = EmotionDataModule(CLASSES, corpora=[lossy])
    with pytest.raises(ManifestError, match="no training row has emotion anger"):
        datamodule.setup("fit", Requirements(text=True))


def test_a_balanced_sampler_draws_rare_classes_as_often(tiny_corpus: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_corpus)
    rare = (frame["emotion"] == "anger") & (frame.index > 1)
    manifest = edited(tiny_corpus, tmp_path, emotion=frame["emotion"].mask(rare, "neutral"))

    def shares(balanced: bool) -> np.ndarray:
        loader = ready(manifest, balanced=balanced, batch_size=6).train_dataloader()
        drawn = []
        for epoch in range(60):
            loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
            drawn += [int(target) for batch in loader for target in batch.target]
        return np.bincount(drawn, minlength=3) / len(drawn)

    np.testing.assert_allclose(shares(False), [2 / 18, 10 / 18, 6 / 18])
    np.testing.assert_allclose(shares(True), [1 / 3] * 3, atol=0.04)


def test_rows_with_dimensions_and_no_emotion_are_not_left_out_silently(tiny_corpus: Path, tmp_path: Path) -> None:
    emotion = pd.read_csv(tiny_corpus)["emotion"].mask(pd.RangeIndex(36) == 3)
    manifest = edited(tiny_corpus, tmp_path, emotion=emotion, valence=np.linspace(-1, 1, 36))
    with pytest.raises(ManifestError, match=r"'s0_neutral_1' \(and 0 more\) has valence.*no emotion.*WeightedSum"):
        ready(manifest)
    datamodule = EmotionDataModule(CLASSES, str(manifest))
    datamodule.setup("fit", Requirements(("emotion", "dimensions"), audio=True))
    datamodule.attach(Sources(audio=Zeros(10)))
    batches = list(datamodule.train_dataloader())
    assert sum(len(batch.row) for batch in batches) == 18
    assert all(batch.dimensions[:, 0].isfinite().all() for batch in batches)
    with pytest.raises(ManifestError, match="the loss needs votes, expected columns votes_EMOTION"):
        datamodule.setup("fit", Requirements(("votes",), audio=True))


def test_only_training_rows_are_seen_in_several_views(tiny_corpus: Path) -> None:
    datamodule = ready(tiny_corpus, augmentation=WaveformAugmentation(), num_views=5)
    seen: dict[str, set[int]] = {"train": set(), "val": set()}

    def note(side: str) -> None:
        def source(row: int, view: int) -> torch.Tensor:
            seen[side].add(view)
            return torch.zeros(4)

        datamodule.attach(Sources(audio=source))

    note("train")
    for _ in range(5):
        list(datamodule.train_dataloader())
    note("val")
    list(datamodule.val_dataloader())  # type: ignore[arg-type]
    assert seen == {"train": {0, 1, 2, 3, 4}, "val": {0}}
