"""Three tests that guard the shape of the house: imports flow one way, configs build, the README runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from mmemo.training.experiment import Experiment

ROOT = Path(__file__).parent.parent
FLOORS = [  # a room may import from floors below its own, and from its own room
    {"settings", "files", "labels", "database"},
    {"pretrained"},
    {"audio", "models", "losses", "metrics"},
    {"data"},
    {"training"},
    {"evaluation"},
    {"studies", "export"},
    {"report"},
    {"cli"},
]


def room_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmemo"):
            found |= {f"{node.module}.{name.name}" if node.module == "mmemo" else node.module for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names if name.name.startswith("mmemo")}
    return {room_of(module) for module in found} - {""}


def test_imports_flow_one_way() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    for path in sorted((ROOT / "mmemo").rglob("*.py")):
        parts = path.relative_to(ROOT / "mmemo").with_suffix("").parts
        room = parts[0]
        if room == "__init__":
            continue
        for imported in imports_of(path) - {room}:
            assert floor[imported] < floor[room], f"{path.name} in {room} imports from {imported}"
            assert (room, imported) != ("data", "models"), "data and models never meet"


def test_there_is_no_lumber_room() -> None:
    names = {path.stem for path in (ROOT / "mmemo").rglob("*")}
    assert not names & {"utils", "core", "helpers", "misc", "common"}


@pytest.mark.weights
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds(config: Path) -> None:
    experiment = Experiment(["--config", str(config)], run=False)
    assert experiment.model.model.classes == experiment.datamodule.classes


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.weights
@pytest.mark.slow
def test_the_readmes_code_runs(tmp_path: Path) -> None:
    """Its shell blocks (after installation) in order, then its Python, in a folder with the repository's files."""
    for name in ("configs", "demo", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    shell = [block for block in readme_blocks("bash") if "pip install" not in block and "make " not in block]
    assert shell
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    program = tmp_path / "bin"
    program.mkdir()
    import sys

    (program / "mmemo").write_text(f'#!/bin/sh\nexec {sys.executable} -m mmemo.cli.main "$@"\n')
    (program / "mmemo").chmod(0o755)
    environment["PATH"] = f"{program}:{environment['PATH']}"
    for block in shell:
        if "RAVDESS" in block:
            continue  # needs the corpus
        result = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stderr}"
    blocks = readme_blocks("python")
    assert blocks
    for block in blocks:
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        assert result.stdout.strip(), "the README's example prints something"
