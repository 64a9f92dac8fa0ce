"""data_scripts.taskonomy: from the folders of omnitools to a training step."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pictures

from data_scripts import taskonomy
from data_scripts.checking import check
from data_scripts.fixtures import write_taskonomy
from data_scripts.layouts import Broken, Image
from data_scripts.preparing import prepare
from data_scripts.taskonomy import FILES, LAYOUT, convert, main, open_taskonomy, read_buildings
from simo.datasets import PreparedDataset
from simo.errors import SimoError
from simo.files import read_json
from simo.tasks import TASKS

BUILDINGS = {
    "train": "allensville coffeen collierville leonardo merom pinesdale ranchester stockman",
    "val": "beechwood corozal klickitat shelbyville",
    "test": "ihlen mcdade onaga tolstoy",
}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Two views of each building, one without keypoints, one with a changed byte; tests only read."""
    root = tmp_path_factory.mktemp("raw")
    write_taskonomy(root, views=2)
    (_, first, _), (_, second, _) = read_buildings()[:2]
    (root / f"keypoints2d/taskonomy/{first}/point_9_view_0_domain_keypoints2d.png").unlink()
    broken = root / f"edge_texture/taskonomy/{second}/point_9_view_0_domain_edge_texture.png"
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory):
    """What becomes of it."""
    out = tmp_path_factory.mktemp("prepared") / "taskonomy"
    prepare(open_taskonomy(raw), out, workers=1)
    return out


def write_view(root, **pixels):
    """Write one view of 512 x 512 by hand: what is not given is plain. Return it for `convert`."""
    plain = {"rgb": 100, "depth_zbuffer": 1000, "normal": 127, "mask_valid": 255}
    for domain in ("rgb", "depth_zbuffer", "normal", "edge_texture", "keypoints2d", *pixels):
        end, dtype, channels = FILES[domain]
        array = np.full((512, 512, channels), plain.get(domain, 0), dtype)
        block = np.asarray(pixels.get(domain, array[:2, :2]), dtype)
        array[: block.shape[0], : block.shape[1]] = block.reshape(*block.shape[:2], -1)
        path = root / domain / "ihlen" / f"point_0_view_1_domain_{end}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pictures.fromarray(array.squeeze()).save(path, compress_level=1)
    domains = tuple(domain for domain in FILES if (root / domain).is_dir())
    return Image("test", 0, "ihlen/point_0_view_1", (str(root), domains))


def test_committed_buildings_are_the_papers():
    """Protects the comparison with the paper: 16 buildings, 2000 or 1000 views each, 16,000/4,000/4,000."""
    rows = read_buildings()
    for split, names in BUILDINGS.items():
        assert [building for s, building, _ in rows if s == split] == names.split()
        assert {most for s, _, most in rows if s == split} == {2000 if split == "train" else 1000}
        assert sum(most for s, _, most in rows if s == split) == LAYOUT.counts[split]


def test_values_by_hand(tmp_path):
    """Protects ranges and rounding: the paper's formulas worked out for the mean of four pixels."""
    arrays = convert(
        write_view(
            tmp_path,
            rgb=[[[0, 0, 0], [255, 0, 0]], [[255, 8, 0], [255, 8, 1]]],
            depth_zbuffer=[[510, 514], [500, 520]],
            normal=[[[127, 127, 255]] * 2, [[127, 129, 255]] * 2],
            edge_texture=[[11041, 20000, 60000, 60000], [0, 0, 60000, 60000]],
            keypoints2d=[[1000, 1000], [1000, 1001]],
        )
    )
    assert {name: (array.dtype.name, array.shape) for name, array in arrays.items()} == {
        "image": ("uint8", (256, 256, 3)),
        "depth_zbuffer": ("uint16", (256, 256, 1)),
        "normal": ("uint8", (256, 256, 3)),
        "edge_texture": ("uint16", (256, 256, 1)),
        "keypoints2d": ("uint16", (256, 256, 1)),
        "mask_valid": ("uint8", (256, 256, 1)),
    }
    assert arrays["image"][0, 0].tolist() == [191, 4, 0]  # 765 / 4 = 191.25, 16 / 4, 1 / 4
    # d = 511, about a metre: log 512 / log 65536 = 9 / 16
    assert arrays["depth_zbuffer"][0, 0, 0] == round(9 / 16 * 65535)
    assert arrays["normal"][0, 0].tolist() == [127, 128, 255]
    # (11041 + 20000) / 4 / 11041 = 0.70286; 60000 is clipped
    assert arrays["edge_texture"][0, :2, 0].tolist() == [round(31041 / 4 / 11041 * 65535), 65535]
    assert arrays["keypoints2d"][0, 0, 0] == round(1000.25 / 3129 * 65535)
    assert arrays["image"][1, 1].tolist() == [100, 100, 100]


