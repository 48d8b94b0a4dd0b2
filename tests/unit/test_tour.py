"""docs/tour.ipynb runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient


@pytest.fixture(scope="module")
def notebook(root: Path) -> nbformat.NotebookNode:
    return nbformat.read(root / "docs/tour.ipynb", as_version=4)


def test_it_is_short_and_kept_without_outputs(notebook: nbformat.NotebookNode):
    assert len(notebook.cells) == 10
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells)


def test_every_cell_runs_and_the_pictures_are_there(notebook: nbformat.NotebookNode, root: Path):
    done = NotebookClient(
        notebook, timeout=600, startup_timeout=300, resources={"metadata": {"path": str(root)}}
    ).execute()
    shown = [{kind for output in cell.outputs for kind in output.get("data", {})} for cell in done.cells]
    pictures = [place for place, kinds in enumerate(shown) if "image/png" in kinds]
    assert pictures == [1, 2, 3, 4, 5, 6, 8, 9]
    assert "torch.Size([1, 1, 28, 28])" in done.cells[7].outputs[-1]["data"]["text/plain"]
