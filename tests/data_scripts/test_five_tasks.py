"""data_scripts.five_tasks: Taskonomy's targets of NYUv2's photographs."""

import math
import shutil

import pytest
import torch
from writers import write_nyuv2_pictures

from data_scripts import five_tasks, nyuv2
from data_scripts.commands import main
from data_scripts.cues import edge_texture, keypoints2d
from data_scripts.preparing import prepare
from simo.datasets import PreparedDataset
from simo.files import read_json

SIZE = (24, 32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Made-up photographs prepared as NYUv2, and then as the five tasks."""
    root = tmp_path_factory.mktemp("five")
    write_nyuv2_pictures(root / "raw", train=2, val=3)
    prepare(nyuv2.open_nyuv2(root / "raw", size=SIZE), root / "nyuv2", workers=1)
    prepare(five_tasks.open_five(root / "nyuv2"), root / "five", workers=1)
    return root / "nyuv2", root / "five"


def both(folders, split):
    """The two prepared data sets."""
    return [
        PreparedDataset(path, name, split) for path, name in zip(folders, ("nyuv2", "taskonomy"), strict=True)
    ]


def run(raw, out):
    """Exit status of the script on a folder."""
    return main(
        five_tasks.LAYOUT, five_tasks.open_five, five_tasks.__doc__, ["--raw", str(raw), "--out", str(out)]
    )


def test_same_images_in_the_same_splits(folders):
    """The two studies on the photographs see the same images in the same roles; the source is named."""
    before, after = both(folders, "val+test")
    assert before.names == after.names
    assert read_json(folders[1] / "prepared.json")["source"] == "pictures of NYUv2"
    for i in range(len(before)):
        assert torch.allclose(before[i]["image"], after[i]["image"], atol=0.5 / 255 + 1e-6)


def test_targets_are_those_of_nyuv2_on_taskonomys_scales(folders):
    """Depth is log(1 + 512 metres) / log(2^16), normals go to [-1, 1]; where none is, no task counts."""
    before, after = both(folders, "train")
    seen = 0
    for i in range(len(before)):
        own, given = after[i], before[i]
        known = given["normals"].abs().sum(0) > 0
        metres = given["depth"][0][known].double()
        expected = torch.log1p((512 * metres).round()) / math.log(2**16)
        assert torch.allclose(own["depth"][0][known].double(), expected, atol=1e-4)
        assert torch.allclose(own["normals"][:, known], given["normals"][:, known], atol=1 / 255 + 1e-6)
        assert all((own[task.name][:, ~known] == 0).all() for task in after.tasks)
        seen += int(known.sum())
    assert seen > 100


def test_edges_and_keypoints_are_those_of_the_picture(folders):
    """Both are computed from the very picture that is stored, and mapped to [-1, 1] like Taskonomy's own."""
    sample = PreparedDataset(folders[1], "taskonomy", "train")[0]
    picture = sample["image"].movedim(0, -1).double().numpy()
    known = (sample["normals"] != 0).any(0)
    for name, define in {"edges": edge_texture, "keypoints": keypoints2d}.items():
        expected = 2 * torch.from_numpy(define(picture)[..., 0]) - 1
        assert torch.allclose(sample[name][0][known].double(), expected[known], atol=1e-4)


def test_another_data_set_is_refused(folders, tmp_path, capsys):
    """What is not NYUv2, or not prepared to the end, is named before anything is written."""
    assert run(folders[1], tmp_path / "out") == 1
    assert "holds 'taskonomy': expected nyuv2" in capsys.readouterr().err
    assert run(tmp_path, tmp_path / "out") == 1
    assert "was not prepared to the end" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_damaged_array_is_named(folders, tmp_path, capsys):
    """One array that cannot be read stops the preparation with its name."""
    copy = shutil.copytree(folders[0], tmp_path / "nyuv2")
    path = copy / "train" / "depth" / "0.npy"
    path.write_bytes(path.read_bytes()[:40])
    assert run(copy, tmp_path / "out") == 1
    assert f"{path} cannot be decoded" in capsys.readouterr().err
