"""mmemo predicts emotion from recordings and their transcripts.

- ``EmotionDataModule``: manifest -> batches, split by speaker.
- ``EmotionModel``: encoders, gates, fusion and heads, in order.
- ``EmotionSystem``: a model with its loss, metrics and optimizer, for ``pytorch_lightning.Trainer``.
- ``Experiment``: data, system and trainer settings; ``fit``, ``test`` and ``predict`` in one run folder.
- ``read_experiment``: an experiment from its YAML.
- ``crossval``: every fold of an experiment, with out-of-fold predictions.
- ``tune``: a search for better settings on folds of the training side.
- ``read_runs``: the experiments of finished runs, for ``robustness`` and ``explain``.
- ``robustness``: a trained model in noise, on the telephone, with wrong words and under attack.
- ``explain``: which sounds and words a prediction depends on.
- ``write_report``: one HTML page of a run, with intervals, calibration and subgroups.
- ``load_model``: a trained model from a checkpoint.
- ``export_onnx``: a trained model as one ONNX file from waveform to probabilities.
- ``Recognizer``: an exported model, without PyTorch.
- ``analyze``: the emotions of a recording of any length, with the model that ships with mmemo.

Names are imported on first use, so that ``import mmemo`` is fast.
"""

import lazy_loader

from mmemo import settings as settings  # sets what dependencies read when they are imported

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
del lazy_loader
