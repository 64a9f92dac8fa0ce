"""Tiny data sets and models that the tests share, and a copy of the project."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from simo.datasets import PreparedDataset, training_batches
from simo.files import write_json
from simo.tasks import tasks_of

ROOT = Path(__file__).resolve().parents[1]

torch.set_num_threads(1)  # for tensors this small, a second thread only costs


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that no worker ends long after the others."""
    items.sort(key=lambda item: item.path.name not in ("test_end_to_end.py", "test_site.py"))


@pytest.fixture(autouse=True)
def _seeded():
    """The same random numbers in every test, whichever tests run."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tasks():
    """The three tasks of NYUv2."""
    return tasks_of("nyuv2")


@pytest.fixture(scope="session")
def write_nyuv2():
    """A function that writes a prepared NYUv2 of random content: `train` and `val + test` images."""

    def write(root, train=5, val=4, test=3, size=(16, 16)):
        random = np.random.default_rng(0)
        for folder, count in {"train": train, "val": val + test}.items():
            for index in range(count):
                arrays = {
                    "image": random.random((*size, 3), dtype=np.float32),
                    "label": random.integers(-1, 13, size),
                    "depth": random.random((*size, 1), dtype=np.float32) * (random.random((*size, 1)) > 0.1),
                    "normal": random.normal(size=(*size, 3)).astype(np.float32),
                }
                for modality, array in arrays.items():
                    (root / folder / modality).mkdir(parents=True, exist_ok=True)
                    np.save(root / folder / modality / f"{index}.npy", array)
        names = {
            "train": [f"train/{i}" for i in range(train)],
            "val": [f"val/{i}" for i in range(val)],
            "test": [f"val/{i}" for i in range(val, val + test)],
        }
        (root / "splits").mkdir()
        for split, lines in names.items():
            (root / "splits" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        write_json(root / "prepared.json", {"sha256": "0" * 64, "source": "random", "fixture": False})
        return root

    return write


@pytest.fixture(scope="session")
def nyuv2(tmp_path_factory, write_nyuv2):
    """A small prepared data set that tests only read."""
    return write_nyuv2(tmp_path_factory.mktemp("data") / "nyuv2")


@pytest.fixture(scope="session")
def val(nyuv2):
    """Its validation split, all tasks."""
    return PreparedDataset(nyuv2, "nyuv2", "val")


@pytest.fixture(scope="session")
def settings():
    """What `create_model` needs for a ViT of 7,000 parameters on 16×16 images."""
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return {
        "backbone": "vit_tiny_patch16_224",
        "backbone_args": args,
        "blocks": [1, 2],
        "head": "linear",
        "head_options": {"expand": 1},
        "input_scale": "signed",
    }


@pytest.fixture
def model(tasks, settings):
    """A tiny model of all tasks, the same at each call, its batch norm statistics not the initial ones."""
    from simo.models import create_model

    torch.manual_seed(0)
    model = create_model(tasks, seed=0, **settings)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer))
    return model.eval()


@pytest.fixture
def state_of():
    """A function that copies a module's state, so that later changes show."""
    return lambda module: {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture
def same():
    """A function that tells whether two states are equal bit for bit."""
    return lambda a, b: a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="session")
def train_pixelwise():
    """A function that trains the smallest model of a data set, a 1×1 convolution a task; gives the losses."""

    def train(data, steps):
        heads = {task.name: torch.nn.Conv2d(3, task.channels, 1) for task in data.tasks}
        optimiser = torch.optim.Adam([p for head in heads.values() for p in head.parameters()], 0.05)
        losses = []
        for batch in training_batches(data, 2, 0, steps, seed=0):
            loss = sum(
                task.compute_loss(heads[task.name](batch["image"]), batch[task.name]) for task in data.tasks
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        return losses

    return train


@pytest.fixture(scope="session")
def copy_project():
    """A function that copies the project, without what was built in it, to a folder that does not exist."""
    left = (".git", ".venv", "build", ".snakemake", "__pycache__", "*.egg-info", ".explore")
    return lambda folder: shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*left))


@pytest.fixture(scope="session")
def redrawn(tmp_path_factory, copy_project):
    """The folder of pages that `make redraw` builds from committed records, in a copy of the project."""
    project = copy_project(tmp_path_factory.mktemp("redrawn") / "a path with spaces")
    done = subprocess.run(
        [sys.executable, "tools/pipeline.py", "redraw", "--config", "profile=miniature"],
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return project / "build" / "miniature" / "redraw" / "_build" / "html"
