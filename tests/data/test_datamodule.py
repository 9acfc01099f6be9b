from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from mmemo.data import EmotionDataModule, ManifestError
from mmemo.data.datamodule import Sources
from mmemo.data.splits import SplitError
from mmemo.labels import UNLABELLED
from tests.conftest import CLASSES
from tests.data.test_audio import BAD, make_bad


def ready(manifest: Path, **settings: object) -> EmotionDataModule:
    datamodule = EmotionDataModule(CLASSES, str(manifest), **settings)  # type: ignore[arg-type]
    datamodule.setup("fit")
    datamodule.use_labels(("emotion",), fitting=True)
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
        (datamodule.train_dataloader(), datamodule.split.train),
        (datamodule.val_dataloader(), datamodule.split.val),
        (datamodule.test_dataloader(), datamodule.split.test),
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
    for row, target in zip(datamodule.manifest, datamodule.targets, strict=True):
        assert CLASSES[target] == row.emotion


def test_a_label_outside_the_classes_is_an_error_until_it_is_mapped(tiny_corpus: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(tiny_corpus)
    manifest = edited(tiny_corpus, tmp_path, emotion=frame["emotion"].replace("anger", "disgust"))
    with pytest.raises(ManifestError, match=r"has emotion 'disgust', expected one of data\.classes"):
        ready(manifest)
    assert (ready(manifest, label_map={"disgust": "anger"}).targets == 0).sum() == 12
    with pytest.raises(ManifestError, match="label_map names"):
        ready(manifest, label_map={"boredom": None})
    with pytest.raises(ManifestError, match="no training row has emotion anger"):
        ready(manifest, label_map={"disgust": None})


def test_unlabelled_rows_are_predicted_but_not_trained_on(tiny_corpus: Path, tmp_path: Path) -> None:
    emotion = pd.read_csv(tiny_corpus)["emotion"]
    emotion[0] = None
    datamodule = ready(edited(tiny_corpus, tmp_path, emotion=emotion))
    assert datamodule.targets[0] == UNLABELLED
    assert 0 not in torch.cat([batch.row for batch in datamodule.train_dataloader()])
    datamodule.setup("predict")
    assert 0 in torch.cat([batch.row for batch in datamodule.predict_dataloader()])


def test_a_speaker_on_two_sides_is_refused(tiny_corpus: Path, tmp_path: Path) -> None:
    manifest = edited(tiny_corpus, tmp_path, speaker="same")
    with pytest.raises(SplitError, match="allow_speaker_overlap"):
        ready(manifest)
    datamodule = ready(manifest, allow_speaker_overlap=True)
    assert any("speakers not separated" in warning for warning in datamodule.warnings)


def test_broken_audio_is_refused_or_left_out_as_the_config_says(
    tiny_corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = [str(tiny_corpus.parent / path) for path in pd.read_csv(tiny_corpus)["path"]]
    for row, kind in enumerate(BAD):
        paths[row] = str(make_bad(tmp_path, kind))
    manifest = edited(tiny_corpus, tmp_path, path=paths)
    with pytest.raises(ManifestError, match=f"{len(BAD)} utterances have audio that cannot be used") as error:
        ready(manifest).inspect_audio(progress=False)
    for reason in BAD.values():
        assert reason in str(error.value)

    datamodule = ready(manifest, broken_audio="skip")
    with caplog.at_level(logging.WARNING):
        contents = datamodule.inspect_audio(progress=False)
    assert all(contents[row] == "" for row in range(len(BAD)))
    assert f"{len(BAD)} utterances with broken audio left out" in datamodule.warnings
    served = torch.cat([batch.row for batch in datamodule.train_dataloader()]).tolist()
    assert min(served) >= len(BAD)
    datamodule.setup("predict")
    assert sorted(np.concatenate([datamodule.predicted_rows, range(len(BAD))])) == list(range(36))


def test_a_recording_on_two_sides_is_refused_as_a_speaker_is(tiny_corpus: Path, tmp_path: Path) -> None:
    paths = [str(tiny_corpus.parent / path) for path in pd.read_csv(tiny_corpus)["path"]]
    paths[35] = paths[0]
    manifest = edited(tiny_corpus, tmp_path, path=paths)
    with pytest.raises(
        ManifestError, match=r"1 recordings are on two sides of the split: s5_sadness_1 \(train and test\)"
    ):
        ready(manifest).inspect_audio(progress=False)
    datamodule = ready(manifest, allow_speaker_overlap=True)
    datamodule.inspect_audio(progress=False)
    assert any("recordings are on two sides" in warning for warning in datamodule.warnings)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_goes_bad_during_training_does_not_end_it(
    tiny_corpus: Path, tmp_path: Path, num_workers: int
) -> None:
    from mmemo.training.features import Waveforms

    datamodule = ready(tiny_corpus, num_workers=num_workers, batch_size=4)
    utterances = list(datamodule.manifest)
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
