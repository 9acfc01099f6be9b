from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.audio.reader import AudioFacts
from mmemo.cli.main import main
from mmemo.data.audio_facts import audio_facts
from mmemo.data.leaks import shared, side_doors
from mmemo.data.manifest import Manifest
from tests.conftest import CORPORA

EMOTIONS = ["anger", "neutral", "sadness"]


def corpus(
    num_speakers: int = 12, num_each: int = 12, given_away: str = "", seed: int = 0
) -> tuple[Manifest, list[AudioFacts | None]]:
    """A corpus in which one thing tells the label, or nothing does."""
    random = np.random.default_rng(seed)
    rows, facts = [], []
    for speaker in range(num_speakers):
        for number in range(num_each):
            place = speaker % 3 if given_away == "speaker" else number % 3
            emotion = EMOTIONS[place]
            folder = f"site{place}" if given_away == "folder and file type" else f"s{speaker}"
            rows.append(
                {"id": f"{speaker}_{number}", "path": f"{folder}/{emotion}_{number}.wav", "speaker": f"s{speaker}",
                 "emotion": emotion}
            )  # fmt: skip
            told = {"duration": random.uniform(1, 4), "loudness": random.normal(-25, 5), "sample rate": 16_000}
            if given_away == "duration":
                told["duration"] = 1.0 + place + 0.3 * random.random()
            if given_away == "loudness":
                told["loudness"] = -40.0 + 10 * place + random.random()
            if given_away == "sample rate":
                told["sample rate"] = (16_000, 44_100, 48_000)[place]
            facts.append(
                AudioFacts(f"{speaker}{number}", told["duration"], int(told["sample rate"]), 1, told["loudness"])
            )
    return Manifest(pd.DataFrame(rows)), facts


@pytest.mark.parametrize("name", ["speaker", "duration", "loudness", "sample rate", "folder and file type"])
def test_a_side_door_is_flagged_and_only_that(name: str) -> None:
    doors = {door.name: door for door in side_doors(*corpus(given_away=name))}
    assert doors[name].flagged
    assert doors[name].uar > 0.9
    assert [door.name for door in doors.values() if door.flagged] == [name]


def test_a_clean_corpus_has_none() -> None:
    doors = side_doors(*corpus())
    assert {door.name for door in doors} >= {"speaker", "duration", "loudness"}
    assert not any(door.flagged for door in doors)
    assert all(door.grouped == (door.name != "speaker") for door in doors)


def test_too_little_to_ask_is_no_alarm() -> None:
    manifest, facts = corpus(2, 3)
    assert side_doors(manifest, facts) == []


def test_voices_recordings_and_copies_on_two_sides_are_listed() -> None:
    manifest, facts = corpus(3, 3)
    manifest.frame["split"] = ["train"] * 6 + ["test"] * 3
    assert shared(manifest, facts) == []
    manifest.frame.loc[8, "speaker"] = "s0"
    manifest.frame.loc[7, "path"] = manifest.frame.loc[0, "path"]
    facts[6] = facts[1]
    found = shared(manifest, facts)
    assert len(found) == 4
    assert "the same audio is of speakers s0, s2: 0_1, 2_0" in found[0]
    assert found[1].startswith("speaker s0 is in test, train")
    assert "recording s0/anger_0.wav" in found[2]
    assert "the same audio is in test, train: 0_1, 2_0" in found[3]
    manifest.frame["split"] = None
    assert shared(manifest, facts) == found[:1], "copies under two names are told without a split too"


@pytest.mark.corpora
def test_ravdess_gives_nothing_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ravdess.csv"
    assert main(["corpus", "ravdess", str(CORPORA / "ravdess"), "--out", str(out)]) == 0
    assert main(["check", str(out), "--leaks", "true"]) == 0
    said = capsys.readouterr().out
    assert "no red flags" in said
    table = pd.read_csv(out, dtype=str)
    # Each actor keeps emotions of their own: the voice now tells the label.
    kept = {name: set(np.roll(sorted(table["emotion"].unique()), number)[:2])
            for number, name in enumerate(sorted(table["speaker"].unique()))}  # fmt: skip
    given = table[
        [emotion in kept[speaker] for emotion, speaker in zip(table["emotion"], table["speaker"], strict=True)]
    ]
    given.to_csv(out, index=False)
    assert main(["check", str(out), "--leaks", "true"]) == 1
    assert "speaker: a model may learn it instead" in capsys.readouterr().out
    assert len(audio_facts(list(Manifest(given, out)))) == len(given)
