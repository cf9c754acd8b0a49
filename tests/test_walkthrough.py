"""docs/walkthrough.ipynb: its cells run from the first to the last, and what it ends with holds."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from ferry import local
from infra.settings import ROOT, load_settings

NOTEBOOK = ROOT / "docs" / "walkthrough.ipynb"
CELL_SECONDS = 300
MAX_BYTES = 200_000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the notebook and its kernel write. What a failing cell left running ends here."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    yield tmp_path
    for path in tmp_path.glob("walkthrough-*/*.toml"):
        local.down(load_settings(str(path)), lambda _: None)


@pytest.mark.slow
def test_every_cell_runs_and_both_doors_say_the_same(folder: Path) -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    )
    client.execute()
    outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    result = ast.literal_eval(outputs["result"][-1].data["text/plain"])
    assert result["test images"] == 328
    assert min(result["accuracy"].values()) >= 0.9
    assert set(result["accuracy"]) == {"sagemaker", "azure"}
    assert result["same labels"]
    assert result["same release"]
    assert result["largest difference"] <= 1e-5
    for pictured in ("raw", "picture"):
        assert "image/png" in outputs[pictured][-1].data
    assert list(folder.glob("walkthrough-*")) == []


def test_it_is_committed_small_and_as_nobody_ran_it() -> None:
    text = NOTEBOOK.read_text()
    assert len(text) < MAX_BYTES
    code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


def test_every_command_that_it_names_is_there() -> None:
    text = NOTEBOOK.read_text()
    verbs = set(re.findall(r"`make ([a-z-]+)", text))
    assert verbs
    assert verbs <= set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
