"""Weights as safetensors beside a JSON recipe that says what they are; verified on load.

`expert.safetensors` holds the tensors, `expert.json` the recipe: what made them, and a hash of the
tensors. The recipe is written last, so that a checkpoint without one is an unfinished one.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from simo import __version__
from simo.errors import SimoError, require
from simo.files import atomic_path, decoding, read_object, write_json

PACKAGES = ("torch", "timm", "torchvision", "numpy", "safetensors")
# floats of 8 bits and fewer need a scale that stands elsewhere; quantised and complex numbers are others, too
PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool}
PLAIN |= {torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8}


def save_checkpoint(path, tensors, recipe):
    """Write tensors and recipe, each atomically, the recipe last.

    Parameters
    ----------
    path : str or Path
        Ends in `.safetensors`.
    tensors : mapping of str to Tensor
        What to store; shared memory and devices do not matter.
    recipe : dict
        JSON-able description. `sha256` is added.
    """
    path = Path(path)
    save_tensors(path, tensors)
    write_json(path.with_suffix(".json"), {**recipe, "sha256": _sha256(path)})


def load_recipe(path, **expected):
    """Read the recipe of a checkpoint, verify its tensors' hash and what the caller expects of it.

    Parameters
    ----------
    path : str or Path
        The `.safetensors` file.
    **expected
        Recipe entries that must have these values, such as `task="depth"` or `model={...}`.

    Raises
    ------
    SimoError
        If the checkpoint is missing, unfinished, changed since it was written, or of another kind. Asking
        the recipe for an entry that it lacks is a SimoError, too.
    """
    path = Path(path)
    if not path.is_file():
        raise SimoError(f"checkpoint {path} does not exist: make it first, by its notebook or by `export`")
    if not path.with_suffix(".json").is_file():
        raise SimoError(f"checkpoint {path} is unfinished, without {path.stem}.json beside it: make it again")
    recipe = _Recipe(path)
    for key, value in expected.items():
        found = recipe.get(key)
        require(f"{key} of checkpoint {path}", repr(found), found == value, repr(value))
    if _sha256(path) != recipe.get("sha256"):
        raise SimoError(f"checkpoint {path} is not what its recipe describes (sha256 differs): make it again")
    return recipe


class _Recipe(dict):
    """The entries of a recipe; one that is missing is named."""

    def __init__(self, path):
        self.path = path.with_suffix(".json")
        super().__init__(read_object(self.path))

    def __missing__(self, key):
        """Refuse."""
        raise SimoError(f"{self.path} lacks the entry {key!r}: it is damaged, or no recipe; make it again")


class TensorFile(Mapping):
    """A safetensors file as a mapping that reads a tensor when it is asked for, and keeps none.

    Parameters
    ----------
    path : str or Path
        The file.
    prefix : str
        Only names that start with it, given without it: `encoder.` of an expert.
    """

    def __init__(self, path, prefix=""):
        require("the path", f"{path!r:.60}", isinstance(path, str | Path), "text: a safetensors file's path")
        self.path, self.prefix = Path(path), prefix
        require(self.path, "a folder", not self.path.is_dir(), "a file in the format safetensors")
        with self._decoding():
            open(self.path, "rb").close()  # safetensors says of each that it cannot open that it is missing
            self._file = safe_open(self.path, framework="pt")
            self.metadata = self._file.metadata() or {}
            self._names = [name[len(prefix) :] for name in self._file.keys() if name.startswith(prefix)]

    def _decoding(self):
        advice = "make it, or fetch it, again; what torch.load reads, save_tensors writes in this format"
        return decoding(f"{self.path}, in the format safetensors,", advice)

    def __getitem__(self, name):
        """Read one tensor."""
        if name not in self._names:
            raise KeyError(name)
        with self._decoding():
            return self._file.get_tensor(self.prefix + name)

    def __contains__(self, name):
        """Whether there is a tensor of that name; it is not read."""
        return name in self._names

    def __iter__(self):
        """Iterate over names, sorted."""
        return iter(sorted(self._names))

    def __len__(self):
        """Return the number of tensors."""
        return len(self._names)


def load_into(module, tensors, source, whole=True):
    """Copy tensors into a module; every name and shape must match.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    tensors : mapping of str to Tensor
        Its state, of any floating type of 16 bits or more, on any device.
    source : str or Path
        Where they come from, for the message.
    whole : bool
        Whether nothing is copied unless all fit. Without it, tensors are read one by one, and none is kept.

    Raises
    ------
    SimoError
        Naming the first tensor that is missing, unexpected, of another shape or kind, or not finite in the
        module's type.
    """
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        # of names that merely begin with more, the one that says so
        prefixed = [name for name in unexpected if missing and name.endswith(f".{missing[0]}")]
        found = [f"has {name!r}, which this model lacks" for name in [*prefixed, *unexpected][:1]]
        what = " and ".join([*(f"lacks {name!r}" for name in missing[:1]), *found])
        count = f"({len(missing)} missing, {len(unexpected)} unexpected)"
        raise SimoError(f"{source} is of another architecture: it {what} {count}")
    with torch.no_grad():
        fitting = ((tensor, _fitting(tensor, tensors[name], source, name)) for name, tensor in own.items())
        for tensor, found in list(fitting) if whole else fitting:
            tensor.copy_(found)


def _fitting(tensor, found, source, name):
    """What is to be copied into a tensor, checked, and of its type."""
    what = f"{source}: {name}"
    check_tensor(found, what)
    if tensor.shape != found.shape:
        shapes = f"shape {tuple(found.shape)}, expected {tuple(tensor.shape)}"
        raise SimoError(f"{source} is of another architecture: {name} has {shapes}")
    if tensor.is_floating_point() != found.is_floating_point():
        raise SimoError(f"{what} is of {found.dtype}, expected {tensor.dtype}")
    found = found.to(tensor.dtype)
    if not torch.isfinite(found).all():
        count = (~torch.isfinite(found)).sum().item()
        raise SimoError(f"{what} has {count} values that are NaN, infinite or too large for {tensor.dtype}")
    return found


def check_tensor(tensor, what):
    """Refuse what is no dense tensor of plain numbers.

    Parameters
    ----------
    tensor : object
        Expected: a tensor with values (not on the device `meta`), not sparse, not quantised, of real numbers
        of 16 bits or more, or whole ones.
    what : str
        What it is called in the message.

    Raises
    ------
    SimoError
        Saying what was found.
    """
    if not isinstance(tensor, torch.Tensor):
        raise SimoError(f"{what}: expected a tensor, found {type(tensor).__name__}")
    if tensor.is_meta:
        raise SimoError(f"{what} is on the device meta: expected a tensor with values; load its weights")
    if tensor.layout != torch.strided:
        raise SimoError(f"{what} is {tensor.layout}: expected a dense tensor, such as to_dense() gives")
    if tensor.dtype not in PLAIN:
        advice = "convert it, with its scale if it has one"
        raise SimoError(f"{what} is of {tensor.dtype}: expected plain numbers; {advice}")


def save_tensors(path, tensors, metadata=None):
    """Write a safetensors file, all or nothing: copies on the CPU, so that shared memory does not matter.

    Parameters
    ----------
    path : str or Path
    tensors : mapping of str to Tensor
        Such as a `state_dict()`.
    metadata : dict of str to str, optional

    Raises
    ------
    SimoError
        For what is no such mapping, a tensor without plain values, or where nothing can be written.
    """
    named = isinstance(tensors, Mapping) and all(isinstance(name, str) for name in tensors)
    require("what to save", f"a {type(tensors).__name__}", named, "tensors by text, as in a state_dict()")
    for name, tensor in tensors.items():
        check_tensor(tensor, f"{path}: {name}")
    copies = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(copies, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk arrives as this, not as OSError
            raise OSError(None, str(error)) from error


def versions():
    """Versions of Python, of the `simo` that runs, and of the packages that a number may depend on."""
    own = {"python": platform.python_version(), "simo": __version__}  # not what happens to be installed
    return own | {name: importlib.metadata.version(name) for name in PACKAGES}


def _sha256(path):
    with decoding(path, "make it again"), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
