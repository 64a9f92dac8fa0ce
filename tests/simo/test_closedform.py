"""simo.realignment.closedform: solutions against examples by hand and laws, layers against those before."""

import copy

import numpy as np
import pytest
import torch

from simo.encoders import Features
from simo.errors import SimoError
from simo.heads import DPTHead, LinearHead
from simo.models import create_model
from simo.realignment.closedform import (
    FEATURE_MAPS,
    STRENGTHS,
    choose_ridge,
    diagonal,
    gram,
    procrustes,
    realign_closed_form,
    ridges,
    solve_heads,
    squared_errors,
    stream_grams,
)
from simo.tasks import tasks_of

DEPTH, NORMALS = (task for task in tasks_of("nyuv2") if task.name in ("depth", "normals"))


def column(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


def random_pairs(count=200, width=4, outputs=3, seed=0):
    """Rows z and noisy linear u of it, and the matrix behind."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(count, width, generator=generator, dtype=torch.float64) + 3
    matrix = torch.randn(outputs, width, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return z, z @ matrix.T + 1 + noise, matrix


def test_ridge_by_hand():
    """z = (-1, 0, 1), u = (0, 3, 6), W₀ = 1: Σ z z = 2 and Σ u z = 6, so the slope is (6 + λ) / (2 + λ)."""
    matrix = gram(column(-1, 0, 1), column(0, 3, 6))
    slopes = {0.0: 3.0, 1.0: 2.0, float("inf"): 1.0}  # λ is twice the strength
    for slope, (weight, bias) in zip(slopes.values(), ridges(matrix, column(1), slopes), strict=True):
        assert (weight.item(), bias.item()) == pytest.approx((slope, 3))


def test_ridge_minimises_its_objective():
    """No small change of W or b lowers the penalised error: gradients by autograd are zero."""
    z, u, _ = random_pairs()
    prior, strength = torch.ones(3, 4, dtype=torch.float64), 0.3
    (layer,) = ridges(gram(z, u), prior, [strength])
    weight, bias = (value.clone().requires_grad_() for value in layer)
    amount = strength * (z - z.mean(0)).square().sum() / 4
    loss = (u - z @ weight.T - bias).square().sum() + amount * (weight - prior).square().sum()
    for gradient in torch.autograd.grad(loss, (weight, bias)):
        assert gradient.abs().max() < 1e-8 * loss.item()


def test_layer_on_features_is_the_map_times_the_layer():
    """The commuting law: regressing W₀ y on z towards W₀ is W₀ times the regression of y on z towards I."""
    z, y, _ = random_pairs(outputs=4)
    prior = torch.randn(2, 4, dtype=torch.float64)
    ((direct, _),) = ridges(gram(z, y @ prior.T), prior, [0.2])
    ((change, _),) = ridges(gram(z, y), torch.eye(4, dtype=torch.float64), [0.2])
    torch.testing.assert_close(direct, prior @ change)


def test_error_is_the_sum_of_squares():
    """Held-out error from the Gram matrix alone equals that of the residuals."""
    z, u, _ = random_pairs()
    weight, bias = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = (u - z @ weight.T - bias).square().sum(dim=0)
    torch.testing.assert_close(squared_errors(gram(z, u), weight, bias), expected)


def test_gram_matrices_add():
    """Streaming in parts is the same as having all rows at once."""
    z, u, _ = random_pairs()
    torch.testing.assert_close(gram(z[:50], u[:50]) + gram(z[50:], u[50:]), gram(z, u))


def test_strength_is_chosen_on_held_out_images():
    """A clean output needs no ridge; a noisy copy of its prior's needs much; each has its own strength."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(1, 8, generator=generator, dtype=torch.float64)
    noise = 3 * torch.randn(24, 1, generator=generator, dtype=torch.float64)
    u = torch.cat([z @ weight.T, z[:, :1] + noise], dim=1)
    prior = torch.eye(8, dtype=torch.float64)[[0, 0]]
    clean, noisy = choose_ridge(gram(z[:16], u[:16]), gram(z[16:], u[16:]), prior, [1, 1])
    assert clean[2] <= 1e-5
    torch.testing.assert_close(clean[0], weight, rtol=1e-4, atol=1e-4)
    assert noisy[2] >= 1


def test_the_chosen_ridge_is_solved_again_on_all_images():
    """Held-out images decide the strength, and then they are fitted, too; groups have what is theirs."""
    z, u, _ = random_pairs()
    fitted, held_out = gram(z[:30], u[:30]), gram(z[30:], u[30:])
    prior = torch.ones(3, 4, dtype=torch.float64)
    first, second = choose_ridge(fitted, held_out, prior, [2, 1])
    for (weight, bias, strength, _), part in ((first, slice(0, 2)), (second, slice(2, 3))):
        ((wanted, shift),) = ridges(fitted + held_out, prior, [strength])
        torch.testing.assert_close(weight, wanted[part])
        torch.testing.assert_close(bias, shift[part])


@pytest.mark.parametrize("value", [0.0, 0.1, float("nan")])
def test_features_that_do_not_vary_are_refused(value):
    """0 / 0 would make every weight NaN; 0.1 is not exact in binary: its variance is not quite 0."""
    matrix = gram(torch.full((20, 4), value, dtype=torch.float64), torch.rand(20, 3))
    with pytest.raises(SimoError, match="4 features are the same everywhere"):
        next(ridges(matrix, torch.zeros(3, 4, dtype=torch.float64), [1.0]))


def test_procrustes_turns_as_little_as_it_can():
    """Three rows span two of eight directions: what they do not show stays where it is."""
    z = torch.randn(3, 8, dtype=torch.float64)
    matrix, shift = procrustes(gram(z, z), 8)
    torch.testing.assert_close(matrix, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(shift, torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-6)


def test_procrustes_finds_a_rotation():
    """u = Q z + b is recovered exactly, reflections included."""
    z, _, _ = random_pairs()
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    matrix, shift = procrustes(gram(z, z @ rotation.T + 2), 4)
    torch.testing.assert_close(matrix, rotation)
    torch.testing.assert_close(shift, torch.full((4,), 2.0, dtype=torch.float64))


def test_diagonal_is_a_regression_a_feature():
    """Each feature by itself, and a feature that never varies is only shifted."""
    z, u, _ = random_pairs(outputs=4)
    z[:, 2] = 0.1  # not exact in binary: its variance is not quite 0
    matrix, shift = diagonal(gram(z, u), 4)
    for feature in (0, 1, 3):
        own = torch.stack([z[:, feature], torch.ones(200, dtype=torch.float64)], dim=1)
        slope, start = torch.linalg.lstsq(own, u[:, feature]).solution
        assert matrix[feature, feature].item() == pytest.approx(slope.item())
        assert shift[feature].item() == pytest.approx(start.item())
    assert torch.count_nonzero(matrix - matrix.diag().diag()) == 0
    assert matrix[2, 2] == 1
    assert shift[2].item() == pytest.approx(u[:, 2].mean().item() - 0.1)


def head_of(kind, task):
    """A head in eval mode whose batch norm statistics are not the initial ones, and features for it."""
    torch.manual_seed(0)
    dims = [6] * 4
    head = LinearHead(task, dims, True, 2) if kind == "linear" else DPTHead(task, dims, True, [2, 3, 4, 5], 4)
    for name, buffer in head.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(torch.rand_like(buffer))
    features = Features(torch.randn(2, 4, 6, 3, 5).double(), torch.randn(2, 4, 6).double())
    return head.eval().double(), features


def statistics_of(maps):
    """Mean and variance of each input of a head."""
    rows = [each.flatten(2).mT.flatten(0, 1) for each in maps]
    return [(each.mean(0), each.var(0, correction=0)) for each in rows]


@pytest.mark.parametrize("task", [DEPTH, NORMALS], ids=lambda task: task.name)
@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_first_layers_are_what_the_head_computes(kind, task):
    """Setting the layers that were read changes no prediction, in float64, although a batch norm is moved."""
    head, features = head_of(kind, task)
    expected = head(features, (7, 9))
    copied = copy.deepcopy(head)
    copied.set_first_layers(head.first_layers(), statistics_of(head.inputs(features)))
    torch.testing.assert_close(copied(features, (7, 9)), expected, rtol=1e-10, atol=1e-10)
    assert copied.state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize("kind", ["linear", "dpt"])
def test_a_map_of_the_features_goes_into_the_layers(kind):
    """φ on A z + c is φ with the layers W A, W c + b on z: to float64's rounding."""
    head, features = head_of(kind, NORMALS)
    inputs = head.inputs(features)
    maps = [(torch.randn(x.shape[1], x.shape[1]).double(), torch.randn(x.shape[1]).double()) for x in inputs]
    mapped = [
        torch.einsum("ij,bjhw->bihw", matrix, x) + shift[:, None, None]
        for (matrix, shift), x in zip(maps, inputs, strict=True)
    ]
    expected = copy.deepcopy(head)
    expected.inputs = lambda _: mapped
    layers = [
        (weight @ matrix, weight @ shift + bias)
        for (weight, bias), (matrix, shift) in zip(head.first_layers(), maps, strict=True)
    ]
    head.set_first_layers(layers, statistics_of(inputs))
    torch.testing.assert_close(head(features, (7, 9)), expected(features, (7, 9)), rtol=1e-9, atol=1e-9)


def test_training_starts_where_the_closed_form_ended():
    """With batch statistics, as in training, a linear head computes what it does with its own: no jump."""
    head, features = head_of("linear", NORMALS)
    head.set_first_layers(head.first_layers(), statistics_of(head.inputs(features)))
    expected = head(features, (7, 9))
    torch.testing.assert_close(head.train()(features, (7, 9)), expected, rtol=1e-6, atol=1e-6)


def batches_of(count, size=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 3, 16, 16, generator=generator)
    return [{"image": part} for part in images.split(size)]


@pytest.mark.parametrize("kind", ["ridge", *FEATURE_MAPS])
def test_realigned_to_itself_is_itself(model, tasks, kind):
    """If the merged encoder is every task's expert, nothing is left to repair, from however few images."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    realigned = realign_closed_form(model, experts, batches_of(4), kind=kind)
    image = batches_of(1)[0]["image"]
    for name, prediction in model(image).items():
        torch.testing.assert_close(realigned(image)[name], prediction, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["ridge", *FEATURE_MAPS])
def test_repairs_the_damage_it_can_express(model, tasks, state_of, same, kind):
    """Features that were mixed (or scaled, or turned) are brought back: the expert's predictions again."""
    before, expert = state_of(model), copy.deepcopy(model)
    of_expert = state_of(expert)
    mixing = {
        "ridge": torch.eye(16) + 0.3 * torch.randn(16, 16),
        "diagonal": (0.5 + torch.rand(16)).diag(),
        "procrustes": torch.linalg.qr(torch.randn(16, 16))[0],
        "shift": torch.eye(16),
    }[kind]
    block = model.encoder.backbone.blocks[-1]  # of the merged encoder
    handle = block.register_forward_hook(lambda module, inputs, output: output @ mixing.T + 0.5)
    experts = {task.name: expert.encoder for task in tasks}
    realigned = realign_closed_form(model, experts, batches_of(40), kind=kind)
    image = batches_of(2)[0]["image"]
    for name, wanted in expert(image).items():
        damage = (model(image)[name] - wanted).abs().mean()
        left = (realigned(image)[name] - wanted).abs().mean()
        assert left < 0.05 * damage, name
    handle.remove()
    assert same(before, model.state_dict())
    assert same(of_expert, expert.state_dict())


def test_every_tap_of_a_dpt_head_gets_its_own_layer(tasks, settings):
    """Each tap's features are mixed in its own way, and each projection undoes its own mixing."""
    sizes = {"head": "dpt", "head_options": {"channels": [2, 3, 4, 5], "width": 4}, "blocks": [1, 2, 3, 4]}
    sizes["backbone_args"] = settings["backbone_args"] | {"depth": 4}
    model = create_model(tasks, 0, **settings | sizes).eval()
    expert, mixing = copy.deepcopy(model), torch.eye(16) + 0.2 * torch.randn(4, 16, 16)

    def mix(module, inputs, found):
        patches = torch.einsum("lij,bljhw->blihw", mixing, found.patches)
        return Features(patches, torch.einsum("lij,blj->bli", mixing, found.classes))

    model.encoder.register_forward_hook(mix)
    realigned = realign_closed_form(model, {task.name: expert.encoder for task in tasks}, batches_of(40))
    for name, head in realigned.heads.items():
        before = expert.heads[name].first_layers()
        for (weight, _), (wanted, _), tap in zip(head.first_layers(), before, mixing.double(), strict=True):
            torch.testing.assert_close(weight @ tap, wanted, rtol=0.01, atol=0.01)
    image = batches_of(2)[0]["image"]
    for name, wanted in expert(image).items():
        torch.testing.assert_close(realigned(image)[name], wanted, rtol=0.01, atol=0.01)


def test_residual_of_a_dpt_head_is_the_mean_over_its_taps(tasks, settings):
    """One tap of four says nothing any more, the others everything: a quarter is left."""
    sizes = {"head": "dpt", "head_options": {"channels": [2, 3, 4, 5], "width": 4}, "blocks": [1, 2, 3, 4]}
    sizes["backbone_args"] = settings["backbone_args"] | {"depth": 4}
    model = create_model(tasks, 0, **settings | sizes).eval()
    encoders = {task.name: copy.deepcopy(model.encoder) for task in tasks}

    def forget(module, inputs, found):
        for part in found:
            part[:, 2] = torch.randn_like(part[:, 2])
        return found

    model.encoder.register_forward_hook(forget)
    _, left, _ = solve_heads(model, encoders, batches_of(80))
    assert left == pytest.approx(dict.fromkeys(encoders, 0.25), abs=0.05)


@pytest.mark.parametrize("kind", ["ridge", *FEATURE_MAPS])
def test_features_that_are_not_finite_are_refused(model, tasks, kind):
    """An encoder that computes NaN would give a model of NaN."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    torch.nn.init.constant_(experts["depth"].backbone.blocks[-1].mlp.fc2.bias, float("nan"))
    with pytest.raises(SimoError, match="features of .*'depth'.* are NaN or infinite"):
        realign_closed_form(model, experts, batches_of(4), kind=kind)


def test_models_are_no_encoders_and_heads_have_methods(model, tasks):
    """The slip after merging, and a head of one's own that cannot be solved, are told at once."""
    experts = {task.name: copy.deepcopy(model) for task in tasks}
    with pytest.raises(
        SimoError, match="encoder of segmentation is MultiTaskModel: expected `expert.encoder`"
    ):
        realign_closed_form(model, experts, batches_of(4))
    single = model.heads["depth"].first_layers()[0]
    model.heads["depth"].first_layers = lambda: [[each.float() for each in single]]
    with pytest.raises(SimoError, match=r"type\) is \[\(2, 64, .*32\)\]: expected \[\(2, 64, .*float64"):
        realign_closed_form(model, {name: each.encoder for name, each in experts.items()}, batches_of(4))
    model.heads["depth"] = torch.nn.Identity()
    with pytest.raises(
        SimoError, match="head of depth is Identity: expected one with `LinearHead`'s methods"
    ):
        realign_closed_form(model, {name: each.encoder for name, each in experts.items()}, batches_of(4))


def test_heads_that_read_different_things_are_refused(model, tasks):
    """One pass gives one set of inputs, which is not what each of them would be solved for."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    model.heads["depth"].inputs = lambda features: [features.patches.flatten(1, 2).repeat(1, 2, 1, 1)]
    with pytest.raises(SimoError, match="read different features: expected the same `inputs` of all"):
        realign_closed_form(model, experts, batches_of(4))


def test_residual_is_what_held_out_images_leave_unexplained(model, tasks):
    """1 − R² on held-out images, of the best of ridges that NumPy solves on the features themselves."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    expert = experts["depth"]
    with torch.no_grad():
        for parameter in expert.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batches = batches_of(60, 10)
    (_, found, _), head = solve_heads(model, experts, batches), model.heads["depth"]
    images = torch.cat([batch["image"] for batch in batches])
    held_out = torch.arange(60) % 5 == 1
    with torch.no_grad():
        z, u = (
            [head.inputs(encoder(part))[0].flatten(2).mT for part in (images[~held_out], images[held_out])]
            for encoder in (model.encoder, expert)
        )
    z, y = ([rows.flatten(0, 1).double().numpy() for rows in pair] for pair in (z, u))
    ((prior, bias),) = (tuple(value.numpy() for value in layer) for layer in head.first_layers())
    u = [rows @ prior.T + bias for rows in y]
    centred, missing = z[0] - z[0].mean(0), u[0] - u[0].mean(0) - (z[0] - z[0].mean(0)) @ prior.T
    square, errors = centred.T @ centred, []
    for strength in STRENGTHS:
        pull = strength * np.trace(square) / len(square) * np.eye(len(square))
        weight = prior + np.linalg.solve(square + pull, centred.T @ missing).T
        errors.append((((z[1] - z[0].mean(0)) @ weight.T + u[0].mean(0) - u[1]) ** 2).sum())
    assert found["depth"] == pytest.approx(min(errors) / ((u[1] - u[1].mean(0)) ** 2).sum(), rel=1e-3)
    assert found["depth"] > 0.01
    assert all(value < 1e-4 for name, value in found.items() if name != "depth")  # their own encoder


def test_distance_is_how_far_outputs_are_but_for_their_mean(model, tasks):
    """At infinite strength nothing is solved: the squared difference of outputs, in units of the variance."""
    experts, batches = {task.name: copy.deepcopy(model.encoder) for task in tasks}, batches_of(10)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        left, apart = (each["depth"] for each in solve_heads(model, experts, batches)[1:])
        images, project = torch.cat([batch["image"] for batch in batches]), model.heads["depth"].project
        read = model.heads["depth"].inputs
        out, wanted = (project(read(each(images))[0]) for each in (model.encoder, experts["depth"]))
    held_out = torch.arange(10) % 5 == 1
    shift = (wanted - out)[~held_out].mean()
    distance = (out + shift - wanted)[held_out].square().mean() / wanted[held_out].var(correction=0)
    assert apart == pytest.approx(distance.item(), rel=1e-3)
    assert apart > left


def test_no_label_is_read(model, tasks):
    """Batches hold images and nothing else; a single image is refused, as none could be held out."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    assert realign_closed_form(model, experts, batches_of(4)).heads.keys() == model.heads.keys()
    with pytest.raises(SimoError, match="number of images is 1: expected at least 2"):
        realign_closed_form(model, experts, batches_of(1))


def test_images_out_of_range_are_refused(model, tasks):
    """Layers solved for images in [0, 255] would fit nothing."""
    experts = {task.name: copy.deepcopy(model.encoder) for task in tasks}
    batches = [{"image": 255 * batch["image"]} for batch in batches_of(4)]
    with pytest.raises(SimoError, match=r"expected images \(B, 3, H, W\) of float32 in \[0, 1\] "):
        realign_closed_form(model, experts, batches)


def test_every_head_needs_its_expert(model, tasks):
    """A head that is left out would stay unrealigned without a word."""
    experts = {tasks[0].name: copy.deepcopy(model.encoder)}
    for function in (realign_closed_form, solve_heads):
        with pytest.raises(
            SimoError, match=r"encoders is \['segmentation'\]: expected one for each head, .*'normals'"
        ):
            function(model, experts, batches_of(4))


def test_every_image_is_fitted_or_held_out(model, tasks):
    """Images 1 and 6 of seven are held out, however they come in batches."""
    experts = {tasks[0].name: copy.deepcopy(model.encoder)}
    read, target = model.heads[tasks[0].name].inputs, lambda name, number, y: y
    one, two = (stream_grams(model.encoder, experts, batches_of(7, size), read, target) for size in (2, 7))
    for pair, other in zip(one, two, strict=True):
        fitted, held_out = (matrix[-1, -1].item() for matrix in pair)  # numbers of tokens
        assert fitted / 5 == held_out / 2
        for matrix, same_matrix in zip(pair, other, strict=True):
            torch.testing.assert_close(matrix, same_matrix, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        (maps,) = read(model.encoder(batches_of(7, 7)[0]["image"][[1, 6]]))
    rows = maps.flatten(2).mT.flatten(0, 1)
    torch.testing.assert_close(one[0][1], gram(rows, rows), rtol=1e-4, atol=1e-4)


def test_a_head_that_hears_the_same_everywhere_misses_nothing(model):
    """A constant is there whatever the features: 0 is left of it, and no NaN."""
    torch.nn.init.zeros_(model.heads["depth"].project.weight)
    model = model.only(["depth"]).eval()
    batches = [{"image": torch.rand(8, 3, 16, 16)} for _ in range(6)]
    realigned, *shares = solve_heads(model, {"depth": model.encoder}, batches)
    assert shares == [{"depth": 0.0}, {"depth": 0.0}]
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(realigned(image), model(image))
