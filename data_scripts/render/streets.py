"""Street scenes with exact labels, parts, depth and disparity, drawn from a seed.

A stand-in for Cityscapes in the miniature: the same 19 classes and 10 part classes, a camera in a car that
looks along the street. What is rare in reality is likelier here and nearer to the camera, so that every class
has pixels enough for its IoU to mean something.
"""

import math

import numpy as np

from data_scripts.render import townscape as t
from data_scripts.render import vehicles
from data_scripts.render.furniture import shaded
from data_scripts.render.materials import STRIPES, TILES
from data_scripts.render.raycast import Item, Paint, look, render
from data_scripts.render.streetlife import (
    METAL,
    ROAD,
    SIDEWALK,
    SKY_CLASS,
    TERRAIN,
    bicycle,
    motorcycle,
    person,
    turned_any_way,
)
from data_scripts.render.streetplan import KERB, REACH, Street

BASELINE = 0.22  # metres between the two cameras of Cityscapes
FULL_WIDTH = 2048  # its images' width in pixels
DISPARITY_SCALE = 256  # what the prepared data divide disparities by

_END = 92.0  # metres up to which the sides of the street are built


# --- the ground and what stands still --------------------------------------------------------------------


def _ground(street):
    """Lay pavements and verges on the plane of asphalt that the scene's floor is."""
    rng, long = street.rng, 2 * REACH - 2.0
    grey = rng.uniform(0.18, 0.42)
    slab = (grey, grey * rng.uniform(0.92, 1.0), grey * rng.uniform(0.82, 1.0))
    paving = Paint(slab, shaded(slab, 0.6), TILES, rng.uniform(0.5, 1.0))
    kerb, grass = Paint(shaded(slab, 1.35), shaded(slab, 0.7), TILES, 1.0), t.grass(rng)
    for side in street.sides:
        item, s = Item(), side.sign
        wide = 60.0
        item.box(SIDEWALK, paving, (wide, long, KERB), (s * (side.kerb + wide / 2), 0.0, 0.0))
        item.box(SIDEWALK, kerb, (0.22, long, KERB + 0.01), (s * (side.kerb + 0.08), 0.0, 0.0))
        if side.verge:
            at = (s * (side.kerb + 0.25 + side.verge / 2), 0.0, 0.0)
            item.box(TERRAIN, grass, (side.verge, long, KERB + 0.03), at)
        street.add(item, 0.0, 0.0)


def _markings(street):
    """Mark the lanes and a crossing, and lay rails."""
    rng, marks = street.rng, Item()
    white = tuple([rng.uniform(0.55, 0.8)] * 3)
    dashes = Paint(street.asphalt.colour, white, STRIPES, rng.uniform(6.0, 9.0))
    marks.box(ROAD, dashes, (200.0, 0.16, 0.004), (0.0, 60.0, 0.0), math.pi / 2)
    for side in street.sides:
        if side.parking or rng.random() < 0.5:
            x = side.sign * (side.kerb - 2.15 if side.parking else side.kerb - 0.3)
            marks.box(ROAD, Paint(white), (0.12, 200.0, 0.004), (x, 60.0, 0.0))
    street.add(marks, 0.0, 0.0)
    if street.tram:
        rails = Item()
        for x in (-0.72, 0.72):
            rails.box(ROAD, METAL, (0.09, 240.0, 0.006), (x, 80.0, 0.0))
        for track in (street.own, street.oncoming):
            street.add(rails, track.x, 0.0)
    if rng.random() < 0.4:
        bars = Paint(white, street.asphalt.colour, STRIPES, 1.0)
        marks = Item()
        marks.box(ROAD, bars, (sum(side.kerb for side in street.sides) - 0.4, 3.0, 0.005), (0.0, 0.0, 0.0))
        middle = (street.sides[1].kerb - street.sides[0].kerb) / 2
        street.add(marks, middle, rng.uniform(7.0, 25.0))


def _frontage(street, side):
    """Line one side with houses, with gardens behind walls, fences and hedges, and with greens."""
    rng, y = street.rng, -12.0
    storey = rng.uniform(8.0, 17.0)
    while y < _END:
        kind = rng.choice(["houses", "garden", "green"], p=[0.48, 0.32, 0.2])
        stretch = rng.uniform(16.0, 34.0)
        if kind == "houses":
            _houses(street, side, y, stretch, side.front, storey)
        else:
            lawn = Item()
            lawn.box(TERRAIN, t.grass(rng), (50.0, stretch, KERB + 0.05), (25.0, 0.0, 0.0))
            street.add(lawn, side.sign * (side.front + 0.1), y + stretch / 2, 0.0, _outward(side))
            _barrier(street, side, y, stretch, kind)
            if kind == "garden":
                _houses(street, side, y, stretch, side.front + rng.uniform(5.0, 9.0), storey * 0.7)
            for _ in range(1 if kind == "garden" else 3):
                x = side.sign * (side.front + rng.uniform(2.5, 4.0 if kind == "garden" else 14.0))
                tree = t.tree(rng, t.leaves(rng, street.foliage), rng.uniform(4.0, 9.0))
                street.add(tree, x, y + rng.uniform(2.0, stretch - 2.0))
        y += stretch + (rng.uniform(4.0, 9.0) if rng.random() < 0.3 else 0.3)


