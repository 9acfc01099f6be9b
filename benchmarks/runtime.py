"""Time and memory of the exported student: one clip on one core, the first prediction of a process, hours of audio.

    python benchmarks/runtime.py

The student is `checkpoints/mmemo-student` (int8, the size `small`). The time of the teacher includes Whisper's
transcript, both encoders (Whisper and MiniLM) and the fusion (`configs/two_channel.yaml`, untrained: weights do not
affect the time). The two take turns on the same clip of 3 s, on one core. Recordings of one and three hours are RAVDESS
clips joined with pauses.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from record import HERE, corpus, record

from mmemo.audio.reader import read_audio
from mmemo.data.transcripts import OpenAIWhisper
from mmemo.export.runtime import Recognizer
from mmemo.settings import SAMPLE_RATE
from mmemo.training.experiment_cli import read_experiment

STUDENT = HERE.parent / "checkpoints" / "mmemo-student"
CLIP_SECONDS = 3
ROUNDS = 15


def read_clips() -> list[np.ndarray]:
    """Returns the clips of one RAVDESS actor."""
    paths = sorted((corpus("ravdess") / "Actor_01").glob("*.flac"))
    return [read_audio(path) for path in paths]


def median_seconds(waveform: np.ndarray) -> tuple[float, float]:
    """Returns the median seconds of teacher and student for one clip."""
    torch.set_num_threads(1)
    config = HERE.parent / "configs" / "two_channel.yaml"
    model = read_experiment(config).system.model.eval()
    whisper = OpenAIWhisper(language="en")
    student = Recognizer(STUDENT, threads=1)
    mask = torch.ones(1, len(waveform), dtype=torch.bool)

    def run_teacher() -> None:
        transcript = whisper([waveform])[0].text
        token_ids = model.encoder("text").tokenize(transcript)[None]
        with torch.inference_mode():
            model(torch.from_numpy(waveform)[None], mask, token_ids, torch.ones_like(token_ids, dtype=torch.bool))

    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for number in range(ROUNDS + 1):
        for name, predict in (("teacher", run_teacher), ("student", lambda: student.predict(waveform))):
            started = time.perf_counter()
            predict()
            if number:  # the first round loads the weights
                seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["teacher"]), statistics.median(seconds["student"])


def first_prediction_seconds(path: Path) -> float:
    """Returns the median seconds from the start of a process to its first prediction."""
    prediction = f"Recognizer({str(STUDENT)!r}).predict({str(path)!r}).label"
    code = f"from mmemo.export.runtime import Recognizer; print({prediction})"
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def write_recording(path: Path, hours: int, clips: list[np.ndarray]) -> None:
    """Writes clips in random order, with pauses of 0.5 to 3 s."""
    random = np.random.default_rng(0)
    num_samples = 0
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        while num_samples < hours * 3600 * SAMPLE_RATE:
            clip = clips[int(random.integers(len(clips)))]
            pause = np.zeros(int(random.uniform(0.5, 3.0) * SAMPLE_RATE), dtype=np.float32)
            for waveform in (clip, pause):
                file.write(waveform)
                num_samples += len(waveform)


def measure_analyze(path: Path, out: Path) -> tuple[float, float]:
    """Runs `mmemo analyze` and returns its seconds and peak megabytes."""
    command = [sys.executable, "-m", "mmemo", "analyze", str(path), "--model", str(STUDENT), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--format", "jsonl"], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:  # ru_maxrss of wait4 would start at the peak of this process
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if match := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(match[1]) / 1000)
        time.sleep(0.1)
    assert process.wait() == 0
    return time.perf_counter() - started, peak


def main() -> None:
    clips = read_clips()
    waveform = np.concatenate(clips[:2])[: CLIP_SECONDS * SAMPLE_RATE]
    teacher, student = median_seconds(waveform)
    values: dict[str, float] = {
        "latency_ratio_teacher": round(student / teacher, 4),
        "milliseconds_teacher": round(1000 * teacher, 1),
        "milliseconds_small_int8": round(1000 * student, 2),
        "real_time_factor": round(student / CLIP_SECONDS, 5),
    }
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, waveform, SAMPLE_RATE)
        values["first_answer_seconds"] = round(first_prediction_seconds(clip), 3)
        for hours, name in ((1, "hour"), (3, "three_hours")):
            path = Path(folder) / f"{hours}.wav"
            write_recording(path, hours, clips)
            seconds, megabytes = measure_analyze(path, Path(folder) / "out")
            values[f"analyze_{name}_seconds"] = round(seconds, 1)
            values["analyze_peak_mb" if hours == 1 else f"analyze_{name}_peak_mb"] = round(megabytes, 1)
            path.unlink()
    record("runtime", values)


if __name__ == "__main__":
    main()
