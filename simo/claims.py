"""Claims about results as code: one sentence, the number that decides it, and the verdict on each seed."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

# A seed recomputed on another machine may differ from the committed one by this many points of the printed Δ,
# or by three standard deviations of the committed seeds where that is more: sums of floating-point numbers in
# another order are amplified by hundreds of steps until they act like another seed.
TOLERANCE = 2.0


@dataclass(frozen=True)
class Claim:
    """One claim, decided on each seed by one number.

    Attributes
    ----------
    name : str
        Short and stable, for links and tests.
    sentence : str
        What is claimed, with the criterion.
    measure : callable
        From the printed Δ of one seed by model name to the deciding number.
    holds : callable
        From that number to whether the claim holds.
    unit : str
        Of the number.
    """

    name: str
    sentence: str
    measure: Callable[[pd.Series], float]
    holds: Callable[[float], bool]
    unit: str = "points"


def recovered(delta, method, realignment):
    """Share of merging's loss that a realignment takes back, in per cent; 100 is the experts' level."""
    return 100 * (1 - delta[f"{method}+{realignment}"] / delta[method])


def claims_of(method, label):
    """The claims about one merging method, all in terms of the printed Δ_MTL."""
    return [
        Claim(
            f"{method}-collapses",
            f"Without realignment, {label} loses clearly against the experts: more than 10 points.",
            lambda delta: delta[method],
            lambda value: value < -10,
        ),
        Claim(
            f"{method}-heads-recover",
            f"Head realignment recovers most of what {label} loses: more than half.",
            lambda delta: recovered(delta, method, "heads"),
            lambda value: value > 50,
            "%",
        ),
        Claim(
            f"{method}-representation-at-least-heads",
            f"On {label}, representation realignment recovers at least as much as head realignment.",
            lambda delta: delta[f"{method}+representation"] - delta[f"{method}+heads"],
            lambda value: value >= 0,
        ),
        Claim(
            f"{method}-heads-reach-joint",
            f"Head realignment brings {label} to the level of joint training: at most 1 point below.",
            lambda delta: delta[f"{method}+heads"] - delta["joint"],
            lambda value: value >= -1,
        ),
        Claim(
            f"{method}-representation-reaches-joint",
            f"Representation realignment brings {label} to the level of joint training: "
            "at most 1 point below.",
            lambda delta: delta[f"{method}+representation"] - delta["joint"],
            lambda value: value >= -1,
        ),
        Claim(
            f"{method}-beats-pretrained",
            f"The encoder merged by {label} is worth more than the untouched pretrained one, "
            "both with realigned heads.",
            lambda delta: delta[f"{method}+heads"] - delta["pretrained+heads"],
            lambda value: value > 0,
        ),
    ]


CLAIMS = [
    *claims_of("task_arithmetic", "task arithmetic"),
    *claims_of("ties", "TIES"),
    Claim(
        "experts-converged-heads",
        "The experts themselves gain at most 1 point from head realignment's extra images and steps.",
        lambda delta: delta["expert+heads"],
        lambda value: value <= 1,
    ),
    Claim(
        "experts-converged-representation",
        "The experts themselves gain at most 1 point from representation realignment's extra images "
        "and steps.",
        lambda delta: delta["expert+representation"],
        lambda value: value <= 1,
    ),
]


def judge(frame):
    """Decide every claim on every seed.

    Parameters
    ----------
    frame : DataFrame
        See `simo.tables.scores`.

    Returns
    -------
    DataFrame
        Indexed by claim name: `claim`, `unit`, one column a seed with the deciding number, and `verdict`:
        "holds", "fails", "holds on n of m seeds", or "not run".
    """
    deltas = frame.printed.unstack("seed")
    rows = {}
    for claim in CLAIMS:
        values = {seed: claim.measure(deltas[seed]) for seed in deltas}
        known = [value for value in values.values() if value == value]  # NaN: a result is missing
        count = sum(claim.holds(value) for value in known)
        verdict = {len(known): "holds", 0: "fails"}.get(count, f"holds on {count} of {len(known)} seeds")
        verdict = verdict if known else "not run"
        numbers = {f"seed {seed}": value for seed, value in values.items()}
        rows[claim.name] = {"claim": claim.sentence, "unit": claim.unit, **numbers, "verdict": verdict}
    return pd.DataFrame.from_dict(rows, orient="index")
