"""Counts with singular or plural nouns, for messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, in the plural unless the number is 1.

    Args:
        number: How many.
        noun: In the singular, with a regular plural.

    Example:
        >>> counted(1, "speaker"), counted(1440, "utterance")
        ('1 speaker', '1,440 utterances')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
