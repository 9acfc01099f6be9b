"""Griffe extension of `mkdocs build`: reads the sections ``Example:`` of docstrings as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SECTION = re.compile(r"^Example:$", re.MULTILINE)


class Examples(Extension):
    """Renames ``Example:`` to ``Examples:``, the only name that Griffe reads as doctests."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Changes the docstring of one object."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("Examples:", obj.docstring.value)
