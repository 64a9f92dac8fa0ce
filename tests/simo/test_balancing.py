"""simo.balancing: weights and combined gradients against examples by hand and laws."""

import itertools

import numpy as np
import pytest
import torch

from simo.balancing import BY_GRADIENT, PERIOD, balancing, cagrad, dwa, equal, pcgrad, uncertainty
from simo.errors import SimoError


def gradient_of(backward, losses_of, history=()):
    """Gradient at 1 of one parameter, after a backward pass over losses that are functions of it."""
    parameter = torch.ones((), requires_grad=True)
    backward(torch.stack([loss(parameter) for loss in losses_of]), list(history))
    return parameter.grad.item()


def test_equal_weights_are_the_mean():
    """d/dp of (p + 3p) / 2 is 2."""
    assert gradient_of(equal, [lambda p: p, lambda p: 3 * p]) == pytest.approx(2)


def test_uncertainty_ignores_the_scale_of_a_loss():
    """½ Σ ∇L / L at the optimal variances: the same whatever unit a loss has; by hand ½ (1 + 2)."""
    for scale in (1, 1000):
        found = gradient_of(uncertainty, [lambda p, scale=scale: scale * p, lambda p: p**2])
        assert found == pytest.approx(1.5)


def test_uncertainty_is_the_learned_form_at_its_optimum():
    """The gradient equals that of Σ L / (2 e^s) + s / 2 with s = log L held fixed."""
    losses = [lambda p: 3 * p**2, lambda p: p + 4]

    def with_variance(values, history):
        s = values.detach().log()
        (values / (2 * s.exp()) + s / 2).sum().backward()

    assert gradient_of(uncertainty, losses) == pytest.approx(gradient_of(with_variance, losses))


def test_dwa_by_hand():
    """Ratios 1 and .5 at temperature 2: weights 1.124 and .876; equal before there are two periods.

    Means of periods count: single rows of the second loss are far from them, and a row before is too old.
    """
    old = {"step": 0, "learning_rate": 1, "a": 9.0, "b": 1.0}
    rows = [{**old, "a": 2.0, "b": 1.0 + 2 * (n % 2)} for n in range(PERIOD)]
    rows = [old, *rows, *({**row, "b": row["b"] / 2} for row in rows)]
    losses = [lambda p: p, lambda p: 0 * p]
    assert 2 * gradient_of(dwa, losses, rows) == pytest.approx(1.1244, abs=1e-3)
    assert 2 * gradient_of(dwa, losses, rows[2:]) == pytest.approx(1)


def test_dwa_counts_a_task_without_labels_as_one_that_stands_still():
    """Losses of exactly 0 had no label, and fall neither slowly nor fast: the ratio is 1, as of the other."""
    rows = [
        {"step": 0, "learning_rate": 1, "a": 2.0, "b": 0.0 if n < PERIOD else 5.0} for n in range(2 * PERIOD)
    ]
    assert 2 * gradient_of(dwa, [lambda p: p, lambda p: 0 * p], rows) == pytest.approx(1)


CONFLICT = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])


def test_pcgrad_by_hand():
    """(1, 0) and (-1, 1) become (.5, .5) and (0, 1), whose mean is (.25, .75)."""
    torch.testing.assert_close(pcgrad(CONFLICT), torch.tensor([0.25, 0.75]))
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(pcgrad(agreeing), agreeing.mean(0))


def test_pcgrad_takes_the_others_in_random_order():
    """Of three tasks each has two orders: all eight means turn up, and no other."""
    gradients = torch.tensor([[1.0, 0.0, 0.2], [-1.0, 1.0, 0.0], [-0.5, -1.0, 0.3]])

    def without_conflicts(task, order):
        own = gradients[task]
        for other in order:
            along = gradients[other] / gradients[other].norm()
            own = own - (own @ along).clamp(max=0) * along
        return own

    orders = [[(1, 2), (2, 1)], [(0, 2), (2, 0)], [(0, 1), (1, 0)]]  # of the others
    expected = [
        sum(without_conflicts(task, order) for task, order in enumerate(chosen)) / 3
        for chosen in itertools.product(*orders)
    ]
    found = torch.stack([pcgrad(gradients) for _ in range(200)])
    distances = (found[:, None] - torch.stack(expected)).norm(dim=2)  # (200, 8)
    assert distances.min(dim=1).values.max() < 1e-6
    assert set(distances.argmin(dim=1).tolist()) == set(range(8))


