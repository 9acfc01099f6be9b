"""The student in ``checkpoints/`` is complete and small, states its licence, and is found from a wheel too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmemo.cli.app import main
from mmemo.export.analysis import STUDENT, student_folder
from mmemo.export.card import render_example, render_model_card
from mmemo.export.runtime import Recognizer
from mmemo.labels import EMOTIONS
from tests.conftest import CORPORA, ROOT

CLASSES = ["anger", "disgust", "fear", "happiness", "neutral", "sadness", "surprise"]


def test_the_student_is_complete_and_small_and_its_card_is_current() -> None:
    folder = student_folder()
    assert folder == ROOT / "checkpoints" / STUDENT
    recognizer = Recognizer(folder)
    assert recognizer.classes == CLASSES
    assert set(CLASSES) <= set(EMOTIONS)
    assert recognizer.audio_only
    Recognizer(folder, int8=False)
    assert (folder / "model.int8.onnx").stat().st_size <= 500_000
    assert (folder / "example.py").read_text() == render_example(recognizer.config)
    card = (folder / "README.md").read_text()
    assert card == render_model_card(recognizer.config, folder)
    for text in ("CC BY-NC-SA 4.0", "commercial", "EMO-DB", "recall of surprise", "Acted", "languages"):
        assert text in card
    result = json.loads((ROOT / "benchmarks" / "results" / "shipped_student.json").read_text())["figures"]
    metrics = json.loads((folder / "config.json").read_text())["metrics"]
    assert metrics["RAVDESS, 8 unseen actors: UAR, %"] == result["uar_ravdess"]


def test_analyze_uses_the_student_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    clip = ROOT / "demo" / "clips" / "finn_anger_2.flac"
    assert main(["analyze", str(clip), "--format", "jsonl"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[0])
    assert sum(row[f"prob_{name}"] for name in CLASSES) == pytest.approx(1, abs=1e-3)


@pytest.mark.corpora
def test_accuracy_on_test_actors_is_far_above_chance() -> None:
    """Two actors of the test side, in fp32 and int8."""
    names = {
        "05": "anger",
        "07": "disgust",
        "06": "fear",
        "03": "happiness",
        "01": "neutral",
        "04": "sadness",
        "08": "surprise",
    }
    folds = (CORPORA / "ravdess" / "emobox_folds.csv").read_text().splitlines()
    actors = folds[1].split(",")[1].split()[:2]
    from mmemo.audio.reader import nonsilent_span, read_audio

    recognizer, fp32 = Recognizer(student_folder()), Recognizer(student_folder(), int8=False)
    correct = same = total = 0
    for actor in actors:
        for path in sorted((CORPORA / "ravdess" / f"Actor_{actor}").glob("*.flac"))[::3]:
            emotion = path.stem.split("-")[2]
            if emotion not in names:
                continue
            waveform = read_audio(path)
            first, last = nonsilent_span(waveform, 35.0)
            waveform = waveform[round(16_000 * first) : round(16_000 * last)]
            label = recognizer.predict(waveform).label
            correct += label == names[emotion]
            same += label == fp32.predict(waveform).label
            total += 1
    assert correct / total > 0.4
    assert same / total > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--target", "--prefix"])
def test_the_wheel_contains_the_student(tmp_path: Path, option: str) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    built = subprocess.run([*build, str(tmp_path), str(ROOT)], capture_output=True, text=True)
    if built.returncode and "setuptools" in built.stderr:
        pytest.skip("setuptools is not installed, so no wheel can be built")
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("mmemo-*.whl")
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", option, str(site)]
    assert subprocess.run([*install, str(wheel)], capture_output=True).returncode == 0
    (package,) = site.rglob("mmemo/export")
    code = "from mmemo.export.analysis import student_folder; print(student_folder())"
    environment = {**os.environ, "PYTHONPATH": str(package.parents[1])}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr
    assert str(site) in ran.stdout
    assert STUDENT in ran.stdout
