"""What users hand over: one SimoError that names it, and nothing is changed by what was refused."""

import copy
import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from simo.checkpoints import TensorFile, load_into, load_recipe, save_checkpoint, save_tensors
from simo.datasets import check_batch
from simo.encoders import PlainViT
from simo.errors import SimoError
from simo.evaluation import evaluate
from simo.files import reason
from simo.merging.task_vectors import TaskVector
from simo.metrics import create_metric
from simo.models import create_model, load_model
from simo.own import _checked_size, _number, export, load_expert, load_exported, merge_experts
from simo.realignment.trained import realign_heads, realign_representation
from simo.tasks import RESERVED, Task
from simo.training import Optimisation, _load_state, fit

VALUES = {"folder": "", "channels": 1, "loss": "l1", "metric": "aErr", "unit": "m"}
NAMES = ["", "a.b", "surface normals", "surface-normals", "1st", "_x", "größe", "a/b", "../a", "a\n", None, 3]
TAKEN = [
    "type",
    "keys",
    "items",
    "pop",
    "forward",
    "training",
    "half",
    "image",
    "step",
    "alpha",
    "score",
    "patches",
    "classes",
]


@pytest.mark.parametrize("name", NAMES + TAKEN)
def test_name_of_a_task(name):
    """It is a key of a module, of batches and of rows, and a name in ONNX; each of these failed elsewhere."""
    with pytest.raises(SimoError, match=r"task .*: expected (a name of letters|a name that is not taken)"):
        Task(name, **VALUES)


def test_names_that_no_module_takes():
    """What torch's own container refuses is refused as a task, whatever torch will add to it."""
    refused = []
    for name in sorted(RESERVED | {"depth", "surface_normals", "x1"}):
        try:
            torch.nn.ModuleDict()[name] = torch.nn.Identity()
        except KeyError:
            refused.append(name)
    assert len(refused) > 50
    assert set(refused) <= RESERVED
    assert Task("surface_normals", **VALUES).name not in RESERVED


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "l2"}, r"task a: unknown loss 'l2': expected one of \['cosine', "),
        ({"loss": None}, "unknown loss None"),
        ({"metric": "miou"}, r"task a: unknown metric 'miou': expected one of \['aErr', "),
        ({"metric": "mIoU"}, "mIoU does not measure values, which l1 is for"),
        ({"loss": "cross_entropy", "metric": "mDist", "channels": 2}, "mDist does not measure classes"),
        ({"loss": "cross_entropy", "metric": "mIoU"}, "channels is 1: expected 2 or more with cross_entropy"),
        ({"loss": "cosine", "metric": "mDist"}, "channels is 1: expected 2 or more with cosine"),
        ({"higher_is_better": True}, "a: higher_is_better is True: expected False, as aErr is"),
        ({"channels": 0}, "task a: channels is 0: expected a whole number above 0"),
        ({"channels": 1.0}, "is 1.0: expected"),
        ({"channels": True}, "is True: expected"),
        ({"channels": "3"}, "is '3': expected"),
        ({"classes": ("a", "b")}, "expected a name a channel"),
        ({"flips_x": True}, "channels is 1: expected 3 with flips_x"),
    ],
)
def test_what_a_task_is(change, message):
    """What would give a KeyError in training, or a wrong number in silence, is told at once."""
    with pytest.raises(SimoError, match=message):
        create_metric(Task("a", **VALUES | change))


def batch(**change):
    """A batch as it should be, of classes and of depth, but for what is changed."""
    right = {"image": torch.rand(2, 3, 4, 4), "depth": torch.rand(2, 1, 4, 4)}
    right["segmentation"] = torch.zeros(2, 4, 4, dtype=torch.int64)
    return right | change


