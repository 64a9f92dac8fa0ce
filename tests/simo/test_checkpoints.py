"""simo.checkpoints: what is loaded is what was saved, or a message says why not."""

import errno
import json
import pickle

import pytest
import safetensors.torch
import torch

import simo
from simo import checkpoints
from simo.checkpoints import TensorFile, load_into, load_recipe, save_checkpoint, save_tensors
from simo.errors import SimoError

RECIPE = {"kind": "expert", "tasks": ["depth"], "model": {"blocks": [1, 2]}}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "encoder.a": torch.randn(2, 3, generator=generator),
        "encoder.b": torch.zeros(()),
        "c": torch.arange(3),
    }


@pytest.fixture
def path(tmp_path, tensors):
    path = tmp_path / "expert.safetensors"
    save_checkpoint(path, tensors, RECIPE)
    return path


def test_roundtrip(path, tensors, same):
    """Names, types and bits of the tensors, and the recipe, come back."""
    assert same(dict(TensorFile(path)), tensors)
    assert [TensorFile(path)[name].dtype for name in tensors] == [torch.float32, torch.float32, torch.int64]
    recipe = load_recipe(path, kind="expert", model={"blocks": [1, 2]})
    assert recipe.pop("sha256")
    assert recipe == RECIPE
    assert {file.name for file in path.parent.iterdir()} == {"expert.safetensors", "expert.json"}


def test_shared_and_strided_tensors_are_stored(tmp_path):
    """Tied weights and views are saved by value."""
    x = torch.arange(6.0).view(2, 3)
    save_checkpoint(tmp_path / "a.safetensors", {"x": x, "again": x, "column": x[:, 1], "t": x.T}, {})
    file = TensorFile(tmp_path / "a.safetensors")
    assert torch.equal(file["x"], file["again"])
    assert file["column"].tolist() == [1, 4]
    assert torch.equal(file["t"], x.T)


def test_asking_for_a_name_reads_no_tensor(path, monkeypatch):
    """`in` looks at the names: merging asks for each of some hundred."""
    file = TensorFile(path)
    monkeypatch.setattr(TensorFile, "__getitem__", None)
    assert "encoder.a" in file
    assert "a" not in file


def test_prefix_selects_and_shortens_names(path, tensors):
    """`encoder.` of an expert is the encoder's own state; other tensors are not there."""
    encoder = TensorFile(path, "encoder.")
    assert list(encoder) == ["a", "b"]
    assert len(encoder) == 2
    assert torch.equal(encoder["a"], tensors["encoder.a"])
    with pytest.raises(KeyError):
        encoder["c"]


def test_tampered_file_is_refused(path, tensors):
    """One changed number in the file is noticed before anything is computed with it."""
    tensors["encoder.a"][0, 0] += 1e-3
    safetensors.torch.save_file(tensors, path)
    with pytest.raises(SimoError, match=r"expert.safetensors is not what its recipe describes \(sha256"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("suffix", "message"),
    [(".safetensors", "does not exist"), (".json", "is unfinished, without expert.json")],
)
def test_unfinished_checkpoint_is_refused(path, suffix, message):
    """Tensors without a recipe, or nothing at all, are not taken for a checkpoint."""
    path.with_suffix(suffix).unlink()
    with pytest.raises(SimoError, match=f"expert.safetensors {message}"):
        load_recipe(path)


@pytest.mark.parametrize("expected", [{"kind": "merged"}, {"tasks": ["normals"]}, {"method": "ties"}])
def test_another_recipe_is_refused(path, expected):
    """The message names the entry, what it is and what it should be."""
    ((key, value),) = expected.items()
    with pytest.raises(SimoError) as error:
        load_recipe(path, **expected)
    assert f"{key} of checkpoint" in str(error.value)
    assert f"is {RECIPE.get(key)!r}: expected {value!r}" in str(error.value)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def full_disk_in_rust(*_, **__):
    raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device")


@pytest.mark.parametrize("failure", [full_disk, full_disk_in_rust])
def test_full_disk_keeps_the_old_checkpoint(path, tensors, same, monkeypatch, failure):
    """A checkpoint that could not be replaced is whole, loads, and nothing half-written lies beside it."""
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setattr(checkpoints, "save_file", failure)
    with pytest.raises(SimoError, match="cannot write .*expert.safetensors: .*No space left"):
        save_checkpoint(path, {"encoder.a": torch.ones(1)}, {"kind": "merged"})
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before
    assert load_recipe(path)["kind"] == "expert"


