"""Task vectors and the methods that merge them.

A task vector τ_t = θ_t − θ_0 covers the whole encoder state: every float tensor, embeddings, norms and
biases included; heads are never merged. Methods are pure functions from the experts' task vectors to
one merged task vector, which is applied as θ_0 + α τ.

Task vectors are lazy: a tensor is computed when asked for. Over memory-mapped checkpoints
(`simo.checkpoints.TensorFile`), merging any number of experts holds one tensor of each at a time.
"""

import inspect
import math
from collections.abc import Mapping

import numpy as np
import torch

from simo.checkpoints import TensorFile, load_into, load_recipe
from simo.errors import SimoError
from simo.models import create_model


class TaskVector(Mapping):
    """A mapping from parameter name to the change of that parameter, with vector algebra.

    `a + b`, `-a`, `a - b`, `0.3 * a` are task vectors again; `a.apply(base, alpha)` is a state dict.

    Parameters
    ----------
    names : iterable of str
        The tensors' names.
    compute : callable
        From a name to its tensor; called at each access.
    """

    def __init__(self, names, compute):
        self._names, self._compute = tuple(sorted(names)), compute

    @classmethod
    def between(cls, base, expert, label="expert"):
        """θ_t − θ_0 of two states with the same names, shapes and floating types.

        Raises
        ------
        SimoError
            Naming the first tensor that differs.
        """
        for name in sorted(base.keys() ^ expert.keys()):
            where = label if name in expert else "base"
            raise SimoError(f"only {where} has tensor {name!r}: experts must share the base's architecture")

        def subtract(name):
            a, b = expert[name], base[name]
            if a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
                raise SimoError(
                    f"tensor {name!r}: {label} has {tuple(a.shape)} {a.dtype}, "
                    f"base has {tuple(b.shape)} {b.dtype}; "
                    "expected the same shape and floating-point types"
                )
            return a.float() - b.float()

        return cls(base.keys(), subtract)

    def __getitem__(self, name):
        """Compute one tensor."""
        if name not in self._names:
            raise KeyError(name)
        return self._compute(name)

    def __iter__(self):
        """Iterate over names, sorted."""
        return iter(self._names)

    def __len__(self):
        """Return the number of tensors."""
        return len(self._names)

    def __add__(self, other):
        """Sum of two task vectors of the same model."""
        if self._names != other._names:
            raise SimoError(
                "task vectors of different architectures cannot be added: their tensors' names differ"
            )
        return TaskVector(self._names, lambda name: self[name] + other[name])

    def __mul__(self, factor):
        """Task vector scaled by a number."""
        return TaskVector(self._names, lambda name: self[name] * factor)

    __rmul__ = __mul__

    def __neg__(self):
        """Task vector that undoes this one."""
        return self * -1.0

    def __sub__(self, other):
        """Difference of two task vectors of the same model."""
        return self + -other

    def compute(self):
        """Evaluate all tensors once, for repeated use: a task vector that holds them in memory."""
        return TaskVector(self._names, dict(self).__getitem__)

    def apply(self, base, alpha=1.0):
        """θ_0 + α τ as a new state dict, of the base's types; the base is not changed."""
        return {name: (base[name].float() + alpha * self[name]).to(base[name].dtype) for name in self}

    def dot(self, other):
        """Inner product over all entries, in float64."""
        return sum((self[name].double() * other[name].double()).sum().item() for name in self)

    def norm(self):
        """Euclidean norm over all entries."""
        return math.sqrt(self.dot(self))

    def cosine(self, other):
        """Cosine of the angle to another task vector, in [-1, 1]."""
        return self.dot(other) / (self.norm() * other.norm())


def is_matrix(name, tensor):
    """Whether a tensor is the weight of a linear layer; tokens and embeddings may be 2-D, too."""
    return tensor.ndim == 2 and name.endswith(".weight")


def load_experts(folder, dataset, tasks, settings, weights):
    """What merging starts from: θ_0 under the experts' heads, and the experts' task vectors.

    Parameters
    ----------
    folder : Path
        Holds `expert_<task>.safetensors` for each task.
    dataset : str
    tasks : sequence of Task
    settings : dict
        See `simo.models.load_model`.
    weights : str or Path
        θ_0, the pretrained backbone that the experts started from.

    Returns
    -------
    (MultiTaskModel, dict of str to Tensor, dict of str to TaskVector)
        The model, its encoder's state θ_0, and lazy task vectors by task name.
    """
    model = create_model(tasks, seed=0, **settings, weights=weights)
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    task_vectors = {}
    for task in tasks:
        path = folder / f"expert_{task.name}.safetensors"
        load_recipe(path, kind="expert", dataset=dataset, tasks=[task.name], model=settings)
        load_into(model.heads[task.name], TensorFile(path, f"heads.{task.name}."), path)
        task_vectors[task.name] = TaskVector.between(base, TensorFile(path, "encoder."), task.name)
    return model.eval(), base, task_vectors


def pretrained(task_vectors):
    """No change at all: θ_0 under the experts' heads. The control that merging must beat."""
    return task_vectors[0] * 0.0


def average(task_vectors):
    """Mean of the task vectors: θ_0 + τ is the average of the experts' weights (Wortsman et al., 2022)."""
    return (1 / len(task_vectors)) * task_arithmetic(task_vectors)


