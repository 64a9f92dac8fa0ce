"""simo.merging.field and matrices: every method against examples by hand and the laws that it must obey."""

import pytest
import torch

from simo.encoders import create_encoder
from simo.errors import SimoError
from simo.merging import matrices as matrices_module
from simo.merging import spaces
from simo.merging.field import FROM_IMAGES, METHODS, breadcrumbs, dare, equal_norms, lines
from simo.merging.matrices import ace, esm, iso_c, iso_cts, svc, tsv_m, wudi
from simo.merging.methods import METHODS as OF_THE_PAPER
from simo.merging.methods import merge, task_arithmetic, ties
from simo.merging.moments import input_moments, lot, regmean
from simo.merging.spaces import core_space, knots
from simo.merging.task_vectors import TaskVector

DATA_FREE = [name for name in METHODS if name not in FROM_IMAGES]


def vector(**tensors):
    """A task vector of given tensors; `w` names the weight of a linear layer."""
    named = {name.replace("__", "."): torch.as_tensor(value) for name, value in tensors.items()}
    return TaskVector(named, named.__getitem__)


def random_vectors(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        vector(
            blocks__0__fc__weight=torch.randn(6, 4, generator=generator),
            blocks__1__fc__weight=torch.randn(4, 6, generator=generator),
            blocks__1__fc__bias=torch.randn(4, generator=generator),
            pos_embed=torch.randn(1, 5, 4, generator=generator),
        )
        for _ in range(count)
    ]


W = "blocks.0.fc.weight"


def matrices(*values):
    return [vector(blocks__0__fc__weight=torch.as_tensor(value)) for value in values]


@pytest.mark.parametrize("method", DATA_FREE)
def test_no_change_stays_none(method):
    """τ = 0 gives θ_0."""
    still = [0.0 * one for one in random_vectors()]
    assert all(torch.count_nonzero(tensor) == 0 for tensor in METHODS[method](still).values())


@pytest.mark.parametrize("method", [name for name in DATA_FREE if name != "dare"])
def test_order_of_the_experts_does_not_matter(method):
    """Permuting the experts changes nothing but rounding; DARE draws by position."""
    one, two, three = random_vectors()
    first, second = METHODS[method]([one, two, three]), METHODS[method]([three, one, two])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", DATA_FREE)
def test_inputs_are_not_changed(method):
    """Task vectors are the same before and after."""
    vectors = random_vectors()
    before = [{name: tensor.clone() for name, tensor in one.items()} for one in vectors]
    dict(METHODS[method](vectors))
    for one, copy in zip(vectors, before, strict=True):
        assert all(torch.equal(one[name], copy[name]) for name in copy)


@pytest.mark.parametrize(
    ("merged", "name"),
    [
        (lambda one: dare([one], drop=0.0), "DARE without dropping"),
        (lambda one: breadcrumbs([one], keep=1.0, outliers=0.0), "breadcrumbs that keep all"),
        (lambda one: lines([one], slope=0.0), "LiNeS without slope"),
        (lambda one: tsv_m([one]), "TSV-M"),
        (lambda one: equal_norms([one]), "equal norms"),
        (lambda one: wudi([one]), "WUDI"),
        (lambda one: svc([one]), "SVC"),
    ],
)
def test_one_expert_is_itself(merged, name):
    """With one expert and nothing dropped, θ_0 + τ is the expert."""
    (one,) = random_vectors(1)
    for key, tensor in merged(one).items():
        torch.testing.assert_close(tensor, one[key], rtol=1e-5, atol=1e-5, msg=name)


def test_dare_keeps_the_mean_and_doubles_what_is_left():
    """With half dropped, what is left is doubled; over many entries the mean is τ, and seeds differ."""
    vectors = [vector(w=torch.ones(200, 200))]
    merged = dare(vectors, drop=0.5)["w"]
    assert set(merged.unique().tolist()) == {0.0, 2.0}
    assert merged.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(merged, dare(vectors, drop=0.5)["w"])
    assert not torch.equal(merged, dare(vectors, drop=0.5, seed=1)["w"])
    both = dare(vectors * 2, drop=0.5)["w"]
    assert set(both.unique().tolist()) == {0.0, 2.0, 4.0}  # tasks draw their own
    found = dare([vector(v=torch.ones(200, 200), w=torch.ones(200, 200))], drop=0.5)
    assert not torch.equal(found["v"], found["w"])  # and so do tensors


def test_breadcrumbs_by_hand():
    """Of the magnitudes 1 to 10, the largest tenth goes, and the next four are kept: 6 to 9."""
    values = torch.tensor([3.0, -10, 7, 1, -6, 9, 2, -8, 5, 4])
    merged = breadcrumbs([vector(w=values)], keep=0.4, outliers=0.1)["w"]
    assert merged.tolist() == [0, 0, 7, 0, -6, 9, 0, -8, 0, 0]


