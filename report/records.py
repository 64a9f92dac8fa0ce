"""Records, results as JSON with their provenance, read back and as a table; `report.run` writes them.

A record is what one computing notebook found:

- `experiment`, `profile`, `dataset`, `seed`: which one it is;
- `results`: a list of `{"model", "split", "metrics": {task: value}, "cost": {...}}`, one per evaluated model;
- `details`: whatever else its figures need (α scans, curves);
- `provenance`: the repository's commit, parameters, hashes of code, data and input checkpoints, where the
  pretrained weights come from, versions, device, time, memory.
"""

import re

import numpy as np
import pandas as pd

from report.parameters import PLACES, check_injected
from simo.errors import SimoError
from simo.files import decoding, listed, read_object
from simo.tasks import TASKS


def load_pictures(path):
    """Read what `report.run.save_pictures` stored: arrays by name."""
    with decoding(path, "draw it again"), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def load_records(folder):
    """Read all records below a folder, sorted by path; each gets its `study`, the folder it lies in.

    Parameters
    ----------
    folder : str or Path
        Such as `records/miniature` for the committed ones.

    Raises
    ------
    SimoError
        If the folder holds no record, or one without the expected entries.
    """
    check_injected()
    paths = listed(folder, "**/*.json")
    records = [read_object(path) for path in paths]
    for path, record in zip(paths, records, strict=True):
        record["study"] = path.parent.parent.name  # a data set, or one with another head or other images
        missing = {
            "experiment",
            "profile",
            "dataset",
            "seed",
            "results",
            "details",
            "provenance",
        } - record.keys()
        if missing:
            raise SimoError(f"{path} is not a record: it lacks {sorted(missing)}")
        made, seed = record["provenance"], record["seed"]
        known = isinstance(made, dict) and isinstance(made.get("started"), str)
        if not (known and isinstance(made.get("hashes"), dict) and isinstance(seed, int)):
            raise SimoError(
                f"{path} is not a record: expected a seed, and in its provenance start and hashes"
            )
    if not records:
        raise SimoError(f"{folder} holds no records: `make book` computes them")
    return records


def outdated(records):
    """Those records that may not be drawn beside the others.

    They used a checkpoint which was made anew since, or one of these, or have other parameters than the
    newest record of the same experiment, as of a build with other settings.

    Parameters
    ----------
    records : list of dict
        Of one study, see `load_records`.
    """
    made = {(each["seed"], each["experiment"]): each for each in records}
    by_time = sorted(records, key=lambda each: each["provenance"]["started"])
    newest = {each["experiment"]: each["provenance"].get("parameters", {}) for each in by_time}

    def is_unlike(record):
        own, last = record["provenance"].get("parameters", {}), newest[record["experiment"]]
        return any(own[name] != last[name] for name in own.keys() & last.keys() - {*PLACES, "seed"})

    def is_old(record):
        used = (made.get((record["seed"], _maker(name))) for name in record["provenance"]["hashes"])
        started = record["provenance"]["started"]
        newer = any(each["provenance"]["started"] > started or is_old(each) for each in used if each)
        return newer or is_unlike(record)

    return [record for record in records if is_old(record)]


def drawable(records):
    """Those records that are not `outdated`, of seeds with all experts, to which results are relative."""
    old = outdated(records)
    kept = [record for record in records if record not in old]
    there = {(record["seed"], record["experiment"]) for record in kept}
    needed = {name: [f"expert_{task.name}" for task in tasks] for name, tasks in TASKS.items()}
    return [
        record
        for record in kept
        if all((record["seed"], expert) in there for expert in needed[record["dataset"]])
    ]


def _maker(checkpoint):
    """The experiment that makes a checkpoint, such as merge_ties of merged_ties."""
    merged = re.sub("^merged_", "merge_", checkpoint)
    return re.sub("^realigned_(.*)_(heads|representation)$", r"realign_\1", merged)


def provenance_table(records):
    """Where, when, of which data and code, and for how long each record was computed.

    Returns
    -------
    DataFrame
        Of text and numbers, one row a record; seconds of an interrupted run, of which only those since it
        went on are known, begin with "over".
    """
    rows = []
    for record in records:
        provenance = record["provenance"]
        rows.append(
            {
                "study": record["study"],
                "seed": record["seed"],
                "experiment": record["experiment"],
                "seconds": "over " * provenance["resumed"] + f"{provenance['seconds']:.0f}",
                "peak MB": provenance["peak_memory_mb"],
                "device": provenance["device"],
                "data": "FIXTURE" if provenance["fixture"] else provenance["source"],
                "started (UTC)": provenance["started"][:16].replace("T", " "),
                "commit": commit_of(provenance),
                "code": provenance["hashes"]["code"][:8],
            }
        )
    return pd.DataFrame(rows)


def commit_of(provenance):
    """Short name of a record's commit, with a + if code was changed since; "not recorded" without one."""
    commit = provenance["commit"]
    return commit[:8] + ("" if provenance["clean"] else "+") if commit else "not recorded"