def _outward(side):
    return 0.0 if side.sign > 0 else math.pi


def _houses(street, side, y, stretch, front, storey):
    """Fill a stretch with one to three houses whose fronts are `front` metres from the middle."""
    rng, row = street.rng, Item()
    count = max(1, round(stretch / rng.uniform(9.0, 16.0)))
    along = stretch / count
    for number in range(count):
        built = t.house(rng, along - 0.02, storey * rng.uniform(0.75, 1.3))
        at = ((number + 0.5) * along - stretch / 2, rng.uniform(0.0, 0.6))
        row.groups[0].extend(built.placed((at[1], at[0], 0.0)).groups[0])
    street.add(row, side.sign * front, y + stretch / 2, 0.0, _outward(side))


def _barrier(street, side, y, stretch, kind):
    """Put a wall, a fence or a hedge before a garden; greens may be open."""
    rng = street.rng
    if kind == "green" and rng.random() < 0.35:
        return
    what = rng.choice(["wall", "fence", "hedge"], p=[0.34, 0.52, 0.14])
    along = stretch - 0.5
    if what == "hedge":
        item = t.hedge(rng, t.leaves(rng), along)
    else:
        item = (t.wall if what == "wall" else t.fence)(rng, along)
    street.add(item, side.sign * (side.front + 0.3), y + stretch / 2, KERB)


def _far_end(street):
    """Close the view: a house across the street, trees, or hills."""
    rng = street.rng
    far = _END + rng.uniform(0.0, 30.0)
    kind = rng.choice(["house", "trees", "hills"])
    if kind == "house":
        closing = t.house(rng, rng.uniform(25.0, 60.0), rng.uniform(8.0, 16.0))
        street.add(closing, 0.0, far, 0.0, math.pi / 2)
    elif kind == "trees":
        wood, foliage = Item(), t.leaves(rng, street.foliage)
        for x in range(-30, 31, 10):
            size = (rng.uniform(10.0, 16.0), 10.0, rng.uniform(7.0, 13.0))
            wood.ellipsoid(t.VEGETATION, foliage, size, (x, rng.uniform(-4.0, 4.0), -2.0))
        street.add(wood, 0.0, far)
    else:
        size = (rng.uniform(120.0, 220.0), 60.0, rng.uniform(12.0, 30.0))
        street.add(t.mound(rng, t.grass(rng), size), rng.uniform(-40.0, 40.0), far + 50.0)


def _street_furniture(street):
    """Plant lamps, trees, traffic lights, signs and bollards along both kerbs."""
    rng = street.rng
    if rng.random() < 0.6:
        far = rng.uniform(8.0, 20.0)
        for side in street.sides:
            track = side.furniture
            y = max(far, street.near(track.x))
            track.taken.append((y - 0.5, y + 0.5))
            street.add(t.traffic_light(rng), track.x, y, KERB, math.pi)
    for side in street.sides:
        track, avenue = side.furniture, rng.random() < 0.45
        for _ in range(rng.integers(0, 4)):
            street.put(t.traffic_sign(rng), track, 0.4, 6.0, 24.0, math.pi + rng.normal() * 0.15)
        for _ in range(2):
            street.put(t.lamp_post(rng), track, 0.4, 6.0, 50.0, math.pi if side.sign > 0 else 0.0)
        if rng.random() < 0.3:
            for _ in range(4):
                street.put(t.bollard(rng), track, 0.3, 6.0, 16.0)
        for _ in range(3 if avenue else 0):
            tree = t.tree(rng, t.leaves(rng, street.foliage), rng.uniform(4.5, 8.0))
            street.put(tree, track, 1.0, 9.0, 60.0)


# --- what moves ------------------------------------------------------------------------------------------


def _large_vehicles(street):
    """Put trams, lorries and buses on the road."""
    rng = street.rng
    if street.tram and rng.random() < 0.85:
        ahead = rng.random() < 0.45
        street.put(vehicles.tram(rng), street.own if ahead else street.oncoming, 23.0, 9.0, 24.0)
    for build, chance in ((vehicles.truck, 0.3), (vehicles.bus, 0.3)):
        if rng.random() < chance:
            ahead = rng.random() < 0.6
            track = street.own if ahead else street.oncoming
            if rng.random() < 0.3 and street.sides[ahead].parking:
                track = street.sides[ahead].parked
            street.put(build(rng, ahead), track, 11.0, 9.0, 28.0, 0.0 if ahead else math.pi)