@pytest.mark.parametrize("failing", ["save_file", "_sha256", "write_json"])
def test_crash_leaves_a_checkpoint_or_none(path, tensors, same, monkeypatch, failing):
    """Cut off at any point, saving leaves the old checkpoint, or one that the loader refuses."""

    def crash(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, failing, crash)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(path, {name: x + 1 for name, x in tensors.items()}, {"kind": "merged"})
    if failing != "save_file":
        with pytest.raises(SimoError, match="make it again"):
            load_recipe(path)
    else:
        assert load_recipe(path)["kind"] == "expert"
        assert same(dict(TensorFile(path)), tensors)


def test_what_is_saved_is_tensors_by_name(tmp_path, tensors):
    """A model, nothing, or a folder in the file's place is one error; a new folder is made."""
    for wrong in (torch.nn.Linear(1, 1), None, [torch.ones(1)], {1: torch.ones(1)}):
        with pytest.raises(SimoError, match="what to save is a .*expected tensors by text"):
            save_tensors(tmp_path / "a.safetensors", wrong)
    with pytest.raises(SimoError, match="cannot write"):
        save_tensors(tmp_path, tensors)
    save_tensors(tmp_path / "new" / "a.safetensors", tensors)
    assert TensorFile(tmp_path / "new" / "a.safetensors").keys() == tensors.keys()


def test_pickle_is_never_read(tmp_path):
    """A file that would run code when unpickled is refused unread, whatever its name."""
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return open, (str(marker), "w")

    path = tmp_path / "bomb.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(SimoError, match="bomb.safetensors, in the format safetensors, cannot be decoded"):
        TensorFile(path)
    torch.save(Bomb(), path)
    with pytest.raises(SimoError, match="in the format safetensors, cannot be decoded"):
        TensorFile(path)
    assert not marker.exists()


@pytest.mark.parametrize("content", [None, b"", b"\x10" * 100], ids=["missing", "empty", "garbage"])
def test_unreadable_file_is_refused(tmp_path, content):
    """A missing, empty or damaged file is named."""
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(
        SimoError, match="a.safetensors, in the format safetensors, (cannot be decoded|is missing)"
    ):
        TensorFile(path)


def test_truncated_file_is_refused(path):
    """An interrupted copy is noticed by hash and by reader."""
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(SimoError, match="sha256 differs"):
        load_recipe(path)
    with pytest.raises(SimoError, match="in the format safetensors, cannot be decoded"):
        TensorFile(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precision_loads_into_float32(tmp_path, dtype):
    """Weights stored in half precision are widened exactly; the module keeps its type."""
    module = torch.nn.Linear(3, 2)
    stored = {name: torch.randn_like(tensor).to(dtype) for name, tensor in module.state_dict().items()}
    save_checkpoint(tmp_path / "half.safetensors", stored, {})
    load_into(module, TensorFile(tmp_path / "half.safetensors"), "half")
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, stored[name].float())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "it lacks 'bias' (1 missing, 0 unexpected)"),
        (
            {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(2)},
            "it has 'scale', which this model lacks (0 missing, 1 unexpected)",
        ),
        (
            {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
            "weight has shape (3, 2), expected (2, 3)",
        ),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(1)}, "bias has shape (1,), expected (2,)"),
    ],
)
def test_another_architecture_is_refused(tensors, message):
    """No tensor is skipped, added or broadcast in silence; the message names the source and the tensor."""
    with pytest.raises(SimoError) as error:
        load_into(torch.nn.Linear(3, 2), tensors, "theirs")
    assert str(error.value) == f"theirs is of another architecture: {message}"


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.tensor([[1.0, torch.nan]]), "theirs: weight has 1 values that are NaN, infinite or too large"),
        (torch.ones(1, 2, dtype=torch.int8), "theirs: weight is of torch.int8, expected torch.float32"),
    ],
)
def test_values_that_no_model_has_are_refused(weight, message):
    """They would spread through merging, and whole numbers stand for other values."""
    with pytest.raises(SimoError, match=message):
        load_into(torch.nn.Linear(2, 1), {"weight": weight, "bias": torch.zeros(1)}, "theirs")


def test_recipe_is_plain_json(path):
    """Anyone can read what a checkpoint is without this package."""
    assert json.loads(path.with_suffix(".json").read_text())["tasks"] == ["depth"]


def test_simo_s_version_is_that_of_the_code_that_runs(monkeypatch):
    """A checkout may run in an environment into which another one was installed: its records say its own."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: f"installed {name}")
    found = checkpoints.versions()
    assert found["simo"] == simo.__version__
    assert found["torch"] == "installed torch"
