"""What computing notebooks define themselves, run on a tiny model: methods that no other place has."""

import ast
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from report.notebooks import ROOT, notebook_code
from simo.checkpoints import load_into
from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.merging.adamerging import LayerwiseMerge, null_space_shares
from simo.merging.moments import check_layers, watch_layers
from simo.merging.task_vectors import TaskVector
from simo.training import Optimisation, OwnLoss, fit


def functions_of(notebook, names, namespace):
    """Functions of a computing notebook, with a namespace in the place of its own."""
    code = "\n".join(notebook_code(ROOT / "notebooks" / "compute" / f"{notebook}.ipynb"))
    found = [
        node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef) and node.name in names
    ]
    exec(compile(ast.Module(found, []), notebook, "exec"), namespace)
    return [namespace[name] for name in names]


@pytest.fixture
def nsc(model, tasks, val):
    """`first_directions` and `compress` of the wider field's notebook, and all that they refer to."""
    base = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    vectors, random = {}, torch.Generator().manual_seed(0)
    for task in tasks:
        change = {name: 0.1 * torch.randn(x.shape, generator=random) for name, x in base.items()}
        vectors[task.name] = TaskVector(change, change.__getitem__)
    namespace = {
        "torch": torch, "replace": replace, "fit": fit, "load_into": load_into, "OwnLoss": OwnLoss,
        "LayerwiseMerge": LayerwiseMerge, "null_space_shares": null_space_shares,
        "check_layers": check_layers, "watch_layers": watch_layers,
        "run": SimpleNamespace(where={"device": "cpu"}),
        "task_vectors": vectors, "base": base, "val": val, "adapter_rank": 2, "coefficient_start": 0.3,
        "coefficient_lr": 0.05, "optimisation": Optimisation(steps=40, batch_size=4, seed=0, clip=1.0),
    }  # fmt: skip
    return functions_of("field", ("first_directions", "compress"), namespace), namespace


def test_first_directions_say_most_of_a_matrix(nsc):
    """Two rows a task, orthonormal, that hold more of its change than any two others."""
    (first_directions, _), namespace = nsc
    name = "backbone.blocks.0.mlp.fc1.weight"
    found = first_directions(name)
    for space, vector in zip(found, namespace["task_vectors"].values(), strict=True):
        torch.testing.assert_close(space @ space.T, torch.eye(2, dtype=torch.float64))
        values = torch.linalg.svdvals(vector[name].double())
        assert (vector[name].double() @ space.T).norm().square() == pytest.approx(
            values[:2].square().sum().item()
        )


def test_compressing_brings_inputs_out_of_the_null_spaces(nsc, model, tmp_path):
    """The share that training is to lower is lower after it, on the same images; heads stay as they are."""
    (first_directions, compress), namespace = nsc

    def share(encoder):
        shares = []

        def note(name, layer, x):
            if isinstance(layer, torch.nn.Linear):
                shares.append(null_space_shares(x, first_directions(f"{name}.weight")).mean())

        images = torch.stack([namespace["val"][index]["image"] for index in range(len(namespace["val"]))])
        with torch.no_grad(), watch_layers(encoder, note):
            encoder(images)
        return torch.stack(shares).mean()

    heads = {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}
    sum(list(namespace["task_vectors"].values())[1:], namespace["task_vectors"]["segmentation"]).load_into(
        model.encoder, namespace["base"], 0.3
    )
    before = share(model.encoder)
    compress(model, tmp_path)
    assert share(model.encoder) < before - 0.01
    assert all(torch.equal(tensor, heads[name]) for name, tensor in model.heads.state_dict().items())


def test_compressing_what_has_no_linear_layers_is_refused(nsc, tmp_path):
    """Nothing would be learned; the notebook says so before it trains."""
    (_, compress), _ = nsc
    convolutions = create_encoder("test_efficientnet", {}, [1, 2])
    with pytest.raises(SimoError, match="EfficientNet has no linear layers"):
        compress(SimpleNamespace(encoder=convolutions), tmp_path)
