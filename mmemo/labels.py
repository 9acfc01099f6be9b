"""Emotion classes in their fixed order, and the names and range of the affect dimensions."""

EMOTIONS = (
    "anger",
    "boredom",
    "calm",
    "contempt",
    "disgust",
    "excitement",
    "fear",
    "frustration",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
)
"""Every class that a manifest may use. An experiment chooses a subset and its order with ``data.classes``."""

DIMENSIONS = ("valence", "arousal", "dominance")
"""Continuous dimensions of affect, each within ``DIMENSION_RANGE``."""

DIMENSION_RANGE = (-1.0, 1.0)
"""Lowest and highest value of a dimension: negative to positive, calm to excited, weak to strong."""

UNLABELLED = -100
"""Class index of an utterance without an emotion label; losses and metrics ignore it."""
