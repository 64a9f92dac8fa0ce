"""`make photos DOWNLOAD=yes`: what would be fetched and made, planned without fetching anything."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_download_needs_no_file_at_hand(tmp_path):
    """NYUv2 is fetched at the profile's size, the encoder by timm, and the five tasks are made of NYUv2."""
    config = ["profile=photos", "download=yes", f"build={tmp_path}", "studies=nyuv2 taskonomy_photos"]
    command = ["-m", "snakemake", "book", "-n", "-p", "--cores", "1", "--config", *config]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout
    lines = [line.partition("python -m ")[2] for line in done.stdout.splitlines() if "data_scripts." in line]
    commands = {line.split()[0].removeprefix("data_scripts."): line for line in lines}
    assert f"--raw {tmp_path}/raw/nyuv2" in commands["nyuv2"]
    assert "--size 126 168 --download" in commands["nyuv2"]
    assert "--weights timm --backbone vit_small_patch14_dinov2.lvd142m" in commands["weights"]
    assert f"--raw {tmp_path}/data/nyuv2" in commands["five_tasks"]
    assert not list((tmp_path / "raw/nyuv2").iterdir())  # planned, nothing fetched