def test_lines_by_hand():
    """Three blocks, slope 3: factors 1, 2.5 and 4; outside of blocks 1."""
    ones = torch.ones(1)
    one = vector(blocks__0__w=ones, blocks__1__w=ones, blocks__2__w=ones, pos_embed=ones)
    merged = lines([one], slope=3.0)
    assert [merged[f"blocks.{n}.w"].item() for n in range(3)] == [1.0, 2.5, 4.0]
    assert merged["pos_embed"].item() == 1
    total = task_arithmetic(random_vectors())
    assert all(torch.equal(total[name], tensor) for name, tensor in lines(random_vectors(), 0.0).items())


def test_lines_counts_through_the_stages():
    """Four places in order of depth, slope 3: two blocks, the way to the next stage, its block."""
    names = ("stages__0__blocks__0__w", "stages__0__blocks__1__w", "stages__1__downsample__w")
    one = vector(**dict.fromkeys((*names, "stages__1__blocks__0__w", "stem__w"), torch.ones(1)))
    merged = lines([one], slope=3.0)
    places = ("0.blocks.0", "0.blocks.1", "1.downsample", "1.blocks.0")
    assert [merged[f"stages.{place}.w"].item() for place in places] == [1, 2, 3, 4]
    assert merged["stem.w"].item() == 1


def test_lines_without_blocks_is_refused():
    """Names that say nothing of depth would make it task arithmetic without a word."""
    with pytest.raises(SimoError, match=r"list of tensors' names is \['features.*expected some with numbers"):
        lines([vector(features__0__weight=torch.ones(1))])


def test_iso_c_by_hand():
    """diag(3, 0) and diag(0, 1) sum to singular values 3 and 1: both become 2; the nuclear norm stays."""
    merged = iso_c(matrices([[3.0, 0], [0, 0]], [[0, 0], [0, 1.0]]))[W]
    torch.testing.assert_close(merged, 2 * torch.eye(2))
    vectors = random_vectors()
    before = torch.linalg.matrix_norm(task_arithmetic(vectors)[W], "nuc")
    torch.testing.assert_close(torch.linalg.matrix_norm(iso_c(vectors)[W], "nuc"), before)


def test_iso_cts_ends_in_iso_c():
    """With all directions common, or one expert, it is Iso-C; all singular values are equal."""
    vectors = random_vectors()
    torch.testing.assert_close(iso_cts(vectors, common=1.0)[W], iso_c(vectors)[W])
    torch.testing.assert_close(iso_cts(vectors[:1], 0.5)[W], iso_c(vectors[:1])[W], rtol=1e-4, atol=1e-5)
    values = torch.linalg.svdvals(iso_cts(vectors[:2], 0.5)[W])
    torch.testing.assert_close(values, values.mean().expand_as(values), rtol=1e-4, atol=1e-4)


def test_iso_cts_takes_each_tasks_own_directions():
    """Of three directions one is common, e₁ e₁ᵀ with 4; e₂ e₃ᵀ and e₃ e₂ᵀ, with 1, are each one task's own.

    All get the mean of the singular values, 2.
    """
    one, other = torch.zeros(3, 3), torch.zeros(3, 3)
    one[0, 0], other[0, 0], one[1, 2], other[2, 1] = 2.0, 2.0, 1.0, 1.0
    merged = iso_cts(matrices(one.tolist(), other.tolist()), common=0.4)[W]  # 3 · .4: one common direction
    expected = torch.zeros(3, 3)
    expected[0, 0] = expected[1, 2] = expected[2, 1] = (4 + 1 + 1) / 3
    torch.testing.assert_close(merged, expected)


def test_tsv_m_by_hand():
    """Orthogonal matrices diag(3, 0) and diag(0, 1) are put side by side as they are: diag(3, 1)."""
    merged = tsv_m(matrices([[3.0, 0], [0, 0]], [[0, 0], [0, 1.0]]))[W]
    torch.testing.assert_close(merged, torch.tensor([[3.0, 0], [0, 1]]))


def test_tsv_m_makes_directions_orthogonal_and_keeps_their_values():
    """Its singular values are those of the tasks' strongest directions, though these are not orthogonal."""
    vectors = random_vectors(2)
    strongest = torch.cat([torch.linalg.svdvals(one[W])[:2] for one in vectors])  # 4 directions, 2 a task
    values = torch.linalg.svdvals(tsv_m(vectors)[W])
    torch.testing.assert_close(values, strongest.sort(descending=True).values)


def low_rank(rank=2, count=3, seed=0):
    """Factors B `(7, r)` and A `(r, 8)` of experts that are LoRA adapters, and their task vectors."""
    generator = torch.Generator().manual_seed(seed)
    factors = [
        (torch.randn(7, rank, generator=generator), torch.randn(rank, 8, generator=generator))
        for _ in range(count)
    ]
    return factors, [vector(blocks__0__fc__weight=b @ a) for b, a in factors]


@pytest.mark.parametrize("both", [False, True])
def test_a_shared_space_loses_nothing(both):
    """What is linear, as task arithmetic, is the same there; so is a single expert."""
    for vectors in (random_vectors(), low_rank()[1]):
        merged = spaces._in_space(vectors, task_arithmetic, both)
        for name, expected in task_arithmetic(vectors).items():
            torch.testing.assert_close(merged[name], expected, rtol=1e-4, atol=1e-5)
        alone = spaces._in_space(vectors[:1], lambda inside: ties(inside, density=1.0), both)
        torch.testing.assert_close(alone[W], vectors[0][W], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [False, True])
