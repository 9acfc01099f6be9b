"""Time and memory of the exported student: a clip on one core, the first answer of a process, hours of recording.

    python benchmarks/runtime.py

The student is `checkpoints/mmemo-student` (int8), of the size `small`. The teacher's whole path is Whisper's
transcript, Whisper's and MiniLM's encoders and the fusion (`configs/two_channel.yaml`; what it has learned does not
change its time). Both hear the same clip of 3 s in turns, on one core. Recordings of one and three hours are RAVDESS
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
from mmemo.training.experiment import Experiment

STUDENT = HERE.parent / "checkpoints" / "mmemo-student"
RATE = 16_000
CLIP_SECONDS = 3
ROUNDS = 15


def clips() -> list[np.ndarray]:
    """Some minutes of acted speech."""
    paths = sorted((corpus("ravdess") / "Actor_01").glob("*.flac"))
    return [read_audio(path) for path in paths]


def latencies(waveform: np.ndarray) -> tuple[float, float]:
    """Median seconds of teacher and student for one clip."""
    torch.set_num_threads(1)
    config = HERE.parent / "configs" / "two_channel.yaml"
    model = Experiment(["--config", str(config)], run=False).model.model.eval()
    whisper = OpenAIWhisper(language="en")
    student = Recognizer(STUDENT, threads=1)
    mask = torch.ones(1, len(waveform), dtype=torch.bool)

    def teach() -> None:
        heard = whisper([waveform])[0].text
        token_ids = model.encoder("text").tokenize(heard)[None]
        with torch.inference_mode():
            model(torch.from_numpy(waveform)[None], mask, token_ids, torch.ones_like(token_ids, dtype=torch.bool))

    seconds: dict[str, list[float]] = {"teacher": [], "student": []}
    for number in range(ROUNDS + 1):
        for name, step in (("teacher", teach), ("student", lambda: student.predict(waveform))):
            started = time.perf_counter()
            step()
            if number:  # the first loads the weights
                seconds[name].append(time.perf_counter() - started)
    return statistics.median(seconds["teacher"]), statistics.median(seconds["student"])


def first_answer(path: Path) -> float:
    """Median seconds from the start of a process to its first answer."""
    answer = f"Recognizer({str(STUDENT)!r}).predict({str(path)!r}).label"
    code = f"from mmemo.export.runtime import Recognizer; print({answer})"
    seconds = []
    for _ in range(7):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def recording(path: Path, hours: int, parts: list[np.ndarray]) -> None:
    """Clips in any order, with pauses of 0.5 to 3 s."""
    random = np.random.default_rng(0)
    length = 0
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        while length < hours * 3600 * RATE:
            part = parts[int(random.integers(len(parts)))]
            pause = np.zeros(int(random.uniform(0.5, 3.0) * RATE), dtype=np.float32)
            for piece in (part, pause):
                file.write(piece)
                length += len(piece)


def analysed(path: Path, out: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `mmemo analyze`."""
    command = [sys.executable, "-m", "mmemo.cli.main", "analyze", str(path), "--model", str(STUDENT), "--out", str(out)]
    started = time.perf_counter()
    process = subprocess.Popen([*command, "--format", "jsonl"], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:  # not wait4's ru_maxrss, which begins at this process's own peak
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            peak = max(peak, int(found[1]) / 1000)
        time.sleep(0.1)
    assert process.wait() == 0
    return time.perf_counter() - started, peak


def main() -> None:
    parts = clips()
    waveform = np.concatenate(parts[:2])[: CLIP_SECONDS * RATE]
    teacher, student = latencies(waveform)
    figures: dict[str, float] = {
        "latency_ratio_teacher": round(student / teacher, 4),
        "milliseconds_teacher": round(1000 * teacher, 1),
        "milliseconds_small_int8": round(1000 * student, 2),
        "real_time_factor": round(student / CLIP_SECONDS, 5),
    }
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.wav"
        soundfile.write(clip, waveform, RATE)
        figures["first_answer_seconds"] = round(first_answer(clip), 3)
        for hours, name in ((1, "hour"), (3, "three_hours")):
            path = Path(folder) / f"{hours}.wav"
            recording(path, hours, parts)
            seconds, megabytes = analysed(path, Path(folder) / "out")
            figures[f"analyze_{name}_seconds"] = round(seconds, 1)
            figures["analyze_peak_mb" if hours == 1 else f"analyze_{name}_peak_mb"] = round(megabytes, 1)
            path.unlink()
    record("runtime", figures)


if __name__ == "__main__":
    main()
