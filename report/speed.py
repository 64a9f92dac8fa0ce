"""What `python -m benchmarks` measured, as tables and a figure: ratios of pairs, their ranges and aims."""

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.ticker import FuncFormatter

from report.plotting import BLUE, GREEN, GREY, INK, RED

REACHED = {
    None: ("no aim", BLUE, "o"),
    True: ("aim reached", GREEN, "o"),
    False: ("aim not reached", RED, "s"),
}


def described(results):
    """Say in a sentence when, where and of what a run was."""
    machine, versions = results["machine"], results["versions"]
    load = machine["load"]
    other = "" if load is None else f", {load:.1f} processes at work before it began"
    changed = ", with changes that were not committed" if results["clean"] is False else ""
    size = "" if results["size"] == "full" else f" At size {results['size']}: the numbers mean nothing."
    return (
        f"{results['date']}, commit {(results['commit'] or 'unknown')[:12]}{changed}: "
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}{other}; "
        f"{results['rounds']} rounds on {results['threads']} thread(s) in {results['minutes']} minutes; "
        f"Python {versions['python']}, torch {versions['torch']}, timm {versions['timm']}.{size}"
    )


def table_of(results, group):
    """Rows of a group as text.

    Parameters
    ----------
    results : dict
        See `benchmarks.__main__`.
    group : str
        Such as `merging`.

    Returns
    -------
    DataFrame
        By what was measured. Memory is there only if it was measured for any.
    """
    rows = [row for row in results["pairs"] if row["group"] == group]
    columns = {row["name"]: _cells(row) for row in rows}
    return pd.DataFrame.from_dict(columns, orient="index").dropna(axis="columns", how="all")


def images_a_second(rows):
    """Rows of `benchmarks/gpu.json` as text: one column a model and size, by what was trained."""
    table = pd.DataFrame(rows)
    sizes = table.pixels.map(lambda pixels: "×".join(map(str, pixels)))
    table["column"] = table.encoder + ", " + sizes + ", " + table["images a step"].astype(str) + " a step"
    wide = table.pivot(index="what", columns="column", values="images a second").loc[table.what.unique()]
    return wide.map("{:.0f}".format).rename_axis(index=None, columns=None)


def _cells(row):
    middle, low, high = row["ratio"]
    ours, other = (pd.Series(row[f"{key}_seconds"]).median() for key in ("ours", "other"))
    aims = [f"{row['aim']:.2g}×"] if row["aim"] is not None else []
    aims += [f"{row['seconds']:.2g} s"] if row["seconds"] is not None else []
    aims += [f"{row['memory']:.2g} checkpoints"] if row["memory"] is not None else []
    held = [row[f"{key}_memory"] for key in ("ours", "other") if f"{key}_memory" in row]
    return {
        "against": row["against"],
        "times as fast": f"{middle:.2f} ({low:.2f} to {high:.2f})",
        "seconds": f"{ours:.3g} against {other:.3g}",
        "checkpoints held": " against ".join(f"{each:.1f}" for each in held) or None,
        "aim": ", ".join(aims) or "none",
        "": "" if row["reached"] is None else REACHED[row["reached"]][0].removeprefix("aim "),
    }


def ratios(results):
    """Draw how many times as fast each pair's first way is: median, range and aim, on a logarithmic axis.

    Returns
    -------
    Figure
    """
    rows = results["pairs"][::-1]  # the first on top
    figure, axes = plt.subplots(figsize=(7.6, 0.8 + 0.3 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        label, colour, marker = REACHED[row["reached"]]
        middle, low, high = row["ratio"]
        axes.plot([low, high], [place, place], color=colour, lw=3, alpha=0.4)
        axes.plot(middle, place, marker, color=colour, ms=6, lw=0, label=label)
        if row["aim"] is not None:
            axes.plot(row["aim"], place, "|", color=INK, ms=12, mew=1.6, lw=0, label="aim")
    axes.axvline(1, color=GREY, lw=0.8)
    axes.set(xscale="log", xlabel="times as fast as what it is compared with", yticks=range(len(rows)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticklabels([row["name"] for row in rows])
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=len(handles))
    sns.despine(figure)
    return figure
