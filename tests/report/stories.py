"""Results made by hand, which the tests of tables and claims share."""

from report.tables import scores

TASKS = ("segmentation", "depth", "normals")
EXPERT, HALF = (60.0, 0.2, 20.0), (30.0, 0.4, 40.0)


def records_of(model, seed, values, split="test"):
    """A record of one result, with a value for each of the first `TASKS`, in a list."""
    metrics = dict(zip(TASKS[: len(values)], values, strict=True))
    return [{"seed": seed, "results": [{"model": model, "split": split, "metrics": metrics}]}]


def frame_of(**models):
    """Scores of models whose performance is given relative to the experts, one factor a seed."""
    records = []
    for seed in range(len(next(iter(models.values())))):
        records += records_of("expert", seed, EXPERT)
        for name, factors in models.items():
            r = factors[seed]
            records += records_of(name, seed, (60 * r, 0.2 / r, 20 / r))
    return scores(records, "nyuv2")


def all_models(**changes):
    """Scores of every model on two seeds, following the paper's story unless changed."""
    story = {
        "constant": 0.3,
        "joint": 0.95,
        "task_arithmetic": 0.6,
        "ties": 0.5,
        "task_arithmetic+heads": 0.95,
        "task_arithmetic+representation": 0.96,
        "ties+heads": 0.96,
        "ties+representation": 0.97,
        "pretrained+heads": 0.9,
        "expert+heads": 1.0,
        "expert+representation": 1.005,
    }
    return frame_of(**{name: [r, r] for name, r in story.items()} | changes)


def cost_record(seed, experiment, *results):
    """A record of results with a cost: (model, steps, samples, parameters, seconds)."""
    rows = [
        {
            "model": model,
            "split": "test",
            "metrics": {},
            "cost": {"steps": steps, "samples": samples, "parameters": parameters, "seconds": seconds},
        }
        for model, steps, samples, parameters, seconds in results
    ]
    return {"experiment": experiment, "seed": seed, "results": rows, "details": {}, "provenance": {}}