IMAGE = torch.rand(2, 3, 4, 4)
BATCHES = {
    "tuple": ((IMAGE, IMAGE), "expected every batch to be a dict of tensors, found a tuple"),
    "list": ([IMAGE], "found a list"),
    "tensor": (IMAGE, "found a Tensor"),
    "none": (None, "found a NoneType"),
    "no image": ({"depth": IMAGE}, r"expected 'image' in every batch, found \['depth'\]"),
    "no target": ({"image": IMAGE}, r"expected a target 'segmentation' in every batch, found \['image'\]"),
    "numbers as names": ({0: IMAGE}, r"expected 'image' in every batch, found \['0'\]"),
    "numpy": (batch(image=IMAGE.numpy()), "'image' of a batch: expected a tensor, found ndarray"),
    "numpy target": (batch(depth=IMAGE[:, :1].numpy()), "'depth' of a batch: expected a tensor"),
    "list of images": (batch(image=list(IMAGE)), "expected a tensor, found list"),
    "float64": (batch(image=IMAGE.double()), "expected images .* of float32 .* found .* of torch.float64"),
    "float16": (batch(image=IMAGE.half()), "found .* of torch.float16"),
    "uint8": (batch(image=(255 * IMAGE).byte()), r"bytes are divided by 255.* found .* of torch.uint8"),
    "0 to 255": (batch(image=255 * IMAGE), "expected images"),
    "not a number": (batch(image=IMAGE * math.nan), r"found .* in \[nan"),
    "channels last": (batch(image=IMAGE.movedim(1, -1)), r"found \(2, 4, 4, 3\)"),
    "one image": (batch(image=IMAGE[0]), r"found \(3, 4, 4\)"),
    "no images": (batch(image=IMAGE[:0]), r"found \(0, 3, 4, 4\)"),
    "sparse": (batch(image=IMAGE.to_sparse()), "'image' of a batch is torch.sparse_coo"),
    "meta": (batch(image=IMAGE.to("meta")), "'image' of a batch is on the device meta"),
    "complex": (batch(image=IMAGE.to(torch.complex64)), "is of torch.complex64"),
    "classes with a channel": (batch(segmentation=torch.zeros(2, 1, 4, 4).long()), r"found \(2, 1, 4, 4\)"),
    "a class too many": (batch(segmentation=torch.full((2, 4, 4), 13)), r"-1 \(ignored\) to 12, found 13"),
    "infinite depth": (batch(depth=torch.full((2, 1, 4, 4), math.inf)), "depth expects finite values"),
    "half of the width": (batch(depth=torch.rand(2, 1, 4, 2)), r"expected targets \(2, 1, 4, 4\)"),
    "classes of bytes": (batch(segmentation=torch.zeros(2, 4, 4).byte()), "of int64, found .* torch.uint8"),
    "classes of int32": (batch(segmentation=torch.zeros(2, 4, 4).int()), "of int64, found .* torch.int32"),
    "fractions": (batch(segmentation=torch.zeros(2, 4, 4)), "of int64, found .* torch.float32"),
    "whole depth": (batch(depth=torch.zeros(2, 1, 4, 4).long()), "of float32, found .* torch.int64"),
    "depth without channel": (batch(depth=torch.rand(2, 4, 4)), r"expected targets \(2, 1, 4, 4\)"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_batch_of_a_users_loader(tasks, name):
    """Small whole numbers, say, would overflow in the metric and give a wrong mIoU in silence."""
    given, message = BATCHES[name]
    with pytest.raises(SimoError, match=message):
        check_batch(given, tasks[:2])


def test_a_right_batch_passes(tasks):
    """Targets of other floating types are no fault."""
    check_batch(batch(depth=torch.rand(2, 1, 4, 4).double()), tasks[:2])


def test_head_that_is_missing(model, tasks):
    """The message names the task and the heads that are there."""
    with pytest.raises(
        SimoError, match=r"of the model: unknown head 'depth': expected one of \['segmentation'\]"
    ):
        evaluate(model.only(["segmentation"]), [{"image": torch.rand(1, 3, 16, 16)} | batch()], [tasks[1]])


class OfTuples(torch.utils.data.Dataset):
    """A dataset as torchvision has them."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.rand(3, 16, 16), torch.rand(1, 16, 16)


def test_dataset_of_tuples_is_not_trained_on(model, tasks):
    """The training loop says what it expects, in place of an AttributeError of a list."""
    parameters = list(model.heads["depth"].parameters())
    plan = Optimisation(steps=1, batch_size=2, seed=0)
    with pytest.raises(SimoError, match="expected every batch to be a dict of tensors, found a list"):
        fit(model, lambda batch: model(batch["image"]), [(parameters, 0.1)], OfTuples(), tasks[1:2], plan)


class Given(torch.utils.data.Dataset):
    """One sample as it is given, beside the name of its file."""

    def __init__(self, **sample):
        self.sample = {"image": torch.rand(3, 16, 16), "depth": torch.rand(1, 16, 16)} | sample

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.sample


@pytest.mark.parametrize(
    "change", [{"image": torch.zeros(3, 16, 16, dtype=torch.uint8)}, {"image": torch.full((3, 16, 16), 7.0)}]
)
def test_images_that_are_not_evaluated_are_not_trained_on(model, tasks, change):
    """Bytes, or values up to 255, would be shifted and scaled as if they were fractions."""
    plan = Optimisation(steps=1, batch_size=1, seed=0)
    with pytest.raises(SimoError, match=r"expected images \(B, 3, H, W\) of float32 in \[0, 1\]"):
        realign_representation(model, Given(**change), tasks[1:2], plan, 1, 0.1, 0.1)


def test_names_of_files_may_be_in_batches(model, tasks):
    """What is no tensor is left alone, as it is in evaluation."""
    plan, data = Optimisation(steps=1, batch_size=1, seed=0), Given(file="scene_7.png")
    _, history = realign_representation(model, data, tasks[1:2], plan, 1, 0.1, 0.1)
    assert math.isfinite(history[-1]["depth"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": 1.5}, r"warmup is 1.5: expected a fraction in \[0, 1\]"),
        ({"warmup": -0.1}, "warmup is -0.1"),
        ({"clip": 0}, "clip is 0: expected a norm above 0"),
        ({"batch_size": 0}, "accumulate is 1: expected a divisor of batch_size, 0"),
    ],
)
def test_budgets_that_would_train_nothing(change, message):
    """A norm of 0 clips every gradient away, and a rise longer than the training never ends."""
    with pytest.raises(SimoError, match=message):
        Optimisation(**{"steps": 1, "batch_size": 1, "seed": 0} | change)


NUMBERS = [0.3, 3, np.float32(0.3), np.float64(0.3), np.int64(3), torch.tensor(0.3), np.array(0.3)]
NUMBERS += [torch.tensor(0.3, requires_grad=True), torch.tensor(3)]


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
def test_number_of_any_library(value):
    """Scalars of NumPy and torch are numbers, and are written as such."""
    number = json.loads(json.dumps(_number(value, "a")))
    assert min(abs(number - 0.3), abs(number - 3)) < 1e-6


NONE = [None, "0.3", True, math.nan, math.inf, 1j, [0.3], torch.ones(2), torch.ones(1), np.array([0.3])]
NONE += [np.bool_(1), torch.tensor(True), torch.tensor(math.nan), np.array("x"), {}]


@pytest.mark.parametrize("value", NONE, ids=repr)
def test_no_number(value):
    """The message says whose number it should be, and what was found."""
    with pytest.raises(SimoError, match="alpha: expected a finite number, found "):
        _number(value, "alpha")


@pytest.mark.parametrize(
    "size", [224, (224,), (224, 224, 3), (0, 4), (-1, 4), (1.5, 4), ("a", "b"), "22", None]
)
def test_no_size(size):
    """Height and width are two whole numbers."""
    with pytest.raises(SimoError, match="expected height and width in pixels"):
        _checked_size(size)
    assert _checked_size(np.array([16, 24])) == (16, 24)


PLAIN = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
UNUSABLE = {
    "float8": (PLAIN.to(torch.float8_e4m3fn), "is of torch.float8_e4m3fn: expected plain numbers"),
    "float8 of scales": (PLAIN.abs().to(torch.float8_e8m0fnu), "is of torch.float8_e8m0fnu"),
    "float4": (torch.zeros(2, 3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "is of torch.float4"),
    "complex": (PLAIN.to(torch.complex64), "is of torch.complex64"),
    "quantised": (lambda: torch.quantize_per_tensor(PLAIN, 0.1, 0, torch.qint8), "is of torch.qint8"),
    "sparse": (PLAIN.to_sparse(), "is torch.sparse_coo: expected a dense tensor"),
    "sparse rows": (PLAIN.to_sparse_csr, "is torch.sparse_csr"),
    "meta": (PLAIN.to("meta"), "is on the device meta: expected a tensor with values"),
    "float64 that overflows": (PLAIN.double() * 1e300, "values that are NaN"),
    "NaN": (PLAIN * math.nan, "6 values that are NaN"),
    "infinity": (PLAIN / 0, "values that are NaN"),
    "numpy": (PLAIN.numpy(), "expected a tensor, found ndarray"),
    "list": (PLAIN.tolist(), "expected a tensor, found list"),
    "none": (None, "expected a tensor, found NoneType"),
    "whole numbers": (PLAIN.long(), "torch.int64"),
    "another shape": (PLAIN.T, r"\(3, 2\)"),
}


@pytest.mark.filterwarnings("ignore:.*(quantiz|CSR).*")
@pytest.mark.parametrize("name", UNUSABLE)
def test_tensor_that_is_none(tmp_path, name):
    """Loading leaves the module as it was, also what came before; merging and saving refuse it, too."""
    value, message = UNUSABLE[name]
    value = value() if callable(value) else value
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(3, 2))
    state = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    theirs = {key: tensor + 1 for key, tensor in state.items()} | {"1.weight": value}
    with pytest.raises(SimoError, match=f"theirs.*1.weight.*{message}"):
        load_into(module, theirs, "theirs")
    assert all(torch.equal(tensor, state[key]) for key, tensor in module.state_dict().items())
    with pytest.raises(SimoError, match=message):
        TaskVector.between({"1.weight": state["1.weight"]}, {"1.weight": value}, "expert")["1.weight"]
    if "expected" in message or "is of" in message or "sparse" in name:
        with pytest.raises(SimoError, match=message):
            save_tensors(tmp_path / "a.safetensors", {"1.weight": value})
        with pytest.raises(SimoError, match=message):
            TaskVector.between({"1.weight": value}, {"1.weight": state["1.weight"]}, "expert")["1.weight"]


def test_tensors_with_gradients():
    """States of a model in training are merged like others, and the result knows no gradient."""
    base = {"a": torch.ones(2, requires_grad=True)}
    vector = TaskVector.between(base, {"a": torch.full((2,), 3.0, requires_grad=True)})
    merged = vector.apply(base, 0.5)["a"]
    assert merged.tolist() == [2, 2]
    assert not merged.requires_grad


RECIPES = {
    "list": ([], r"model.json is \[\]: expected an object with named entries"),
    "text": ("recipe", "expected an object"),
    "number": (3, "expected an object"),
    "null": (None, "expected an object"),
    "empty": ({}, "kind of .* is None: expected 'exported'"),
    "no hash": ({"kind": "exported"}, "sha256 differs"),
    "no tasks": ({"tasks": ...}, "model.json lacks the entry 'tasks'"),
    "no model": ({"model": ...}, "model.json lacks the entry 'model'"),
    "no rank": ({"adapter_rank": ...}, "model.json lacks the entry 'adapter_rank'"),
    "tasks no list": ({"tasks": 3}, "model.json cannot be decoded"),
    "task no object": ({"tasks": ["depth"]}, "model.json cannot be decoded"),
    "task without a name": ({"tasks": [{"classes": []}]}, "model.json cannot be decoded"),
    "task with more": ({"tasks": [{"classes": [], "x": 1}]}, "model.json cannot be decoded"),
    "task with another loss": (
        {"tasks": [{"name": "a", **VALUES, "classes": [], "loss": "l2"}]},
        "unknown loss 'l2'",
    ),
    "no tasks at all": ({"tasks": []}, "is of another architecture"),
    "settings no object": ({"model": [1]}, "settings: expected the keys"),
    "settings of a text": ({"model": {"backbone": 3}}, "settings: expected the keys"),
    "rank of a text": ({"adapter_rank": "four"}, "model.json"),
    "unknown adapter": ({"adapter_rank": 2, "adapter": "none"}, "model.json|adapter"),
}


@pytest.fixture
def exported(tmp_path, model, tasks, settings, monkeypatch):
    """A folder with an exported model, without ONNX."""
    monkeypatch.setattr("simo.own.export_onnx", lambda *_: 0.0)
    monkeypatch.setattr("simo.own._check_onnx", lambda *_: 0.0)
    export(model, tmp_path / "out", settings, tasks, (16, 16), dict.fromkeys(model.heads, 1.0), {})
    return tmp_path / "out"


def test_damaged_recipe(exported):
    """Valid JSON that is no recipe, or lacks or mistakes an entry, is named; one table over one export."""
    path = exported / "model.json"
    good = json.loads(path.read_text())
    for name, (change, message) in RECIPES.items():
        recipe = change
        if isinstance(change, dict) and name not in ("empty", "no hash"):
            recipe = {key: value for key, value in (good | change).items() if value is not ...}
        path.write_text(json.dumps(recipe))
        with pytest.raises(SimoError, match=message) as found:
            load_exported(exported)
        assert reason(found.value), name
    path.write_text(json.dumps(good))
    load_exported(exported)


def test_recipes_of_checkpoints_that_lack_what_is_read(tmp_path, settings, model):
    """An expert's recipe without its data set is named."""
    path = tmp_path / "expert_depth.safetensors"
    save_checkpoint(path, model.state_dict(), {"model": settings})
    with pytest.raises(SimoError, match="expert_depth.json lacks the entry 'dataset'"):
        load_model(path, settings)
    assert load_recipe(path)["model"] == settings


@pytest.mark.parametrize(
    "metadata", [{}, {"step": "1"}, {"step": "x", "history": "[]"}, {"step": "1", "history": "3"}]
)
def test_damaged_state_of_a_training(tmp_path, metadata):
    """It is named, with what to do, and the model is not half restored."""
    module = torch.nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = {f"model.{name}": tensor + 1 for name, tensor in before.items()}
    save_tensors(tmp_path / "a.safetensors", state, metadata | {"training": "this one"})
    optimiser = torch.optim.AdamW(module.parameters())
    with pytest.raises(
        SimoError, match=r"a.safetensors, the state of a training, .*: delete it to start afresh"
    ):
        _load_state(tmp_path / "a.safetensors", module, optimiser, "this one")
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": 3}, "timm cannot create 3"),
        ({"backbone": ""}, "timm cannot create ''"),
        ({"backbone_args": [1]}, "timm cannot create"),
        ({"backbone_args": {"num_heads": 0}}, "timm cannot create"),
        ({"backbone_args": {"depth": "two"}}, "timm cannot create"),
        ({"backbone_args": {"img_size": -1}}, "timm cannot create|takes"),
        ({"blocks": "12"}, "the list of blocks is 12: expected increasing numbers"),
        ({"blocks": ["1", "2"]}, "expected increasing numbers"),
        ({"blocks": [1.0, 2.0]}, "expected increasing numbers"),
        ({"blocks": 2}, "expected increasing numbers"),
        ({"blocks": None}, "expected increasing numbers"),
        ({"head": "liner"}, "unknown head 'liner'"),
        ({"head_options": {"expand": "two"}}, "expand"),
        ({"input_scale": "Signed"}, "unknown input_scale 'Signed'"),
    ],
)
def test_settings_that_make_no_model(tasks, settings, change, message):
    """Whatever timm raises at an argument, the message says what was given."""
    with pytest.raises(SimoError, match=message):
        create_model(tasks[1:2], 0, **settings | change)


