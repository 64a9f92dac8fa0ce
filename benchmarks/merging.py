"""Merging: experts in files against plain arithmetic, and against what methods' formulas say word by word."""

import torch
from safetensors.torch import load_file

from benchmarks.pairs import Pair
from benchmarks.sizes import model_of
from simo.checkpoints import TensorFile, save_tensors
from simo.encoders import create_encoder
from simo.merging import field, methods
from simo.merging import matrices as matrix_methods
from simo.merging.task_vectors import TaskVector

# the profile whose encoder is merged by arithmetic and TIES, that by singular values, and its blocks
SIZES = {"full": ("paper", "photos", 3), "tiny": ("tiny", "tiny", 1)}
DENSITY = 0.2


def pairs(size, folder):
    """Pairs of merging, its experts written into a folder."""
    large, small, blocks = SIZES[size]
    paths = write_experts(folder, large)
    state = paths[0].stat().st_size
    yield Pair(
        "Task arithmetic", "a plain sum of the same files",
        lambda: arithmetic(paths), lambda: plain_sum(paths), aim=1 / 1.1, state=state, memory=1.6,
    )  # fmt: skip
    yield Pair(
        "TIES", "its formula on whole vectors", lambda: ties(paths), lambda: flat_ties(paths),
        aim=10.0, state=state, memory=1.6,
    )  # fmt: skip
    vectors = matrices(write_experts(folder, small), blocks)
    for name, method in {"Iso-C": "iso_c", "Iso-CTS": "iso_cts", "TSV-M": "tsv_m"}.items():
        yield Pair(
            name, "singular values by their own decomposition",
            lambda method=method: field.METHODS[method](vectors).compute(),
            lambda method=method: by_singular_values(method, vectors), aim=1.0,
        )  # fmt: skip


def write_experts(folder, profile):
    """Write a start and three experts, random weights; their paths, the start's first."""
    model = model_of(profile)[0]
    encoder = create_encoder(*(model[key] for key in ("backbone", "backbone_args", "blocks")))
    start, random = dict(encoder.backbone.state_dict()), torch.Generator().manual_seed(0)
    paths = [folder / f"{profile}_{number}.safetensors" for number in range(4)]
    for number, path in enumerate(paths):
        step = 0.01 * bool(number)
        save_tensors(path, {n: x + step * torch.randn(x.shape, generator=random) for n, x in start.items()})
    return paths


def vectors_of(paths):
    """The pretrained state, and lazy task vectors over files."""
    base = dict(TensorFile(paths[0]))  # each tensor is mapped once: to map it anew costs as much as to add it
    return base, [TaskVector.between(base, TensorFile(path)) for path in paths[1:]]


def matrices(paths, blocks):
    """Task vectors, in memory, of the matrices of the first blocks."""
    chosen = tuple(f"blocks.{number}." for number in range(blocks))
    names = [n for n in TensorFile(paths[0]) if n.startswith(chosen) and n.endswith(".weight")]
    return [TaskVector(names, vector.__getitem__).compute() for vector in vectors_of(paths)[1]]


def arithmetic(paths, alpha=0.3):
    """Task arithmetic of files, as a new state."""
    base, vectors = vectors_of(paths)
    return methods.task_arithmetic(vectors).apply(base, alpha)


def ties(paths):
    """TIES of files, as a merged task vector in memory."""
    return methods.ties(vectors_of(paths)[1], DENSITY).compute()


def plain_sum(paths, alpha=0.3):
    """θ_0 + α Σ (θ_t − θ_0), written down."""
    base, *experts = map(TensorFile, paths)
    return {name: x + alpha * sum(expert[name] - x for expert in experts) for name, x in base.items()}


def flat_ties(paths):
    """TIES by its formula on whole vectors, as released code does it: all experts flat and in memory at once.

    Entries below the magnitude of rank d − k are trimmed, signs of the sums elected, a sum of 0 given the
    majority's sign, and entries of that sign averaged.
    """
    base, *experts = map(load_file, paths)
    flat = torch.cat([tensor.flatten() for tensor in base.values()])
    changes = torch.stack([torch.cat([e[name].flatten() for name in base]) for e in experts]) - flat
    rank = changes.shape[1] - int(changes.shape[1] * DENSITY)
    low = changes.abs().kthvalue(max(1, rank), dim=1, keepdim=True).values
    trimmed = torch.where(changes.abs() >= low, changes, torch.zeros(()))
    signs = trimmed.sum(dim=0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    agreeing = torch.where(signs > 0, trimmed > 0, trimmed < 0) * trimmed
    merged = agreeing.sum(dim=0) / (agreeing != 0).sum(dim=0).clamp(min=1)
    parts = merged.split([tensor.numel() for tensor in base.values()])
    return {name: part.view_as(base[name]) for name, part in zip(base, parts, strict=True)}


def by_singular_values(method, vectors):
    """Merge, every matrix decomposed by `torch.linalg.svd`."""

    def decompose(matrix, count=None):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :count], values[:count], v[:count]

    fast, matrix_methods._svd = matrix_methods._svd, decompose
    try:
        return field.METHODS[method](vectors).compute()
    finally:
        matrix_methods._svd = fast
