"""The check of a prepared folder: counts, splits, files, every array, content hash."""

import hashlib
import io
import re
from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from data_scripts.layouts import Broken
from data_scripts.preparing import SPLITS, lines_of, prepared_files
from simo.errors import SimoError
from simo.files import decoding, read_object

_MOST_DROPPED = 0.05  # of all images; Taskonomy's own damage is a hundredth of that
_SHOWN = 5  # bad files named one by one, before the rest is counted


def check(out, layout):
    """Compare a prepared folder with its layout and with what its `prepared.json` says.

    Every array is read once.

    Parameters
    ----------
    out : str or Path
        A prepared folder.
    layout : Layout
        What it must be, at the size that its `request.json` asks for.

    Returns
    -------
    list of str
        One finding each, beginning with 'ok ' or 'FAIL '.
    """
    out = Path(out)
    try:
        request, record = read_object(out / "request.json"), read_object(out / "prepared.json")
    except SimoError as error:
        return [f"FAIL {error}: the data were not prepared to the end; the command that began continues"]
    fields = tuple(f for f in layout.fields if not f.optional or f.name in record.get("fields", {}))
    layout = replace(layout, fields=fields, size=tuple(request.get("image_size", layout.size)))
    findings = [_compared("data set", record.get("dataset"), layout.dataset)]
    findings.append(_compared("source, the same as asked for", record.get("source"), request.get("source")))
    findings.append(_compared("image size", record.get("image_size"), list(layout.size)))
    if record.get("fixture"):
        findings.append("ok fixture: made-up test data, the official counts do not apply")
    splits = {name: lines_of(out / "splits" / f"{name}.txt") for name in SPLITS}
    ids = [line.split("\t")[0] for line in lines_of(out / "ids.txt")]
    files = prepared_files(out)
    findings += _check_counts(splits, layout, record)
    findings += _check_splits(splits, ids)
    findings.append(_check_dropped(lines_of(out / "dropped.txt"), layout, record))
    findings += _check_files(files, ids, layout)
    digest, arrays = _check_arrays(out, layout, files)
    return [*findings, *arrays, _compared("content hash", digest, record.get("sha256"))]


def _compared(what, found, expected):
    if found == expected:
        return f"ok {what}: {found}"
    return f"FAIL {what}: expected {expected}, found {found}"


