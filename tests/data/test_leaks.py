from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mmemo.audio.reader import AudioFacts
from mmemo.cli.app import main
from mmemo.data.audio_facts import audio_facts
from mmemo.data.leaks import shared_between_splits, shortcuts
from mmemo.data.manifest import Manifest
from tests.conftest import CORPORA

EMOTIONS = ["anger", "neutral", "sadness"]


def corpus(
    num_speakers: int = 12, num_each: int = 12, shortcut: str = "", seed: int = 0
) -> tuple[Manifest, list[AudioFacts | None]]:
    """Returns a corpus in which one property predicts the label, or none does."""
    random = np.random.default_rng(seed)
    rows, facts = [], []
    for speaker in range(num_speakers):
        for number in range(num_each):
            label = speaker % 3 if shortcut == "speaker" else number % 3
            emotion = EMOTIONS[label]
            folder = f"site{label}" if shortcut == "folder and file type" else f"s{speaker}"
            rows.append(
                {"id": f"{speaker}_{number}", "path": f"{folder}/{emotion}_{number}.wav", "speaker": f"s{speaker}",
                 "emotion": emotion}
            )  # fmt: skip
            values = {"duration": random.uniform(1, 4), "loudness": random.normal(-25, 5), "sample rate": 16_000}
            if shortcut == "duration":
                values["duration"] = 1.0 + label + 0.3 * random.random()
            if shortcut == "loudness":
                values["loudness"] = -40.0 + 10 * label + random.random()
            if shortcut == "sample rate":
                values["sample rate"] = (16_000, 44_100, 48_000)[label]
            facts.append(
                AudioFacts(f"{speaker}{number}", values["duration"], int(values["sample rate"]), 1, values["loudness"])
            )
    return Manifest(pd.DataFrame(rows)), facts


@pytest.mark.parametrize("name", ["speaker", "duration", "loudness", "sample rate", "folder and file type"])
def test_only_the_shortcut_is_flagged(name: str) -> None:
    measured = {shortcut.name: shortcut for shortcut in shortcuts(*corpus(shortcut=name))}
    assert measured[name].flagged
    assert measured[name].uar > 0.9
    assert [shortcut.name for shortcut in measured.values() if shortcut.flagged] == [name]


def test_a_clean_corpus_has_no_shortcut() -> None:
    measured = shortcuts(*corpus())
    assert {shortcut.name for shortcut in measured} >= {"speaker", "duration", "loudness"}
    assert not any(shortcut.flagged for shortcut in measured)
    assert all(shortcut.speaker_disjoint == (shortcut.name != "speaker") for shortcut in measured)


def test_a_tiny_corpus_raises_no_flag() -> None:
    manifest, facts = corpus(2, 3)
    assert shortcuts(manifest, facts) == []


def test_speakers_recordings_and_copies_in_two_splits_are_listed() -> None:
    manifest, facts = corpus(3, 3)
    manifest.frame["split"] = ["train"] * 6 + ["test"] * 3
    assert shared_between_splits(manifest, facts) == []
    manifest.frame.loc[8, "speaker"] = "s0"
    manifest.frame.loc[7, "path"] = manifest.frame.loc[0, "path"]
    facts[6] = facts[1]
    problems = shared_between_splits(manifest, facts)
    assert len(problems) == 4
    assert "the same audio has speakers s0, s2: 0_1, 2_0" in problems[0]
    assert problems[1].startswith("speaker s0 is in test, train")
    assert "recording s0/anger_0.wav" in problems[2]
    assert "the same audio is in test, train: 0_1, 2_0" in problems[3]
    manifest.frame["split"] = None
    assert shared_between_splits(manifest, facts) == problems[:1], "copies are listed without a split too"


@pytest.mark.corpora
def test_ravdess_has_no_shortcut_unless_speakers_predict_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "ravdess.csv"
    assert main(["corpus", "ravdess", str(CORPORA / "ravdess"), "--out", str(out)]) == 0
    assert main(["check", str(out), "--leaks"]) == 0
    assert "no shortcuts to the label" in capsys.readouterr().out
    table = pd.read_csv(out, dtype=str)
    # Each actor keeps two emotions of their own, so the speaker predicts the label.
    kept = {name: set(np.roll(sorted(table["emotion"].unique()), number)[:2])
            for number, name in enumerate(sorted(table["speaker"].unique()))}  # fmt: skip
    leaky = table[
        [emotion in kept[speaker] for emotion, speaker in zip(table["emotion"], table["speaker"], strict=True)]
    ]
    leaky.to_csv(out, index=False)
    assert main(["check", str(out), "--leaks"]) == 1
    assert "speaker: a model may learn it instead" in capsys.readouterr().out
    assert len(audio_facts(list(Manifest(leaky, out)))) == len(leaky)
