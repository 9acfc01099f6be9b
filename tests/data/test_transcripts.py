from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile

from mmemo.audio.reader import read_audio
from mmemo.data.manifest import Utterance, read_manifest
from mmemo.data.transcripts import (
    FasterWhisper,
    OpenAIWhisper,
    Transcript,
    TranscriptCache,
    check_language,
    transcribe,
)
from mmemo.settings import SAMPLE_RATE

ROOT = Path(__file__).parent.parent.parent
CLIPS = ROOT / "demo" / "clips"
SPOKEN = {  # clip -> text that espeak-ng spoke
    "ada_happiness_1": "i am so happy to see you again",
    "ben_neutral_2": "i will send the report on monday",
    "dan_neutral_1": "you can park the car behind the house",
}


def plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalpha() or letter == " ").strip()


class CountingTranscriber:
    """Transcribes a clip as its number of samples, and records its calls."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def fingerprint(self) -> str:
        return "counting"

    def __call__(self, waveforms: Sequence[np.ndarray]) -> list[Transcript]:
        self.lengths += [len(waveform) for waveform in waveforms]
        return [Transcript(f"{len(waveform)} samples", "en", -0.1, 0.0) for waveform in waveforms]


def test_each_clip_is_transcribed_once_and_silence_is_skipped(tiny_corpus: Path, tmp_path: Path) -> None:
    utterances = list(read_manifest(tiny_corpus))
    soundfile.write(tmp_path / "silence.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    (tmp_path / "bad.wav").write_text("no sound")
    extra = [Utterance("s", tmp_path / "silence.wav"), Utterance("b", tmp_path / "bad.wav"), Utterance("t", text="x")]
    counting = CountingTranscriber()
    transcripts, _ = transcribe([*utterances, *extra], counting, cache=tmp_path, progress=False)
    assert len(counting.lengths) == 36
    for utterance, transcript in zip(utterances, transcripts[:36], strict=True):
        assert transcript is not None
        assert transcript.text == f"{len(read_audio(utterance.path))} samples"  # type: ignore[arg-type]
    silence, broken, wordless = transcripts[36:]
    assert silence is not None
    assert silence.text == ""
    assert broken is None
    assert wordless is None

    transcribe(utterances, counting, cache=tmp_path, progress=False)
    assert len(counting.lengths) == 36


CLAIMER = """
import sys, time
from pathlib import Path
from mmemo.data.transcripts import TranscriptCache
cache = TranscriptCache("f", Path(sys.argv[1]))
print(cache.claim(["a", "b"]), flush=True)
time.sleep(60)
"""


def test_a_claim_lasts_until_its_process_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", CLAIMER, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "['a', 'b']\n"
        ours = TranscriptCache("f", tmp_path)
        assert ours.claim(["a", "b", "c"]) == ["c"]
    finally:
        other.kill()
        other.wait()
    assert ours.claim(["a", "b"]) == ["a", "b"]
    ours.put({"a": Transcript("hello", "en", -0.1, 0.0)})
    assert ours.claim(["a"]) == []
    assert ours.get(["a", "b"]) == {"a": Transcript("hello", "en", -0.1, 0.0)}
    ours.close()
    assert list((tmp_path / "claims").iterdir()) == []


def test_transcripts_are_cached_per_model_and_options(tmp_path: Path) -> None:
    TranscriptCache("english", tmp_path).put({"a": Transcript("hello", "en", -0.1, 0.0)})
    assert TranscriptCache("german", tmp_path).get(["a"]) == {}


def test_an_unknown_language_is_rejected() -> None:
    check_language("de")
    with pytest.raises(ValueError, match="did you mean 'de'"):
        check_language("German")
    with pytest.raises(ValueError, match="expected one of en, zh"):
        check_language("xx")


@pytest.mark.weights
@pytest.mark.parametrize("language", ["en", None])
def test_whisper_transcribes_the_spoken_words(language: str | None) -> None:
    waveforms = [read_audio(CLIPS / f"{name}.flac") for name in SPOKEN]
    transcripts = OpenAIWhisper(language=language)(waveforms)
    assert jiwer.wer(list(SPOKEN.values()), [plain(transcript.text) for transcript in transcripts]) < 0.25
    for transcript in transcripts:
        assert transcript.language == "en"
        assert -1 < transcript.log_prob < 0
        assert transcript.no_speech_prob < 0.6


@pytest.mark.weights
def test_faster_whisper_transcribes_the_spoken_words() -> None:
    """Bounds the word error rate, because int8 decoding differs in single words between processors."""
    pytest.importorskip("faster_whisper", reason="pip install mmemo[faster]")
    waveforms = [read_audio(CLIPS / f"{name}.flac") for name in SPOKEN]
    transcripts = [plain(transcript.text) for transcript in FasterWhisper(language="en")(waveforms)]
    assert jiwer.wer(list(SPOKEN.values()), transcripts) < 0.25


@pytest.mark.weights
def test_a_transcript_does_not_depend_on_its_batch() -> None:
    waveforms = [read_audio(path) for path in sorted(CLIPS.glob("finn_*.flac"))]
    transcriber = OpenAIWhisper(language="en")
    together = [transcript.text for transcript in transcriber(waveforms)]
    assert together == [transcriber([waveform])[0].text for waveform in waveforms]


def noises() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    length = 4 * SAMPLE_RATE
    white = random.standard_normal(length)
    spectrum = np.fft.rfft(random.standard_normal(length)) / np.sqrt(np.arange(1, length // 2 + 2))
    pink = np.fft.irfft(spectrum, length)
    brown = np.cumsum(random.standard_normal(length))
    return {
        "digital silence": np.zeros(length),
        "quiet white": 0.001 * white,
        "loud white": 0.1 * white,
        "pink": 0.3 * pink / np.abs(pink).max(),
        "brown": 0.3 * (brown - brown.mean()) / np.abs(brown).max(),
        "tone": 0.3 * np.sin(0.1 * np.arange(length)),
        "clicks": 0.5 * (random.random(length) < 0.001),
    }


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", None])
def test_silence_and_noise_have_empty_transcripts(language: str | None) -> None:
    clips = noises()
    transcripts = OpenAIWhisper(language=language)([clip.astype(np.float32) for clip in clips.values()])
    assert {name: item.text for name, item in zip(clips, transcripts, strict=True)} == dict.fromkeys(clips, "")


@pytest.mark.weights
@pytest.mark.slow
def test_long_recordings_use_whispers_own_windows() -> None:
    clips = [read_audio(CLIPS / f"{name}.flac") for name in SPOKEN]
    pause = np.zeros(SAMPLE_RATE // 2, np.float32)
    once = np.concatenate([part for clip in clips for part in (clip, pause)])
    long = np.concatenate([once] * (1 + 31 * SAMPLE_RATE // len(once)))
    assert len(long) > 30 * SAMPLE_RATE
    (transcript,) = OpenAIWhisper(language="en")([long])
    repeats = len(long) // len(once)
    for words in SPOKEN.values():
        assert plain(transcript.text).count(words) >= repeats - 1, "both windows are transcribed"


@pytest.mark.weights
@pytest.mark.corpora
def test_german_is_translated_into_english() -> None:
    from tests.conftest import CORPORA

    waveform = read_audio(CORPORA / "emodb" / "wav" / "03a01Nc.flac")  # "Der Lappen liegt auf dem Eisschrank."
    (german,) = OpenAIWhisper(language="de")([waveform])
    (english,) = OpenAIWhisper(language="de", task="translate")([waveform])
    assert german.text.lower().startswith("der la")
    assert english.text.lower().startswith("the ")


def start(manifest: Path, cache: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mmemo", "transcribe", manifest, "--out", out, "--language", "en"]
    environment = {**os.environ, "MMEMO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([*map(str, command), "--batch_size", "4"], env=environment, cwd=ROOT)


def stored(cache: Path) -> int:
    try:
        with sqlite3.connect(cache / "transcripts.sqlite") as connection:
            return connection.execute("SELECT COUNT(*) FROM transcripts").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


@pytest.mark.weights
@pytest.mark.slow
def test_a_killed_run_resumes_and_two_processes_share_the_work(cache: Path, tmp_path: Path) -> None:
    rows = "".join(f"{path.stem},{path}\n" for path in sorted(CLIPS.glob("*_1.flac")))
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"id,path\n{rows}")
    own = tmp_path / "cache"
    own.mkdir()
    (own / "models").symlink_to(cache / "models")

    process = start(manifest, own, tmp_path / "out.csv")
    deadline = time.monotonic() + 120
    while stored(own) == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = stored(own)
    assert 0 < kept < 24, "killed in the middle"
    assert not (tmp_path / "out.csv").exists()
    with sqlite3.connect(own / "transcripts.sqlite") as connection:  # repeated work would overwrite this mark
        connection.execute("UPDATE transcripts SET transcript = json_set(transcript, '$.text', 'kept from before')")
    connection.close()

    two = [start(manifest, own, tmp_path / f"out{number}.csv") for number in range(2)]
    assert [process.wait(240) for process in two] == [0, 0]
    first, second = (read_manifest(tmp_path / f"out{number}.csv") for number in range(2))
    texts = [utterance.text for utterance in first]
    assert texts == [utterance.text for utterance in second]
    assert texts.count("kept from before") == kept, "no clip was transcribed twice"
    assert all(texts), "no clip is missing"
