"""The tutorial prints what is kept in it when a fresh kernel runs it, and the answers folded away are right.

    python tests/test_tutorial.py        # after changing it: runs it, and writes the outputs into it

Answers run where they stand, so each may use what the cells before it made, and none may disturb a later one.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ANSWER = re.compile(r"<details><summary>Answer</summary>\n\n(.*?)\n\n</details>", re.S)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"\[([^\]]*)\]\(([^)]*)\)")


def read() -> NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def answers(cell: NotebookNode) -> list[str]:
    return ANSWER.findall(cell.source) if cell.cell_type == "markdown" else []


def executed(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """The notebook after a run in a fresh kernel: one thread, no network, this checkout, `folder` as home."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"IPYTHONDIR": str(folder / "ipython"), "MPLCONFIGDIR": str(folder / "matplotlib")}
    with tempfile.TemporaryDirectory() as sockets:  # a short path, and no port that others may have
        manager = {"transport": "ipc", "connection_file": f"{sockets}/kernel.json"}
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=600,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            config=Config(KernelManager=manager),
        )
        return client.execute(env=environment)


def with_answers(notebook: NotebookNode) -> NotebookNode:
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        blocks = [block for answer in answers(cell) for block in PYTHON.findall(answer)]
        cells += [new_code_cell(block, id=f"{cell.id}-{i}") for i, block in enumerate(blocks)]
    return NotebookNode({**notebook, "cells": cells})


def texts(cell: NotebookNode) -> str:
    """All that a cell prints, on both streams, and the text of its last value."""
    shown = (output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
    return "".join(shown)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NotebookNode]:
    """The cells after a run with the answers among them, by id; a cell that raises is an error here."""
    done = executed(with_answers(read()), tmp_path_factory.mktemp("tutorial"))
    return {cell.id: cell for cell in done.cells}


def test_each_cell_prints_what_is_kept_in_the_file(run):
    """Figures too: float64, and no draw that differs between machines. Pictures are compared by kind."""
    for cell in read().cells:
        if cell.cell_type == "code":
            assert texts(run[cell.id]) == texts(cell), cell.id
            kinds = [sorted(output.get("data", ())) for output in cell.outputs]
            assert [sorted(output.get("data", ())) for output in run[cell.id].outputs] == kinds


def test_each_exercise_has_an_answer_that_asserts_what_it_says(run):
    """The answers ran in the fixture. Each has code that would fail, and its figures stand in that code."""
    found = [(cell.id, answer) for cell in read().cells for answer in answers(cell)]
    asked = sum(len(re.findall(r"^\*\*Exercise \d+\.\*\*", cell.source, re.M)) for cell in read().cells)
    assert asked == len(found) >= 6
    for where, answer in found:
        (code,) = PYTHON.findall(answer)
        assert "assert " in code, where
        assert f"{where}-0" in run
        assert [n for n in figures(PYTHON.sub("", answer)) if n not in code] == [], where


def figures(prose: str) -> list[str]:
    """The numbers of two digits and more in a text, without links and what is set as code."""
    return re.findall(r"(?<![\w.])\d[\d.,]*\d(?!\w)", re.sub(r"`[^`]*`", "", LINK.sub("", prose)))


def test_figures_in_the_prose_stand_in_the_cell_beside_it():
    """Printed by the code cell before or after the text, or said in its code."""
    cells = read().cells
    for i, cell in enumerate(cells[1:], 1):
        if cell.cell_type == "markdown":
            prose = re.sub(r"\*\*Exercise \d+\.\*\*.*?</details>", "", cell.source, flags=re.S)
            code = [other for other in cells[:i] if other.cell_type == "code"][-1:]
            code += [other for other in cells[i:] if other.cell_type == "code"][:1]
            beside = " ".join(other.source + texts(other) for other in code)
            assert [n for n in figures(prose) if n not in beside] == [], cell.id


def test_what_it_names_exists():
    for cell in read().cells:
        if cell.cell_type == "markdown":
            for _, target in LINK.findall(cell.source):
                assert target.startswith("https://") or (NOTEBOOK.parent / target).exists(), target


def test_the_file_holds_nothing_that_changes_from_run_to_run():
    """No times, names of machines or settings of an editor; ids that say what a cell is; small pictures."""
    notebook = read()
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA and not any(cell.metadata for cell in notebook.cells)
    ids = [cell.id for cell in notebook.cells]
    assert len(ids) == len({*ids}) and all(re.fullmatch(r"[a-z-]+", one) for one in ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    for output in (output for cell in code for output in cell.outputs):
        assert output.get("name", "stdout") == "stdout" and not output.get("metadata")
        assert len(b64decode(output.get("data", {}).get("image/png", ""))) < 60_000
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


def test_where_peft_is_missing_its_cell_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "peft", None)
    (cell,) = (cell for cell in read().cells if cell.id == "peft")
    exec(cell.source, {})
    assert "PEFT is not installed" in capsys.readouterr().out


def write() -> None:
    """Run the notebook, without the answers, and keep what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = executed(read(), Path(folder))
    notebook.metadata = NotebookNode(METADATA)
    for cell in notebook.cells:
        cell.metadata = NotebookNode()
        for output in cell.get("outputs", ()):
            if "metadata" in output:
                output.metadata = NotebookNode()
    NOTEBOOK.write_text(nbformat.writes(notebook, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write()
