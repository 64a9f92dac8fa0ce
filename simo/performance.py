"""A multi-task model against its experts: normalised performance, and both definitions of Δ_MTL.

`simo.metrics` measures predictions; these compare what was measured, also where pages are drawn from records.
"""

SMALLEST = 1e-6  # what divides or is divided at least, in the metric's unit


def normalised_performance(task, value, baseline):
    """A metric relative to the expert's: M/b where higher is better, b/M for errors; 1 is the expert.

    Parameters
    ----------
    task : Task
        Gives the direction.
    value, baseline : float
        The metric of the model and of the task's expert. Below `SMALLEST`, they count as that: a model
        after one step of training may get no pixel right.

    Returns
    -------
    float
        In `(0, inf)`; the paper prints it in per cent.
    """
    value, baseline = max(value, SMALLEST), max(baseline, SMALLEST)
    return value / baseline if task.higher_is_better else baseline / value


def mean_score(tasks, values, baselines):
    """Mean normalised performance over the tasks: what α is chosen by. 1 is the experts' level."""
    scores = [normalised_performance(task, values[task.name], baselines[task.name]) for task in tasks]
    return sum(scores) / len(scores)


def delta_printed(tasks, values, baselines):
    """Δ_MTL in per cent as the paper's tables print it: mean normalised performance minus 100.

    Bounded below by -100. All 22 printed rows follow this definition, not the formula in the text.

    Parameters
    ----------
    tasks : sequence of Task
    values, baselines : dict of str to float
        Metric by task name, of the model and of the experts.
    """
    return 100 * (mean_score(tasks, values, baselines) - 1)


def delta_formula(tasks, values, baselines):
    """Δ_MTL in per cent by the paper's Eq. 2, usual in multi-task learning: mean signed relative change.

    Unbounded below: an error ten times the expert's counts -900.

    Parameters
    ----------
    tasks : sequence of Task
    values, baselines : dict of str to float
        Metric by task name, of the model and of the experts.
    """
    ratios = [max(values[task.name], SMALLEST) / max(baselines[task.name], SMALLEST) for task in tasks]
    changes = [x - 1 if task.higher_is_better else 1 - x for task, x in zip(tasks, ratios, strict=True)]
    return 100 * sum(changes) / len(changes)
