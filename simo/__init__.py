"""The companion to "Single-Input Multi-Output Model Merging": small modules, one for each step of the paper.

``import simo`` is instant: nothing heavy is imported before a module that needs it. Import it before timm or
torchvision, because it makes a CUDA build of torchvision work beside a CPU build of torch.
"""

from simo import _torchvision

__version__ = "1.0.0"

_torchvision.install_finder()
