"""People and their two-wheelers, and the labels of the street scenes.

Every function returns an `Item` that stands on z = 0, centred on x = y = 0, and faces +y. A solid's integer
label holds class and part, see `labelled`.
"""

import math

from data_scripts.render.furniture import shaded, tint
from data_scripts.render.materials import CARPET, PLAID, STRIPES
from data_scripts.render.raycast import Item, Paint

# places in CITYSCAPES_CLASSES and CITYSCAPES_PARTS of simo.tasks
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN) = range(10)
(SKY_CLASS, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)
(BACKGROUND, TORSO, HEAD, ARMS, LEGS, WINDOWS, WHEELS, LIGHTS, PLATE, CHASSIS) = range(10)

RUBBER = Paint((0.02, 0.02, 0.022))
METAL = Paint((0.3, 0.3, 0.32), gloss=0.8)
_RIM = Paint((0.16, 0.16, 0.17))


def labelled(name, part):
    """Pack a class and a part into one label, from which `label % 100` and `label // 100` recover them."""
    return name + 100 * part


def lacquer(rng):
    """Draw the paint of a vehicle: half of them white, grey or black, the rest coloured."""
    if rng.random() < 0.5:
        value = rng.choice([0.015, 0.05, 0.25, 0.45, 0.8])
        return Paint((value, value, value * rng.uniform(0.95, 1.08)), gloss=0.6)
    return Paint(tint(rng, rng.choice([0.0, 0.0, 0.03, 0.12, 0.35, 0.55, 0.6, 0.63]), (0.6, 0.95)), gloss=0.6)


def _cloth(rng):
    colour = tint(rng, None, (0.1, 0.85), (0.15, 0.9))
    material = int(rng.choice([CARPET, CARPET, PLAID, STRIPES]))
    return Paint(colour, shaded(colour, rng.uniform(0.5, 0.8)), material, 0.09)


class _Wardrobe:
    """What one person wears, and the colours of skin and hair."""

    def __init__(self, rng):
        tone = rng.uniform(0.08, 0.6)
        self.skin = Paint((tone, tone * 0.68, tone * 0.5))
        dark = tint(rng, rng.uniform(0.04, 0.1), (0.3, 0.7), (0.08, 0.5))
        self.hair = Paint(dark)
        self.top = _cloth(rng)
        self.sleeves = self.top if rng.random() < 0.75 else self.skin
        self.legs = Paint(tint(rng, rng.choice([0.1, 0.6]), (0.1, 0.6), (0.1, 0.55)))


def person(rng):
    """Build somebody who stands or walks."""
    item, wears = Item(), _Wardrobe(rng)
    tall = rng.uniform(1.55, 1.9)
    broad, stride = rng.uniform(0.36, 0.46), rng.uniform(0.0, 0.22)
    hip, shoulder = 0.48 * tall, 0.83 * tall
    for side in (-1, 1):
        item.cylinder(labelled(PERSON, LEGS), wears.legs, (0.17, 0.19, hip), (side * 0.1, side * stride, 0.0))
        size, at = (0.11, 0.15, 0.4 * tall), (side * (broad / 2 + 0.05), -side * stride * 0.7, 0.42 * tall)
        item.cylinder(labelled(PERSON, ARMS), wears.sleeves, size, at)
    coat = rng.uniform(0.0, 0.3) if rng.random() < 0.3 else 0.0
    size = (broad + coat * 0.3, 0.26 + coat * 0.3, shoulder - hip + coat)
    item.frustum(labelled(PERSON, TORSO), wears.top, size, (0.0, 0.0, hip - coat), (1.05 - coat, 0.9))
    _head(item, PERSON, wears.skin, wears.hair, (0.0, 0.0, shoulder - 0.01), tall - shoulder)
    if rng.random() < 0.25:
        item.box(labelled(PERSON, TORSO), _cloth(rng), (0.3, 0.18, 0.42), (0.0, -0.2, shoulder - 0.5))
    return item


def _head(item, name, skin, hair, at, high):
    item.ellipsoid(labelled(name, HEAD), skin, (0.19, 0.22, high), at)
    size = (0.22, 0.22, high * 0.75)
    item.ellipsoid(labelled(name, HEAD), hair, size, (at[0], at[1] - 0.03, at[2] + high * 0.3))