def test_a_shared_space_turns_with_the_layer(inputs):
    """TIES on entries depends on a layer's coordinates; KnOTS not on its outputs', Core Space on none."""
    _, vectors = low_rank()
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))[0]
    turn = turn if inputs else torch.linalg.qr(turn[:7, :7])[0]

    def turned(each):
        return vector(blocks__0__fc__weight=each[W] @ turn if inputs else turn @ each[W])

    others = [turned(each) for each in vectors]
    same = {
        method: torch.allclose(turned(method(vectors))[W], method(others)[W], rtol=1e-3, atol=1e-4)
        for method in (ties, knots, core_space)
    }
    assert same == {ties: False, knots: not inputs, core_space: True}


@pytest.mark.parametrize("inner", ["tsv_m", "iso_c"])
def test_core_space_is_that_of_the_adapters_factors(inner):
    """By the paper's formula, from the factors: U_refᵀ B_t A_t V_ref of 4 × 4, merged, and put back."""
    factors, vectors = low_rank(count=2)
    left = torch.linalg.svd(torch.cat([b for b, _ in factors], dim=1), full_matrices=False).U
    right = torch.linalg.svd(torch.cat([a for _, a in factors]), full_matrices=False).Vh
    cores = [(left.T @ b) @ (a @ right.T) for b, a in factors]
    if inner == "tsv_m":  # the first two triplets of each, made orthogonal
        parts = [torch.linalg.svd(core) for core in cores]
        u, v = torch.cat([p.U[:, :2] for p in parts], dim=1), torch.cat([p.Vh[:2] for p in parts])
        (a, _, b), (c, _, d) = torch.linalg.svd(u), torch.linalg.svd(v)
        merged = (a @ b) @ torch.cat([p.S[:2] for p in parts]).diag() @ (c @ d)
    else:
        u, values, v = torch.linalg.svd(sum(cores))
        merged = values.mean() * u @ v
    found = core_space(vectors, inner)[W]
    torch.testing.assert_close(found, left @ merged @ right, rtol=1e-3, atol=1e-4)
    assert torch.linalg.matrix_rank(found) == 4


def test_knots_by_hand():
    """Along the diagonals (3, 3) and (1, −1) are 3√2 and √2, one entry each, and one of two is kept."""
    vectors = matrices([[3.0], [3.0]], [[1.0], [-1.0]])
    torch.testing.assert_close(knots(vectors, density=0.5)[W], torch.tensor([[4.0], [2.0]]))
    assert not torch.allclose(ties(vectors, density=0.5)[W], torch.tensor([[4.0], [2.0]]))


@pytest.mark.parametrize("method", [knots, core_space])
def test_what_is_no_matrix_is_trimmed_with_the_matrices(method):
    """Biases and tokens, which may be 2-D, keep their coordinates, and take part in TIES' one ranking."""
    token = torch.tensor([[9.0, 0.5]])
    each = vector(blocks__0__fc__weight=torch.tensor([[4.0, 0.0], [0.0, 2.0]]), mask_token=token)
    merged = method([each, each], density=0.5)  # 9, 4 and 2 of six entries
    torch.testing.assert_close(merged["mask_token"], torch.tensor([[9.0, 0.0]]))
    torch.testing.assert_close(merged[W].diag(), torch.tensor([4.0, 2.0]))


@pytest.mark.parametrize("method", [knots, core_space])
def test_a_shared_space_is_precise_whatever_the_scale(method):
    """Small changes span what large ones do, nothing but the result is rounded; .2 is kept by default."""
    _, vectors = low_rank()
    merged = method(vectors)[W]
    torch.testing.assert_close(1e9 * method([1e-9 * each for each in vectors])[W], merged)
    assert torch.equal(merged, method(vectors, density=0.2)[W])
    large = method(vectors[:1], density=1.0)[W]
    assert (large - vectors[0][W]).abs().max() <= 2.4e-7  # the last digit of 2 to 4


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "wudi", "ace"])
def test_only_matrices_are_decomposed(method):
    """Biases, tokens and embeddings are averaged, a token that is 2-D, too, such as DINOv2's mask token."""
    vectors = [
        vector(mask_token=torch.randn(1, 4), **{name.replace(".", "__"): x for name, x in one.items()})
        for one in random_vectors()
    ]
    merged = METHODS[method](vectors)
    for name in ("blocks.1.fc.bias", "pos_embed", "mask_token"):
        torch.testing.assert_close(merged[name], sum(one[name] for one in vectors) / 3)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("dare", {"drop": 1.0}, r"drop is 1.0: expected a fraction in \[0, 1\)"),
        ("breadcrumbs", {"keep": 0.9, "outliers": 0.2}, r"\(0.9, 0.2\): expected .* together at most 1"),
        ("breadcrumbs", {"keep": 0.0}, r"\(0.0, 0.006\): expected fractions in \(0, 1\]"),
        ("iso_cts", {"common": 0.0}, r"common is 0.0: expected a fraction in \(0, 1\]"),
        ("ace", {"ridge": 0.0}, "ridge is 0.0: expected a number above 0"),
        ("ace", {"strongest": 0.0}, r"strongest is 0.0: expected a fraction in \(0, 1\]"),
        ("svc", {"floor": 0.0}, "floor is 0.0: expected a number above 0"),
        ("knots", {"density": 0.0}, r"density is 0.0: expected a fraction in \(0, 1\]"),
        (
            "core_space",
            {"inner": "lot"},
            r"unknown inner method 'lot': expected one of .'iso_c', 'ties', 'tsv_m'.",
        ),
        ("regmean", {"moments": [], "shrink": 1.5}, r"shrink is 1.5: expected a factor in \[0, 1\]"),
    ],
)
def test_impossible_fractions_are_refused(method, options, message):
    """A fraction that would drop everything, or more than there is, is named, and so is the range."""
    with pytest.raises(SimoError, match=message):
        METHODS[method](random_vectors(), **options)


