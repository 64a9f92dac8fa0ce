"""simo.merging: the algebra against numpy, the methods against examples by hand, and laws of both."""

import gc
import math
import weakref
from collections.abc import Mapping

import numpy as np
import pytest
import torch

from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.merging import methods
from simo.merging.masks import consensus, magnitude_mask, tall_mask
from simo.merging.methods import METHODS, merge
from simo.merging.task_vectors import TaskVector

NAMES = ("blocks.0.weight", "cls_token", "norm.bias")
SHAPES = {"blocks.0.weight": (3, 4), "cls_token": (1, 1, 5), "norm.bias": (2,)}


def random_state(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def flat(tensors):
    """All entries as one numpy vector, in float64."""
    return np.concatenate([tensors[name].numpy().astype(np.float64).ravel() for name in NAMES])


def vector(*values):
    """A task vector of one row of numbers, spread over two tensors."""
    values = torch.tensor(values)
    return TaskVector("ab", {"a": values[:2], "b": values[2:]}.__getitem__)


def values(task_vector):
    return pytest.approx(torch.cat([task_vector[name] for name in task_vector]).tolist(), abs=1e-6)


@pytest.fixture
def base():
    return random_state(0)


@pytest.fixture
def experts():
    return [random_state(seed) for seed in (1, 2, 3)]


@pytest.fixture
def task_vectors(base, experts):
    return [TaskVector.between(base, expert) for expert in experts]


class Recorded(Mapping):
    """A state that counts how often each tensor is read, and which of those read are still in memory."""

    def __init__(self, state, alive):
        self.state, self.alive, self.reads, self.most = state, alive, dict.fromkeys(state, 0), 0

    def __getitem__(self, name):
        self.reads[name] += 1
        tensor = self.state[name].clone()
        self.alive.add(tensor)
        self.most = max(self.most, len(self.alive))
        return tensor

    def __iter__(self):
        return iter(self.state)

    def __len__(self):
        return len(self.state)


def test_task_vector_is_the_difference(base, experts):
    """τ_t = θ_t − θ_0, for every tensor, names sorted."""
    task_vector = TaskVector.between(base, experts[0])
    assert list(task_vector) == sorted(NAMES)
    assert len(task_vector) == 3
    np.testing.assert_allclose(flat(task_vector), flat(experts[0]) - flat(base), rtol=1e-6)


def test_algebra_is_that_of_vectors(task_vectors):
    """Sum and scaling of task vectors are those of flat numpy vectors."""
    a, b, c = task_vectors
    x, y, z = map(flat, task_vectors)
    for ours, theirs in [
        (a + b, x + y),
        (0.3 * a, 0.3 * x),
        (a * 0.3, 0.3 * x),
        (2 * (a + b) + -1 * c, 2 * (x + y) - z),
    ]:
        np.testing.assert_allclose(flat(ours), theirs, rtol=1e-5, atol=1e-6)


def test_numbers_of_numpy_scale_task_vectors(task_vectors):
    """From either side; NumPy does not take a task vector for an array."""
    for scaled in (np.float32(0.5) * task_vectors[0], task_vectors[0] * np.float64(0.5)):
        np.testing.assert_allclose(flat(scaled), 0.5 * flat(task_vectors[0]))


def test_geometry_is_that_of_vectors(task_vectors):
    """Norm and cosine are those of flat numpy vectors."""
    a, b, _ = task_vectors
    x, y = flat(a), flat(b)
    assert a.norm() == pytest.approx(np.linalg.norm(x))
    assert a.cosine(b) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    assert a.cosine(-2 * a) == pytest.approx(-1)


def test_direction_of_no_change_is_not_a_number(task_vectors):
    """A vector of length 0 has no angle to another."""
    assert math.isnan(task_vectors[0].cosine(0.0 * task_vectors[1]))


def test_a_base_that_would_move_along_is_refused(settings, state_of, same):
    """Of a state that is not copied, the second α of a scan would start where the first one ended."""
    encoder = create_encoder(settings["backbone"], settings["backbone_args"], settings["blocks"])
    base = state_of(encoder)
    vector = TaskVector.between(base, {name: tensor + 1 for name, tensor in base.items()})
    with pytest.raises(SimoError, match="of the base is the module's own: expected a clone"):
        vector.load_into(encoder, encoder.state_dict(), 0.1)
    assert same(state_of(encoder), base)
    for _ in range(2):
        vector.load_into(encoder, base, 0.5)
        name = "backbone.cls_token"
        torch.testing.assert_close(encoder.state_dict()[name], base[name] + 0.5)


def test_apply_by_formula(base, task_vectors):
    """θ_0 + α τ, in the base's type; α = 0 is θ_0 to the last bit."""
    np.testing.assert_allclose(
        flat(task_vectors[0].apply(base, 0.3)), flat(base) + 0.3 * flat(task_vectors[0]), rtol=1e-5, atol=1e-6
    )
    for name, tensor in task_vectors[0].apply(base, 0).items():
        assert torch.equal(tensor, base[name])
    half = {name: tensor.half() for name, tensor in base.items()}
    assert all(tensor.dtype == torch.float16 for tensor in task_vectors[0].apply(half).values())


def test_changes_of_half_precision_are_exact():
    """In float16, 1024 − .25 would be 1024: what an expert of 16 bits has learned is taken in 32."""
    base, expert = {"w": torch.tensor([0.25]).half()}, {"w": torch.tensor([1024.0]).half()}
    change = TaskVector.between(base, expert)["w"]
    assert change.dtype == torch.float32
    assert change.item() == 1023.75


@pytest.mark.parametrize("method", ["average", "task_arithmetic"])
def test_one_expert_merges_to_itself(base, experts, method):
    """With α = 1, merging a single expert gives that expert."""
    merged = merge(method, [TaskVector.between(base, experts[0])]).apply(base, 1.0)
    np.testing.assert_allclose(flat(merged), flat(experts[0]), rtol=1e-6, atol=1e-6)


def test_one_expert_merges_to_itself_by_ties(base, experts):
    """So does TIES where nothing is trimmed."""
    merged = merge("ties", [TaskVector.between(base, experts[0])], density=1).apply(base, 1.0)
    np.testing.assert_allclose(flat(merged), flat(experts[0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_never_changed(base, experts, method):
    """The caller's base and experts are the same bits after merging."""
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in (base, *experts)]
    merged = merge(method, [TaskVector.between(base, expert) for expert in experts])
    for tensor in merged.compute().apply(base, 0.7).values():
        tensor.zero_()
    for state, copy in zip((base, *experts), before, strict=True):
        assert all(torch.equal(state[name], copy[name]) for name in state)


def test_average_is_the_mean_of_weights(base, experts):
    """Applied with α = 1, it does not depend on the base at all."""
    merged = merge("average", [TaskVector.between(base, expert) for expert in experts]).apply(base)
    np.testing.assert_allclose(flat(merged), np.mean([flat(x) for x in experts], 0), rtol=1e-5, atol=1e-6)


def test_task_arithmetic_is_the_sum(task_vectors):
    """The sum of task vectors, not their mean."""
    merged = merge("task_arithmetic", task_vectors)
    np.testing.assert_allclose(flat(merged), sum(map(flat, task_vectors)), rtol=1e-5, atol=1e-6)


def test_pretrained_is_no_change(base, task_vectors):
    """The control leaves the base as it is, at any α."""
    merged = merge("pretrained", task_vectors).apply(base, 5.0)
    assert all(torch.equal(merged[name], base[name]) for name in base)


def test_ties_by_hand():
    """Trim to the three largest, elect, mean of those that agree; equal magnitudes and zero sums included."""
    merged = merge("ties", [vector(4.0, -1, 3, 0.1, 2), vector(-1.0, 2, 3, 0.2, -2)], density=0.6)
    assert values(merged) == [4, 2, 3, 0, 2]


def test_ties_elects_by_mass_not_by_count():
    """One large entry outvotes two small ones, which are then left out of the mean."""
    merged = merge("ties", [vector(5.0, 1, 1), vector(-1.0, 1, 1), vector(-2.0, 4, 1)], density=1)
    assert values(merged) == [5, 2, 1]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((-4.0, -3, 2), (-1.0, -3, -2), (-2.5, -3, -2)),
        ((4.0, 3, 2), (1.0, 3, -2), (2.5, 3, 2)),
        ((4.0, -3, 2), (1.0, -3, -2), (2.5, -3, -2)),
        ((9.0, -1, -1, 2), (1.0, -1, -1, -2), (5, -1, -1, -2)),
    ],
    ids=["negative majority", "positive majority", "no majority", "majority of signs, not of mass"],
)
def test_ties_zero_sum_takes_the_majority(first, second, expected):
    """Where the votes cancel, the majority of all elected signs decides, minus if that cancels, too."""
    assert list(expected) == values(merge("ties", [vector(*first), vector(*second)], density=1))


def test_ties_trims_whole_vectors_not_tensors():
    """A tensor of small entries is trimmed away entirely if the largest entries are all elsewhere."""
    assert values(merge("ties", [vector(10.0, 9, 1, 2)], density=0.5)) == [10, 9, 0, 0]


def test_ties_keeps_all_that_equal_the_smallest_kept():
    """Of equal magnitudes none is favoured by its place."""
    assert values(merge("ties", [vector(3.0, -1, 1, 1)], density=0.5)) == [3, -1, 1, 1]


@pytest.mark.parametrize(("density", "kept"), [(0.29, 29), (0.57, 57), (0.58, 58), (0.205, 20), (0.001, 1)])
def test_ties_keeps_that_share_of_all_entries(density, kept):
    """The whole number below the share, whatever binary fractions make of it; but one entry at least."""
    one = TaskVector("a", {"a": torch.arange(1.0, 101.0)}.__getitem__)
    assert torch.count_nonzero(merge("ties", [one], density=density)["a"]) == kept


def test_ties_of_nothing_kept_is_zero():
    """An entry that every expert trimmed is 0, not 0/0."""
    assert values(merge("ties", [vector(5.0, 1, 1, 1), vector(5.0, 0, 1, 2)], density=0.25)) == [5, 0, 0, 0]


@pytest.mark.parametrize("density", [0.2, 1])
def test_ties_equals_numpy(task_vectors, density):
    """Agrees with a numpy formulation on flat, fully sorted vectors."""
    trimmed = []
    for entries in map(flat, task_vectors):
        kept = np.argsort(-np.abs(entries))[: int(density * len(entries))]
        trimmed.append(np.where(np.isin(np.arange(len(entries)), kept), entries, 0))
    stack = np.stack(trimmed)
    sign = np.sign(stack.sum(0))
    sign[sign == 0] = 1 if sign.sum() > 0 else -1
    expected = [
        np.mean([x for x in column if x * s > 0] or [0]) for column, s in zip(stack.T, sign, strict=True)
    ]
    np.testing.assert_allclose(flat(merge("ties", task_vectors, density=density)), expected, rtol=1e-5)


def test_tall_mask_by_hand():
    """τ = (1, −.4): the first expert's entry is kept while 1 > .4 λ, the second's while .4 > λ."""
    pair = [vector(1.0, 0.0), vector(-0.4, 0.0)]
    kept = {index: [tall_mask(pair, index, s)["a"][0].item() for s in (0.3, 0.5, 2.6)] for index in (0, 1)}
    assert kept[0] == pytest.approx([0.6, 0.6, 0.0])
    assert kept[1] == pytest.approx([0.6, 0.0, 0.0])


@pytest.mark.parametrize("scale", [0.2, 2.0])
def test_tall_mask_of_one_expert_is_the_expert(base, experts, scale):
    """With nobody to disturb it, an expert comes back from its own mask, whatever λ."""
    masked = tall_mask([TaskVector.between(base, experts[0])], 0, scale).apply(base)
    assert all(torch.allclose(masked[name], experts[0][name]) for name in NAMES)


@pytest.mark.parametrize("scale", [0.2, 0.7, 2.0])
def test_tall_masks_and_consensus_equal_numpy(task_vectors, scale):
    """All entries at once in numpy give the same masks, and the same votes."""
    stack = np.stack([flat(each) for each in task_vectors])
    total = stack.sum(0)
    masks = np.abs(stack) > scale * np.abs(total - stack)
    for index in range(3):
        assert flat(tall_mask(task_vectors, index, scale)) == pytest.approx(total * masks[index], abs=1e-6)
    for least in range(5):
        merged = flat(consensus(task_vectors, [scale] * 3, least))
        assert merged == pytest.approx(total * (masks.sum(0) >= least), abs=1e-6)


def test_consensus_uses_each_experts_own_scale():
    """An entry that passes one expert's λ and not another's has one vote."""
    pair = [vector(1.0, 1.0), vector(1.0, 1.0)]
    assert consensus(pair, [0.5, 2.0], 2)["a"].tolist() == [0.0, 0.0]
    assert consensus(pair, [0.5, 2.0], 1)["a"].tolist() == [2.0, 2.0]


def test_a_scale_for_each_expert_is_needed(task_vectors):
    """One too few is named before anything is computed."""
    with pytest.raises(SimoError, match="number of scales is 2: expected 3, one an expert"):
        consensus(task_vectors, scales=[1.0, 1.0])


def test_magnitude_mask_by_hand():
    """The sum is kept where the one expert's changes are largest, also where the others outweigh it."""
    pair = [vector(4.0, -3.0, 0.1, 2.0), vector(1.0, 5.0, 7.0, 7.0)]
    masked = magnitude_mask(pair, 0, 0.5)
    assert torch.cat([masked["a"], masked["b"]]).tolist() == [5.0, 2.0, 0.0, 0.0]


def test_tensors_are_read_when_asked_for(base, experts):
    """Building and combining task vectors reads nothing; one entry of the sum reads one tensor an expert."""
    alive = weakref.WeakSet()
    recorded = [Recorded(expert, alive) for expert in experts]
    merged = 0.5 * merge("task_arithmetic", [TaskVector.between(base, expert) for expert in recorded])
    assert all(not any(expert.reads.values()) for expert in recorded)
    merged["norm.bias"]
    assert [expert.reads for expert in recorded] == [{**dict.fromkeys(NAMES, 0), "norm.bias": 1}] * 3


@pytest.mark.parametrize("method", METHODS)
def test_memory_does_not_grow_with_experts(base, method):
    """However many experts: at most one tensor read from them is in memory at a time, and none is kept."""
    alive = weakref.WeakSet()
    recorded = [Recorded(random_state(seed), alive) for seed in range(8)]
    merged = merge(method, [TaskVector.between(base, expert) for expert in recorded])
    merged.apply(base)
    gc.collect()
    assert max(expert.most for expert in recorded) == 1
    assert len(alive) == 0


def test_a_name_is_looked_up_without_reading(base, experts):
    """Whether a vector has a tensor is known before it is computed, which may take a decomposition."""
    vector = TaskVector(base, lambda name: 1 / 0)
    assert set(base) == {name for name in [*base, "other"] if name in vector}


def test_compute_reads_only_once(base, experts):
    """A scan of α does not merge again for each α."""
    recorded = Recorded(experts[0], weakref.WeakSet())
    computed = TaskVector.between(base, recorded).compute()
    reads = dict(recorded.reads)
    for alpha in (0.1, 0.5, 1.0):
        computed.apply(base, alpha)
    assert recorded.reads == reads == dict.fromkeys(NAMES, 1)


def test_half_precision_experts_are_merged_in_float32(base, experts):
    """Experts may be stored in half precision; their sum is not rounded to it."""
    half = {name: tensor.half() for name, tensor in experts[0].items()}
    task_vector = TaskVector.between(base, half)
    assert task_vector["cls_token"].dtype == torch.float32
    np.testing.assert_allclose(flat(task_vector), flat(half) - flat(base), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"cls_token": torch.zeros(1, 5)},
            r"'cls_token': depth has \(1, 5\) torch.float32, base has \(1, 1, 5\)",
        ),
        ({"norm.bias": torch.zeros(2, dtype=torch.int64)}, r"'norm.bias': depth has \(2,\) torch.int64"),
        ({"extra": torch.zeros(1)}, "only depth has tensor 'extra'"),
        ({"norm.bias": None}, "only base has tensor 'norm.bias'"),
    ],
)
def test_expert_of_another_architecture_is_refused(base, experts, change, message):
    """The message names the tensor and both sides; nothing is broadcast or left out."""
    expert = {name: x for name, x in {**experts[0], **change}.items() if x is not None}
    with pytest.raises(SimoError, match=message):
        TaskVector.between(base, expert, "depth").compute()


