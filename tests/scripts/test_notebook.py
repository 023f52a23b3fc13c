"""The notebook for Kaggle and Colab, executed here on the embedded model: install, train, stop, go on, evaluate."""

import copy
import os
import subprocess
from pathlib import Path

import pytest
from command_line import ROOT

NOTEBOOK = ROOT / "scripts" / "notebooks" / "kaggle_colab.ipynb"
RECIPE = "model: embedded\nmax_length: 128\npack_length: 256\nglobal_batch_size: 2\nmicro_batch_size: 2\nmax_steps: 4\n"


def execute(folder: Path, order: str, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    """What the cells print, executed in this order as one session with these variables."""
    import nbformat
    from nbclient import NotebookClient

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    notebook.cells = [copy.deepcopy(cells[int(number) - 1]) for number in order]
    NotebookClient(notebook, timeout=500, kernel_name="python3").execute(cwd=str(folder))
    outputs = [output for cell in notebook.cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    return "".join(output.get("text", "") for output in outputs)


@pytest.mark.optional
def test_training_goes_on_in_the_next_session_and_is_evaluated(tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    scratch, kept, next_kept = tmp_path / "scratch", tmp_path / "kept", tmp_path / "next"
    project = scratch / "LLM_QA"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    (project / ".venv").symlink_to(ROOT / ".venv")  # in place of an installation, which takes minutes
    for name in ("requirements.txt", "pyproject.toml"):
        os.utime(project / name, (0, 0))
    recipe, data = tmp_path / "r.yaml", tmp_path / "faq.csv"
    recipe.write_text(RECIPE)
    rows = [f"{number}번 문의는 어디로 하나요?,{number}번 창구로 오시면 됩니다." for number in range(40)]
    data.write_text("\n".join(["질문,답변", *rows]), encoding="utf-8")
    same = {"SCRATCH": str(scratch), "REPOSITORY": str(ROOT), "DATA": str(data), "RECIPE": str(recipe), "GPUS": "1"}
    same |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}

    # The first session ends after two of four steps, as if its time was over.
    printed = execute(tmp_path, "12", monkeypatch, KEPT=str(kept), HOURS="0.0001", FLAGS="", **same)
    assert "stopped early at step 1 of 4 (max_hours 0.0001)" in printed
    # The next one finds what the first has kept among its inputs.
    earlier = str(kept / "runs" / "min[e]")
    printed = execute(tmp_path, "1323", monkeypatch, KEPT=str(next_kept), HOURS="1", FLAGS="", EARLIER=earlier, **same)
    assert "not finished yet" in printed
    assert "'checkpoint-1'" in printed
    assert "going on from" in printed
    assert "done: 4 steps" in printed
    assert (next_kept / "reports" / "mine" / "report.html").is_file()
