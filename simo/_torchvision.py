"""Lets timm import torchvision where torch is a CPU build and torchvision a CUDA build.

PyPI's torchvision for Linux is a CUDA build. Beside a CPU build of torch its compiled operators cannot be
loaded, and ``import torchvision`` (hence ``import timm``) stops with "operator torchvision::nms does not
exist". simo uses none of those operators, so declaring their schemas is enough: transforms, datasets and
models then work in full.

A matching pair of torch and torchvision is left alone.
"""

import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = ("nms", "qnms")


def needs_schemas(torchvision_version, torch_cuda):
    """Tell whether torchvision is a CUDA build beside a torch without CUDA.

    Parameters
    ----------
    torchvision_version : str
        ``torchvision.__version__``, for example ``"0.28.0+cu130"``.
    torch_cuda : str or None
        ``torch.version.cuda``, None for a CPU build.

    Returns
    -------
    bool
    """
    return "+cu" in torchvision_version and torch_cuda is None


def installed_version():
    """Return the version that the installed torchvision gives itself, without importing it; "" if unknown.

    The package's metadata will not do: it says ``0.28.0`` where ``version.py`` says ``0.28.0+cu130``.
    """
    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return ""
    version_file = Path(spec.origin).with_name("version.py")
    text = version_file.read_text(encoding="utf-8") if version_file.is_file() else ""
    found = re.search(r"""^__version__\s*(?::\s*\w+\s*)?=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return found.group(1) if found else ""


def declare_schemas():
    """Declare torchvision's two operators, without kernels, so that torchvision can be imported.

    Returns
    -------
    torch.library.Library
        The declarations last as long as this object.
    """
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for name in _OPERATORS:
        library.define(name + _SCHEMA)
    return library


class TorchvisionFinder:
    """A finder that finds nothing; it only prepares torch at the moment torchvision is first looked for."""

    def __init__(self):
        self.library = None  # keeps the declarations alive

    def find_spec(self, name, path=None, target=None):
        """Declare the schemas if they are needed, then leave the search to the other finders."""
        if name == "torchvision" and self.library is None:
            version = installed_version()
            if "+cu" in version:  # asked before torch, which takes a second to import
                import torch

                if needs_schemas(version, torch.version.cuda):
                    self.library = declare_schemas()
        return None


def install_finder():
    """Put one `TorchvisionFinder` in front of the import system, unless torchvision is imported already."""
    known = any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not known:
        sys.meta_path.insert(0, TorchvisionFinder())
