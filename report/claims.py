"""The paper's claims as code: one sentence, the number that decides it, and the verdict on each seed.

A claim about a repair has a premise: that there was something to repair. Where it fails on a seed, that seed
decides nothing, and where it fails on all, the verdict is "not applicable". A claim about an effect names the
least size that counts as one.

Every claim is also decided on the paper's own printed numbers and digitised curves, where it has them: that
tells what carries over from what the paper's own tables do not show on every data set either.
"""

from statistics import fmean, stdev

import pandas as pd
from scipy import stats

from report import tables
from report.evidence import EFFECT, Claim, gather, gather_paper
from report.figure_claims import FIGURE_CLAIMS
from report.tables import FINISHED, LOSS


def repairable(method, kind):
    """The premise of claims about a repair: whether a realignment has something to repair, and only that.

    Something was merged, α being above 0, the merged model loses clearly, and the experts, given the same
    images and steps, hardly gain. Otherwise what looks like recovery is that of the pretrained encoder, more
    training, or training on images like those that are tested. The paper has no such control: its experts are
    taken to be finished, as it takes them.
    """

    def premise(seed):
        if seed.delta[method] >= -LOSS or not seed.merged(method):
            return False
        return seed.printed or seed.delta[f"expert+{kind}"] <= FINISHED

    return premise


def claims_of_repair(method, label):
    """What one merging method loses, and what realignment takes back, in terms of the printed Δ_MTL."""
    return [
        Claim(
            f"{method}-collapses",
            f"Without realignment, {label} loses clearly against the experts: over {LOSS} points.",
            lambda seed: seed.delta[method],
            lambda value: value < -LOSS,
        ),
        Claim(
            f"{method}-heads-recover",
            f"Head realignment recovers more than half of what {label} loses, where that is much and experts "
            f"gain at most {FINISHED} points from the same images and steps.",
            lambda seed: tables.recovered(seed.delta, method, "heads"),
            lambda value: value > 50,
            "% of the loss",
            premise=repairable(method, "heads"),
        ),
        Claim(
            f"{method}-heads-recover-from-constant",
            f"The same, counted from a constant prediction where {label} is even worse than that.",
            lambda seed: tables.recovered(seed.delta, method, "heads", "constant"),
            lambda value: value > 50,
            "% of the loss",
            "ours: the paper has no constant",
            premise=repairable(method, "heads"),
        ),
        Claim(
            f"{method}-representation-at-least-heads",
            f"On {label}, representation realignment recovers at least as much as head realignment, up to "
            f"{EFFECT} point.",
            lambda seed: seed.delta[f"{method}+representation"] - seed.delta[f"{method}+heads"],
            lambda value: value >= -EFFECT,
            premise=lambda seed: seed.merged(method),
        ),
        Claim(
            f"{method}-representation-far-above-heads",
            f"Where tasks conflict most, representation realignment of {label} is far better than head "
            "realignment: more than 5 points.",
            lambda seed: seed.delta[f"{method}+representation"] - seed.delta[f"{method}+heads"],
            lambda value: value > 5,
            source="Table 3",
            datasets=("taskonomy",),
            premise=lambda seed: seed.merged(method),
        ),
    ]


def claims_beside_others(method, label):
    """One merging method, realigned, beside joint training and the untouched pretrained encoder."""
    return [
        Claim(
            f"{method}-heads-reach-joint",
            f"Where {label} loses clearly, head realignment brings it to the level of joint training: "
            f"at most {EFFECT} point below.",
            lambda seed: seed.delta[f"{method}+heads"] - seed.delta["joint"],
            lambda value: value >= -EFFECT,
            premise=repairable(method, "heads"),
        ),
        Claim(
            f"{method}-representation-reaches-joint",
            f"Where {label} loses clearly, representation realignment brings it to the level of joint "
            f"training: at most {EFFECT} point below.",
            lambda seed: seed.delta[f"{method}+representation"] - seed.delta["joint"],
            lambda value: value >= -EFFECT,
            premise=repairable(method, "representation"),
        ),
        Claim(
            f"{method}-representation-beats-joint",
            f"Where tasks conflict most, representation realignment brings {label} above joint training, "
            f"by more than {EFFECT} point.",
            lambda seed: seed.delta[f"{method}+representation"] - seed.delta["joint"],
            lambda value: value > EFFECT,
            source="Table 3",
            datasets=("taskonomy",),
            premise=repairable(method, "representation"),
        ),
        Claim(
            f"{method}-beats-pretrained",
            f"The encoder merged by {label} is worth more than the untouched pretrained one, "
            f"both with realigned heads: by more than {EFFECT} point.",
            lambda seed: seed.delta[f"{method}+heads"] - seed.delta["pretrained+heads"],
            lambda value: value > EFFECT,
            source="ours: the paper lacks this control",
        ),
    ]


WORDS = {"heads": "Head", "representation": "Representation"}


