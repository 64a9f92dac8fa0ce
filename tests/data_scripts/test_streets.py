"""data_scripts.render.streets and what it is made of: street scenes whose ground truth can be trusted."""

import math

import numpy as np
import pytest
from optics import rays

from data_scripts.render import streetlife, townscape, vehicles
from data_scripts.render.kernel import trace_truth
from data_scripts.render.light import trace_colour
from data_scripts.render.materials import SKY
from data_scripts.render.raycast import Item, Light, Paint, Scene, look, render
from data_scripts.render.streetplan import Track
from data_scripts.render.streets import build_street, camera_of, disparity, render_street
from simo.tasks import CITYSCAPES_CLASSES as CLASSES
from simo.tasks import CITYSCAPES_PARTS as PARTS

GREY = Paint((0.5, 0.5, 0.5))
HUMAN = [CLASSES.index(name) for name in ("person", "rider")]
VEHICLE = [CLASSES.index(name) for name in ("car", "truck", "bus")]
SKY_LABEL = CLASSES.index("sky")


def open_air(sun=(0.0, 0.0, 1e4), blue=(0.3, 0.5, 0.9)):
    """A grey plane of 100 x 100 m under a uniform sky, with one sun."""
    sky = Paint(blue, blue, SKY, 0.0, glow=1.0)
    scene = Scene((100.0, 100.0, 60.0), [(0, GREY)] + [(SKY_LABEL, sky)] * 5)
    scene.lights.append(Light(sun, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (3e8, 3e8, 3e8)))
    return scene


@pytest.fixture(scope="module")
def streets():
    return [render_street(seed) for seed in range(100)]


def test_arrays_have_the_agreed_types():
    """Protects the layout that simo.datasets reads."""
    street = render_street(3, 24, 40)
    assert {name: (array.dtype, array.shape) for name, array in street.items()} == {
        "image": (np.float32, (24, 40, 3)),
        "label": (np.int64, (24, 40)),
        "part": (np.int64, (24, 40)),
        "depth": (np.float32, (24, 40, 1)),
        "disparity": (np.float32, (24, 40, 1)),
        "normal": (np.float32, (24, 40, 3)),
    }


def test_classes_and_parts_are_those_of_cityscapes():
    """Protects the order of the 19 train ids and of the 10 parts, by which real data are joined to these."""
    assert CLASSES[:6] == ("road", "sidewalk", "building", "wall", "fence", "pole")
    assert CLASSES[6:11] == ("traffic light", "traffic sign", "vegetation", "terrain", "sky")
    assert CLASSES[11:] == ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
    assert PARTS[:5] == ("background", "torso", "head", "arms", "legs")
    assert PARTS[5:] == ("windows", "wheels", "lights", "licence plate", "chassis")


def test_parts_and_classes_agree(streets):
    """Protects the pair label and part: people have parts 1 to 4, vehicles 5 to 9, all else none."""
    for street in streets:
        label, part = street["label"], street["part"]
        assert label.min() >= 0
        assert label.max() < len(CLASSES)
        np.testing.assert_array_equal(np.isin(part, (1, 2, 3, 4)), np.isin(label, HUMAN))
        np.testing.assert_array_equal(np.isin(part, (5, 6, 7, 8, 9)), np.isin(label, VEHICLE))
        np.testing.assert_array_equal(part == 0, ~np.isin(label, HUMAN + VEHICLE))


def test_every_class_and_part_is_seen(streets):
    """Protects mean IoU from classes that are never or hardly ever there."""
    for name, names, floors in (
        ("label", CLASSES, dict.fromkeys(CLASSES, 0.003)),
        ("part", PARTS, dict.fromkeys(PARTS, 0.002) | {"lights": 0.0008, "licence plate": 0.0008}),
    ):
        values = np.stack([street[name] for street in streets])
        share = dict(zip(names, np.bincount(values.ravel()) / values.size, strict=True))
        rare = {key: value for key, value in share.items() if value < floors[key]}
        assert rare == {}
        scenes = {key: sum((street[name] == i).any() for street in streets) for i, key in enumerate(names)}
        assert {key: count for key, count in scenes.items() if count < 12} == {}
    labels = np.stack([street["label"] for street in streets])
    assert np.bincount(labels.ravel()).max() / labels.size < 0.45


