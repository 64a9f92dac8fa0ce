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


def installed_version():
    """Return the version that the installed torchvision gives itself, without importing it; "" if unknown.

    The package's metadata will not do: it says ``0.28.0`` where ``version.py`` says ``0.28.0+cu130``.
    """
    spec = PathFinder.find_spec("torchvision")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = file.read_text(encoding="utf-8") if file and file.is_file() else ""
    found = re.search(r"""^__version__\s*(?::\s*\w+\s*)?=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return found.group(1) if found else ""


class TorchvisionFinder:
    """A finder that finds nothing; it only prepares torch at the moment torchvision is first looked for."""

    library = None  # the declarations last as long as this object

    def find_spec(self, name, path=None, target=None):
        """Declare two operators, without kernels, if need be; leave the search to the other finders."""
        if name == "torchvision" and self.library is None and "+cu" in installed_version():
            import torch  # only now: it takes a second

            if torch.version.cuda is None:
                self.library = torch.library.Library("torchvision", "FRAGMENT")
                for operator in ("nms", "qnms"):
                    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                    self.library.define(operator + schema)
        return None


def install_finder():
    """Put one `TorchvisionFinder` in front of the import system, unless torchvision is imported already."""
    known = any(isinstance(finder, TorchvisionFinder) for finder in sys.meta_path)
    if "torchvision" not in sys.modules and not known:
        sys.meta_path.insert(0, TorchvisionFinder())