def batch_norm_state(variance, count):
    return {"bn.running_var": torch.tensor([variance]), "bn.num_batches_tracked": torch.tensor(count)}


@pytest.mark.parametrize("method", METHODS)
def test_whole_numbers_are_the_bases(method):
    """How many batches a batch norm has seen is not merged, and not refused: it is carried from the base."""
    base = batch_norm_state(1.0, 7)
    vectors = [TaskVector.between(base, batch_norm_state(1.5, count)) for count in (100, 200)]
    assert list(vectors[0]) == ["bn.running_var"]
    merged = merge(method, vectors).apply(base, 0.5)
    assert merged.keys() == base.keys()
    assert merged["bn.num_batches_tracked"].item() == 7
    assert merged["bn.num_batches_tracked"] is not base["bn.num_batches_tracked"]
    assert merged["bn.running_var"].item() == {"pretrained": 1, "task_arithmetic": 1.5}.get(method, 1.25)


def test_a_variance_does_not_become_negative():
    """1 - 3 · 0.8 is -1.4, of which no root can be drawn: 0. Means may be negative."""
    base = batch_norm_state(1.0, 7) | {"bn.running_mean": torch.tensor([1.0])}
    expert = batch_norm_state(0.2, 7) | {"bn.running_mean": torch.tensor([0.2])}
    merged = merge("task_arithmetic", [TaskVector.between(base, expert)] * 3).apply(base, 1.0)
    assert merged["bn.running_var"].item() == 0
    assert merged["bn.running_mean"].item() == pytest.approx(-1.4)