@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m", "wudi", "ace", "svc", "knots", "core_space"])
def test_an_encoder_without_matrices_is_refused(method):
    """Of convolutions alone these would be the average, the sum or TIES, under another name."""
    maps = [vector(blocks__0__conv__weight=torch.randn(4, 3, 3, 3)) for _ in range(2)]
    with pytest.raises(
        SimoError, match="number of weights of linear layers is 0: expected an encoder that has some"
    ):
        METHODS[method](maps)


def test_fewer_directions_than_tasks_are_refused():
    """TSV-M would silently merge to nothing, Iso-CTS take directions from the wrong end."""
    vectors = [vector(w__weight=torch.randn(5, 2)) for _ in range(3)]
    with pytest.raises(SimoError, match="rank of a matrix is 2: expected one direction a task, 3"):
        tsv_m(vectors)["w.weight"]
    with pytest.raises(SimoError, match="common is 0.1: expected more, for 3 tasks and 2 directions"):
        iso_cts(vectors, common=0.1)["w.weight"]


def test_methods_are_called_by_name():
    """`merge` checks names and options here, too, and the paper's methods are among them."""
    vectors = random_vectors()
    assert torch.equal(merge("iso_c", vectors, METHODS)[W], iso_c(vectors)[W])
    assert METHODS.items() >= OF_THE_PAPER.items()
    assert list(METHODS)[: len(OF_THE_PAPER)] == list(OF_THE_PAPER)
    with pytest.raises(SimoError, match="unknown merging method 'tsvm': expected one of .*'tsv_m'"):
        merge("tsvm", vectors, METHODS)
    with pytest.raises(SimoError, match="of regmean: missing a required argument: 'moments'"):
        merge("regmean", vectors, METHODS)
    with pytest.raises(SimoError, match="of dare: got an unexpected keyword argument 'dorp'"):
        merge("dare", vectors, METHODS, dorp=0.5)


def test_a_method_of_ones_own_is_called_by_name(monkeypatch):
    """Added to the paper's methods it is found among all, whatever was imported before."""
    vectors = random_vectors()
    monkeypatch.setitem(OF_THE_PAPER, "first", lambda task_vectors: task_vectors[0])
    assert torch.equal(merge("first", vectors, METHODS)[W], vectors[0][W])


def test_equal_norms_by_hand():
    """Norms 5 and 10: the second is halved over all its tensors, before the sum; equal ones are summed."""
    one, two = vector(a=torch.tensor([3.0]), w=[4.0]), vector(a=torch.tensor([6.0]), w=[-8.0])
    merged = equal_norms([one, two])
    assert (merged["a"].item(), merged["w"].item()) == pytest.approx((6.0, 0.0))
    summed = task_arithmetic([one, one])
    assert all(torch.equal(tensor, summed[name]) for name, tensor in equal_norms([one, one]).items())


def test_equal_norms_leaves_an_expert_at_rest_out():
    """One that did not move says nothing of how far the others may; of none at all nothing comes."""
    moved, still = vector(w=[3.0, -4.0]), vector(w=[0.0, 0.0])
    assert equal_norms([moved, still])["w"].tolist() == [3.0, -4.0]
    assert equal_norms([still, still])["w"].tolist() == [0.0, 0.0]


def test_wudi_by_hand():
    """Rows (1, 0) and (1, 1): normalised G are diag(1, 0) and ones / 2; Σ τ_t G_t (Σ G_t)⁻¹ = (1, 1).

    The rows differ in a direction of which the first task says nothing, so that nothing is disturbed.
    """
    torch.testing.assert_close(wudi(matrices([[1.0, 0.0]], [[1.0, 1.0]]))[W], torch.tensor([[1.0, 1.0]]))
    # along one direction, with τ = 1 and 3, normalised G are 1 and 1: their mean
    torch.testing.assert_close(wudi(matrices([[1.0, 0.0]], [[3.0, 0.0]]))[W], torch.tensor([[2.0, 0.0]]))