def test_cagrad_by_hand():
    """The same gradients with c = .4: (.2, .5), which is .2 from the mean; c = 0 is the mean."""
    found = cagrad(CONFLICT, radius=0.4)
    torch.testing.assert_close(found, torch.tensor([0.2, 0.5]))
    assert (found - CONFLICT.mean(0)).norm().item() == pytest.approx(0.2)
    torch.testing.assert_close(cagrad(CONFLICT, radius=0.0), CONFLICT.mean(0))


def worst_gain(products, radius):
    """The most that the worst task can gain, by the dual problem: every set of tasks that can be the worst.

    Of min over weights w of w·b + r √(w K w), with Σ w = 1, on the tasks that share in it, Lagrange's
    condition is a quadratic equation of the multiplier.
    """
    tasks = range(len(products))
    gains, reach = products.mean(axis=1), radius * np.sqrt(products.mean())
    best = np.inf
    for chosen in itertools.chain.from_iterable(itertools.combinations(tasks, n + 1) for n in tasks):
        own = list(chosen)
        inverse, b = np.linalg.inv(products[np.ix_(own, own)]), gains[own]
        one, half, rest = inverse.sum(), (inverse @ b).sum(), b @ inverse @ b - reach**2
        if half**2 < one * rest:
            continue
        weights = inverse @ ((half + np.sqrt(half**2 - one * rest)) / one - b)
        if weights.min() >= 0 < weights.sum():
            weights /= weights.sum()
            length = np.sqrt(weights @ products[np.ix_(own, own)] @ weights)
            best = min(best, weights @ b + reach * length)
    return best


@pytest.mark.parametrize("ratio", [1, 10, 100, 1e3, 1e4])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_cagrad_is_exact(ratio, count):
    """The worst task gains what the dual problem allows, however the gradients' lengths differ."""
    random = np.random.default_rng(0)
    for radius in (0.1, 0.4, 1.0):
        common = random.choice([-1, 0, 1]) * random.normal(size=8)
        lengths = random.permutation(np.geomspace(1, ratio, count))
        gradients = torch.tensor((random.normal(size=(count, 8)) + common) * lengths[:, None])
        step, products = cagrad(gradients, radius), (gradients @ gradients.T).numpy()
        possible = worst_gain(products, radius)
        assert (gradients @ step).min().item() == pytest.approx(
            possible, abs=1e-9 * products.diagonal().min()
        )
        mean = gradients.mean(0)
        assert ((step - mean).norm() / mean.norm()).item() == pytest.approx(radius, rel=1e-9)


def test_task_without_gradient_takes_no_protection():
    """Its zeros lower the mean; the step still helps the worst of the others as much as is within reach."""
    step = cagrad(torch.cat([CONFLICT, torch.zeros(1, 2)]))
    torch.testing.assert_close(step, cagrad(CONFLICT) * 2 / 3)
    assert (CONFLICT @ step).min() > 1.5 * (CONFLICT @ CONFLICT.mean(0)).min() * 2 / 3
    torch.testing.assert_close(cagrad(torch.zeros(2, 3)), torch.zeros(3))


ALIKE = torch.tensor([[3.0, 4.0], [3.0, 4.0], [6.0, 8.0]])
AGAINST = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 3.0]])