def task_arithmetic(task_vectors):
    """Sum of the task vectors (Ilharco et al., 2023)."""
    return sum(task_vectors[1:], task_vectors[0])


def ties(task_vectors, density=0.2):
    """Trim, elect sign, disjoint mean (Yadav et al., 2023).

    Variant: as in the official code, trimming ranks the entries of a whole task vector, not of each
    tensor. The `density` largest magnitudes are kept, and all that equal the smallest kept one. The sign
    of an entry is the sign of the sum of the trimmed task vectors; where that is 0, the majority of the
    elected signs over all entries (minus if that is a tie, too). The result is the mean of the trimmed,
    non-zero entries that agree with the sign, and 0 if none does. `density=1` does not trim, which is
    the default of the paper's released code.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    density : float
        Fraction of entries to keep, in (0, 1].
    """
    thresholds = [_magnitude_threshold(vector, density) for vector in task_vectors]

    def trimmed(name):
        tensors = [vector[name] for vector in task_vectors]
        return torch.stack(
            [x * (x.abs() >= low) for x, low in zip(tensors, thresholds, strict=True)]
        )  # (T, ...)

    votes = sum(trimmed(name).sum(0).sign().sum().item() for name in task_vectors[0])
    majority = 1.0 if votes > 0 else -1.0

    def merge(name):
        stack = trimmed(name)
        sign = stack.sum(0).sign()
        sign = torch.where(sign == 0, majority, sign)
        agrees = stack * sign > 0
        return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)

    return TaskVector(task_vectors[0], merge)


def _magnitude_threshold(vector, density):
    """The smallest of the `density` largest magnitudes of a task vector; 0 keeps everything."""
    if not 0 < density <= 1:
        raise SimoError(f"density {density}: expected a fraction in (0, 1], such as 0.2")
    if density == 1:
        return 0.0
    magnitudes = np.concatenate([vector[name].abs().flatten().numpy() for name in vector])
    kept = max(1, int(density * magnitudes.size))
    return float(np.partition(magnitudes, magnitudes.size - kept)[magnitudes.size - kept])


def ties_untrimmed(task_vectors):
    """TIES without its trimming: the default of the paper's released code."""
    return ties(task_vectors, density=1.0)


METHODS = {
    "pretrained": pretrained,
    "average": average,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "ties_untrimmed": ties_untrimmed,
}


def merge(method, task_vectors, methods=METHODS, **options):
    """Merge by a method's name.

    Parameters
    ----------
    method : str
        A key of `methods`.
    task_vectors : sequence of TaskVector
        One an expert, over the same base.
    methods : dict of str to callable
        The paper's, unless those of `simo.field.METHODS` are given, which has more.
    **options
        Of the method, such as `density`.

    Returns
    -------
    TaskVector
        Lazy; `compute()` it before scanning α.

    Raises
    ------
    SimoError
        For an unknown method, no task vector, or options that the method does not have or lacks.
    """
    if method not in methods:
        raise SimoError(f"unknown merging method {method!r}: expected one of {sorted(methods)}")
    if not task_vectors:
        raise SimoError("nothing to merge: expected at least one task vector")
    try:
        inspect.signature(methods[method]).bind(task_vectors, **options)
    except TypeError as error:
        raise SimoError(f"options {options} of {method}: {error}") from error
    return methods[method](list(task_vectors), **options)


def tall_mask(task_vectors, index, scale):
    """Σ τ where one expert's change outweighs the others': |τ_t| > λ |Σ τ − τ_t| (Wang et al., 2024).

    Applied with α = 1 it is an encoder for that task alone: all tasks need as many encoder passes as tasks.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    index : int
        Which expert is t.
    scale : float
        λ; the larger, the fewer entries are kept.
    """
    return _masked(task_vectors, lambda name, whole: _outweighs(task_vectors[index][name], whole, scale))


def magnitude_mask(task_vectors, index, density):
    """Σ τ where one expert's change is among its `density` largest; an encoder for that task alone.

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    index : int
        Which expert.
    density : float
        Fraction of entries to keep, in (0, 1]; the released code's is 0.1.
    """
    own = task_vectors[index]
    least = _magnitude_threshold(own, density)
    return _masked(task_vectors, lambda name, _: own[name].abs() >= least)


def consensus(task_vectors, scales, least=2):
    """Σ τ where the TALL masks of at least `least` experts agree: one encoder again (Wang et al., 2024).

    Parameters
    ----------
    task_vectors : sequence of TaskVector
    scales : sequence of float
        λ of each expert's mask.
    least : int
        0 keeps everything: task arithmetic.
    """
    experts = list(zip(task_vectors, scales, strict=True))
    return _masked(
        task_vectors,
        lambda name, whole: sum(_outweighs(own[name], whole, scale).int() for own, scale in experts) >= least,
    )


def _masked(task_vectors, keep):
    """Σ τ where `keep(name, tensor of Σ τ)` says so, 0 elsewhere."""
    total = task_arithmetic(task_vectors)

    def mask(name):
        whole = total[name]
        return whole * keep(name, whole)

    return TaskVector(total, mask)


def _outweighs(own, whole, scale):
    """Where one expert's change is larger than `scale` times that of all others together."""
    return own.abs() > scale * (whole - own).abs()
