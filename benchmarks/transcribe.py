"""Whisper on short contexts in batches against openai-whisper's own `transcribe`: time and word error rate.

    python benchmarks/transcribe.py

Both use the same weights, greedy decoding, the same language and the same threads. They take turns in one process, in
groups of 16 clips of similar length. Transcripts are compared after Whisper's own English text normaliser.
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

CLIPS_PER_CORPUS = 294  # all test sentences of spoken words, and as many RAVDESS clips
BATCH_SIZE = 16


def read_references() -> list[tuple[str, str]]:
    """Returns path and reference text of clips that are spread evenly over both corpora."""
    paths = audio_files(corpus("ravdess"))
    step = len(paths) // CLIPS_PER_CORPUS
    acted = [(str(path), STATEMENTS[path.stem.split("-")[4]]) for path in paths[::step][:CLIPS_PER_CORPUS]]
    folder = corpus("spoken_words")
    with (folder / "spoken_words.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    step = len(rows) // CLIPS_PER_CORPUS
    return acted + [(str(folder / row["file"]), row["text"]) for row in rows[::step][:CLIPS_PER_CORPUS]]


def main() -> None:
    torch.set_num_threads(2)
    normalise = EnglishTextNormalizer({})
    clips = sorted(((read_audio(path), text) for path, text in read_references()), key=lambda clip: len(clip[0]))
    openai = pretrained.load_openai_whisper()
    ours = OpenAIWhisper(language="en")
    ours._model.load_state_dict(openai.state_dict())
    warmup = [waveform for waveform, _ in clips[:2]]
    ours(warmup)
    openai.transcribe(warmup[0], language="en", temperature=0.0, fp16=False)

    seconds = {"ours": 0.0, "openai": 0.0}
    texts: dict[str, list[str]] = {"ours": [], "openai": []}
    num_fell_back = 0
    for first in range(0, len(clips), BATCH_SIZE):
        waveforms = [waveform for waveform, _ in clips[first : first + BATCH_SIZE]]
        started = time.perf_counter()
        transcripts = ours(waveforms)
        seconds["ours"] += time.perf_counter() - started
        texts["ours"] += [transcript.text for transcript in transcripts]
        num_fell_back += sum(transcript.fell_back for transcript in transcripts)
        started = time.perf_counter()
        for waveform in waveforms:
            result = openai.transcribe(waveform, language="en", temperature=0.0, fp16=False)
            texts["openai"].append(str(result["text"]))
        seconds["openai"] += time.perf_counter() - started
        print(f"{first + len(waveforms)} of {len(clips)}: {seconds}", flush=True)

    references = [normalise(text) for _, text in clips]
    wer = {name: 100 * jiwer.wer(references, list(map(normalise, predicted))) for name, predicted in texts.items()}
    record(
        "transcribe",
        {
            "time_ratio_vs_openai": round(seconds["ours"] / seconds["openai"], 3),
            "wer_delta_points": round(wer["ours"] - wer["openai"], 2),
            "wer": round(wer["ours"], 2),
            "wer_openai": round(wer["openai"], 2),
            "seconds_per_clip": round(seconds["ours"] / len(clips), 3),
            "seconds_per_clip_openai": round(seconds["openai"] / len(clips), 3),
            "clips": len(clips),
            "clips_fallen_back": num_fell_back,
        },
    )


if __name__ == "__main__":
    main()