def test_sum_of_different_models_is_refused(task_vectors):
    """Task vectors with other names belong to another model."""
    with pytest.raises(
        SimoError, match="architecture of a task vector is another: expected the same tensors"
    ):
        task_vectors[0] + vector(1.0, 2, 3)


def test_unknown_tensor_is_a_key_error(task_vectors):
    """A task vector is a mapping like any other."""
    assert "head.weight" not in task_vectors[0]
    with pytest.raises(KeyError):
        (task_vectors[0] + task_vectors[1])["head.weight"]


@pytest.mark.parametrize("density", [0, -0.1, 1.01, 20])
def test_density_out_of_range_is_refused(task_vectors, density):
    """20 does not mean 20 %."""
    with pytest.raises(SimoError, match=rf"density is {density}: expected a fraction in \(0, 1\]"):
        merge("ties", task_vectors, density=density)


def test_unknown_method_is_refused(task_vectors):
    """The message lists the methods."""
    with pytest.raises(SimoError, match="unknown merging method 'tie': expected one of .*'ties'"):
        merge("tie", task_vectors)


def test_option_of_another_method_is_refused(task_vectors):
    """The message names method and option."""
    with pytest.raises(SimoError, match="of task_arithmetic: got an unexpected keyword argument 'density'"):
        merge("task_arithmetic", task_vectors, density=0.2)