def test_sky_alone_has_no_disparity(streets):
    """Protects 0 as the mark of missing ground truth, and the marks of the sky in depth and normals."""
    for street in streets:
        sky = street["label"] == SKY_LABEL
        np.testing.assert_array_equal(street["disparity"][..., 0] == 0.0, sky)
        np.testing.assert_array_equal(np.isinf(street["depth"][..., 0]), sky)
        length = np.linalg.norm(street["normal"], axis=-1)
        np.testing.assert_allclose(length, np.where(sky, 0.0, 1.0), atol=1e-5)
        assert street["depth"].min() > 2.0


def test_disparity_is_that_of_a_stereo_camera():
    """Protects the scale: (baseline * focal length in pixels / depth) / 256 at 2048 pixels, by hand."""
    # 0.22 m * (1.1 * 2048 px) / 10 m = 49.5616 px; / 256 = 0.1936.
    assert disparity(np.float32(10.0), 1.1) == pytest.approx(0.1936, rel=1e-6)
    assert disparity(np.float32(np.inf), 1.1) == 0.0
    for seed in range(10):
        street, focal = render_street(seed), build_street(np.random.default_rng(seed)).focal
        there = np.isfinite(street["depth"])
        product = street["disparity"][there] * street["depth"][there]
        np.testing.assert_allclose(product, 0.22 * focal * 2048 / 256, rtol=1e-5)
        assert 0.8 <= focal <= 1.2


def test_road_is_the_plane_under_the_camera():
    """Protects geometry: the road lies below the horizon at the depth of the plane z = 0."""
    for seed in range(12):
        view = render_street(seed)
        rng = np.random.default_rng(seed)
        rng.spawn(1)
        camera = camera_of(build_street(rng), 48, 96)
        ray = rays(camera, 48, 96)
        road = view["label"] == CLASSES.index("road")
        assert road.mean() > 0.05
        assert (ray[..., 2][road] < 0.0).all()
        expected = -camera[0, 2] / ray[..., 2][road]
        # Markings and rails lie up to 6 mm above the asphalt.
        np.testing.assert_allclose(view["depth"][..., 0][road], expected, rtol=0.006)
        up = view["normal"][road] @ np.stack([camera[1, 2], camera[2, 2], -camera[3, 2]])
        assert np.mean(up > 0.999) > 0.97  # the rest: the edges of markings and rails


def test_same_seed_same_street(streets):
    """Protects reproducibility: a seed stands for one scene, and neighbouring seeds for unlike ones."""
    for name, array in render_street(7).items():
        np.testing.assert_array_equal(array, streets[7][name])
    for one, other in zip(streets[:9], streets[1:10], strict=True):
        assert np.mean(one["label"] == other["label"]) < 0.9
        assert np.abs(one["image"] - other["image"]).mean() > 0.05
    assert render_street(2**63 - 1, 8, 16)["label"].shape == (8, 16)


def test_size_does_not_change_the_scene(streets):
    """Protects the choice of size: pixel centres that coincide see the same thing at the same distance."""
    for seed in range(5):
        large = render_street(seed, 144, 288)
        assert np.mean(large["label"][1::3, 1::3] == streets[seed]["label"]) > 0.995
        assert np.mean(large["part"][1::3, 1::3] == streets[seed]["part"]) > 0.995
        near = np.isclose(large["depth"][1::3, 1::3], streets[seed]["depth"], rtol=1e-3)
        assert near.mean() > 0.995


def test_shape_does_not_change_the_view(streets):
    """Protects 64 x 64: a square image sees as far to the sides as a wide one, and more above and below."""
    for seed in range(3):
        square = render_street(seed, 96, 96)
        assert np.mean(square["label"][24:72] == streets[seed]["label"]) > 0.995


