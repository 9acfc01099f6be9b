"""Measures the code itself: sizes, complexity, import cycles, examples, and how fast mistakes are answered.

    python benchmarks/structure.py

Docstrings count as lines of a file, but not of a function. Import cycles include imports inside functions, but not
those under ``TYPE_CHECKING``. Times are medians of three processes.
"""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import networkx as nx
from radon.complexity import cc_visit
from record import HERE, record

ROOT = HERE.parent
PACKAGE = ROOT / "mmemo"
WRONG_OPTIONS = (["analyze", "a.wav", "--foramt", "csv"], ["crossval", "--confg", "x.yaml"], ["check", "--leask"])
WRONG_FIT_OPTION = ["fit", "--config", "configs/demo.yaml", "--trainer.max_epoch", "2"]


class Module(NamedTuple):
    """A parsed file of the package.

    Args:
        name: Dotted name, such as ``mmemo.models.gates``.
        path: Its file.
        tree: Its syntax tree.
    """

    name: str
    path: Path
    tree: ast.Module


def modules() -> list[Module]:
    """Returns all modules of the package."""
    result = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        result.append(Module(name, path, ast.parse(path.read_text())))
    return result


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yields all functions and methods of a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Returns the length of a function without its docstring."""
    assert function.end_lineno is not None
    length = function.end_lineno - function.lineno + 1
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return length - ((first.end_lineno or first.lineno) - first.lineno + 1 if is_docstring else 0)


def imports(module: Module, names: set[str]) -> Iterator[str]:
    """Yields the package's modules that a module imports at run time."""
    skipped = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def num_import_cycles(all_modules: list[Module]) -> int:
    """Returns the number of groups of modules that import each other."""
    names = {module.name for module in all_modules}
    graph = nx.DiGraph()
    for module in all_modules:
        graph.add_edges_from((module.name, target) for target in imports(module, names) if target in names)
    return sum(len(group) > 1 for group in nx.strongly_connected_components(graph))


def public_classes(all_modules: list[Module]) -> tuple[int, int]:
    """Returns how many public classes and functions have a runnable example, and how many there are."""
    num_examples = total = 0
    for module in all_modules:
        for node in module.tree.body:
            is_public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
            if not is_public or not (docstring := ast.get_docstring(node)):  # type: ignore[arg-type]
                continue
            total += 1
            num_examples += ">>> " in docstring
    return num_examples, total


def seconds(arguments: list[str]) -> float:
    """Returns the median time of a command."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "mmemo", *arguments], cwd=ROOT, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Measures everything and writes ``results/structure.json``."""
    all_modules = modules()
    texts = {module.path: module.path.read_text() for module in all_modules}
    lines = {path: len(text.splitlines()) for path, text in texts.items()}
    length, longest = max(
        (num_lines(node), f"{module.name}.{node.name}") for module in all_modules for node in functions(module.tree)
    )
    complexity, most_complex = max(
        (block.complexity, f"{path.relative_to(ROOT)}:{block.name}")
        for path, text in texts.items()
        for block in cc_visit(text)
        if type(block).__name__ == "Function"
    )
    num_examples, num_public = public_classes(all_modules)
    readme = (ROOT / "README.md").read_text()
    fit_help = subprocess.run(
        [sys.executable, "-m", "mmemo", "fit", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    code = "\n".join(texts.values())
    record(
        "structure",
        {
            "readme_words": len(readme.split()),
            "readme_lines": len(readme.splitlines()),
            "longest_function": length,
            "longest_function_name": longest,
            "largest_file": max(lines.values()),
            "largest_file_name": str(max(lines, key=lambda path: lines[path]).relative_to(ROOT)),
            "max_complexity": complexity,
            "max_complexity_name": most_complex,
            "lines_package": sum(lines.values()),
            "import_cycles": num_import_cycles(all_modules),
            "public_with_example": num_examples,
            "public": num_public,
            "any_and_cast": [code.count("Any"), code.count("cast(")],
            "wrong_option_seconds": round(max(map(seconds, WRONG_OPTIONS)), 2),
            "wrong_fit_option_seconds": round(seconds(WRONG_FIT_OPTION), 2),
            "version_seconds": round(seconds(["--version"]), 2),
            "cache_seconds": round(seconds(["cache"]), 2),
            "fit_help_lines": len(fit_help.stdout.splitlines()),
        },
    )


if __name__ == "__main__":
    main()
