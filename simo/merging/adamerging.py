"""Layer-wise AdaMerging: how much of each task vector each tensor takes, learned on validation images.

θ^l = θ_0^l + Σ_t λ_t^l τ_t^l with one λ in [0, 1] for every task and tensor (Yang et al., 2024). Their
objective, the entropy of predicted classes, says nothing about regression, and the paper does not name the
one of its Figure 2. Here the coefficients minimise what all training in this module does: the mean of the
tasks' losses.
"""

from dataclasses import replace

import torch
from torch import nn
from torch.func import functional_call

from simo.merging.task_vectors import bounded, refuse_own
from simo.training import autocast, fit


class LayerwiseMerge(nn.Module):
    """An encoder whose weights are merged anew at each call, by coefficients that can be learned.

    Coefficients outside [0, 1] count as its ends, as in AdaMerging's own code: one that has reached an end
    gets no gradient any more, and stays there. Those of batch norm's statistics stay at their start: torch
    has no gradient to these.

    Parameters
    ----------
    encoder : Encoder
        Gives the architecture; frozen, and given the weights of `base`.
    base : mapping of str to Tensor
        θ_0, the pretrained encoder's state.
    task_vectors : mapping of str to TaskVector
        By task name. All of them are held in memory.
    start : float
        Every coefficient at first; its final value if nothing is learned, which is task arithmetic.

    Examples
    --------
    >>> sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
    >>> encoder = create_encoder("vit_tiny_patch16_224", sizes, [1, 2])
    >>> base = encoder.state_dict()
    >>> expert = {name: tensor + 2 for name, tensor in base.items()}
    >>> merge = LayerwiseMerge(encoder, base, {"depth": TaskVector.between(base, expert)}, start=0.5)
    >>> change = merge.state()["backbone.cls_token"] - base["backbone.cls_token"]
    >>> round(change.mean().item(), 4)
    1.0
    """

    def __init__(self, encoder, base, task_vectors, start):
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        encoder.load_state_dict(dict(base))  # any would do, but by it trainings are told apart
        self.tasks, self.names = list(task_vectors), list(next(iter(task_vectors.values())))
        self.coefficients = nn.Parameter(torch.full((len(self.tasks), len(self.names)), float(start)))
        for number, name in enumerate(self.names):
            changes = torch.stack([vector[name] for vector in task_vectors.values()])  # (T, ...)
            self.register_buffer(f"base{number}", base[name].float(), persistent=False)
            self.register_buffer(f"changes{number}", changes, persistent=False)

    def state(self):
        """Merged encoder state by name, with gradients to the coefficients."""
        amounts = self.coefficients.clamp(0, 1)  # (T, tensors)
        with autocast(amounts.device, "float32"):  # weights are merged exactly, whatever they compute in
            return {name: self._merged(name, number, amounts) for number, name in enumerate(self.names)}

    def _merged(self, name, number, amounts):
        if name.endswith(("running_mean", "running_var")):
            amounts = amounts.detach()
        changes = torch.tensordot(amounts[:, number], getattr(self, f"changes{number}"), dims=1)
        return bounded(name, getattr(self, f"base{number}") + changes)

    def forward(self, image):
        """Compute `Features` of images `(B, 3, H, W)`."""
        return functional_call(self.encoder, self.state(), (image,))

    def table(self):
        """Coefficients in [0, 1] by task and tensor name, as plain numbers."""
        rows = zip(self.tasks, self.coefficients.detach().clamp(0, 1).cpu().tolist(), strict=True)
        return {task: dict(zip(self.names, row, strict=True)) for task, row in rows}


def null_space_shares(rows, spaces):
    """How much of a layer's inputs lies where a task vector does nothing: NSC's objective (Lee et al., 2026).

    √(1 − ‖V x‖² / ‖x‖²), 0 for what lies in the space of V's rows, 1 for what is orthogonal to it. Variants:
    there, V spans the rows of a LoRA adapter's first matrix, each task's inputs are those of its own images,
    and coefficients, one an adapted layer, have no bounds; the released code looks at attention's values in
    the last quarter of the blocks. Read as abstract and code.

    Parameters
    ----------
    rows : Tensor
        x `(n, d)`.
    spaces : Tensor
        V `(T, r, d)` with orthonormal rows, one a task.

    Returns
    -------
    Tensor
        `(T, n)`, in [0, 1]; not below 0.001: at 0 the root's slope is infinite.

    Examples
    --------
    >>> rows, space = torch.tensor([[2.0, 0.0], [0.0, 3.0], [4.0, 3.0]]), torch.tensor([[[1.0, 0.0]]])
    >>> null_space_shares(rows, space)
    tensor([[0.0010, 1.0000, 0.6000]])
    """
    inside = torch.einsum("nd,trd->tnr", rows, spaces).square().sum(dim=2)
    return (1 - inside / rows.square().sum(dim=1).clamp(min=1e-8)).clamp(min=1e-6).sqrt()


def learn_coefficients(
    model, base, task_vectors, dataset, tasks, optimisation, learning_rate, start, resume=None,
    head_rate=None, teacher=None,
):  # fmt: skip
    """Learn the coefficients, with labels unless others are given; heads stay as they are, unless they learn.

    With the experts' predictions as labels, and the heads learning, this is the idea of SyMerge (Jung et al.,
    2026), which trains one task-specific layer beside the coefficients; here that is the whole head.

    Parameters
    ----------
    model : MultiTaskModel
        The experts' heads. Trained in place, its encoder merged in the end; left in eval mode and frozen.
    base, task_vectors, start
        See `LayerwiseMerge`.
    dataset : PreparedDataset
        The validation split, with targets of all tasks.
    tasks : sequence of Task
    optimisation : Optimisation
        Its weight decay is not used: it would pull towards the pretrained encoder.
    learning_rate : float
        Peak.
    resume : str or Path, optional
        File for the state of unfinished training.
    head_rate : float, optional
        Peak, of the heads.
    teacher : callable, optional
        Gives targets in place of the data set's, see `simo.realignment.trained.expert_labels`.

    Returns
    -------
    (dict of str to dict, list of dict)
        Coefficients by task and tensor name, and the loss history.

    Raises
    ------
    SimoError
        If a loss is not finite, `resume` is of another training, or the base is the encoder's own state.
    """
    refuse_own(model.encoder, base)
    merge = LayerwiseMerge(model.encoder, base, task_vectors, start).to(optimisation.device)
    model.to(optimisation.device).eval().requires_grad_(False)

    def predict(batch):
        if teacher:
            with torch.no_grad():
                batch.update(teacher(batch["image"]))  # the losses read it from there
        return model.predict(merge(batch["image"]), batch["image"].shape[-2:])

    rates, trained = [([merge.coefficients], learning_rate)], merge
    if head_rate is not None:
        rates.append((list(model.heads.train().requires_grad_(True).parameters()), head_rate))
        trained = nn.ModuleDict({"merge": merge, "heads": model.heads})
    plan = (trained, predict, rates, dataset, tasks, replace(optimisation, weight_decay=0.0))
    label = f"coefficients of {', '.join(task_vectors)}"
    history = fit(*plan, label=label, resume=resume, beside=[model.heads])
    with torch.no_grad():
        model.encoder.load_state_dict({**base, **merge.state()})
    model.eval().requires_grad_(False)
    return merge.table(), history