def with_head(model, value):
    """A copy of a model with a value in the last tensor of its depth head."""
    model = copy.deepcopy(model)
    list(model.heads["depth"].state_dict().values())[-1].view(-1)[0] = value
    return model


def reading(model, setting, value):
    """A copy of a model whose encoder has another setting that is in no tensor of its state."""
    model = copy.deepcopy(model)
    scale = {"blocks": [1, 2], "input_scale": "signed"} | {setting: value}
    model.encoder = PlainViT(model.encoder.backbone, **scale)
    return model


OTHERS = "expert 'depth' is of other blocks or input_scale: expected those of the settings"
# what is given to `merge_experts` in place of what is right, made from the model, and what is said
MERGED = {
    "no model": (
        lambda m: {"experts": {"depth": None}},
        r"heads of expert 'depth' is \['NoneType'\]",
    ),
    "a state": (
        lambda m: {"experts": {"depth": m.state_dict()}},
        r"heads of expert 'depth' is \['OrderedDict'\]",
    ),
    "an encoder": (lambda m: {"experts": {"depth": m.encoder}}, r"heads of expert 'depth' is \['PlainViT'\]"),
    "another name": (lambda m: {"experts": {"deph": m}}, r"expert 'deph' is \['segm"),
    "nothing": (lambda m: {"experts": {}}, r"expected task vectors, .* found \[\]"),
    "another scale": (lambda m: {"experts": {"depth": reading(m, "input_scale", "imagenet")}}, OTHERS),
    "other blocks": (lambda m: {"experts": {"depth": reading(m, "blocks", [1])}}, OTHERS),
    "NaN in a head": (
        lambda m: {"experts": {"depth": with_head(m, math.nan)}},
        "head of depth: project.* has 1 values",
    ),
    "infinity in a head": (lambda m: {"experts": {"depth": with_head(m, -math.inf)}}, "NaN, infinite or"),
    "a head on meta": (
        lambda m: {"experts": {"depth": m.to("meta")}},
        "head of depth: .* on the device meta",
    ),
    "no file": (
        lambda m: {"pretrained_file": None},
        "the path is None: expected text: a safetensors file's path",
    ),
    "a state for a file": (
        lambda m: {"pretrained_file": m.state_dict()},
        "expected text: a safetensors file",
    ),
    "a number for a file": (lambda m: {"pretrained_file": 3}, "the path is 3: expected text"),
    "no settings": (lambda m: {"settings": None}, "settings: expected the keys .* found NoneType"),
    "method in a list": (lambda m: {"method": ["average"]}, r"unknown merging method \['average'\]"),
    "no method": (lambda m: {"method": None}, "unknown merging method None"),
    "huge alpha": (lambda m: {"alpha": 10**400}, "alpha: expected a finite number, found 1000"),
    "alpha beyond floats": (lambda m: {"alpha": 1e39}, "too large for torch.float32|NaN or infinite"),
    "option of text": (lambda m: {"method": "ties", "density": "x"}, "expected a number as density"),
    "no option": (lambda m: {"method": "ties", "density": None}, "of ties: expected a number as density"),
    "option NaN": (lambda m: {"method": "ties", "density": math.nan}, "density is nan: expected a fraction"),
    "option infinite": (lambda m: {"method": "dare", "drop": math.inf}, "drop is inf: expected a fraction"),
    "seed of text": (lambda m: {"method": "dare", "seed": "a"}, "of dare: expected a number as seed"),
    "unknown option": (lambda m: {"method": "ties", "densty": 1}, "unexpected keyword argument 'densty'"),
    "no moments": (
        lambda m: {"method": "regmean", "moments": None},
        "list of moments is of a NoneType: expected one of 1",
    ),
    "moments by name": (
        lambda m: {"method": "regmean", "moments": {}},
        "list of moments is of a dict: expected one of 1",
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_what_is_merged(tmp_path, model, settings, name):
    """In place of an AttributeError, a merged model of NaN or, without a file, of random weights."""
    change, message = MERGED[name]
    save_tensors(tmp_path / "base.safetensors", model.encoder.backbone.state_dict())
    moved = copy.deepcopy(model)
    for tensor in moved.encoder.state_dict().values():
        tensor.add_(1)
    right = {"pretrained_file": tmp_path / "base.safetensors", "experts": {"depth": moved}}
    right |= {"settings": settings, "method": "average", "alpha": 1.0}
    assert torch.isfinite(merge_experts(**right).encoder.backbone.cls_token).all()
    with pytest.raises(SimoError, match=message):
        merge_experts(**right | change(moved))


@pytest.mark.parametrize("given", [None, "depth", ["depth"], [None], 3])
def test_no_tasks(tmp_path, model, settings, given):
    """Names are no tasks; whatever asks for tasks says so."""
    for use in (
        lambda: create_model(given, 0, **settings),
        lambda: evaluate(model, [], given),
        lambda: export(model, tmp_path / "out", settings, given, (16, 16), {}, {}),
        lambda: load_expert(tmp_path / "a", tmp_path / "b", given, settings),
    ):
        with pytest.raises(SimoError, match="expected a list of Task"):
            use()


@pytest.mark.parametrize("scores", [None, {}, {"depth": None}, {"depth": "20.5"}, [1.0]])
def test_a_card_without_scores_is_not_begun(tmp_path, model, tasks, settings, scores):
    """The message names the task, and nothing is written."""
    export_depth = partial(export, model.only(["depth"]), tmp_path / "out", settings, tasks[1:2], (16, 16))
    with pytest.raises(SimoError, match="the score of depth, which the card shows: expected a finite number"):
        export_depth(scores, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["l" * 300, "file", "file/below"])
def test_export_that_cannot_be(tmp_path, model, tasks, settings, folder):
    """No folder can be there: the system's reason is named, nothing is written."""
    (tmp_path / "file").touch()
    export_depth = partial(export, model.only(["depth"]), tmp_path / folder, settings, tasks[1:2], (16, 16))
    with pytest.raises(SimoError, match="(cannot write|cannot read) .*(too long|exists|Not a directory)"):
        export_depth({"depth": 1.0}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_experts_as_a_list(tmp_path, model, settings):
    """Names are needed to find their heads."""
    save_tensors(tmp_path / "base.safetensors", model.encoder.backbone.state_dict())
    with pytest.raises(
        SimoError, match="what holds experts is <class 'list'>: expected a dict by tasks' names"
    ):
        merge_experts(tmp_path / "base.safetensors", [model], settings, "average", 1.0)
    with pytest.raises(SimoError, match="alpha: expected a finite number, found 'x'"):
        merge_experts(tmp_path / "base.safetensors", {"depth": model}, settings, "average", "x")


def test_other_data_sets_and_paths_for_states(model, tasks):
    """A list of batches is no data set to train on, as it is one to solve on; a path is no state."""
    plan, batches = Optimisation(steps=1, batch_size=1, seed=0), [{"image": torch.rand(1, 3, 16, 16)}]
    with pytest.raises(SimoError, match="the data set is list: expected a `PreparedDataset`"):
        realign_heads(model, batches, tasks, plan, 0.1)
    for given, kind in (
        (batches, "list"),
        (iter(batches), "list_iterator"),
        (DataLoader(batches), "DataLoader"),
    ):
        with pytest.raises(SimoError, match=f"the data set is {kind}: expected one with "):
            realign_representation(model, given, tasks, plan, 1, 0.1, 0.1)
    with pytest.raises(SimoError, match=r"base and expert is \['str', 'dict'\]: expected states by"):
        TaskVector.between("base.safetensors", {})


def test_one_task_twice(tmp_path, model, tasks, settings):
    """Two outputs of one name would be written."""
    scores = dict.fromkeys(model.heads, 1.0)
    with pytest.raises(SimoError, match="expected a new name for each"):
        export(model, tmp_path / "out", settings, [*tasks, tasks[0]], (16, 16), scores, {})
    with pytest.raises(SimoError, match="expected a new name for each"):
        create_model([*tasks, tasks[0]], 0, **settings)


def test_a_folder_is_no_file(tmp_path):
    """Not "No such device (os error 19)"."""
    with pytest.raises(SimoError, match="is a folder: expected a file in the format safetensors"):
        TensorFile(tmp_path)
