"""Task vectors, the algebra that all merging rests on.

A task vector τ_t = θ_t − θ_0 covers the whole encoder state: every float tensor, embeddings, norms and
biases and batch norm statistics included; heads are never merged. Whole-number tensors, such as batch norm's
count of batches, are those of the base.

Task vectors are lazy: a tensor is computed when asked for. Over memory-mapped checkpoints
(`simo.checkpoints.TensorFile`), merging any number of experts holds one tensor of each at a time.
"""

import math
from collections.abc import Mapping

import torch

from simo.checkpoints import PLAIN, check_tensor, load_into
from simo.errors import SimoError, require


class TaskVector(Mapping):
    """A mapping from parameter name to the change of that parameter, with vector algebra.

    `a + b` and `0.3 * a` are task vectors again; `a.apply(base, alpha)` is a state dict.

    Parameters
    ----------
    names : iterable of str
        The tensors' names.
    compute : callable
        From a name to its tensor; called at each access.
    """

    __array_ufunc__ = None  # a NumPy scalar times a task vector is a task vector

    def __init__(self, names, compute):
        self._names, self._compute = tuple(sorted(names)), compute

    @classmethod
    def between(cls, base, expert, label="expert"):
        """θ_t − θ_0 of two states with the same names, shapes and floating types; whole numbers are left out.

        Raises
        ------
        SimoError
            Naming the first tensor that differs, or, when it is computed, one that is not finite.
        """
        kinds = [type(state).__name__ for state in (base, expert)]
        wanted = "states by tensors' names, such as `TensorFile(path)`"
        require("base and expert", kinds, isinstance(base, Mapping) and isinstance(expert, Mapping), wanted)
        for name in sorted(base.keys() ^ expert.keys()):
            where = label if name in expert else "base"
            raise SimoError(f"only {where} has tensor {name!r}: experts must share the base's architecture")

        def subtract(name):
            a, b = expert[name], base[name]
            for tensor, where in ((a, label), (b, "base")):
                check_tensor(tensor, f"tensor {name!r} of {where}")
            if a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
                found = [f"{tuple(x.shape)} {x.dtype}" for x in (a, b)]
                what = "expected the same shape and floating-point types"
                raise SimoError(f"tensor {name!r}: {label} has {found[0]}, base has {found[1]}; {what}")
            change = a.detach().float().to(b.device) - b.detach().float()
            # one sum is cheap; only where it is not finite, each entry is looked at
            if not math.isfinite(change.sum()) and not torch.isfinite(change).all():
                count = (~torch.isfinite(change)).sum().item()
                raise SimoError(
                    f"tensor {name!r}: {label} differs from the base by {count} values that are NaN or "
                    "infinite in float32: its training diverged, or its file is damaged; make it again"
                )
            return change

        plain = {name for name, x in base.items() if torch.is_tensor(x) and x.dtype in PLAIN}
        whole = {name for name in plain if not base[name].is_floating_point()}
        return cls(base.keys() - whole, subtract)

    def __getitem__(self, name):
        """Compute one tensor."""
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __contains__(self, name):
        """Whether there is such a tensor; it is not computed."""
        return name in self._names

    def __iter__(self):
        """Iterate over names, sorted."""
        return iter(self._names)

    def __len__(self):
        """Return the number of tensors."""
        return len(self._names)

    def __add__(self, other):
        """Sum of two task vectors of the same model."""
        require("architecture of a task vector", "another", self._names == other._names, "the same tensors")
        return TaskVector(self._names, lambda name: self[name] + other[name])

    def __mul__(self, factor):
        """Task vector scaled by a number."""
        return TaskVector(self._names, lambda name: self[name] * factor)

    __rmul__ = __mul__

    def compute(self):
        """Evaluate all tensors once, for repeated use: a task vector that holds them in memory."""
        return TaskVector(self._names, dict(self).__getitem__)

    def apply(self, base, alpha=1.0):
        """θ_0 + α τ as a new state dict, of the base's types; the base is not changed.

        What τ does not have is the base's. Variances of batch norms that would be negative become 0.

        Raises
        ------
        SimoError
            Naming a tensor of τ that the base lacks, or has in another shape.
        """
        state = {name: tensor.clone() for name, tensor in base.items() if name not in self._names}
        return state | {name: self._moved(name, base, alpha) for name in self}

    def load_into(self, module, base, alpha):
        """Give a module the state that `apply` makes, tensor by tensor, so that no state dict is made.

        Raises
        ------
        SimoError
            As of `simo.checkpoints.load_into`; the tensors before the one that it names are changed then. For
            a base that is the module's own state, not a copy: the next α would start from this one.
        """
        refuse_own(module, base)
        state = TaskVector(base, lambda name: self._moved(name, base, alpha) if name in self else base[name])
        load_into(module, state, f"θ_0 + {alpha} τ", whole=False)

    def _moved(self, name, base, alpha):
        own, change = base[name].detach() if name in base else None, self[name]
        if own is None or own.shape != change.shape:
            raise SimoError(f"tensor {name!r}: expected a base that has it, of shape {tuple(change.shape)}")
        return bounded(name, (own.float() + alpha * change).to(own.dtype))

    def norm(self):
        """Euclidean norm over all entries, in float64."""
        return math.sqrt(sum(self[name].double().square().sum().item() for name in self))

    def cosine(self, other):
        """Cosine of the angle to another task vector, in [-1, 1]; NaN where one of the two is 0."""
        product = sum((self[name].double() * other[name].double()).sum().item() for name in self)
        norms = self.norm() * other.norm()
        return product / norms if norms else math.nan


def refuse_own(module, base):
    """Refuse a base of which a tensor is a module's own: what is written there would change it, too."""
    for name, own in module.state_dict().items():
        if name in base and own.numel() and own.data_ptr() == base[name].data_ptr():
            raise SimoError(f"tensor {name!r} of the base is the module's own: expected a clone() of it")


def bounded(name, tensor):
    """A merged tensor as a model can hold it: sums of task vectors can take a variance below 0."""
    return tensor.clamp(min=0) if name.endswith("running_var") else tensor


def is_matrix(name, tensor):
    """Whether a tensor is the weight of a linear layer; tokens and embeddings may be 2-D, too."""
    return tensor.ndim == 2 and name.endswith(".weight")
