"""Bounds of constructor parameters of effects and augmentations."""

from __future__ import annotations

import math


def check_setting(effect: object, name: str, value: float, below: float = math.inf) -> float:
    """Returns a setting if it is in [0, below).

    Args:
        effect: The object being configured, named in the error.
        name: Its constructor parameter.
        value: The setting.
        below: Exclusive upper bound.

    Raises:
        ValueError: The setting is out of bounds.
    """
    if not 0 <= value < below:
        expected = "0 or more" if below == math.inf else f"in [0, {below:g})"
        raise ValueError(f"{type(effect).__name__}({name}={value:g}), expected {expected}")
    return value


def check_chance(effect: object, chance: float) -> float:
    """Returns ``chance`` if it is a probability; otherwise raises a ValueError that names the effect.

    Args:
        effect: The object being configured, named in the error.
        chance: Probability of being applied.

    Raises:
        ValueError: ``chance`` is not in [0, 1].
    """
    if not 0 <= chance <= 1:
        raise ValueError(f"{type(effect).__name__}(chance={chance:g}), expected 0 to 1")
    return chance


def check_range(
    effect: object, name: str, low: float, high: float, lowest: float = -math.inf, highest: float = math.inf
) -> tuple[float, float]:
    """Returns a range if its ends are in order and within bounds.

    Args:
        effect: The object being configured, named in the error.
        name: Its constructor parameters without ``min_`` and ``max_``.
        low: Lower end.
        high: Upper end.
        lowest: Smallest lower end that is accepted.
        highest: Largest upper end that is accepted.

    Raises:
        ValueError: The ends are out of order, out of bounds or not finite.
    """
    if not lowest <= low <= high <= highest or not math.isfinite(low) or not math.isfinite(high):
        bounds = "" if lowest == -math.inf else f", {lowest:g}" + ("" if highest == math.inf else f" to {highest:g}")
        raise ValueError(
            f"{type(effect).__name__}(min_{name}={low:g}, max_{name}={high:g}), expected numbers, the lower one first"
            f"{bounds and f', within{bounds[1:]}'}"
        )
    return float(low), float(high)