def _sit(item, rng, seat, reach, spread):
    """Seat a rider `seat` metres high, hands `reach` metres before the body."""
    wears = _Wardrobe(rng)
    if rng.random() < 0.7:
        wears.hair = Paint(tint(rng, None, (0.0, 0.9), (0.1, 0.9)), gloss=0.5)  # a helmet
    broad, high = rng.uniform(0.38, 0.46), rng.uniform(0.52, 0.6)
    size, lean = (broad, 0.3, high), rng.normal() * 0.1
    item.frustum(labelled(RIDER, TORSO), wears.top, size, (0.0, -0.12, seat), (1.05, 0.9), lean)
    _head(item, RIDER, wears.skin, wears.hair, (0.0, 0.0, seat + high), 0.27)
    for side in (-1, 1):
        at = (side * (broad / 2 + 0.03), reach / 2 - 0.1, seat + high - 0.22)
        item.box(labelled(RIDER, ARMS), wears.sleeves, (0.11, reach, 0.12), at, side * 0.12)
        item.box(labelled(RIDER, LEGS), wears.legs, (0.16, 0.5, 0.17), (side * spread, 0.12, seat - 0.13))
        size = (0.14, 0.16, 0.55 + side * 0.06)
        item.cylinder(labelled(RIDER, LEGS), wears.legs, size, (side * spread, 0.26, seat - 0.6))


def bicycle(rng, ridden):
    """Build a bicycle, 1.7 m long, with or without its rider."""
    item, frame = Item(), lacquer(rng)
    for y in (-0.53, 0.53):
        item.ellipsoid(BICYCLE, RUBBER, (0.07, 0.7, 0.7), (0.0, y, 0.0))
        item.ellipsoid(BICYCLE, _RIM, (0.08, 0.55, 0.55), (0.0, y, 0.075))
    item.box(BICYCLE, frame, (0.05, 0.75, 0.06), (0.0, 0.0, 0.72))
    item.box(BICYCLE, frame, (0.05, 0.5, 0.05), (0.0, 0.0, 0.42))
    item.box(BICYCLE, frame, (0.05, 0.06, 0.55), (0.0, -0.22, 0.35))
    item.box(BICYCLE, frame, (0.05, 0.06, 0.65), (0.0, 0.42, 0.35))
    item.box(BICYCLE, RUBBER, (0.15, 0.26, 0.07), (0.0, -0.22, 0.9))
    item.box(BICYCLE, METAL, (0.54, 0.05, 0.05), (0.0, 0.4, 1.0))
    if ridden:
        _sit(item, rng, 0.97, rng.uniform(0.5, 0.6), 0.12)
    elif rng.random() < 0.4:
        item.box(BICYCLE, Paint((0.15, 0.1, 0.05)), (0.3, 0.25, 0.22), (0.0, 0.62, 0.8))
    return item


def motorcycle(rng, ridden):
    """Build a motorcycle or scooter, 2.1 m long, with or without its rider."""
    item, paint = Item(), lacquer(rng)
    for y in (-0.66, 0.68):
        item.ellipsoid(MOTORCYCLE, RUBBER, (0.17, 0.58, 0.58), (0.0, y, 0.0))
        item.ellipsoid(MOTORCYCLE, METAL, (0.19, 0.38, 0.38), (0.0, y, 0.1))
    item.box(MOTORCYCLE, Paint((0.08, 0.08, 0.085), gloss=0.4), (0.36, 0.7, 0.4), (0.0, 0.0, 0.25))
    item.frustum(MOTORCYCLE, paint, (0.42, 0.8, 0.3), (0.0, 0.2, 0.62), (0.7, 0.6))
    item.frustum(MOTORCYCLE, paint, (0.34, 0.6, 0.28), (0.0, -0.7, 0.62), (0.7, 1.0))
    item.box(MOTORCYCLE, RUBBER, (0.3, 0.7, 0.1), (0.0, -0.35, 0.8))
    item.frustum(MOTORCYCLE, paint, (0.44, 0.25, 0.45), (0.0, 0.68, 0.7), (0.6, 0.5))
    item.box(MOTORCYCLE, METAL, (0.75, 0.06, 0.06), (0.0, 0.5, 1.05))
    lamp = Paint((0.9, 0.9, 0.8), glow=rng.choice([0.5, 2.0]))
    item.ellipsoid(MOTORCYCLE, lamp, (0.2, 0.08, 0.2), (0.0, 0.82, 0.8))
    item.box(MOTORCYCLE, Paint((0.5, 0.02, 0.02), glow=0.5), (0.2, 0.04, 0.1), (0.0, -1.0, 0.75))
    if ridden:
        _sit(item, rng, 0.88, rng.uniform(0.5, 0.65), 0.24)
    return item


def turned_any_way(rng):
    """Draw the yaw of somebody on foot: mostly along the street."""
    return (
        rng.choice([0.0, math.pi, math.pi / 2, -math.pi / 2], p=[0.35, 0.35, 0.15, 0.15]) + rng.normal() * 0.3
    )