def test_wudi_is_where_no_step_helps():
    """The interference that it is named for is larger in every direction around it."""
    vectors = random_vectors()
    tensors = [one[W].double() for one in vectors]

    def interference(merged):
        return sum(((merged - one) @ one.T).square().sum() / one.square().sum() for one in tensors)

    best = wudi(vectors)[W].double()
    for seed in range(5):
        step = 0.01 * torch.randn(best.shape, generator=torch.Generator().manual_seed(seed))
        assert interference(best + step) > interference(best)


def test_ace_sums_covariances_and_their_mean_row():
    """τ of 1 and 10 times (1, -1), rows centred, one input: G are 2 and 200, their sum's mean row 202.

    Σ τ_t G_t = 1 · 2 + 10 · 200, over 202 + 202.
    """
    merged = ace(matrices([[1.0], [-1.0]], [[10.0], [-10.0]]), ridge=1e-9, uneven=10.0)[W]
    torch.testing.assert_close(merged, 2002 / 404 * torch.tensor([[1.0], [-1.0]]))


def test_ace_divides_uneven_covariances_by_their_traces():
    """τ_1 = (1, -1) on one input, τ_2 = 10 (1, -1) on another: divided, G are diag(1, 0) and diag(0, 1).

    The mean row (½, ½), over the mean of ‖τ‖², 101, is c (1, 1): Σ G_t and it are 1 + c 11ᵀ, with the
    inverse 1 − c / (1 + 2c) 11ᵀ. So Σ τ_t G_t = (1, 10) becomes m = (1, 10) − 11 c / (1 + 2c) (1, 1). What is
    left over is Σ τ_t (G_t − 1/2) = (1, 10) / 2. The strongest direction of both, the only one, is added.
    """
    vectors = matrices([[1.0, 0.0], [-1.0, 0.0]], [[0.0, 10.0], [0.0, -10.0]])
    c = 0.5 / 101
    row = torch.tensor([1.0, 10.0]) - 11 * c / (1 + 2 * c)
    wanted = row + row + torch.tensor([0.5, 5.0])
    merged = ace(vectors, ridge=1e-9, uneven=0.1, strongest=0.5)[W]
    torch.testing.assert_close(merged, torch.stack([wanted, -wanted]))
    # of two directions, of which one is 0, the mean is half; where it points is anybody's guess
    both = ace(vectors, ridge=1e-9, uneven=0.1, strongest=1.0)[W]
    added = torch.linalg.svdvals(both - torch.stack([row, -row]))
    norm = (2**0.5) * (wanted - row).norm()
    torch.testing.assert_close(added, torch.stack([norm, norm]) / 2)


def test_ace_divides_the_ridge_as_well():
    """One input, τ of 1 and 10, ridge of 2: G are 1 + 2 / 2 and 1 + 2 / 200; the mean row is 2 / 101."""
    merged = ace(matrices([[1.0], [-1.0]], [[10.0], [-10.0]]), ridge=2.0, uneven=0.1)[W]
    one = (1 * 2 + 10 * 1.01) / (2 + 1.01 + 2 / 101)  # nothing is left over, and it is added itself
    torch.testing.assert_close(merged, 2 * one * torch.tensor([[1.0], [-1.0]]))


@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_ace_bears_an_expert_at_rest(size):
    """An expert that hardly changed a layer makes nothing of it explode."""
    generator = torch.Generator().manual_seed(0)
    one, two, three = torch.randn(3, 6, 4, generator=generator)
    merged = ace(matrices(one, two, size * three))[W]
    assert torch.isfinite(merged).all()
    assert merged.norm() < 2 * (one + two).norm()


def test_ace_of_a_single_output_is_nothing():
    """Centred, one row is 0, however uneven the experts."""
    assert ace(matrices([[1.0, 2.0]], [[100.0, 3.0]]))[W].count_nonzero() == 0


def test_svc_by_hand():
    """Two tasks share a direction, of which their sum has twice as much as each: halved; the rest is kept."""
    one, two = [[2.0, 0, 0], [0, 1.0, 0], [0, 0, 0]], [[2.0, 0, 0], [0, 0, 0], [0, 0, 3.0]]
    torch.testing.assert_close(svc(matrices(one, two))[W], torch.diag(torch.tensor([2.0, 1.0, 3.0])))
    # 4 along a direction where tasks have 1 and 3: shares 4 and 4/3, their mean 8/3
    merged = svc(matrices([[1.0]], [[3.0]]))[W]
    assert merged.item() == pytest.approx(4 / (8 / 3))
    assert svc(matrices([[1.0]], [[3.0]]), floor=4.0)[W].item() == pytest.approx(1)
    # against each other, 1 - 3 = -2 is -2 times the one and 2/3 of the other: both less than the floor
    assert svc(matrices([[1.0]], [[-3.0]]))[W].item() == pytest.approx(-2)
    assert svc(matrices([[1.0]], [[-3.0]]), floor=0.5)[W].item() == pytest.approx(-2 / (7 / 12))


def test_svc_does_not_hang_on_the_unit():
    """Task vectors a million times as short give the same merged one, as much shorter."""
    vectors = random_vectors()
    small = svc([1e-6 * each for each in vectors])
    for name, tensor in svc(vectors).items():
        torch.testing.assert_close(1e6 * small[name], tensor, rtol=1e-4, atol=1e-6)