def test_images_are_neither_washed_out_nor_black(streets):
    """Protects exposure, haze and tone curve."""
    for street in streets:
        image = street["image"]
        assert np.isfinite(image).all()
        assert image.min() >= 0.0
        assert image.max() <= 1.0
        assert 0.35 < image.mean() < 0.7
        assert image.std() > 0.06


def test_sun_casts_a_parallel_shadow():
    """Protects the sun: the shadow of a box lies where parallel rays put it, whatever the distance."""
    # A sun 45 degrees high in the west, x = -infinity: a box 2 m high darkens the 2 m to the east of it.
    scene = open_air(sun=(-1e4 + 50.0, 50.0, 1e4))
    item = Item()
    item.box(2, GREY, (1.0, 8.0, 2.0), (50.0, 50.0, 0.0))
    scene.add(item)
    camera = look((51.5, 50.0, 20.0), 0.0, -math.pi / 2 + 1e-6, 2.0)  # from above; one pixel is 1/6 m
    view = render(scene, camera, 60, 60, np.random.default_rng(0), ambient=0.0, noise=0.0)
    place = 51.5 + (np.arange(60) + 0.5 - 30) / 2.0 / 60 * 20.0
    line, ground = view["image"][30].mean(-1), view["label"][30] == 0
    dark = line[ground & (place > 50.9) & (place < 52.2)]
    light = line[ground & ((place < 49.2) | (place > 52.8))]
    assert len(dark) > 5
    assert len(light) > 5
    assert dark.max() < light.min() - 0.1


def test_sky_is_not_lit_by_the_sun():
    """Protects the sky as a light of its own: what reaches the eye is its colour, whatever shines on it."""
    scene = open_air(sun=(50.0, -1e4, 5e3))  # behind the camera, so that it faces the sky in the picture
    geometry, surface, groups, lights = scene.arrays()
    camera = look((50.0, 5.0, 1.5), 0.0, 0.5, 1.0)
    own, albedo, direct, bounce = trace_colour(geometry, surface, groups, lights, 0.2, camera, 24, 24, 0)
    radiance = own + albedo * (direct + bounce)
    np.testing.assert_allclose(radiance[:12], np.broadcast_to((0.3, 0.5, 0.9), (12, 24, 3)), rtol=1e-6)


def test_haze_draws_far_things_towards_its_colour():
    """Protects the haze: the same road is nearer to the haze's colour far away than close by."""
    camera, wanted = look((50.0, 5.0, 3.0), 0.0, -0.1, 1.0), np.array([0.2, 0.3, 2.0])
    plain, veiled = (
        render(open_air(), camera, 48, 48, np.random.default_rng(0), noise=0.0, haze=haze)["image"]
        for haze in (None, (20.0, tuple(wanted)))
    )
    blueness = [image[..., 2] - image[..., 0] for image in (plain, veiled)]
    far, near = slice(26, 30), slice(44, 48)
    assert np.abs(blueness[0][far].mean() - blueness[0][near].mean()) < 0.05
    assert blueness[1][far].mean() > blueness[1][near].mean() + 0.1


def test_things_on_a_track_do_not_overlap():
    """Protects placement: what shares a lane keeps its distance, and a full lane takes no more."""
    rng, track = np.random.default_rng(0), Track(0.0)
    middles = [track.place(rng, 5.0, 0.0, 40.0) for _ in range(30)]
    placed = np.sort([y for y in middles if y is not None])
    assert 4 <= len(placed) <= 8
    assert (np.diff(placed) > 5.0).all()
    assert 2.5 <= placed[0] <= placed[-1] <= 42.5