def cheaper(kind):
    """The claim that a realignment of task arithmetic needs fewer steps and images than joint training."""

    def measure(seed):
        own, joint = seed.costs[f"task_arithmetic+{kind}"], seed.costs["joint"]
        return 100 * max(own[each] / joint[each] for each in ("steps", "samples"))

    return Claim(
        f"{kind}-cheaper-than-joint",
        f"{WORDS[kind]} realignment takes fewer steps and fewer images than joint training, the experts "
        "being given: the larger of both shares. (Our parameter files set both; our steps of heads are "
        "summed, whether the paper's are is not known.)",
        measure,
        lambda value: value < 100,
        "% of joint training's",
        source="abstract, Table 4",
        settled=True,
    )


def faster(kind):
    """The claim that a realignment of task arithmetic takes less wall time than joint training."""
    return Claim(
        f"{kind}-faster-than-joint",
        f"{WORDS[kind]} realignment takes less than half of joint training's time, the experts being given. "
        "(A run that was interrupted has no time.)",
        lambda seed: 100 * seed.costs[f"task_arithmetic+{kind}"]["seconds"] / seed.costs["joint"]["seconds"],
        lambda value: value < 50,
        "% of joint training's time, roughly",
        source="ours: the paper has steps only",
    )


CLAIMS = [
    *claims_of_repair("task_arithmetic", "task arithmetic"),
    *claims_beside_others("task_arithmetic", "task arithmetic"),
    *claims_of_repair("ties", "TIES"),
    *claims_beside_others("ties", "TIES"),
    cheaper("heads"),
    cheaper("representation"),
    faster("heads"),
    faster("representation"),
    *FIGURE_CLAIMS,
    *(
        Claim(
            f"experts-converged-{kind}",
            f"The experts themselves gain at most {EFFECT} point from {label} realignment's extra images "
            "and steps.",
            lambda seed, kind=kind: seed.delta[f"expert+{kind}"],
            lambda value: value <= EFFECT,
            source="ours: the paper lacks this control",
        )
        for kind, label in (("heads", "head"), ("representation", "representation"))
    ),
]


def judge(frame, dataset, records, paper):
    """Decide every claim about a data set on every seed, and on the paper's own numbers.

    Parameters
    ----------
    frame, dataset, records, paper
        See `gather`.

    Returns
    -------
    DataFrame
        Indexed by claim name: `claim`, `source`, `unit`, `paper` with the paper's own number (NaN if it has
        none), one column a seed (NaN where it does not apply), `close` with the 95 % interval of the
        seeds' mean where the criterion lies within it, and `verdict`: "holds", "fails", "holds on n
        of m seeds", "not applicable", "set by us" or "not run".
    """
    seeds, printed = gather(frame, dataset, records, paper), gather_paper(dataset, paper)
    rows = {}
    for claim in CLAIMS:
        if claim.datasets and dataset not in claim.datasets:
            continue
        values = {seed: _number(claim, evidence) for seed, evidence in seeds.items()}
        rows[claim.name] = {
            "claim": claim.sentence,
            "source": claim.source,
            "unit": claim.unit,
            "paper": _number(claim, printed),
            **values,
            "close": _interval(claim, list(values.values())),
            "verdict": _verdict(claim, seeds, list(values.values())),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _verdict(claim, seeds, values):
    known = [value for value in values if value == value]  # NaN: not run, or not applicable
    vain = sum(_applies(claim, seed) is False for seed in seeds.values())
    if not known:
        return "not applicable" if vain else "not run"
    if claim.settled:
        return "set by us"
    count = sum(claim.holds(value) for value in known)
    others = {"not applicable": vain, "not run": len(values) - len(known) - vain}
    rest = "".join(f", {number} {reason}" for reason, number in others.items() if number)
    return {len(known): "holds", 0: "fails"}.get(count, f"holds on {count} of {len(known)} seeds") + rest


def _interval(claim, values):
    """The 95 % interval of the seeds' mean (Student's t) if only one of its ends meets the criterion."""
    known = [value for value in values if value == value]
    if len(known) < 2 or claim.settled:
        return ""
    half = stats.t.ppf(0.975, len(known) - 1) * stdev(known) / len(known) ** 0.5
    low, high = fmean(known) - half, fmean(known) + half
    return f"{low:.1f} to {high:.1f}" if claim.holds(low) != claim.holds(high) else ""


def _applies(claim, evidence):
    """Whether a claim's premise holds; None where what it speaks of was not run."""
    try:
        return bool(claim.premise(evidence))
    except KeyError:
        return None


def _number(claim, evidence):
    """The number that decides a claim; NaN where it does not apply or something was not run."""
    try:
        return float(claim.measure(evidence)) if _applies(claim, evidence) else float("nan")
    except (KeyError, ValueError):  # a model, curve or size that was not run
        return float("nan")