def _cars(street):
    """Put cars on both lanes and along the kerbs."""
    rng = street.rng
    for track, ahead in ((street.own, True), (street.oncoming, False)):
        for _ in range(rng.integers(0, 3)):
            yaw = (0.0 if ahead else math.pi) + rng.normal() * 0.03
            street.put(vehicles.car(rng, ahead), track, 4.8, 8.0, 50.0, yaw, rng.normal() * 0.15)
    for side in street.sides:
        if side.parking:
            ahead = side.sign > 0
            for _ in range(rng.integers(2, 6)):
                yaw = (0.0 if ahead else math.pi) + rng.normal() * 0.03
                street.put(vehicles.car(rng, ahead), side.parked, 4.8, 5.0, 45.0, yaw)


def _riders(street):
    """Put ridden two-wheelers on the lanes, and parked ones on the footways."""
    rng = street.rng
    for build, chance in ((bicycle, 0.55), (motorcycle, 0.5)):
        if rng.random() < chance:
            ahead = rng.random() < 0.6
            track = street.own if ahead else street.oncoming
            yaw = (0.0 if ahead else math.pi) + rng.normal() * 0.25
            aside = track.x / abs(track.x) * rng.uniform(0.0, 1.0)
            street.put(build(rng, True), track, 2.0, 6.5, 15.0, yaw, aside)
        if rng.random() < chance:
            side = street.sides[rng.integers(2)]
            yaw = math.pi / 2 * rng.choice([-1, 1]) + rng.normal() * 0.4
            aside = side.sign * 0.6
            for _ in range(rng.integers(1, 3)):
                turn = yaw + rng.normal() * 0.1
                street.put(build(rng, False), side.furniture, 0.9, 6.0, 14.0, turn, aside)


def _people(street):
    """Put people on the footways, and now and then across the road."""
    rng = street.rng
    for side in street.sides:
        for _ in range(rng.integers(2, 6)):
            street.put(person(rng), side.walkers, 0.6, 6.0, 26.0, turned_any_way(rng), rng.normal() * 0.25)
    if rng.random() < 0.4:
        for _ in range(rng.integers(1, 4)):
            track = street.own if rng.random() < 0.5 else street.oncoming
            yaw = math.pi / 2 * rng.choice([-1, 1]) + rng.normal() * 0.3
            street.put(person(rng), track, 0.6, 6.5, 16.0, yaw, rng.uniform(-1.2, 1.2))


def build_street(rng):
    """Build a street.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every choice.

    Returns
    -------
    Street
    """
    street = Street(rng)
    _ground(street)
    _markings(street)
    _riders(street)
    _large_vehicles(street)
    _people(street)
    _cars(street)
    _street_furniture(street)
    for side in street.sides:
        _frontage(street, side)
    _far_end(street)
    return street


# --- the view --------------------------------------------------------------------------------------------


def disparity(depth, focal):
    """Disparity as the prepared Cityscapes stores it, from Z = baseline * focal length / disparity.

    Parameters
    ----------
    depth : ndarray
        Metres along the optical axis; infinite for the sky.
    focal : float
        Focal length over the width of the image.

    Returns
    -------
    ndarray
        Pixels of a 2048 pixel wide image, divided by 256; 0 for the sky, which means no ground truth.
    """
    return np.float32(BASELINE * focal * FULL_WIDTH / DISPARITY_SCALE) / depth


def camera_of(street, height, width):
    """Return the camera in the car, in the form that `raycast.look` gives."""
    rng = street.rng
    origin = (REACH + street.eye, REACH, rng.uniform(1.2, 1.6))
    return look(origin, rng.normal() * 0.06, rng.uniform(-0.06, 0.03), street.focal * width / height)


def render_street(seed, height=48, width=96):
    """Render the street of a seed.

    Parameters
    ----------
    seed : int
        In [0, 2**63). The same seed gives the same street and the same view at any size.
    height, width : int
        Size in pixels. The field of view across is the same for all sizes.

    Returns
    -------
    dict
        `image` float32 (H, W, 3) in [0, 1]; `label` int64 (H, W), an index of `CITYSCAPES_CLASSES`; `part`
        int64 (H, W), one of `CITYSCAPES_PARTS`; `depth` float32 (H, W, 1), metres along the optical axis,
        infinite for the sky; `disparity` float32 (H, W, 1), see `disparity`; `normal` float32 (H, W, 3), unit
        vectors in the camera's frame: x right, y up, z towards the viewer, zero for the sky.
    """
    rng = np.random.default_rng(seed)
    (sensor,) = rng.spawn(1)
    street = build_street(rng)
    camera = camera_of(street, height, width)
    key, noise, ambient = rng.uniform(0.13, 0.24), rng.uniform(0.006, 0.016), rng.uniform(0.1, 0.25)
    view = render(street.scene, camera, height, width, sensor, ambient, key, noise, street.haze)
    view["part"], view["label"] = np.divmod(view["label"], 100)
    sky = view["label"] == SKY_CLASS
    view["depth"][sky], view["normal"][sky] = np.inf, 0.0
    view["disparity"] = disparity(view["depth"], street.focal)
    return view
