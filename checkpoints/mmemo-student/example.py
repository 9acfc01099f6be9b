"""Predict the emotion of a clip: python example.py clip.wav"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import soundfile

folder = Path(__file__).parent
config = json.loads((folder / "config.json").read_text())
if len(sys.argv) < 2:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(folder / "model.int8.onnx")
waveform, sample_rate = soundfile.read(sys.argv[1], dtype="float32", always_2d=True)
if sample_rate != config["sample_rate"]:
    sys.exit(f"{sys.argv[1]}: {sample_rate} Hz; resample it to {config['sample_rate']} Hz first")
waveform = waveform.mean(axis=1)[None]
inputs = {"waveform": waveform, "lengths": np.array([waveform.shape[1]])}
(probabilities,) = session.run(["probabilities"], inputs)
for label, probability in zip(config["classes"], probabilities[0], strict=True):
    print(f"{label:<12}{probability:.3f}")
