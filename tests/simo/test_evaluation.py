"""simo.evaluation: scores of a split, and the α that the given split prefers."""

import copy
import weakref

import numpy as np
import pytest
import torch

from simo.datasets import evaluation_batches
from simo.errors import SimoError
from simo.evaluation import evaluate, mean_score, scan_alpha
from simo.merging.task_vectors import TaskVector
from simo.metrics import create_metric

ALPHAS = [0.0, 0.25, 0.5, 0.75, 1.0]
BASELINES = {"segmentation": 5.0, "depth": 0.2, "normals": 80.0}


@pytest.fixture
def base(model, state_of):
    return state_of(model.encoder)


@pytest.fixture
def task_vector(base):
    generator = torch.Generator().manual_seed(0)
    change = {name: 0.3 * torch.randn(x.shape, generator=generator) for name, x in base.items()}
    return TaskVector(change, change.__getitem__)


def depth_of(model, base, task_vector, alpha, images):
    """Depth predicted by the encoder θ_0 + α τ, as batches whose true depth it nearly is."""
    model.encoder.load_state_dict(task_vector.apply(base, alpha))
    with torch.no_grad():
        depth = model(images)["depth"]
    return [{"image": images, "depth": depth.clamp(min=1e-3) + 1e-3}]


def test_scores_are_those_of_single_predictions(model, val, tasks):
    """Batches and their sizes do not matter: a split's score is that of its images one by one."""
    scores = [evaluate(model, evaluation_batches(val, size), tasks) for size in (1, 3, 4)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert scores[0] == pytest.approx(scores[2], rel=1e-6)
    for task in tasks:
        metric = create_metric(task)
        for index in range(len(val)):
            sample = val[index]
            with torch.no_grad():
                metric.update(model(sample["image"][None])[task.name], sample[task.name][None])
        assert scores[0][task.name] == pytest.approx(metric.compute().item(), rel=1e-6)


def test_evaluation_is_in_eval_mode_and_changes_nothing(model, val, tasks, state_of, same):
    """Scores use running statistics, and leave no trace in them."""
    expected = evaluate(model, evaluation_batches(val, 4), tasks)
    before = state_of(model)
    model.train()
    assert evaluate(model, evaluation_batches(val, 4), tasks) == expected
    assert not model.training
    assert same(before, model.state_dict())


def test_one_encoder_pass_an_image(model, val, tasks):
    """Evaluating three tasks costs one pass of the encoder, not three."""
    images = []
    model.encoder.register_forward_hook(lambda _, arguments, __: images.append(len(arguments[0])))
    evaluate(model, evaluation_batches(val, 3), tasks)
    assert images == [3, 1]


def test_a_batch_that_does_not_fit_is_refused(model, val, tasks):
    """Broadcasting would score something else without a word; `check_batch` has tests of its own."""
    batch = next(iter(evaluation_batches(val, 2)))
    batch["depth"] = batch["depth"][:, 0]
    message = r"task depth: expected targets \(2, 1, 16, 16\) of float32, found \(2, 16, 16\)"
    with pytest.raises(SimoError, match=message):
        evaluate(model, [batch], tasks)


def test_what_was_checked_as_it_was_read_is_not_checked_again(model, val, tasks, monkeypatch):
    """Of our own data sets the first batch only is looked at, of other loaders every one."""
    checked = []
    monkeypatch.setattr("simo.evaluation.check_batch", lambda batch, _: checked.append(len(batch["image"])))
    evaluate(model, evaluation_batches(val, 3), tasks)
    assert checked == [3]
    evaluate(model, list(evaluation_batches(val, 3)), tasks)
    assert checked == [3, 3, 1]


def test_a_head_of_another_width_is_refused(model, val, tasks):
    """Its prediction would be compared by broadcasting."""
    model.predict = lambda features, size: {"depth": torch.zeros(2, 3, *size)}
    with pytest.raises(
        SimoError, match=r"task depth: the shape of the prediction is .*: expected \(2, 1, 16, 16\)"
    ):
        evaluate(model, evaluation_batches(val, 2), tasks[1:2])


def test_mean_score_by_hand(tasks):
    """Half the mIoU, twice the error and an equal one score (1/2 + 1/2 + 1) / 3."""
    values = {"segmentation": 2.5, "depth": 0.4, "normals": 80.0}
    assert mean_score(tasks, values, BASELINES) == pytest.approx(2 / 3)


@pytest.mark.parametrize("best", [0.25, 0.75])
def test_alpha_is_the_given_splits_best(model, base, task_vector, tasks, val, best):
    """The α under which the split's truth was predicted wins, and the model holds its weights in the end."""
    images = torch.stack([val[index]["image"] for index in range(4)])
    batches = depth_of(model, base, task_vector, best, images)
    alpha, rows = scan_alpha(model, base, task_vector, ALPHAS, batches, tasks[1:2], {"depth": 0.2})
    assert alpha == best
    assert [row["alpha"] for row in rows] == ALPHAS
    assert max(rows, key=lambda row: row["score"])["alpha"] == best
    for name, tensor in model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, base[name] + best * task_vector[name])