def _listed(problems, fine):
    """Findings for a list of problems: the first few and a count, or one that all is fine."""
    findings = [f"FAIL {problem}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
        findings.append(f"FAIL and {len(problems) - _SHOWN} more like these")
    return findings or [f"ok {fine}"]


def _check_counts(splits, layout, record):
    findings = []
    for name, members in splits.items():
        expected, official = record.get("splits", {}).get(name), layout.counts[name]
        fits = len(members) <= official if layout.may_drop else len(members) == official
        if not record.get("fixture") and not fits:
            expected = f"at most {official}" if layout.may_drop else official
        findings.append(_compared(f"images in split {name}", len(members), expected))
    return findings


def _check_splits(splits, ids):
    """No image twice; every image of the id map in a split, and the other way round; ascending."""
    times = Counter(id for members in splits.values() for id in members)
    problems = [f"{id} is listed {count} times in the splits" for id, count in times.items() if count > 1]
    problems += [
        f"{id} is listed {count} times in ids.txt" for id, count in Counter(ids).items() if count > 1
    ]
    problems += [f"{id} of ids.txt is in no split" for id in ids if id not in times]
    known = set(ids)
    problems += [f"{id} is in a split but not in ids.txt" for id in times if id not in known]
    for name, members in splits.items():
        well_formed = [id for id in members if re.fullmatch(r"(train|val|test)/(0|[1-9]\d*)", id)]
        if len(well_formed) < len(members):
            problems.append(f"splits/{name}.txt holds a line that is not folder/number")
        elif members != sorted(members, key=lambda id: (id.split("/")[0], int(id.split("/")[1]))):
            problems.append(f"splits/{name}.txt is not in ascending order")
    return _listed(problems, "splits: disjoint, complete, ascending")


def _check_dropped(lines, layout, record):
    if lines and not layout.may_drop:
        return f"FAIL dropped images: expected none in this data set, found {len(lines)}, first {lines[0]!r}"
    total = len(lines) + sum(record.get("splits", {}).values())
    if len(lines) > _MOST_DROPPED * total and not record.get("fixture"):
        return f"FAIL dropped images: {len(lines)} of {total}, the first because of {lines[0]!r}"
    return _compared("dropped images", len(lines), record.get("dropped"))


def _check_files(files, ids, layout):
    """Every image of the id map has all its files, and there are no others."""
    expected = {f"splits/{name}.txt" for name in SPLITS}
    for folder, index in (id.split("/", 1) for id in ids if "/" in id):
        expected |= {f"{folder}/{field.name}/{index}.npy" for field in layout.fields}
    found = set(files)
    problems = [f"{path} is missing" for path in sorted(expected - found)]
    problems += [f"{path} does not belong here" for path in sorted(found - expected)]
    return _listed(problems, f"files: {len(found)}, all that belong here and no others")


def _check_arrays(out, layout, files):
    """Read every file once; return the content hash, and findings for each folder of arrays."""
    from tqdm import tqdm

    fields = {field.name: field for field in layout.fields}
    digest, findings = hashlib.sha256(), []
    with tqdm(total=len(files), desc="checking", unit="file") as bar:
        for parent, group in groupby(files, key=lambda path: path.rpartition("/")[0]):
            field = fields.get(parent.rpartition("/")[2])
            problems, summary = [], _Summary(field)
            for path in group:
                content = (out / path).read_bytes()
                digest.update(path.encode() + b"\0")
                digest.update(content)
                bar.update()
                if field and path.endswith(".npy"):
                    problem = summary.add(content, layout.size)
                    problems += [f"{path}: {problem}"] if problem else []
            if field:
                findings += _listed(problems + summary.problems(parent), f"{parent}: {summary}")
    return digest.hexdigest(), findings


class _Summary:
    """What the arrays of one folder hold: range and, by field, class histogram or share of ground truth."""

    def __init__(self, field):
        self.field = field
        self.arrays = self.pixels = self.filled = 0
        self.low, self.high = float("inf"), float("-inf")
        self.histogram = np.zeros(field.classes + 1 if field and field.classes else 0, dtype=np.int64)

    def add(self, content, size):
        """Read an array from its file's bytes; return what is wrong with it, or None."""
        try:
            with decoding("an array", kind=Broken):
                array = np.load(io.BytesIO(content), allow_pickle=False)
        except Broken as error:
            return f"cannot be read as {error}"
        problem = self.field.problem(array, size)
        if problem:
            return problem
        self.arrays += 1
        self.low, self.high = min(self.low, array.min()), max(self.high, array.max())
        if self.field.classes:
            self.histogram += np.bincount(array.ravel() + 1, minlength=len(self.histogram))
        else:
            self.pixels += size[0] * size[1]
            self.filled += int((array if array.ndim == 2 else array.any(axis=-1)).astype(bool).sum())
        return None

    def problems(self, parent):
        """What is wrong with the arrays together."""
        if self.arrays and not (self.histogram[1:].any() if self.field.classes else self.filled):
            return [f"{parent}: no pixel has ground truth"]
        return []

    def __str__(self):
        if self.field.classes:
            shares = 100 * self.histogram / max(self.histogram.sum(), 1)
            what = "classes " + ", ".join(
                f"{i - 1}: {share:.2f} %" for i, share in enumerate(shares) if share
            )
        else:
            what = f"{self.low:g} to {self.high:g}, {100 * self.filled / max(self.pixels, 1):.2f} % not 0"
        return f"{self.arrays} arrays {self.field.dtype}, {what}"
