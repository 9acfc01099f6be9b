"""Every example notebook is stored without outputs, and runs from start to end."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from .conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NEEDED = ("checkpoints", "configs", "demo")  # folders that the notebooks read
CELL_SECONDS = 300  # limit of one cell, on two cores with other work beside it


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """The folders of the repository in a temporary folder, so that no notebook writes into the repository."""
    root = tmp_path / "repository"
    (root / "examples").mkdir(parents=True)
    for name in NEEDED:
        (root / name).symlink_to(ROOT / name, target_is_directory=True)
    for path in NOTEBOOKS:
        shutil.copy(path, root / "examples")
    return root


def execute(path: Path, folder: Path) -> str:
    """Runs a notebook from a folder, and returns the text that it prints."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in code_cells(notebook)] == [[]] * len(code_cells(notebook))
    assert {cell.execution_count for cell in code_cells(notebook)} == {None}


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "examples"])
def test_first_emotion_runs_without_pytorch(layout: Path, folder: str) -> None:
    printed = execute(layout / "examples" / "1_first_emotion.ipynb", layout / folder)
    assert "PyTorch imported: False" in printed
    assert (layout / "runs" / "examples" / "1_first_emotion" / "timeline.png").is_file()


@pytest.mark.slow
@pytest.mark.weights
def test_train_evaluate_compare_writes_a_report(layout: Path) -> None:
    printed = execute(layout / "examples" / "2_train_evaluate_compare.ipynb", layout / "examples")
    assert "p (permutation)" in printed
    run = layout / "runs" / "examples" / "2_train_evaluate_compare"
    assert (run / "audio_text" / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.weights
def test_distil_and_export_writes_a_small_model(layout: Path) -> None:
    printed = execute(layout / "examples" / "3_distil_and_export.ipynb", layout / "examples")
    assert "finn_anger_1.flac" in printed
    exported = layout / "runs" / "examples" / "3_distil_and_export" / "exported"
    assert (exported / "model.int8.onnx").stat().st_size < 200_000