def test_what_are_no_task_vectors_of_one_model_is_refused(base, task_vectors):
    """Nothing at all, states in place of changes, one vector in place of a list, and another model's."""
    other = TaskVector(["norm.bias"], base.__getitem__)
    for given in ([], [base, base], task_vectors[0], dict.fromkeys("ab", base), [task_vectors[0], other]):
        with pytest.raises(SimoError, match=r"expected task vectors, .*, of one architecture, found \["):
            merge("ties", given)


def test_a_base_that_does_not_fit_is_refused(base, task_vectors):
    """A tensor that it lacks is no KeyError, and one of another shape is not broadcast."""
    one, other = dict(base), base | {"norm.bias": base["norm.bias"][None]}
    del one["norm.bias"]
    for wrong in (one, other):
        with pytest.raises(
            SimoError, match=r"tensor 'norm.bias': expected a base that has it, of shape \(2,\)"
        ):
            task_vectors[0].apply(wrong)


def test_memory_layout_does_not_matter():
    """Weights of convolutions may lie channels last in memory, matrices transposed."""
    maps, matrix = torch.randn(4, 3, 3, 3), torch.randn(5, 4)
    plain = [TaskVector("ab", {"a": maps * n, "b": matrix - n}.__getitem__) for n in (1, 2)]
    turned = {"a": maps.to(memory_format=torch.channels_last), "b": matrix.T.contiguous().T}
    moved = [TaskVector("ab", {"a": turned["a"] * n, "b": turned["b"] - n}.__getitem__) for n in (1, 2)]
    for name in "ab":
        assert torch.equal(merge("ties", plain)[name], merge("ties", moved)[name])
        assert torch.equal(magnitude_mask(plain, 0, 0.5)[name], magnitude_mask(moved, 0, 0.5)[name])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"pretrained"}))  # which reads no expert
