"""Tests of the repository as a whole: imports flow one way, every config builds, the README's code runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import jiwer
import pandas as pd
import pytest

from mmemo.training.experiment_cli import read_experiment

ROOT = Path(__file__).parent.parent
LAYERS = [  # a package may import from itself and from earlier layers of this list
    {"settings", "files", "labels", "database", "progress", "lightning", "wording"},
    {"pretrained"},
    {"audio", "models", "losses", "metrics"},
    {"data"},
    {"training"},
    {"evaluation"},
    {"studies", "export"},
    {"report"},
    {"cli"},
    {"__main__"},
]


def package_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports_of(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mmemo"):
            names = [f"mmemo.{alias.name}" for alias in node.names]
            modules |= set(names) if node.module == "mmemo" else {node.module}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.startswith("mmemo")}
    return {package_of(module) for module in modules} - {""}


def test_imports_flow_one_way() -> None:
    layer = {package: number for number, packages in enumerate(LAYERS) for package in packages}
    for path in sorted((ROOT / "mmemo").rglob("*.py")):
        parts = path.relative_to(ROOT / "mmemo").with_suffix("").parts
        package = parts[0]
        if package == "__init__":
            continue
        for imported in imports_of(path) - {package}:
            assert layer[imported] < layer[package], f"{path.name} in {package} must not import from {imported}"
            assert (package, imported) != ("data", "models"), "data and models must not import each other"


def test_no_module_has_a_catch_all_name() -> None:
    names = {path.stem for path in (ROOT / "mmemo").rglob("*")}
    assert not names & {"utils", "core", "helpers", "misc", "common"}


@pytest.mark.weights
@pytest.mark.parametrize("config", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds(config: Path) -> None:
    experiment = read_experiment(config)
    assert tuple(experiment.system.model.classes) == tuple(experiment.data.classes)


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.weights
@pytest.mark.slow
def test_the_code_of_the_readme_runs(tmp_path: Path) -> None:
    """Runs the shell blocks except the installation, then the Python blocks, beside links to the repository's files."""
    for name in ("configs", "demo", "checkpoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    shell_blocks = [block for block in readme_blocks("bash") if "pip install" not in block and "make " not in block]
    assert shell_blocks
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    import sys

    (bin_folder / "mmemo").write_text(f'#!/bin/sh\nexec {sys.executable} -m mmemo "$@"\n')
    (bin_folder / "mmemo").chmod(0o755)
    environment["PATH"] = f"{bin_folder}:{environment['PATH']}"
    for block in shell_blocks:
        if "RAVDESS" in block:
            continue  # needs the RAVDESS recordings
        result = subprocess.run(["bash", "-euc", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{block}\n{result.stderr}"
    run = tmp_path / "runs" / "demo"
    transcripts = pd.read_csv(run / "manifest_transcribed.csv").set_index("id")["text"]
    assert jiwer.wer("i feel so alone since you left", transcripts["ada_sadness_2"].lower().strip(".")) <= 0.2
    assert len(pd.read_csv(run / "model" / "predictions.csv")) == 80
    assert (run / "model" / "checkpoints" / "best.ckpt").stat().st_size < 5e6, "a checkpoint must not hold a backbone"
    python_blocks = readme_blocks("python")
    assert python_blocks
    for block in python_blocks:
        result = subprocess.run(
            [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{block}\n{result.stderr}"
        assert result.stdout.strip(), "an example of the README must print something"