def test_a_pixel_is_valid_if_its_four_are(tmp_path):
    """Protects the mask: one invalid pixel of four suffices; without masks depth 0 and 65535 are invalid."""
    mask = [[255, 255, 255, 0, 0, 0], [255, 255, 255, 255, 0, 0]]
    depth = [[9, 9, 9, 0, 9, 9], [9, 9, 9, 9, 65535, 9]]
    masked = convert(write_view(tmp_path / "masked", mask_valid=mask, depth_zbuffer=depth))
    assert masked["mask_valid"][0, :4, 0].tolist() == [1, 0, 0, 1]
    depth = [[9, 9, 9, 0, 9, 9], [9, 9, 9, 9, 65535, 9]]
    without = convert(write_view(tmp_path / "without", depth_zbuffer=depth))
    assert without["mask_valid"][0, :4, 0].tolist() == [1, 0, 0, 1]
    assert without["mask_valid"].sum() == 256 * 256 - 2


def test_classes_are_not_mixed(tmp_path):
    """Protects class maps from being averaged: the pixel below and right of the new centre, 0 to 17."""
    arrays = convert(write_view(tmp_path, segment_semantic=[[1, 2, 0, 0], [3, 17, 0, 0]]))
    assert arrays["segment_semantic"].dtype == np.int8
    assert arrays["segment_semantic"][0, :2].tolist() == [17, -1]
    with pytest.raises(Broken, match="expected classes 0 to 17, found 18"):
        convert(write_view(tmp_path, segment_semantic=[[0, 0], [0, 18]]))


def test_files_of_another_kind_are_broken(tmp_path):
    """Protects from silent conversion: another size or depth of colour is a reason to drop the view."""
    image = write_view(tmp_path)
    path = tmp_path / "edge_texture" / "ihlen" / "point_0_view_1_domain_edge_texture.png"
    Pictures.fromarray(np.zeros((512, 512), np.uint8)).save(path)
    with pytest.raises(Broken, match=r"edge_texture: expected uint16 \(512, 512, 1\), found uint8"):
        convert(image)
    Pictures.fromarray(np.zeros((256, 512), np.uint16)).save(path)
    with pytest.raises(Broken, match=r"edge_texture: .* found uint16 \(256, 512, 1\)"):
        convert(image)