def test_svc_does_not_hang_on_rounding():
    """Experts whose matrices share neither inputs nor outputs keep what they say, turned as they may be."""
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    vectors = [vector(**{"x.weight": (1e-3 * left[:, [i]] @ right[[i]]).float().tolist()}) for i in range(2)]
    torch.testing.assert_close(svc(vectors)["x.weight"], task_arithmetic(vectors)["x.weight"])


def test_svc_sums_what_is_no_matrix():
    """It calibrates task arithmetic, whose other tensors stay the sums."""
    vectors = random_vectors()
    assert torch.equal(svc(vectors)["pos_embed"], task_arithmetic(vectors)["pos_embed"])


def moments_of(*grams):
    return [{W: torch.tensor(gram, dtype=torch.float64)} for gram in grams]


def test_regmean_by_hand():
    """One input, G = 3 and 1, τ = 1 and 5: (3 · 1 + 1 · 5) / 4 = 2."""
    vectors, moments = matrices([[1.0]], [[5.0]]), moments_of([[3.0]], [[1.0]])
    assert regmean(vectors, moments)[W].item() == pytest.approx(2)
    assert lot(vectors, moments)[W].item() == pytest.approx(2)


@pytest.mark.parametrize("method", [regmean, lot])
def test_an_input_that_never_varies_takes_no_part(method):
    """The solution is that without this input, and the same bit by bit wherever in memory matrices lie."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 60, 16, generator=generator, dtype=torch.float64)
    rows[:, :, 5] = 0
    changes = [torch.randn(4, 16, generator=generator) for _ in rows]
    moments = [{W: own.T @ own / len(own)} for own in rows]
    found = []
    for offset in range(4):
        for own in moments:
            memory = torch.empty(16 * 16 + 8, dtype=torch.float64)
            own[W] = memory[offset : offset + 256].view(16, 16).copy_(own[W])
        found.append(method(matrices(*changes), moments)[W])
    assert all(torch.equal(own, found[0]) for own in found)
    assert found[0][:, 5].abs().max() < 1e-12
    used = [number for number in range(16) if number != 5]
    without = [{W: own[W][used][:, used]} for own in moments]
    reduced = method(matrices(*(change[:, used] for change in changes)), without)[W]
    torch.testing.assert_close(found[0][:, used], reduced)


@pytest.mark.parametrize("method", [regmean, lot])
@pytest.mark.parametrize(
    ("moments", "message"),
    [
        ([], "list of moments is of 0: expected one of 2"),
        (moments_of([[3.0]]), "list of moments is of 1: expected one of 2"),
        ([*moments_of([[3.0]]), {}], f"not all moments and task vectors have {W!r}"),
        ([{"fc.weight": torch.eye(1)}] * 2, "not all moments and task vectors have 'fc.weight'"),
        ([{}, {}], "number of layers with moments is 0: expected some"),
    ],
)
def test_moments_that_do_not_fit_are_refused(method, moments, message):
    """Of too few experts, of other layers, or of another model: all would be some average without a word."""
    with pytest.raises(SimoError, match=message):
        method(matrices([[1.0]], [[5.0]]), moments)


def test_shrinking_weakens_correlations():
    """Off-diagonal entries times the factor: the solution is that of the shrunk matrices."""
    vectors = matrices([[1.0, 0.0]], [[0.0, 1.0]])
    moments = moments_of([[2.0, 1.0], [1.0, 2.0]], [[1.0, 0.0], [0.0, 3.0]])
    shrunk = [torch.tensor([[2.0, 0.5], [0.5, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])]
    right = shrunk[0] @ torch.tensor([[1.0], [0.0]]) + shrunk[1] @ torch.tensor([[0.0], [1.0]])
    expected = torch.linalg.inv(sum(shrunk)) @ right
    torch.testing.assert_close(regmean(vectors, moments, shrink=0.5)[W], expected.T)


@pytest.mark.parametrize("method", [regmean, lot])
def test_equal_inputs_give_the_average(method):
    """If all experts' layers see the same, nothing prefers any of them."""
    vectors = random_vectors()
    moments = [{W: torch.eye(4, dtype=torch.float64) + 0.5}] * 3
    merged = method(vectors, moments)
    for name in merged:
        torch.testing.assert_close(merged[name], sum(one[name] for one in vectors) / 3)


def test_orthogonal_inputs_keep_every_expert():
    """Where the experts' inputs span different directions, LOT keeps each one's outputs exactly."""
    one, two = matrices([[1.0, 2.0, 9.0]], [[3.0, 4.0, 9.0]])
    moments = moments_of([[1.0, 0, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 1.0, 0], [0, 0, 0]])
    merged = lot([one, two], moments)[W]
    torch.testing.assert_close(merged, torch.tensor([[1.0, 4.0, 0.0]]))  # off all inputs: nothing


