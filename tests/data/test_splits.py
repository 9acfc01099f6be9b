from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.data.manifest import Manifest, read_manifest
from mmemo.data.splits import FoldFile, GroupKFold, OfficialSplit, Split, SplitError, check_speakers_disjoint


def corpus(num_speakers: int = 10, **columns: object) -> Manifest:
    speakers = [f"{number // 4:02d}" for number in range(4 * num_speakers)]
    frame = pd.DataFrame({"id": [f"u{n}" for n in range(len(speakers))], "text": "hi", "speaker": speakers, **columns})
    return Manifest(frame, "corpus.csv")


def sides(manifest: Manifest, split: Split) -> list[set[str]]:
    return [set(manifest.frame["speaker"].iloc[rows]) for rows in split]


@pytest.mark.parametrize("num_folds", [2, 3, 5, 10])
def test_grouped_folds_share_no_speaker_and_test_every_row_once(num_folds: int) -> None:
    manifest = corpus()
    tested: list[int] = []
    for fold in range(1, num_folds + 1):
        split = GroupKFold(num_folds, fold)(manifest)
        train, val, test = sides(manifest, split)
        assert not train & val
        assert not train & test
        assert not val & test
        assert len(val) == 2
        assert sorted(np.concatenate(split)) == list(range(len(manifest)))
        tested += split.test.tolist()
    assert sorted(tested) == list(range(len(manifest)))


def test_published_folds_test_the_speakers_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("fold,test_actors\n1,00 01\n2,02 03\n")
    manifest = corpus()
    path.write_text("fold,test_actors\n1,00\n1,01\n2,02 03\n")  # a fold may have several rows
    splitter = FoldFile(str(path), fold=2, num_val_speakers=3)
    assert splitter.count_folds(manifest) == 2
    train, val, test = sides(manifest, splitter(manifest))
    assert test == {"02", "03"}
    assert len(val) == 3
    assert not val & test
    assert train | val | test == set(manifest.frame["speaker"])


@pytest.mark.parametrize(
    ("content", "fold", "complaint"),
    [
        (None, 1, "no such file"),
        ("fold,test\n1,00\n2,01\n", 7, "no fold 7, expected one of"),
        ("fold,test\n1,99\n", 1, r"speakers \['99'\] are not in"),
        ("number,who\n1,00\n", 1, "found columns"),
        ("fold,test\n1,00\n2,00 01\n", 1, r"no speaker in two.*twice \['00'\]"),
        ("fold,test\n1,00\n2,\n", 1, r"empty \[2\]"),
        ("fold,test\n0,00\n1,01\n", 1, "expected folds 1 to 2"),
    ],
)
def test_an_invalid_fold_file_is_rejected(tmp_path: Path, content: str | None, fold: int, complaint: str) -> None:
    path = tmp_path / "folds.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SplitError, match=complaint):
        FoldFile(str(path), fold)(corpus())


def test_official_splits_are_used_unchanged(tiny_corpus: Path) -> None:
    manifest = read_manifest(tiny_corpus)
    train, val, test = OfficialSplit()(manifest)
    assert (len(train), len(val), len(test)) == (18, 6, 12)


def test_validation_speakers_come_from_the_training_side() -> None:
    manifest = corpus(split=["train"] * 32 + ["test"] * 8)
    train, val, test = sides(manifest, OfficialSplit(num_val_speakers=2)(manifest))
    assert len(val) == 2
    assert not (val & test) | (train & val)


def test_a_speaker_on_two_sides_is_rejected_unless_the_config_allows_it() -> None:
    manifest = corpus(split=(["train", "val", "test", "test"] * 10))
    split = OfficialSplit()(manifest)
    with pytest.raises(SplitError, match=r"10 speakers are both in train and in test.*allow_speaker_overlap"):
        check_speakers_disjoint(manifest, split)
    assert any("train and in test" in warning for warning in check_speakers_disjoint(manifest, split, True))


def test_rows_without_a_speaker_are_rejected() -> None:
    manifest = corpus(split=["train"] * 20 + ["val"] * 8 + ["test"] * 12)
    manifest.frame.loc[3, "speaker"] = None
    with pytest.raises(SplitError, match="1 rows have no speaker"):
        check_speakers_disjoint(manifest, OfficialSplit()(manifest))


@pytest.mark.parametrize(
    ("splitter", "complaint"),
    [
        (OfficialSplit(), "column split is empty"),
        (GroupKFold(11), "num_folds=11, expected 2 to 10"),
        (GroupKFold(5, fold=6), "fold=6, expected 1 to 5"),
        (GroupKFold(5, group="city"), "no column 'city'"),
        (GroupKFold(5, group="session"), "40 rows have no session"),
        (GroupKFold(2, num_val_speakers=5), "5 speakers, too few to hold out"),
    ],
)
def test_impossible_splits_are_rejected_with_a_reason(splitter: GroupKFold, complaint: str) -> None:
    with pytest.raises(SplitError, match=complaint):
        splitter(corpus())


@pytest.mark.corpora
def test_ravdess_published_folds_are_disjoint_and_complete() -> None:
    from mmemo.data.corpora.ravdess import ravdess
    from tests.conftest import CORPORA

    manifest = Manifest(ravdess(CORPORA / "ravdess"))
    folds = str(CORPORA / "ravdess" / "emobox_folds.csv")
    tested: list[int] = []
    for fold in range(1, 7):
        split = FoldFile(folds, fold)(manifest)
        assert check_speakers_disjoint(manifest, split) == []
        tested += split.test.tolist()
    assert sorted(tested) == list(range(1440))