def test_cagrad_of_dependent_gradients():
    """Where products have no inverse: parallel gradients, opposite ones, a mean of zero, a diverged task."""
    torch.testing.assert_close(cagrad(ALIKE), 1.4 * ALIKE.mean(0))
    step = cagrad(AGAINST)  # neither of the first two can gain without the other's loss
    torch.testing.assert_close(AGAINST[:2] @ step, torch.zeros(2))
    assert (AGAINST[2] @ step) >= AGAINST[2] @ AGAINST.mean(0)
    torch.testing.assert_close(cagrad(AGAINST[:2]), torch.zeros(2))
    assert cagrad(torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])).isnan().any()  # the loss is reported


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_cagrad_does_not_depend_on_the_scale(scale):
    """Gradients a hundred times smaller give a step a hundred times smaller, in the same direction."""
    torch.testing.assert_close(cagrad(scale * CONFLICT) / scale, cagrad(CONFLICT))


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_only_shared_parameters_are_combined(name):
    """Heads keep the mean's gradient; the shared parameter gets the combined one, added to what it had."""
    shared, head = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    shared.grad, head.grad = torch.ones(2), torch.zeros(2)
    losses = torch.stack([row @ shared + row @ head for row in CONFLICT])
    balancing(name, [shared])(losses, [])
    torch.testing.assert_close(shared.grad, 1 + BY_GRADIENT[name](CONFLICT))
    torch.testing.assert_close(head.grad, CONFLICT.mean(0))


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_shared_parameters_may_come_as_a_generator(name):
    """As of `module.parameters()`: the second step combines gradients as the first one does."""
    layer = torch.nn.Linear(2, 1, bias=False)
    backward = balancing(name, layer.parameters())
    for _ in range(2):
        layer.zero_grad()
        backward(torch.stack([(row * layer.weight).sum() for row in CONFLICT]), [])
        torch.testing.assert_close(layer.weight.grad[0], BY_GRADIENT[name](CONFLICT))


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_frozen_encoder_changes_nothing(name):
    """While only heads are trained, as in probing, every way is the mean."""
    shared, head = torch.zeros(2), torch.zeros(2, requires_grad=True)
    losses = torch.stack([row @ shared + row @ head for row in CONFLICT])
    balancing(name, [shared])(losses, [])
    torch.testing.assert_close(head.grad, CONFLICT.mean(0))


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_parameter_that_no_head_reads_is_left_alone(name):
    """Such as the encoder's final norm, which comes after the last tapped block: no gradient, no error."""
    shared, unread = torch.zeros(2, requires_grad=True), torch.zeros(3, requires_grad=True)
    balancing(name, [shared, unread])(torch.stack([row @ shared for row in CONFLICT]), [])
    torch.testing.assert_close(shared.grad, BY_GRADIENT[name](CONFLICT))
    assert unread.grad is None


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_compiled_model_bears_several_backward_passes(name):
    """Also after the same code was compiled for one pass, whose buffers may be used again."""
    layer = torch.nn.Linear(8, 2)

    def gradient(way, compiled):
        layer.zero_grad()
        backward = balancing(way, list(layer.parameters()))
        predict = torch.compile(lambda x: layer(x).exp().tanh(), backend="aot_eager") if compiled else None
        x = torch.linspace(-1, 1, 32).view(4, 8)
        losses = (predict(x) if compiled else layer(x).exp().tanh()).mean(dim=0)
        torch.manual_seed(0)
        backward(losses, [])
        return layer.weight.grad

    expected = gradient(name, compiled=False)
    gradient("equal", compiled=True)
    torch.testing.assert_close(gradient(name, compiled=True), expected)


def test_unknown_balancing_is_named():
    """A misspelt name is refused with the names that exist."""
    with pytest.raises(SimoError, match=r"unknown balancing \[\]"):  # what cannot be a key, either
        balancing([], [])
    with pytest.raises(SimoError, match="unknown balancing 'pgcrad': expected one of .*'pcgrad'"):
        balancing("pgcrad", [])


@pytest.mark.parametrize("name", ["equal", "uncertainty", "dwa", "pcgrad", "cagrad"])
def test_micro_batches_of_equal_losses_make_one_step(name):
    """Two halves of a step with the same losses add up to the gradient of the whole."""
    shared = torch.ones(2, requires_grad=True)
    backward, found = balancing(name, [shared]), []
    for shares in ([1.0], [0.5, 0.5]):
        shared.grad = None
        for share in shares:
            backward(torch.stack([3 + row @ shared for row in CONFLICT]), [], share)
        found.append(shared.grad.clone())
    torch.testing.assert_close(found[0], found[1])
