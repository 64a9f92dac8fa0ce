"""A computing notebook's run: its identity, its clock, its checkpoints, and the record that it leaves.

What a record holds is in `report.records`, which reads them.
"""

import hashlib
import json
import math
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from report.notebooks import HOUSES, ROOT, code_hash
from report.parameters import PLACES, check_injected, check_parameters, declared_parameters
from simo.checkpoints import load_recipe, save_checkpoint, versions
from simo.datasets import read_prepared
from simo.errors import SimoError
from simo.files import atomic_path, read_json, write_json
from simo.models import MODEL
from simo.training import Optimisation, device_name, pick_device


class Run:
    """One execution of a computing notebook: its clock, its identity, its folder and its record.

    Parameters
    ----------
    notebook : str
        Name of the notebook in `notebooks/`, without suffix.
    namespace : dict
        `globals()` of the notebook; its parameters are taken from it.
    inputs : sequence of str
        Names of checkpoints that it starts from.

    Attributes
    ----------
    data, checkpoints, records : Path
        Folders of the prepared data, and of this seed's checkpoints and records.
    weights : Path
        The pretrained backbone.
    pretrained : str
        Where its weights come from, as its recipe says.
    model : dict
        The parameters that say what the model is, for `simo.models`.
    where : dict
        `device` and `precision`, resolved.
    partial : Path
        Folder for unfinished training. Its name holds a hash of everything the result depends on, so
        that a run continues only what it would itself have begun.
    resumed : bool
        Whether it does: then its times are too short.
    seconds : dict of str to float
        What `clock` measured.
    """

    def __init__(self, notebook, namespace, inputs=()):
        self.started, self._clock = datetime.now(UTC), time.monotonic()
        self.notebook = notebook
        check_injected(namespace.get("In"))
        self.parameters = {name: namespace[name] for name in declared_parameters(notebook)}
        check_parameters(notebook, self.parameters)
        given = self.parameters
        self.data = ROOT / given["data"]
        self.checkpoints, self.records = ROOT / given["checkpoints"], ROOT / given["records"]
        self.weights = ROOT / given["backbone_weights"]
        self.model = {name: given[name] for name in MODEL}
        self.where = dict(
            zip(("device", "precision"), pick_device(given["device"], given["precision"]), strict=True)
        )
        if given["threads"]:
            torch.set_num_threads(given["threads"])
        self.source = read_prepared(self.data)
        largest = max(given.get(name) or 0 for name in ("batch_size", "realign_batch_size"))
        check_shared_memory(given["workers"], largest, self.source.get("fields", {}))
        backbone = load_recipe(self.weights)
        self.pretrained = backbone.get("source", self.weights.name)
        self.hashes = {
            "code": code_hash(notebook),
            "data": self.source["sha256"],
            "backbone": backbone["sha256"],
        }
        for name in inputs:
            self.hashes[name] = load_recipe(self.checkpoints / f"{name}.safetensors")["sha256"]
        what = {name: value for name, value in self.parameters.items() if name not in PLACES}
        identity = hashlib.sha256(
            json.dumps([notebook, what, self.hashes, self.where["precision"]], sort_keys=True).encode()
        ).hexdigest()
        self.partial = self.checkpoints / "partial" / f"{notebook}-{identity[:12]}"
        self.resumed, self.seconds = self.partial.exists(), {}

    @contextmanager
    def clock(self, name):
        """Measure how long a block takes, for the `cost` of a result."""
        start = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - start, 2)

    def optimisation(self, steps, batch_size):
        """The parameters that say how to train, for `simo.training`, with this number of steps."""
        given = self.parameters
        names = ("seed", "weight_decay", "warmup", "clip", "accumulate", "workers")
        settings = {name: given[name] for name in names} | {"compile": given["compile_model"]}
        return Optimisation(steps=steps, batch_size=batch_size, **settings, **self.where)

    def once(self, name, compute, *arguments):
        """Compute a part of the record, or read it if an interrupted run got that far.

        Parameters
        ----------
        name : str
            Of the part: of its file, and of the folder for its own unfinished training.
        compute : callable
            From the arguments and that folder to something JSON-able.
        *arguments
            Its first ones.
        """
        path = self.partial / f"{name}.json"
        if not path.exists():
            write_json(path, compute(*arguments, self.partial / name))
        return read_json(path)

    def baselines(self, tasks, split="val"):
        """What the finished experts of this seed score on a split, by task name."""
        results = {t.name: read_json(self.records / f"expert_{t.name}.json")["results"] for t in tasks}
        return {
            task: next(result["metrics"][task] for result in found if result["split"] == split)
            for task, found in results.items()
        }

    def save(self, name, model, kind, **how):
        """Write the checkpoint `<checkpoints>/<name>.safetensors` of a model.

        Parameters
        ----------
        name : str
            Of the file.
        model : MultiTaskModel
        kind : str
            What it is: `expert`, `joint`, `merged` or `realigned`.
        **how
            Entries of its recipe beside what the run knows, such as `method` and `alpha`.
        """
        recipe = {"kind": kind, "dataset": self.parameters["dataset"], "tasks": list(model.heads), **how}
        recipe |= {"seed": self.parameters["seed"], "model": self.model, "hashes": self.hashes}
        save_checkpoint(self.checkpoints / f"{name}.safetensors", model.state_dict(), recipe)

    def finish(self, name, results, **details):
        """Write the record `<records>/<name>.json`, and delete the state of unfinished training.

        Parameters
        ----------
        name : str
            Of the experiment, such as `expert_depth`.
        results : list of dict
            See `result` and `report.records`.
        **details
            Anything JSON-able.

        Returns
        -------
        Path
            Of the record.
        """
        path = self.records / f"{name}.json"
        record = {
            "experiment": name,
            **{key: self.parameters[key] for key in ("profile", "dataset", "seed")},
            "results": results,
            "details": details,
            "provenance": {
                "notebook": self.notebook,
                **repository(),
                "parameters": self.parameters,
                "hashes": self.hashes,
                "pretrained": self.pretrained,
                "source": self.source["source"],
                "fixture": self.source["fixture"],
                "versions": versions(),
                "device": device_name(self.where["device"]),
                "precision": self.where["precision"],
                "started": self.started.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - self._clock, 1),
                "resumed": self.resumed,
                "peak_memory_mb": peak_memory_mb(),
            },
        }
        write_json(path, record)
        shutil.rmtree(self.partial, ignore_errors=True)
        return path


