"""How joint training brings the tasks together: by weights of their losses, or by their gradients.

Each way is a function that does the backward pass of a micro-batch, `backward(losses, history, share)`: from
the losses `(T,)`, still attached to their graph, the loss history so far (see `simo.training.fit`), and the
share of the micro-batch in its step. It adds to the gradients of all trained parameters, and holds no state,
so that training can be resumed at any step.
"""

import numpy as np
import torch

from simo.errors import require_known

PERIOD = 10  # rows of the loss history, of 100 to 199: single rows are a few batches, and mostly noise


def equal(losses, history, share=1.0):
    """The mean of the losses: what the paper and everything else here does."""
    (share * losses.mean()).backward()


def uncertainty(losses, history, share=1.0):
    """Homoscedastic uncertainty (Kendall et al., 2018), each log variance at its optimum.

    Σ L_t / (2 e^{s_t}) + s_t / 2 is least for s_t = log L_t, where its gradient is that of ½ Σ log L_t: every
    loss counts relative to its own size. Variant: the usual code learns s_t, which lags behind. As losses
    fall gradients grow, so that clipping acts more often here than elsewhere.
    """
    (0.5 * share * losses.clamp(min=1e-12).log().sum()).backward()


def dwa(losses, history, share=1.0):
    """Dynamic weight average (Liu et al., 2019): more weight for losses that fall more slowly.

    Weights are T softmax(r / 2), r_t the mean loss of the last `PERIOD` rows of the history over
    that of the `PERIOD` rows before. Variant: these, a twentieth to a tenth of the training each, take the
    place of epochs, and move on with every row. Until there are two, weights are equal, and so they stay in
    trainings of at most twice `PERIOD` steps. A loss of 0, as of a task without labels, counts as standing
    still.
    """
    weights = torch.ones_like(losses)
    if len(history) >= 2 * PERIOD:
        rows = [list(row.values())[-len(losses) :] for row in history[-2 * PERIOD :]]
        before, last = losses.new_tensor(rows).unflatten(0, (2, PERIOD)).mean(dim=1)
        weights = len(losses) * (torch.where(before > 1e-12, last / before, 1) / 2).softmax(dim=0)
    (share * (weights * losses).mean()).backward()


def pcgrad(gradients):
    """Mean of the tasks' gradients, each without its component against any other (Yu et al., 2020).

    Parameters
    ----------
    gradients : Tensor
        `(T, P)` of the shared parameters.

    Returns
    -------
    Tensor
        `(P,)`. The others are taken in random order, by torch's global generator.
    """
    changed = gradients.clone()
    for task, own in enumerate(changed):
        for other in torch.randperm(len(gradients)).tolist():
            conflict = own @ gradients[other]
            if other != task and conflict < 0:
                own -= conflict / gradients[other].square().sum() * gradients[other]
    return changed.mean(dim=0)


def cagrad(gradients, radius=0.4):
    """The step near the mean gradient that helps the worst task most (CAGrad; Liu et al., 2021).

    Variants: without the factor 1 / (1 + c²) that libraries have as an option. A task without gradient is
    none to help: it would be the worst whatever the step, and the others would lose their protection. Where
    nothing within reach helps the worst task more, the shortest such step is taken.

    Parameters
    ----------
    gradients : Tensor
        `(T, P)` of the shared parameters.
    radius : float
        c: how far from the mean gradient, in parts of its length; 0 is the mean.

    Returns
    -------
    Tensor
        `(P,)`.
    """
    products = (gradients @ gradients.T).double().cpu().numpy()
    weights = torch.as_tensor(_cagrad_weights(products, radius), dtype=gradients.dtype)
    return gradients.mean(dim=0) + weights.to(gradients.device) @ gradients


def _cagrad_weights(products, radius):
    """How much of each gradient CAGrad adds to their mean, `(T,)`, from their inner products `(T, T)`.

    The shortest step that gives every task the gain t solves least distances under inequalities, which
    non-negative least squares do exactly (Lawson and Hanson, 1974, chapter 23); the largest t whose step is
    within reach is found by bisection. Gradients have the length 1 here, so that short ones count as exactly.
    """
    from scipy.optimize import nnls  # slow to import

    weights, lengths = np.zeros(len(products)), np.sqrt(products.diagonal())
    reach = radius * np.sqrt(max(products.mean(), 0))  # of the mean gradient's length
    own = np.flatnonzero(lengths)
    if not reach > 0 or not np.isfinite(products).all():
        return weights
    gains, lengths = products.mean(axis=1)[own], lengths[own]  # of the mean gradient
    sizes, basis = np.linalg.eigh(products[np.ix_(own, own)] / np.outer(lengths, lengths))
    unit = (basis * np.sqrt(sizes.clip(min=0))).T  # columns with the gradients' angles

    def shortest(gain):
        system = np.vstack([unit, (gain - gains) / lengths / reach])
        parts, _ = nnls(system, np.eye(len(system))[-1], maxiter=100 * len(system))
        rest = 1 - system[-1] @ parts  # 1 / (1 + ℓ²), ℓ the step's length in parts of the reach
        return parts / lengths * reach / max(rest, 0.5), rest >= 0.5

    low, high = gains.min(), (gains + reach * lengths).min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if shortest(middle)[1] else (low, middle)
    weights[own] = shortest(low)[0]
    return weights


BY_LOSS = {"equal": equal, "uncertainty": uncertainty, "dwa": dwa}
BY_GRADIENT = {"pcgrad": pcgrad, "cagrad": cagrad}


def balancing(name, shared):
    """The backward pass of a way to balance.

    Parameters
    ----------
    name : str
        A key of `BY_LOSS` or `BY_GRADIENT`.
    shared : list of Parameter
        What all tasks train, the encoder's; heads have their own task's gradient in any case.

    Returns
    -------
    callable
        `backward(losses, history, share)`.

    Raises
    ------
    SimoError
        For an unknown name.
    """
    require_known("balancing", name, BY_LOSS | BY_GRADIENT)
    if name in BY_LOSS:
        return BY_LOSS[name]

    # With several backward passes over a compiled graph none may reuse buffers that the next still needs, and
    # what was compiled for a single pass must not be found again.
    torch.compiler.reset()
    shared = list(shared)
    torch._functorch.config.donated_buffer = False

    def backward(losses, history, share=1.0):
        losses = share * losses
        if not (trained := [parameter for parameter in shared if parameter.requires_grad]):
            return losses.mean().backward()
        sizes = [parameter.numel() for parameter in trained]
        gradients = losses.new_empty(len(losses), sum(sizes))
        given = {"retain_graph": True, "materialize_grads": True}  # the final norm feeds no head
        for row, loss in zip(gradients, losses, strict=True):  # in place: no second copy of so much
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, trained, **given)], out=row)
        losses.mean().backward()  # adds the mean to the shared parameters, too
        change = BY_GRADIENT[name](gradients) - gradients.mean(dim=0)
        for parameter, part in zip(trained, change.split(sizes), strict=True):
            if parameter.grad is not None:
                parameter.grad += part.view_as(parameter)

    return backward