def test_values_that_are_not_finite_are_not_merged(method, value):
    """A diverged expert is refused by name where its vector is made, whatever the method would do with it."""
    base = {"a": torch.zeros(4), "b": torch.zeros(3, 3)}
    good, bad = ({name: torch.randn_like(x) for name, x in base.items()} for _ in range(2))
    bad["b"][1, 2] = value
    vectors = [TaskVector.between(base, good, "depth"), TaskVector.between(base, bad, "normals")]
    with pytest.raises(SimoError, match="tensor 'b': normals differs from the base by 1 values"):
        merge(method, vectors).compute()


def test_large_values_are_no_reason_to_refuse():
    """Changes whose sum overflows are finite all the same."""
    base = {"a": torch.zeros(8)}
    vector = TaskVector.between(base, {"a": torch.full((8,), 3e38)})
    assert torch.equal(vector["a"], torch.full((8,), 3e38))


def slow_ties(task_vectors, density):
    """TIES in stacks of whole tensors, without any piece, histogram or correction; by tensor name."""
    magnitudes = [torch.cat([x.abs().flatten() for x in vector.values()]) for vector in task_vectors]
    kept = max(1, int(density * len(magnitudes[0])))
    low = [each.sort(descending=True).values[kept - 1] if density < 1 else 0 for each in magnitudes]
    stacks = {
        name: torch.stack([v[name] * (v[name].abs() >= t) for v, t in zip(task_vectors, low, strict=True)])
        for name in task_vectors[0]
    }
    votes, merged = sum(stack.sum(0).sign().sum() for stack in stacks.values()), {}
    for name, stack in stacks.items():
        sign = stack.sum(0).sign()
        agrees = stack * torch.where(sign == 0, 1.0 if votes > 0 else -1.0, sign) > 0
        merged[name] = (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)
    return merged


@pytest.mark.parametrize("whole", [False, True], ids=["reals", "few values, many ties"])
@pytest.mark.parametrize("density", [0.01, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("experts", [1, 2, 3, 5])
def test_ties_in_pieces_is_ties_bit_by_bit(monkeypatch, experts, density, whole):
    """The fast form gives the bits of the slow one, also where sums are 0 and magnitudes are equal."""
    monkeypatch.setattr(methods, "PIECE", 1024)
    vectors, shapes = [], {"a": (53, 71), "b": (5,), "c": (), "d": (2, 3, 700)}
    for _ in range(experts):
        tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
        tensors = {name: (2 * x).round() / 4 for name, x in tensors.items()} if whole else tensors
        vectors.append(TaskVector(tensors, tensors.__getitem__))
    merged, expected = merge("ties", vectors, density=density), slow_ties(vectors, density)
    for name, tensor in expected.items():
        assert torch.equal(merged[name].view(-1).view(torch.int32), tensor.view(-1).view(torch.int32))