def check_shared_memory(workers, batch_size, fields, folder="/dev/shm"):  # noqa: S108 - nothing is written there
    """Refuse more workers than the shared memory has room for, which would be a bus error in a training.

    Each holds two batches of float32 values and int64 classes there.

    Parameters
    ----------
    workers, batch_size : int
    fields : dict of str to dict
        Of a `prepared.json`: the `shape` of each field's arrays, `(H, W)` of classes.
    folder : str
        Where the system has it; nothing is checked where it does not exist.
    """
    sample = sum(
        math.prod(field["shape"]) * (8 if len(field["shape"]) == 2 else 4) for field in fields.values()
    )
    needed = 2 * workers * batch_size * sample
    if needed and Path(folder).is_dir() and needed > (free := shutil.disk_usage(folder).free):
        raise SimoError(
            f"{folder} has {free / 1e6:.0f} MB free, and {workers} workers need about {needed / 1e6:.0f} MB: "
            'use fewer (SET="{workers: 0}"), or give the container more (docker run --shm-size=2g)'
        )


def result(model, split, metrics, **cost):
    """One evaluated model: its name, the split, its metric by task and what it cost to make.

    Cost: `steps` (optimiser steps), `samples` (different training images), `parameters` (trained) and
    `seconds` (of wall time, without evaluation).
    """
    return {"model": model, "split": split, "metrics": metrics, "cost": cost}


def repository():
    """The commit that is checked out, and whether the code is as committed, so that a reader can have it.

    Returns
    -------
    dict
        `commit`, a hash, and `clean`: nothing that computes (all but records and book) was changed or added
        since. Both None in a copy without git.
    """
    if not (ROOT / ".git").exists():
        return {"commit": None, "clean": None}

    def git(*arguments):
        command = ["git", "-C", ROOT, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else None

    changes = git("status", "--porcelain", "--", *HOUSES, "notebooks", "tools", "Snakefile")
    return {"commit": git("rev-parse", "HEAD"), "clean": None if changes is None else not changes}


def peak_memory_mb():
    """Largest resident memory of this process so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3))


def save_pictures(path, images, rows, tasks):
    """Store images and predictions for a figure in few bytes.

    Parameters
    ----------
    path : str or Path
        An `.npz` file with `image` and `<row>/<task>` arrays: uint8 images, uint8 classes (255 is
        ignored), float16 values.
    images : Tensor
        `(B, 3, H, W)` in `[0, 1]`.
    rows : dict of str to dict of str to Tensor
        By row and task name: targets or predictions.
    tasks : sequence of Task
    """
    arrays = {"image": (255 * images).round().byte().movedim(1, -1).numpy()}
    for row, maps in rows.items():
        for task in tasks:
            values = maps[task.name]
            if task.is_segmentation:
                classes = values if values.ndim == 3 else values.argmax(1)
                arrays[f"{row}/{task.name}"] = classes.to(torch.uint8).numpy()
            else:
                arrays[f"{row}/{task.name}"] = values.half().movedim(1, -1).numpy()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
