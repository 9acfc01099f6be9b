"""Emotion of a clip: python example.py clip.wav (mono, 16 kHz; other rates must be resampled first)."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

here = Path(__file__).parent
config = json.loads((here / "config.json").read_text())
session = onnxruntime.InferenceSession(here / "model.int8.onnx")
waveform, sample_rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
assert sample_rate == config["sample_rate"], f"{sample_rate} Hz, expected {config['sample_rate']}"
waveform = waveform.mean(axis=1)[None]
(probabilities,) = session.run(["probabilities"], {"waveform": waveform, "lengths": np.array([waveform.shape[1]])})
for label, probability in zip(config["classes"], probabilities[0], strict=True):
    print(f"{label:<12}{probability:.3f}")