def test_hits_lie_on_the_frustum():
    """Protects boxes with sloping sides: every point found lies on a face and its normal is the face's."""
    scene, item = open_air(), Item()
    size, top, yaw = np.array([2.0, 3.0, 1.5]), np.array([0.5, 0.8]), 0.6
    item.frustum(5, GREY, tuple(size), (50.0, 50.0, 0.0), tuple(top), yaw)
    scene.add(item)
    camera = look((50.5, 44.0, 2.5), 0.1, -0.3, 1.2)
    geometry, surface, groups, _ = scene.arrays()
    _, label, depth, normal = trace_truth(geometry, surface, groups, camera, 64, 64)
    seen = label == 5
    world = (normal * (1, 1, -1)) @ camera[1:4]
    turn = np.array([[math.cos(yaw), math.sin(yaw), 0], [-math.sin(yaw), math.cos(yaw), 0], [0, 0, 1]])
    points = ((camera[0] + depth[..., None] * rays(camera, 64, 64))[seen] - (50.0, 50.0, 0.0)) @ turn.T
    normals = world[seen] @ turn.T
    half = size[:2] / 2 * (1 + (top - 1) * points[:, 2:] / size[2])  # half widths at each point's height
    distance = np.stack([*(half - np.abs(points[:, :2])).T, size[2] - points[:, 2]])
    assert seen.sum() > 300
    np.testing.assert_allclose(distance.min(0), 0.0, atol=2e-5)
    assert len(np.unique(distance.argmin(0))) == 3
    rise = size[:2] / 2 * (1 - top) / size[2]  # a face leans inwards by this for each metre upwards
    for face in range(2):
        on = distance.argmin(0) == face
        expected = np.zeros((on.sum(), 3))
        expected[:, face], expected[:, 2] = np.sign(points[on, face]), rise[face]
        expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
        np.testing.assert_allclose(normals[on], expected, atol=1e-5)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize(("build", "name"), [("car", "car"), ("truck", "truck"), ("bus", "bus")])
def test_vehicles_show_all_their_parts(build, name, ahead):
    """Protects the part classes: from behind or in front, vehicles have all five parts and no other."""
    seen = np.zeros(len(PARTS), int)
    for seed in range(12):
        scene = open_air()
        vehicle = getattr(vehicles, build)(np.random.default_rng(seed), ahead)
        scene.add(vehicle.placed((50.0, 50.0, 0.0), 0.0 if ahead else math.pi))
        camera = look((46.0, 36.0, 1.6), -0.25, 0.0, 1.0)
        geometry, surface, groups, _ = scene.arrays()
        _, packed, _, _ = trace_truth(geometry, surface, groups, camera, 96, 96)
        part, label = np.divmod(packed, 100)
        assert set(np.unique(label)) <= {0, SKY_LABEL, CLASSES.index(name)}
        seen += [(part[label == CLASSES.index(name)] == number).any() for number in range(len(PARTS))]
    assert (seen[:5] == 0).all()
    assert (seen[[6, 7, 9]] == 12).all()
    assert seen[8] >= 5  # a bumper may hide the plate
    assert seen[5] >= (10 if build == "truck" and ahead else 12)  # its load may hide a lorry's cab


@pytest.mark.parametrize(
    "build",
    [
        streetlife.person,
        lambda rng: streetlife.bicycle(rng, True),
        lambda rng: streetlife.motorcycle(rng, False),
        lambda rng: vehicles.car(rng, True),
        lambda rng: vehicles.truck(rng, False),
        lambda rng: vehicles.bus(rng, True),
        vehicles.tram,
        townscape.lamp_post,
        townscape.traffic_light,
        townscape.traffic_sign,
        lambda rng: townscape.house(rng, 12.0, 10.0),
        lambda rng: townscape.tree(rng, townscape.leaves(rng), 6.0),
    ],
)
def test_things_stand_on_the_ground(build):
    """Protects placement: nothing floats, and nothing reaches below the ground."""
    for seed in range(10):
        boxes = build(np.random.default_rng(seed)).bounds()
        assert boxes[:, 2].min() == pytest.approx(0.0, abs=1e-6)
        assert boxes[:, 5].max() < 25.0
