"""Hooks of `mkdocs build`: the benchmark tables, and Sphinx roles in docstrings."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "benchmarks" / "table.py"
ROLE = re.compile(r":(?:class|func|data|meth|mod|attr):<code>(~?)([\w.]+)</code>")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Adds the tables of all benchmark results to their page."""
    if page.file.src_uri != "benchmarks.md":
        return markdown
    return f"{markdown}\n{benchmark_tables()}"


def on_page_content(html: str, **_: Any) -> str:
    """Turns the Sphinx roles of docstrings, such as ``:class:`mmemo.EmotionModel` ``, into links."""
    return ROLE.sub(_link, html)


def benchmark_tables() -> str:
    """Returns what ``benchmarks/table.py`` renders, without its title."""
    spec = importlib.util.spec_from_file_location("benchmark_table", TABLE)
    assert spec is not None
    assert spec.loader is not None
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    return str(table.render()).partition("\n")[2]


def _link(match: re.Match[str]) -> str:
    shortened, name = match.groups()
    shown = name.rpartition(".")[2] if shortened else name
    if "." not in name:
        return f"<code>{shown}</code>"
    return f'<autoref optional identifier="{name}"><code>{shown}</code></autoref>'