def test_lot_weighs_norms_by_their_channels():
    """A scale follows the expert whose channel is larger: (4 · 1 + 1 · 6) / 5 = 2; RegMean averages."""
    vectors = [vector(norm__weight=torch.tensor([value])) for value in (1.0, 6.0)]
    moments = [{"norm.weight": torch.tensor([value], dtype=torch.float64)} for value in (4.0, 1.0)]
    assert lot(vectors, moments)["norm.weight"].item() == pytest.approx(2)
    assert regmean(vectors, moments)["norm.weight"].item() == pytest.approx(3.5)


def test_lot_bears_a_channel_that_is_never_used():
    """No moment says how to weigh it; in whatever precision moments come, it is not NaN."""
    seen = [{"x.weight": torch.tensor([0.0, 1.0])}] * 2
    vectors = [vector(**{"x.weight": [value, value]}) for value in (1.0, 3.0)]
    assert lot(vectors, seen)["x.weight"].tolist() == [0.0, 2.0]


def test_esm_keeps_what_moves_outputs_most():
    """Of diag(3, 1) and diag(1, 3), each task's direction is that in which its inputs make the larger output.

    With inputs as large in both, the first task gives 3 e₁ and the second 3 e₂, doubled by the method. With
    inputs ten times as large where τ is small, it is 1 e₂ and 1 e₁: the matrices' own order plays no part.
    """
    vectors = matrices([[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 3.0]])
    even = [{W: torch.eye(2, dtype=torch.float64)}] * 2
    torch.testing.assert_close(esm(vectors, even)[W], 6 * torch.eye(2))
    turned = [
        {W: torch.tensor(square, dtype=torch.float64).diag()} for square in ([1.0, 100.0], [100.0, 1.0])
    ]
    torch.testing.assert_close(esm(vectors, turned)[W], 2 * torch.eye(2))


def test_esm_weighs_directions_tasks_and_inputs():
    """Two tasks on inputs and outputs of their own, diag(3, 1, 0, 0) and diag(0, 0, 2, 2), by hand.

    Of the eigenvalues 9 and 1, to their mean, .15 powers are taken, and to their mean again: the weights w of
    the first task's directions; the second's are 1. Outputs are orthogonal, and the mean of all weights is 1.
    On the right stand w times the entry times the task's length to the mean length, squared; each column to
    the columns' mean, squared, again. All singular values become their mean, and twice this is the result.
    """
    vectors = matrices(torch.diag(torch.tensor([3.0, 1, 0, 0])), torch.diag(torch.tensor([0.0, 0, 2, 2])))
    seen = [{W: torch.eye(4, dtype=torch.float64)}] * 2
    w = [(value / 5) ** 0.15 for value in (9, 1)]
    w = [2 * each / sum(w) for each in w]
    lengths = [10**0.5, 8**0.5]
    first, second = ((2 * length / sum(lengths)) ** 2 for length in lengths)
    columns = [w[0] * 3 * first, w[1] * first, 2 * second, 2 * second]
    columns = [each * (each / (sum(columns) / 4)) ** 2 for each in columns]
    torch.testing.assert_close(esm(vectors, seen)[W], 2 * sum(columns) / 4 * torch.eye(4))


def test_esm_lets_large_changes_count_for_more():
    """Layers of a kind with changes of 1 and 3, mean 2, are multiplied by (1 / 2)² and (3 / 2)²."""
    small, large = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    one = vector(blocks__0__fc1__weight=small, blocks__1__fc1__weight=large, blocks__1__fc2__weight=large)
    seen = [{name: torch.ones(1, 1, dtype=torch.float64) for name in one}]
    merged, plain = esm([one], seen), esm([one], seen, power=0.0)
    assert [plain[name].item() for name in one] == pytest.approx([2, 6, 6])
    assert [merged[name].item() for name in one] == pytest.approx([2 / 4, 6 * 9 / 4, 6])


def test_esm_does_not_hang_on_rounding():
    """A layer with more outputs than inputs has directions in which nothing moves, but for rounding."""
    generator = torch.Generator().manual_seed(0)
    vectors = matrices(*torch.randn(2, 12, 4, generator=generator))
    x = torch.randn(2, 50, 4, generator=generator, dtype=torch.float64)
    seen, nearly = ([{W: y.T @ y * factor} for y in x] for factor in (1.0, 1 + 1e-13))
    torch.testing.assert_close(esm(vectors, seen)[W], esm(vectors, nearly)[W], rtol=1e-6, atol=1e-6)


def test_esm_leaves_a_layer_that_nobody_changed():
    """No change stays none, without NaN."""
    still = 0.0 * vector(blocks__0__fc__weight=torch.ones(2, 2))
    assert esm([still, still], [{W: torch.eye(2, dtype=torch.float64)}] * 2)[W].count_nonzero() == 0


def inputs_of_first_layer(encoder, images):
    """Rows that the first block's attention reads, and the name of its weight."""
    seen = []
    layer = encoder.backbone.blocks[0].attn.qkv
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    encoder(images)
    handle.remove()
    return seen[0].detach().flatten(0, 1).double(), "backbone.blocks.0.attn.qkv.weight"