def test_scan_reports_what_evaluation_finds(model, base, task_vector, tasks, val):
    """Each row holds the metrics of that α's model and their mean score."""
    batches = evaluation_batches(val, 4)
    model.alpha = 9  # of an earlier choice
    best, rows = scan_alpha(model, base, task_vector, ALPHAS, batches, tasks, BASELINES)
    assert model.alpha == best
    for row in rows:
        model.encoder.load_state_dict(task_vector.apply(base, row["alpha"]))
        values = evaluate(model, batches, tasks)
        assert row == {"alpha": row["alpha"], **values, "score": mean_score(tasks, values, BASELINES)}


def test_scanning_in_place_is_applying(model, base, task_vector, state_of, same):
    """What is loaded tensor by tensor is what `apply` gives, bit for bit, and no entry is kept meanwhile."""
    alive, most = weakref.WeakSet(), []

    def compute(name):
        most.append(len(alive))
        change = task_vector[name].clone()
        alive.add(change)
        return change

    half = {name: x.half() if "norm" in name else x for name, x in base.items()}
    for start in (base, half, base | {"count": torch.tensor(3)}):
        vector = TaskVector([name for name in start if "bias" not in name and name != "count"], compute)
        module = model.encoder
        module.register_buffer("count", torch.tensor(0)) if "count" in start else None
        vector.load_into(module, start, 0.3)
        applied = vector.apply(start, 0.3)
        assert same(
            state_of(module), {name: x.to(module.state_dict()[name].dtype) for name, x in applied.items()}
        )
    assert max(most) <= 1


def test_scan_of_a_model_with_an_experts_own_encoder(model, base, tasks, val, state_of, same):
    """Task vectors are lazy: of an encoder that the scan overwrites, they are those of before it."""
    expert = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in expert.encoder.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    copied = {name: tensor.clone() for name, tensor in expert.encoder.state_dict().items()}
    plan = ALPHAS, evaluation_batches(val, 4), tasks, BASELINES
    wanted = scan_alpha(model, base, TaskVector.between(base, copied), *plan)
    found = scan_alpha(expert, base, TaskVector.between(base, expert.encoder.state_dict()), *plan)
    assert found == wanted
    assert same(state_of(expert), model.state_dict())


def test_scan_leaves_heads_and_inputs_alone(model, base, task_vector, tasks, val, state_of, same):
    """Choosing α trains nothing: heads, θ_0 and τ are the same bits afterwards."""
    heads, before, change = state_of(model.heads), dict(base), dict(task_vector)
    copies = [{name: x.clone() for name, x in state.items()} for state in (before, change)]
    scan_alpha(model, base, task_vector, ALPHAS, evaluation_batches(val, 4), tasks, BASELINES)
    assert same(heads, model.heads.state_dict())
    assert same(copies[0], base)
    assert same(copies[1], dict(task_vector))


def test_scan_without_a_baseline_is_refused(model, base, task_vector, tasks):
    """What scores are relative to is asked for before anything is evaluated."""
    with pytest.raises(SimoError, match=r"baselines is \{\}: expected a metric a task"):
        scan_alpha(model, base, task_vector, ALPHAS, None, tasks, {})
    with pytest.raises(SimoError, match="expected a list of Task"):
        scan_alpha(model, base, task_vector, ALPHAS, None, ["depth"], {})


def test_first_of_equals_wins(model, base, tasks, val):
    """Where α makes no difference, the smallest is chosen, not the last one tried."""
    nothing = TaskVector(base, lambda name: torch.zeros_like(base[name]))
    alpha, _ = scan_alpha(model, base, nothing, [0.5, 1.0], evaluation_batches(val, 4), tasks, BASELINES)
    assert alpha == 0.5


def test_empty_grid_is_refused(model, base, task_vector, tasks):
    """No α to try is a mistake in the parameters."""
    with pytest.raises(SimoError, match=r"alphas is \[\]: expected at least one"):
        scan_alpha(model, base, task_vector, [], [], tasks, BASELINES)


def test_a_grid_of_numpy_is_a_grid(model, base, task_vector, tasks, val):
    """An array has no truth value, but its values are a grid as any."""
    batches = evaluation_batches(val, 4)
    found = [
        scan_alpha(model, base, task_vector, grid, batches, tasks, BASELINES)
        for grid in ([0.0, 1.0], np.linspace(0, 1, 2))
    ]
    assert found[0] == found[1]


def test_no_batch_is_refused(model, tasks):
    """A generator that has been used up is not a split without labels."""
    with pytest.raises(
        SimoError, match="number of batches is 0: expected some, of a list or loader that is not"
    ):
        evaluate(model, iter(()), tasks)
