"""benchmarks: both ways of each pair do the same, and what is measured is written down as it was."""

import json

import pytest
import torch

from benchmarks import growing, merging, realigning, starting, training
from benchmarks.__main__ import GROUPS, main
from benchmarks.pairs import Pair, measure, memory_of
from benchmarks.sizes import DATASET, TASKS, TINY, write_images
from report import speed
from simo.datasets import PreparedDataset
from simo.models import create_model
from simo.realignment.trained import realign_heads
from simo.training import Optimisation


def test_a_ratio_is_the_others_time_by_ours():
    """Rounds of 1 to 2, 1 to 4 and 2 to 2 seconds are 2, 4 and 1 times as fast; aims are the median's."""
    ours, other = iter([1.0, 1.0, 2.0]), iter([2.0, 4.0, 2.0])
    ways = (lambda: next(ours), lambda: next(other))
    row = measure(Pair("a", "b", *ways, aim=2.0, seconds=1.0), rounds=3)
    assert row["ratio"] == [2.0, 1.0, 4.0]
    assert row["reached"] is True
    assert row["other_seconds"] == [2.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("aims", "reached"), [({}, None), ({"aim": 2.1}, False), ({"aim": 2.0, "seconds": 0.9}, False)]
)
def test_every_aim_counts(aims, reached):
    """A pair without aims reaches none; one of two that is missed is a miss."""
    assert measure(Pair("a", "b", lambda: 1.0, lambda: 2.0, **aims), rounds=1)["reached"] is reached


def test_memory_is_what_a_call_holds_at_most():
    """A call that holds 64 MiB and gives them back is seen to hold them; one that holds nothing, nothing."""
    size = 2**26
    assert 0.9 * size < memory_of(lambda: torch.ones(size // 4).sum()) < 1.5 * size
    assert memory_of(lambda: None) < 0.2 * size


def test_plain_merging_is_merging(tmp_path):
    """What task arithmetic and TIES are timed against gives their weights, but for TIES' rank."""
    paths = merging.write_experts(tmp_path, "tiny")
    plain = merging.plain_sum(paths)
    for name, tensor in merging.arithmetic(paths).items():
        torch.testing.assert_close(tensor, plain[name])
    flat, merged = merging.flat_ties(paths), merging.ties(paths)
    assert flat.keys() == merged.keys()
    different = sum((~torch.isclose(flat[n], x, atol=1e-6)).sum() for n, x in merged.items())
    assert different <= 3  # the variant keeps one entry fewer of each expert, see `ties`


def test_methods_are_timed_against_themselves(tmp_path):
    """By singular values, the same is merged within 1e-5, and the fast way is put back afterwards."""
    vectors = merging.matrices(merging.write_experts(tmp_path, "tiny"), 1)
    for method in ("iso_c", "iso_cts", "tsv_m"):
        fast, slow = merging.field.METHODS[method](vectors), merging.by_singular_values(method, vectors)
        for name in fast:
            torch.testing.assert_close(fast[name], slow[name], rtol=0, atol=1e-5 * slow[name].abs().max())
    assert merging.matrix_methods._svd.__module__ == "simo.merging.matrices"


def test_encoding_each_step_realigns_to_the_same_heads(tmp_path):
    """Features computed once and features computed at every step train the same heads."""
    data = PreparedDataset(write_images(tmp_path / "data", 3, (16, 16)), DATASET, "val")
    model, budget = create_model(TASKS, 0, **TINY).eval(), Optimisation(steps=4, batch_size=2, seed=0)
    once, _ = realign_heads(model, data, TASKS, budget, realigning.RATE)
    again = realigning.encode_each_step(model, data, budget, TINY)
    for name, tensor in once.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


def test_bare_steps_take_time():
    """A bare step trains all parameters in a time above 0."""
    model = create_model(TASKS, 0, **TINY).train()
    budget = Optimisation(steps=1, batch_size=2, seed=0)
    assert training.bare(model, training.RandomSamples(TASKS, (16, 16)), budget) > 0
    assert all(parameter.grad is None for parameter in model.parameters())


def test_operations_are_those_of_the_formula():
    """Two for each product; backward is twice forward, but for the images, which need no gradient."""
    tokens, width, hidden, images, patches = 5, 16, 64, 2, 4
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens**2 * width
    embedding = patches * 3 * 8**2 * width
    heads = patches * 4 * width * (13 + 1 + 3)  # of two blocks' patches and class tokens
    step = growing.Step(TINY, (16, 16), images)
    assert step.operations() == 2 * images * (3 * (2 * block + heads) + 2 * embedding)


def test_a_notebooks_imports_are_found(tmp_path):
    """All imports at the top of cells, and nothing else, make the program that is timed."""
    cells = [
        {"cell_type": "markdown", "source": "import nothing"},
        {"cell_type": "code", "source": "import json\nprint(1)\nfrom pathlib import Path\n"},
    ]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}))
    assert starting.imports_of(tmp_path / "a.ipynb") == "import json\nfrom pathlib import Path"


def test_all_pairs_run_at_tiny_size(tmp_path, capsys):
    """Protects the programs from rotting: every pair is measured, printed and written down."""
    path = tmp_path / "results.json"
    assert main(["--size", "tiny", "--rounds", "1", "--out", str(path)]) == 0
    results = json.loads(path.read_text())
    assert {row["group"] for row in results["pairs"]} == set(GROUPS)
    assert len(capsys.readouterr().out.splitlines()) == len(results["pairs"]) > 10
    assert results.keys() >= {"commit", "machine", "versions", "date", "minutes"}
    assert all(row["ratio"][0] > 0 for row in results["pairs"])
    drawn_from(results)


def drawn_from(results):
    """The page's tables have every pair, and its figure names all and shows each one's median and aim."""
    tables = [speed.table_of(results, group) for group in GROUPS]
    names = [name for table in tables for name in table.index]
    assert names == [row["name"] for row in results["pairs"]]
    assert list(tables[0].columns) == ["against", "times as fast", "seconds", "checkpoints held", "aim", ""]
    axes = speed.ratios(results).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == names[::-1]
    drawn = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    for place, row in enumerate(results["pairs"][::-1]):
        assert {(value, place) for value in (row["ratio"][0], row["aim"]) if value} <= drawn
    assert "the numbers mean nothing" in speed.described(results)


@pytest.mark.parametrize("arguments", [["mergin"], ["--rounds", "0"], ["--threads", "0"]])
def test_impossible_wishes_are_refused(arguments, capsys):
    """A misspelt group does not begin minutes of measuring."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert "groups of merging, realigning, training, growing, starting" in capsys.readouterr().err


def test_images_a_second_of_a_gpu_stand_where_they_belong():
    """One row a training, in the order of the file, one column a model, size and batch."""
    sizes = {"ViT-S/14": ([126, 168], 8), "ViT-B/14": ([280, 378], 16)}
    rows = [
        {
            "encoder": encoder,
            "pixels": pixels,
            "images a step": images,
            "what": what,
            "images a second": value,
        }
        for (encoder, (pixels, images)), first in zip(sizes.items(), (100.4, 200.6), strict=True)
        for what, value in (("expert", first), ("all", first / 2))
    ]
    table = speed.images_a_second(rows)
    assert list(table.index) == ["expert", "all"]
    assert table["ViT-S/14, 126×168, 8 a step"].tolist() == ["100", "50"]
    assert table["ViT-B/14, 280×378, 16 a step"].tolist() == ["201", "100"]