@pytest.mark.parametrize("damage", ["truncated", "byte changed", "last byte changed", "not a picture"])
def test_every_byte_is_verified(tmp_path, damage):
    """Protects from half-broken pictures: damage anywhere in the pixel data is found, also at its end."""
    image = write_view(tmp_path, edge_texture=np.arange(64, dtype=np.uint16).reshape(8, 8))
    path = tmp_path / "edge_texture" / "ihlen" / "point_0_view_1_domain_edge_texture.png"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        content = content[:-200]
    elif damage == "byte changed":
        content[len(content) // 2] ^= 1
    elif damage == "last byte changed":
        content[-17] ^= 1  # before the checksum, 4, and the closing chunk, 12: zlib's own checksum
    else:
        content = bytearray(b"<html>not found</html>")
    path.write_bytes(content)
    with pytest.raises(Broken, match="edge_texture: .* cannot be decoded"):
        convert(image)


def test_raw_to_training_step(prepared, train_pixelwise):
    """Protects the whole way: prepared data pass the check, are marked as made up, and a model learns."""
    findings = check(prepared, LAYOUT)
    assert [finding for finding in findings if not finding.startswith("ok ")] == []
    record = read_json(prepared / "prepared.json")
    assert (record["source"], record["fixture"], record["image_size"]) == ("omnidata", True, [256, 256])
    names = [task.name for task in TASKS["taskonomy"]] + ["semantics"]
    data = PreparedDataset(prepared, "taskonomy", "train", tasks=names, scales=(1.0,), crop=(64, 64))
    losses = train_pixelwise(data, 15)
    assert losses[-1] < 0.8 * losses[0]


def test_broken_views_are_dropped_and_listed(prepared):
    """Protects the record of what was left out: reasons by view, numbers keep gaps, splits omit it."""
    dropped = dict(line.split("\t") for line in (prepared / "dropped.txt").read_text().splitlines())
    assert list(dropped) == ["allensville/point_9_view_0", "coffeen/point_9_view_0"]
    assert "keypoints2d.png is missing" in dropped["allensville/point_9_view_0"]
    assert "edge_texture.png cannot be decoded" in dropped["coffeen/point_9_view_0"]
    ids = dict(line.split("\t") for line in (prepared / "ids.txt").read_text().splitlines())
    # point_10 comes before point_9 by name
    assert ids["train/0"] == "allensville/point_10_view_0"
    assert ids["train/2"] == "coffeen/point_10_view_0"
    assert ids["train/5"] == "collierville/point_9_view_0"
    train = (prepared / "splits" / "train.txt").read_text().split()
    assert train == [f"train/{i}" for i in range(16) if i not in (1, 3)]
    assert read_json(prepared / "prepared.json")["splits"] == {"train": 14, "val": 8, "test": 8}


def test_optional_domains_may_be_absent(tmp_path):
    """Protects users who took less: no masks, no classes, no level `taskonomy/`, and still a full check."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_taskonomy(raw, views=1, optional=())
    for domain in ("rgb", "normal"):
        (raw / domain / "taskonomy").rename(raw / "moved")
        (raw / domain).rmdir()
        (raw / "moved").rename(raw / domain)
    prepare(open_taskonomy(raw), out, workers=1)
    assert sorted(path.name for path in (out / "val").iterdir()) == sorted(
        field.name for field in LAYOUT.fields if not field.optional
    )
    assert all(finding.startswith("ok ") for finding in check(out, LAYOUT))
    mask = np.load(out / "test" / "mask_valid" / "0.npy")
    assert not mask[:32, :32].any()  # the fixture's corner, 65535 in the depth
    assert mask[32:, 32:].all()


def test_without_data_it_says_how_to_get_them(raw, tmp_path, capsys):
    """Protects a user without data: the command, the licence, the size; the missing building is named."""
    command = ["--raw", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")]
    assert main(LAYOUT, open_taskonomy, "Taskonomy", command) == 1
    message = capsys.readouterr().err
    for part in ("omnitools.download rgb depth_zbuffer normal", "--subset tiny", "non-commercial", "TB"):
        assert part in message
    assert not (tmp_path / "out").exists()
    copy = Path(shutil.copytree(raw, tmp_path / "copy"))
    shutil.rmtree(copy / "normal" / "taskonomy" / "onaga")
    with pytest.raises(SimoError, match="normal has no folder taskonomy/onaga or onaga"):
        open_taskonomy(copy)


def test_incomplete_real_data_are_refused(raw, tmp_path):
    """Protects the numbers: what is not marked as a fixture must have all views that the paper takes."""
    copy = Path(shutil.copytree(raw, tmp_path / "copy"))
    (copy / "FIXTURE.txt").unlink()
    with pytest.raises(SimoError, match="allensville holds 2 of at least 2000 views"):
        open_taskonomy(copy)


def test_the_first_views_by_name_are_taken(raw, monkeypatch):
    """Protects the choice of views: at most the committed number of each building, sorted by name."""
    monkeypatch.setattr(taskonomy, "read_buildings", lambda: [("train", "merom", 1), ("val", "onaga", 2)])
    found = open_taskonomy(raw)
    assert [image.name for image in found.images] == [
        "merom/point_10_view_0",
        "onaga/point_10_view_0",
        "onaga/point_9_view_0",
    ]
    assert found.splits == {"train": ["train/0"], "val": ["val/0", "val/1"]}


def test_many_dropped_views_fail_the_check(prepared, tmp_path):
    """Protects from a systematic fault that looks like damage: real data lose far less than 1 view in 20."""
    copy = Path(shutil.copytree(prepared, tmp_path / "copy"))
    for name in ("prepared.json", "request.json"):
        path = copy / name
        path.write_text(path.read_text().replace('"fixture": true', '"fixture": false'))
    failures = [finding for finding in check(copy, LAYOUT) if finding.startswith("FAIL")]
    assert len(failures) == 1
    assert "2 of 32" in failures[0]
