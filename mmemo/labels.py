"""Emotion classes, their fixed order, and the ranges of valence, arousal and dominance."""

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
"""Every class a manifest may name. An experiment picks a subset and its order with ``data.classes``."""

DIMENSIONS = ("valence", "arousal", "dominance")
"""Continuous dimensions of affect, each in ``DIMENSION_RANGE``."""

DIMENSION_RANGE = (-1.0, 1.0)
"""Lowest and highest value of a dimension: negative to positive, calm to excited, weak to strong."""

UNLABELLED = -100
"""Class index of an utterance without an emotion label; losses and metrics pass over it."""
