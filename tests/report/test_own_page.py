"""The page on one's own models: its cells can be pasted into a fresh Python."""

import os
import subprocess
import sys

from report.notebooks import ROOT, notebook_code


def test_the_page_runs_where_there_is_nothing_but_simo(tmp_path):
    """All cells, one after the other, in an empty folder, with one step an expert."""
    code = "\n".join(notebook_code(ROOT / "notebooks" / "pages" / "own_models.ipynb"))
    assert code.count("range(100)") == 1
    code = code.replace("range(100)", "range(1)")
    code += "\nimport sys\nassert not {'report', 'data_scripts', 'tools', 'IPython'} & sys.modules.keys()"
    (tmp_path / "simo").symlink_to(ROOT / "simo")
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"backbone": "vit_tiny_patch16_224"' in done.stdout  # the settings are printed
    assert [line.split()[0] for line in done.stdout.splitlines() if " m  " in line] == [
        "experts",
        "merged",
        "realigned",
    ]
    assert "model.onnx" in done.stdout
