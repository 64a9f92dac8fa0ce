"""Realignment without labels and without training: ridge regressions from merged to expert features.

For every task and tap, a linear map A z + c takes the merged encoder's features as close to the expert's as
it can, on unlabelled images. It folds into the head's first linear layer: inference costs nothing more.

Sums are streamed in float64: memory does not grow with the images. The strength of the ridge, which pulls A
towards the identity, is chosen for each map on held-out images.
"""

import copy
from dataclasses import dataclass, field

import torch

from simo.errors import SimoError
from simo.training import autocast, progress

STRENGTHS = tuple(10.0**power for power in range(-6, 3))  # of the ridge, relative to the mean variance


@dataclass
class Moments:
    """Sums over pairs of rows (z, y), from which a ridge regression of y on z follows.

    Adding and subtracting moments joins and separates the pairs, so that folds are held out without another
    pass over the images.
    """

    count: float = 0.0
    sums: dict = field(default_factory=dict)  # z, y, zz (d, d), yz (e, d) float64 tensors, yy a number

    @classmethod
    def of(cls, z, y):
        """Moments of rows z `(n, d)` and y `(n, e)`."""
        z, y = z.double(), y.double()
        return cls(
            len(z), {"z": z.sum(0), "y": y.sum(0), "zz": z.T @ z, "yz": y.T @ z, "yy": y.square().sum()}
        )

    def __add__(self, other):
        """Moments of both sets of pairs."""
        if not self.sums:
            return other
        return Moments(
            self.count + other.count, {name: value + other.sums[name] for name, value in self.sums.items()}
        )

    def __sub__(self, other):
        """Moments without some of the pairs."""
        return Moments(
            self.count - other.count, {name: value - other.sums[name] for name, value in self.sums.items()}
        )

    def centred(self):
        """Means of z and y, and the centred sums of zzᵀ and yzᵀ."""
        z, y = self.sums["z"] / self.count, self.sums["y"] / self.count
        return z, y, self.sums["zz"] - self.count * z.outer(z), self.sums["yz"] - self.count * y.outer(z)

    def error(self, matrix, shift):
        """Sum of squared residuals ‖y − A z − c‖² over the pairs."""
        fitted = 2 * (matrix * self.sums["yz"]).sum() + 2 * shift @ self.sums["y"]
        norms = (matrix @ self.sums["zz"] * matrix).sum() + 2 * shift @ matrix @ self.sums["z"]
        return (self.sums["yy"] - fitted + norms + self.count * shift @ shift).item()


def ridge(moments, strength):
    """A and c of least squared error, with A pulled towards the identity.

    Minimises Σ ‖y − A z − c‖² + λ ‖A − I‖², λ = strength · tr(G) / d with G the centred Σ z zᵀ.

    Parameters
    ----------
    moments : Moments
        Of equally wide z and y.
    strength : float
        0 is least squares; infinity a shift of the mean alone.

    Returns
    -------
    (Tensor, Tensor)
        `(d, d)` and `(d,)`, float64.
    """
    z, y, zz, yz = moments.centred()
    identity = torch.eye(len(z), dtype=zz.dtype, device=zz.device)
    if strength == float("inf"):
        matrix = identity
    else:
        amount = strength * zz.trace() / len(z)
        matrix = torch.linalg.solve(zz + amount * identity, yz + amount * identity, left=False)
    return matrix, y - matrix @ z


def diagonal(moments):
    """A scale and a shift for each feature: the least squares among diagonal A."""
    z, y, zz, yz = moments.centred()
    variance = zz.diagonal()
    scale = torch.where(variance > 0, yz.diagonal() / variance.clamp(min=1e-300), 1.0)
    return scale.diag(), y - scale * z


def procrustes(moments):
    """A rotation or reflection and a shift: the least squares among orthogonal A."""
    z, y, _, yz = moments.centred()
    left, _, right = torch.linalg.svd(yz)
    matrix = left @ right
    return matrix, y - matrix @ z


def choose_ridge(folds, strengths=STRENGTHS):
    """Ridge regression on all folds, with the strength of least error on folds held out in turn.

    Parameters
    ----------
    folds : sequence of Moments
        At least two, of different images: tokens of one image resemble each other.
    strengths : sequence of float

    Returns
    -------
    ((Tensor, Tensor), float)
        The map, and the strength chosen.
    """
    if len(folds) < 2:
        raise SimoError(f"expected at least 2 folds to choose a ridge by, found {len(folds)}")
    total = sum(folds, Moments())
    errors = {
        strength: sum(fold.error(*ridge(total - fold, strength)) for fold in folds) for strength in strengths
    }
    best = min(errors, key=errors.get)
    return ridge(total, best), best


MAPS = {
    "ridge": lambda folds: choose_ridge(folds)[0],
    "diagonal": lambda folds: diagonal(sum(folds, Moments())),
    "procrustes": lambda folds: procrustes(sum(folds, Moments())),
}


def realign_closed_form(model, experts, batches, device="cpu", precision="float32", kind="ridge", folds=5):
    """Fold into every head the maps from the merged encoder's features to its own expert's.

    Parameters
    ----------
    model : MultiTaskModel
        The merged encoder under the experts' heads; not changed.
    experts : dict of str to Encoder
        By task name.
    batches : iterable of dict
        Of `image` `(B, 3, H, W)`; no label is read. Image i belongs to fold i modulo `folds`.
    device, precision : str
        See `simo.training.pick_device`. Moments are float64 whatever the encoders compute in.
    kind : str
        A key of `MAPS`.
    folds : int
        At most; of fewer images each is a fold.

    Returns
    -------
    MultiTaskModel
        A realigned copy: the same encoder, heads with other weights and the same architecture.
    """
    moments = gather_moments(model, experts, batches, device, precision, folds)
    realigned = copy.deepcopy(model).eval()
    for task, taps in moments.items():
        maps = [MAPS[kind]([fold for fold in tap if fold.sums]) for tap in taps]
        realigned.heads[task].fold(maps)
    return realigned


@torch.no_grad()
def gather_moments(model, experts, batches, device="cpu", precision="float32", folds=5):
    """Stream images through the merged encoder and all experts'.

    Returns
    -------
    dict of str to list of list of Moments
        By task, by input of its head (see the heads' `inputs`), by fold.
    """
    model.to(device).eval()
    found, seen = {}, 0
    for batch in progress(batches, label="moments"):
        image = batch["image"].to(device, non_blocking=True)
        with autocast(device, precision):
            merged = model.encoder(image)
            expert = {task: encoder.to(device).eval()(image) for task, encoder in experts.items()}
        numbers = (torch.arange(len(image)) + seen) % folds
        seen += len(image)
        for task, features in expert.items():
            head = model.heads[task]
            pairs = list(zip(head.inputs(merged), head.inputs(features), strict=True))  # (B, n, D) each
            rows = found.setdefault(task, [[Moments() for _ in range(folds)] for _ in pairs])
            for row, (z, y) in zip(rows, pairs, strict=True):
                for fold in numbers.unique().tolist():
                    chosen = numbers == fold
                    row[fold] = row[fold] + Moments.of(z[chosen].flatten(0, 1), y[chosen].flatten(0, 1))
    if not seen:
        raise SimoError("no image to realign on: expected at least two")
    return found
