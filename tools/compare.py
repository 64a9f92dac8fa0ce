"""Compares two folders of records, old and new: which results changed by more than seeds differ.

    python tools/compare.py OLD NEW

Results are all numbers but seconds and the losses on the way; one is compared as its mean over the seeds
that both folders have. The yardstick is the standard deviation of the old seeds; of one seed alone, which
has none, the tolerance of `make verify`. Exit status 0: nothing changed by more, and nothing is missing; 1:
something did, or is. Where training ends elsewhere, as on another processor, about a third of the results of
three seeds do so by chance alone.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.records import load_records
from simo.errors import SimoError
from tools.verify import LEAST, TIMES, TOLERANCE

RESULT = ["study", "experiment", "result"]
SHOWN = 30  # of the largest changes


def results_of(part, place=""):
    """Yield (place, number) of every result in a part of a record.

    An element of a list is named by its texts, so that a new one does not shift the others, and by its number
    where these do not tell it from others.
    """
    if isinstance(part, list):
        texts = [" ".join(filter(_is_text, each.values())) if isinstance(each, dict) else "" for each in part]
        names = [text if texts.count(text) == 1 else f"{text} {i}".strip() for i, text in enumerate(texts)]
        part = dict(zip(names, part, strict=True))
    for name, value in part.items():
        if isinstance(value, dict | list) and name != "history":
            yield from results_of(value, f"{place}.{name}".strip("."))
        elif isinstance(value, int | float) and name not in TIMES:
            yield f"{place}.{name}".strip("."), value


def _is_text(value):
    return isinstance(value, str)


def compare(old, new):
    """How far each result is from the old one.

    Parameters
    ----------
    old, new : sequence of dict
        Records, see `report.records`.

    Returns
    -------
    DataFrame
        Indexed by study, experiment and result: `old` and `new`, means over the seeds that both have, the
        `spread` of the old seeds, and the `change` in units of it, largest first.
    DataFrame
        Indexed by the same and seed: what only one of them has, NaN where it is missing.
    """
    sides = {}
    for side, records in {"old": old, "new": new}.items():
        values = {
            (record["study"], record["experiment"], place, record["seed"]): number
            for record in records
            for part in ("results", "details")
            for place, number in results_of(record[part])
        }
        sides[side] = pd.Series(values, dtype=float).rename_axis([*RESULT, "seed"])
    both = pd.DataFrame(sides)
    found = both.dropna().groupby(RESULT).mean()
    spread = both.old.groupby(RESULT).std().reindex(found.index)
    found["spread"] = spread.fillna(TOLERANCE / 100 * found.old.abs().clip(lower=LEAST))
    change = (found.new - found.old).abs()
    found["change"] = (change / found.spread).where(change > 0, 0.0)  # also where no seed differs
    return found.sort_values("change", ascending=False), both[both.isna().any(axis=1)]


def main(argv=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("old", type=Path, help="a folder of records, such as records/miniature")
    parser.add_argument("new", type=Path, help="another, such as build/miniature/records")
    options = parser.parse_args(argv)
    try:
        found, lacking = compare(load_records(options.old), load_records(options.new))
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    equal, beyond = (found.change == 0).sum(), found[found.change > 1]
    print(
        f"{len(found)} results: {equal} equal, {len(found) - equal - len(beyond)} within the seeds' spread,"
    )
    print(f"{len(beyond)} beyond it; {len(lacking)} results on one side only")
    for table, what in ((beyond, "beyond the spread, in units of it"), (lacking, "on one side only")):
        if len(table):
            print(f"\n{what}, the first {min(SHOWN, len(table))} of {len(table)}:")
            print(table.head(SHOWN).to_string(float_format="{:.4g}".format))
    return int(len(beyond) + len(lacking) > 0)


if __name__ == "__main__":
    sys.exit(main())
