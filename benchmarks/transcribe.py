"""Short-context batches against openai-whisper's own `transcribe`: time and word error rate, side by side.

    python benchmarks/transcribe.py

The same weights, greedy, the same language, the same threads, in one process; clips in turn, A B A B, by
groups of 16 of like length. Words are compared after Whisper's own English normaliser.
"""

from __future__ import annotations

import csv
import time

import jiwer
import torch
from record import corpus, record
from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from mmemo import pretrained
from mmemo.audio.reader import read_audio
from mmemo.data.corpora.files import audio_files
from mmemo.data.corpora.ravdess import STATEMENTS
from mmemo.data.transcripts import OpenAIWhisper

CLIPS = 294  # of each corpus: every spoken-words test sentence, and as many acted clips
BATCH = 16


def clips() -> list[tuple[str, str]]:
    """Path and reference text of evenly drawn clips of both corpora."""
    acted = audio_files(corpus("ravdess"))
    drawn = [(str(path), STATEMENTS[path.stem.split("-")[4]]) for path in acted[:: len(acted) // CLIPS][:CLIPS]]
    folder = corpus("spoken_words")
    with (folder / "spoken_words.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return drawn + [(str(folder / row["file"]), row["text"]) for row in rows[:: len(rows) // CLIPS][:CLIPS]]


def main() -> None:
    torch.set_num_threads(2)
    normalise = EnglishTextNormalizer({})
    loaded = sorted(((read_audio(path), text) for path, text in clips()), key=lambda item: len(item[0]))
    reference = pretrained.load_openai_whisper()
    ours = OpenAIWhisper(language="en")
    ours._model.load_state_dict(reference.state_dict())
    warm = [waveform for waveform, _ in loaded[:2]]
    ours(warm)
    reference.transcribe(warm[0], language="en", temperature=0.0, fp16=False)

    seconds = {"ours": 0.0, "openai": 0.0}
    heard: dict[str, list[str]] = {"ours": [], "openai": []}
    fell_back = 0
    for first in range(0, len(loaded), BATCH):
        waveforms = [waveform for waveform, _ in loaded[first : first + BATCH]]
        started = time.perf_counter()
        transcripts = ours(waveforms)
        seconds["ours"] += time.perf_counter() - started
        heard["ours"] += [transcript.text for transcript in transcripts]
        fell_back += sum(transcript.fell_back for transcript in transcripts)
        started = time.perf_counter()
        for waveform in waveforms:
            result = reference.transcribe(waveform, language="en", temperature=0.0, fp16=False)
            heard["openai"].append(str(result["text"]))
        seconds["openai"] += time.perf_counter() - started
        print(f"{first + len(waveforms)} of {len(loaded)}: {seconds}", flush=True)

    references = [normalise(text) for _, text in loaded]
    wer = {name: 100 * jiwer.wer(references, [normalise(text) for text in texts]) for name, texts in heard.items()}
    record(
        "transcribe",
        {
            "time_ratio_vs_openai": round(seconds["ours"] / seconds["openai"], 3),
            "wer_delta_points": round(wer["ours"] - wer["openai"], 2),
            "wer": round(wer["ours"], 2),
            "wer_openai": round(wer["openai"], 2),
            "seconds_per_clip": round(seconds["ours"] / len(loaded), 3),
            "seconds_per_clip_openai": round(seconds["openai"] / len(loaded), 3),
            "clips": len(loaded),
            "clips_fallen_back": fell_back,
        },
    )


if __name__ == "__main__":
    main()