@pytest.mark.parametrize("method", ["regmean", "lot"])  # ESM makes singular values equal
def test_one_expert_is_itself_from_images(model, method):
    """With one expert and its own moments, the layer computes what the expert's does on its inputs."""
    images = torch.rand(16, 3, 16, 16)
    rows, name = inputs_of_first_layer(model.encoder, images)
    state = {key: tensor.float() for key, tensor in model.encoder.state_dict().items()}
    one = TaskVector(state, state.__getitem__)
    merged = METHODS[method]([one], [input_moments(model.encoder, [{"image": images}])])
    torch.testing.assert_close(
        rows.float() @ merged[name].T, rows.float() @ state[name].T, rtol=1e-3, atol=1e-4
    )


def test_moments_are_those_of_the_inputs(model):
    """Mean of x xᵀ over tokens, however images come in batches; every linear layer and norm has one."""
    images = torch.rand(4, 3, 16, 16)
    one = input_moments(model.encoder, [{"image": images}])
    two = input_moments(model.encoder, [{"image": part} for part in images.split(1)])
    rows, name = inputs_of_first_layer(model.encoder, images)
    torch.testing.assert_close(one[name], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-5)
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-4, atol=1e-4)
    assert one.keys() >= {f"backbone.blocks.1.{part}.weight" for part in ("norm1", "mlp.fc2")}


def test_moments_of_a_norm_are_those_of_what_it_scales(model):
    """Squares of the normalised input, before scale and shift, which are not the initial ones here."""
    norm, seen, images = model.encoder.backbone.blocks[1].norm2, [], torch.rand(4, 3, 16, 16)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    found = input_moments(model.encoder, [{"image": images}])["backbone.blocks.1.norm2.weight"]
    handle.remove()
    x = seen[0].flatten(0, 1).double()
    variance = x.var(dim=1, correction=0, keepdim=True)
    expected = ((x - x.mean(dim=1, keepdim=True)) / (variance + norm.eps).sqrt()).square().mean(dim=0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_moments_of_a_norm_of_maps_go_along_the_channels():
    """ConvNeXt's norms between stages see channels first: the moments are the channels', not the columns'."""
    encoder, images = create_encoder("test_convnext", {}, [1, 2]).eval(), torch.rand(2, 3, 64, 96)
    norm, seen = encoder.backbone.stages[1].downsample[0], []
    handle = norm.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    found = input_moments(encoder, [{"image": images}])["backbone.stages.1.downsample.0.weight"]
    handle.remove()
    assert seen[0].shape == (2, 24, 16, 24)  # scale and shift are those at first: 1 and 0
    torch.testing.assert_close(found.float(), seen[0].square().mean(dim=(0, 2, 3)))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (iter(()), "number of batches for moments is 0: expected at least one"),
        ([{"image": torch.ones(1, 3, 16, 16, dtype=torch.uint8)}], r"in \[0, 1\] .*found .*uint8"),
        ([{"image": torch.full((1, 3, 16, 16), 255.0)}], r"in \[0, 1\] .*found .*255"),
    ],
)
def test_moments_of_no_or_unusable_images_are_refused(model, batches, message):
    """A loader that was read to its end, and images in [0, 255]; the encoder is as it was, then and after."""
    with pytest.raises(SimoError, match=message):
        input_moments(model.encoder, batches)
    with pytest.raises(SimoError, match="encoder is VisionTransformer: expected an Encoder"):
        input_moments(model.encoder.backbone, [{"image": torch.rand(1, 3, 16, 16)}])  # images as they are
    input_moments(model.encoder, [{"image": torch.rand(1, 3, 16, 16)}])
    assert not any(module._forward_pre_hooks for module in model.encoder.modules())  # of no call any is left


@pytest.mark.parametrize("shape", [(48, 24), (24, 48), (24, 24)])
@pytest.mark.parametrize("method", ["iso_c", "iso_cts", "tsv_m"])
def test_eigenvalues_give_what_the_singular_value_decomposition_gives(monkeypatch, method, shape):
    """Matrices are decomposed by their Gram matrices, and merged as if by singular values, within 1e-5.

    Of matrices like trained ones, whose singular values fall off by three decades, and of rank 3, of whose
    directions the squares know nothing.
    """

    def decompose(matrix, count=None):
        u, values, v = torch.linalg.svd(matrix, full_matrices=False)
        return u[:, :count], values[:count], v[:count]

    falling = torch.logspace(0, -3, 24)
    vectors = [torch.randn(shape[0], 24) * falling @ torch.randn(24, shape[1]) for _ in range(3)]
    low = [torch.randn(shape[0], 3) @ torch.randn(3, shape[1]) for _ in range(3)]
    for each in (vectors, low):
        merged = METHODS[method](matrices(*each))
        fast = merged[W]
        with monkeypatch.context() as patched:
            patched.setattr(matrices_module, "_svd", decompose)
            slow = merged[W]
        scale = slow.abs().max()
        torch.testing.assert_close(fast / scale, slow / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", DATA_FREE)
def test_methods_make_no_tensors_elsewhere(method):
    """Where the experts' tensors are, everything is: a default device without values changes no result."""
    vectors = random_vectors()
    expected = dict(METHODS[method](vectors))
    with torch.device("meta"):
        merged = dict(METHODS[method](vectors))
    assert all(torch.equal(merged[name], tensor) for name, tensor in expected.items())
