"""data_scripts.render.rooms, furniture and raycast: pictures whose ground truth can be trusted."""

import math

import numpy as np
import pytest
from optics import rays

from data_scripts.render import furniture
from data_scripts.render.kernel import trace_truth
from data_scripts.render.raycast import Item, Light, Paint, Scene, look, render
from data_scripts.render.rooms import CLASSES, choose_view, furnish, render_room

GREY = Paint((0.5, 0.5, 0.5))


def empty_room(size=(4.0, 6.0, 3.0)):
    return Scene(size, [(label, GREY) for label in (4, 2, 11, 11, 11, 11)])


def truth(scene, camera, height=48, width=64):
    geometry, surface, groups, _ = scene.arrays()
    return trace_truth(geometry, surface, groups, camera, height, width)


@pytest.fixture(scope="module")
def rooms():
    return [render_room(seed, 64, 64) for seed in range(60)]


def test_depth_of_floor_is_that_of_the_plane():
    """Protects the meaning of depth: metres along the optical axis, not along the ray."""
    camera = look((2.0, 0.5, 1.5), 0.2, -0.4, 0.8)
    _, label, depth, normal = truth(empty_room(), camera)
    expected = -1.5 / rays(camera, 48, 64)[..., 2]
    floor = label == 4
    assert floor.mean() > 0.2
    np.testing.assert_allclose(depth[floor], expected[floor], rtol=1e-5)
    # Up in the world, seen by a camera that looks down by 0.4 radians.
    np.testing.assert_allclose(normal[floor], [[0.0, math.cos(0.4), math.sin(0.4)]] * floor.sum(), atol=1e-6)


