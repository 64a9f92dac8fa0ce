"""What is measured at each size: models of the study's parameter files, and made-up data for them.

Weights and images are random: how long a step takes does not depend on what they are.
"""

import numpy as np

from simo.files import write_json
from simo.models import MODEL
from simo.tasks import tasks_of

TINY = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
    "blocks": [1, 2],
    "head": "linear",
    "head_options": {"expand": 1},
    "input_scale": "signed",
}
DATASET = "nyuv2"
TASKS = tasks_of(DATASET)


def model_of(profile):
    """A profile's model of NYUv2, size of its images and images a step; those of `tiny` are for tests."""
    from report.parameters import ROOT, read_parameters

    if profile == "tiny":
        return TINY, (16, 16), 2
    parameters = read_parameters(ROOT / "notebooks" / "params" / profile / f"{DATASET}.yaml")
    return {name: parameters[name] for name in MODEL}, tuple(parameters["crop"]), parameters["batch_size"]


def write_images(folder, count, size):
    """Write a prepared data set of random images and targets, as many for each split; return its folder."""
    random, names = np.random.default_rng(0), [f"train/{number}" for number in range(count)]
    for name in names:
        arrays = {
            "image": random.random((*size, 3), dtype=np.float32),
            "label": random.integers(0, 13, size),
            "depth": 1 + random.random((*size, 1), dtype=np.float32),
            "normal": random.normal(size=(*size, 3)).astype(np.float32),
        }
        for kind, array in arrays.items():
            path = folder / "train" / kind / f"{name.split('/')[1]}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
    (folder / "splits").mkdir()
    for split in ("train", "val", "test"):
        (folder / "splits" / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    write_json(folder / "prepared.json", {"sha256": "0" * 64, "source": "random", "fixture": True})
    return folder