@pytest.mark.parametrize("kind", ["box", "ellipsoid", "cylinder"])
def test_hits_lie_on_the_solid(kind):
    """Protects the intersection formulas: every point found satisfies the solid's own equation."""
    scene, item = empty_room(), Item()
    size, yaw = np.array([1.2, 0.8, 0.9]), 0.7
    getattr(item, kind)(5, GREY, tuple(size), (0.0, 0.0, 0.0), 0.3)
    scene.add(item.placed((2.1, 3.0, 0.4), yaw - 0.3))
    camera = look((2.0, 0.5, 1.9), 0.0, -0.3, 0.9)
    _, label, depth, _ = truth(scene, camera)
    seen = label == 5
    points = (camera[0] + depth[..., None] * rays(camera, 48, 64))[seen] - (2.1, 3.0, 0.4 + size[2] / 2)
    turn = np.array([[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    unit = points @ turn.T / (size / 2)
    radius = {
        "box": np.abs(unit).max(-1),
        "ellipsoid": np.linalg.norm(unit, axis=-1),
        "cylinder": np.maximum(np.hypot(unit[:, 0], unit[:, 1]), np.abs(unit[:, 2])),
    }[kind]
    assert seen.sum() > 150
    np.testing.assert_allclose(radius, 1.0, atol=1e-4)


def test_solids_cast_shadows():
    """Protects the light: the floor under a shelf is darker than the same floor without the shelf."""
    camera, images = look((2.0, 0.5, 1.5), 0.0, -0.5, 0.8), []
    for shelf in (False, True):
        scene = empty_room()
        scene.lights.append(Light((2.0, 3.0, 2.8), (0.2, 0.0, 0.0), (0.0, 0.2, 0.0), (3.0, 3.0, 3.0)))
        if shelf:
            item = Item()
            item.box(5, GREY, (1.0, 1.0, 0.05), (0.0, 0.0, 0.0))
            scene.add(item.placed((2.0, 3.0, 1.6)))
        images.append(render(scene, camera, 48, 64, np.random.default_rng(0), noise=0.0)["image"])
    lit, shaded = images[0][24, 32].mean(), images[1][24, 32].mean()
    assert shaded < 0.85 * lit


def test_arrays_have_the_agreed_types(rooms):
    """Protects the layout that simo.datasets reads."""
    room = render_room(3, 24, 40)
    assert {name: (array.dtype, array.shape) for name, array in room.items()} == {
        "image": (np.float32, (24, 40, 3)),
        "label": (np.int64, (24, 40)),
        "depth": (np.float32, (24, 40, 1)),
        "normal": (np.float32, (24, 40, 3)),
    }
    for room in rooms:
        assert 0.4 < room["depth"].min() < room["depth"].max() < 8.0


def test_normals_are_unit_and_face_the_viewer(rooms):
    """Protects the normals' frame: a surface that is seen never faces away from the ray that sees it."""
    for seed, room in enumerate(rooms[:20]):
        rng = np.random.default_rng(seed)
        camera = choose_view(furnish(rng))
        ray = rays(camera, 64, 64)
        ray = np.stack([ray @ camera[1], ray @ camera[2], -(ray @ camera[3])], axis=-1)
        np.testing.assert_allclose(np.linalg.norm(room["normal"], axis=-1), 1.0, atol=1e-5)
        assert ((room["normal"] * ray).sum(-1) < 1e-4).all()


def test_normals_agree_with_depth():
    """Protects the pair depth and normal: the slope between neighbouring pixels' points is the normal."""
    for seed in range(6):
        room = render_room(seed, 96, 96)
        camera = choose_view(furnish(np.random.default_rng(seed)))
        ray = rays(camera, 96, 96)
        ray = np.stack([ray @ camera[1], ray @ camera[2], -(ray @ camera[3])], axis=-1)
        points = room["depth"] * ray
        across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
        slope = np.cross(down, across)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True)
        normal, inner = room["normal"], np.ones((94, 94), bool)
        for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
            neighbour = normal[y : y + 94, x : x + 94]
            inner &= (neighbour * normal[1:-1, 1:-1]).sum(-1) > 0.98
            inner &= room["label"][y : y + 94, x : x + 94] == room["label"][1:-1, 1:-1]
        angle = np.degrees(np.arccos(np.clip((slope * normal[1:-1, 1:-1]).sum(-1), -1, 1)))[inner]
        assert inner.mean() > 0.4
        assert np.mean(angle < 3.0) > 0.93


def test_same_seed_same_room(rooms):
    """Protects reproducibility: a seed stands for one scene, and neighbouring seeds for unlike ones."""
    for name, array in render_room(7, 64, 64).items():
        np.testing.assert_array_equal(array, rooms[7][name])
    assert np.mean(rooms[7]["label"] == rooms[8]["label"]) < 0.9
    assert render_room(2**63 - 1, 8, 8)["label"].shape == (8, 8)


def test_size_does_not_change_the_scene(rooms):
    """Protects the choice of size: pixel centres that coincide see the same thing at the same distance."""
    for seed in range(5):
        large = render_room(seed, 192, 192)
        same = large["label"][1::3, 1::3] == rooms[seed]["label"]
        near = np.isclose(large["depth"][1::3, 1::3], rooms[seed]["depth"], rtol=1e-3)
        assert same.mean() > 0.995
        assert near.mean() > 0.995


def test_every_class_is_seen(rooms):
    """Protects mean IoU from classes that are never or hardly ever there."""
    labels = np.stack([room["label"] for room in rooms])
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert len(share) == len(CLASSES) == 13
    assert dict(zip(CLASSES, share >= 0.004, strict=True)) == dict.fromkeys(CLASSES, True)
    assert share.max() < 0.45


def test_images_are_neither_washed_out_nor_black(rooms):
    """Protects exposure and tone curve."""
    for room in rooms:
        image = room["image"]
        assert np.isfinite(image).all()
        assert image.min() >= 0.0
        assert image.max() <= 1.0
        assert 0.35 < image.mean() < 0.7
        assert image.std() > 0.08


@pytest.mark.parametrize(
    "build",
    [
        furniture.bed,
        furniture.nightstand,
        furniture.cabinet,
        furniture.bookshelf,
        furniture.chair,
        furniture.office_chair,
        furniture.sofa,
        furniture.tv_stand,
        furniture.desk,
        furniture.picture,
        furniture.door,
    ],
)
def test_furniture_stands_on_the_floor_before_its_wall(build):
    """Protects placement: nothing reaches below the floor or through the wall behind it."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        boxes = build(rng, furniture.draw_style(rng)).bounds()
        assert boxes[:, 2].min() == pytest.approx(0.0, abs=1e-6)
        assert boxes[:, 1].min() > -0.02


def test_things_do_not_overlap():
    """Protects placement: an item fits beside another one, not in it, nor outside the room."""
    scene, item = empty_room(), Item()
    item.box(5, GREY, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    scene.add(item.placed((2.0, 3.0, 0.0)))
    assert not scene.fits(item.placed((2.9, 3.0, 0.0)).bounds())
    assert scene.fits(item.placed((3.1, 3.0, 0.0)).bounds())
    assert not scene.fits(item.placed((3.6, 3.0, 0.0)).bounds())
    assert scene.fits(item.placed((2.0, 3.0, 1.1)).bounds())
