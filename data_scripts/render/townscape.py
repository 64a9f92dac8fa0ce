"""What stands along a street: houses, trees, fences, walls, lamps, signs.

Items that face somewhere face +y; houses have their front at x = 0 and reach away from it to +x.
"""

import math

from data_scripts.render.furniture import shaded, tint
from data_scripts.render.materials import BRICKS, CARPET, FACADE, LEAVES, PLAIN, SHOPS, STRIPES, TILES
from data_scripts.render.raycast import Item, Paint
from data_scripts.render.streetlife import (
    BUILDING,
    FENCE,
    POLE,
    TERRAIN,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    WALL,
)

_GALVANISED = Paint((0.2, 0.21, 0.21), gloss=0.3)
_BARK = Paint((0.09, 0.065, 0.045), (0.05, 0.04, 0.03), LEAVES, 0.15)
_WHITE = Paint((0.85, 0.85, 0.85))


def leaves(rng, season=None):
    """Draw the paint of foliage: two greens, or autumn's colours."""
    hue = rng.uniform(0.2, 0.33) if season is None else season + rng.normal() * 0.015
    colour = tint(rng, hue, (0.45, 0.8), (0.22, 0.5))
    return Paint(colour, shaded(colour, 2.2), LEAVES, rng.uniform(0.3, 0.6))


def grass(rng):
    """Draw the paint of grass or bare earth."""
    colour = tint(rng, rng.uniform(0.16, 0.3), (0.4, 0.75), (0.35, 0.6))
    return Paint(colour, shaded(colour, rng.uniform(0.5, 0.75)), CARPET, 0.5)


def house(rng, along, high):
    """Build a house whose front is `along` metres long in y, centred on y = 0."""
    item, deep = Item(), 10.0
    wall = tint(rng, rng.uniform(0.02, 0.16), (0.03, 0.4), (0.45, 0.95))
    if rng.random() < 0.15:
        wall = tint(rng, rng.uniform(0.5, 0.65), (0.05, 0.3), (0.4, 0.9))
    pane = rng.uniform(0.05, 0.16)
    front = Paint(wall, (pane, pane * 1.15, pane * 1.35), FACADE, rng.uniform(2.6, 3.4))
    item.box(BUILDING, front, (deep, along, high), (deep / 2, 0.0, 0.0))
    if rng.random() < 0.55:
        shops = Paint((0.5, 0.5, 0.5), None, SHOPS, rng.uniform(3.5, 6.0))
        item.box(BUILDING, shops, (0.5, along - 0.3, rng.uniform(3.2, 4.0)), (0.05, 0.0, 0.0))
        if rng.random() < 0.6:  # an awning
            cloth = Paint(tint(rng, None, (0.5, 0.95)), (0.8, 0.8, 0.75), STRIPES, 0.7)
            size = (2.4, along * rng.uniform(0.2, 0.4), 0.5)
            item.frustum(BUILDING, cloth, size, (0.0, rng.uniform(-0.25, 0.25) * along, 2.5), (0.3, 1.0))
    if rng.random() < 0.55:
        tile = tint(rng, rng.choice([0.02, 0.04, 0.6]), (0.2, 0.7), (0.25, 0.55))
        roof = Paint(tile, shaded(tile, 0.6), TILES, 0.6)
        size = (deep + 0.8, along + 0.1, rng.uniform(2.5, 4.5))
        item.frustum(BUILDING, roof, size, (deep / 2, 0.0, high), (rng.choice([0.05, 0.5]), 1.0))
    else:
        edge = Paint(shaded(wall, rng.uniform(0.6, 1.2)))
        item.box(BUILDING, edge, (deep + 0.6, along, 0.45), (deep / 2, 0.0, high))
    if rng.random() < 0.35:
        for y in (-0.3, 0.3):
            bay = (0.9, along * 0.18, high * 0.6)
            item.box(BUILDING, front, bay, (-0.2, y * along, high * 0.3))
    return item


def tree(rng, foliage, high):
    """Build a tree: a trunk and a crown of several balls."""
    item = Item()
    trunk, wide = rng.uniform(0.3, 0.42) * high, rng.uniform(0.42, 0.6) * high
    item.cylinder(VEGETATION, _BARK, (0.28, 0.28, trunk + 0.8), (0.0, 0.0, 0.0))
    crown = high - trunk
    item.ellipsoid(VEGETATION, foliage, (wide * 0.8, wide * 0.8, crown), (0.0, 0.0, trunk))
    turn = rng.uniform(0.0, 2 * math.pi)
    for number in range(5):
        angle, size = turn + number * 2 * math.pi / 5, rng.uniform(0.45, 0.62)
        x, y = 0.28 * wide * math.cos(angle), 0.28 * wide * math.sin(angle)
        z = trunk + crown * rng.uniform(0.02, 0.45)
        item.ellipsoid(VEGETATION, foliage, (wide * size, wide * size, crown * size), (x, y, z))
    return item


def hedge(rng, foliage, along):
    """Build a hedge that runs along y."""
    item = Item()
    thick, high = rng.uniform(0.6, 1.0), rng.uniform(0.9, 1.8)
    item.frustum(VEGETATION, foliage, (thick, along, high), (0.0, 0.0, 0.0), (0.8, 1.0))
    return item


def wall(rng, along):
    """Build a wall of bricks, stone or concrete that runs along y."""
    item, high = Item(), rng.uniform(1.3, 2.8)
    colour = tint(rng, rng.choice([0.02, 0.03, 0.08, 0.1]), (0.1, 0.65), (0.4, 0.75))
    kind = rng.choice([BRICKS, BRICKS, TILES, PLAIN])
    scale = {BRICKS: 0.5, TILES: 1.0, PLAIN: 0.6}[kind]
    item.box(WALL, Paint(colour, shaded(colour, 0.55), int(kind), scale), (0.3, along, high), (0.0, 0.0, 0.0))
    item.box(WALL, Paint(shaded(colour, 0.8)), (0.42, along, 0.12), (0.0, 0.0, high))
    return item


def fence(rng, along):
    """Build a fence of pales, boards or rails that runs along y."""
    item, high = Item(), rng.uniform(1.0, 1.8)
    colour = tint(rng, rng.choice([0.07, 0.09, 0.35, 0.6]), (0.05, 0.6), (0.25, 0.85))
    pales = Paint(colour, shaded(colour, 0.3), STRIPES, rng.uniform(0.2, 0.4))
    item.box(FENCE, pales, (0.06, along, high - 0.1), (0.0, 0.0, 0.08))
    rail = Paint(shaded(colour, 0.8))
    for z in (0.25, high - 0.25):
        item.box(FENCE, rail, (0.14, along, 0.1), (0.0, 0.0, z))
    return item


def lamp_post(rng):
    """Build a street lamp whose arm reaches to +x."""
    item, high = Item(), rng.uniform(5.0, 8.0)
    item.cylinder(POLE, _GALVANISED, (0.2, 0.2, high), (0.0, 0.0, 0.0))
    item.box(POLE, _GALVANISED, (1.6, 0.1, 0.1), (0.75, 0.0, high - 0.05))
    item.box(POLE, Paint((0.5, 0.5, 0.5)), (0.6, 0.25, 0.12), (1.5, 0.0, high - 0.12))
    return item


def bollard(rng):
    """Build a bollard or a short post."""
    item = Item()
    item.cylinder(POLE, Paint((0.5, 0.06, 0.03)), (0.16, 0.16, rng.uniform(0.9, 1.1)), (0.0, 0.0, 0.0))
    return item


def traffic_light(rng):
    """Build a traffic light."""
    item = Item()
    low = rng.uniform(2.2, 2.9)
    item.cylinder(POLE, _GALVANISED, (0.14, 0.14, low + 0.5), (0.0, -0.2, 0.0))
    item.box(TRAFFIC_LIGHT, Paint((0.015, 0.02, 0.018)), (0.46, 0.25, 1.2), (0.0, 0.0, low))
    lit = rng.integers(3)
    colours = ((0.05, 0.8, 0.3), (0.9, 0.5, 0.03), (0.9, 0.04, 0.02))
    for number, colour in enumerate(colours):
        on = number == lit
        paint = Paint(colour if on else shaded(colour, 0.1), glow=4.0 if on else 0.0)
        item.ellipsoid(TRAFFIC_LIGHT, paint, (0.3, 0.08, 0.3), (0.0, 0.13, low + 0.07 + 0.38 * number))
    return item


def traffic_sign(rng):
    """Build a traffic sign: round, triangular or rectangular; now and then two on a post."""
    item, low = Item(), rng.uniform(1.9, 2.5)
    item.cylinder(POLE, _GALVANISED, (0.1, 0.1, low + 0.8), (0.0, 0.0, 0.0))
    for number in range(1 + (rng.random() < 0.35)):
        _shield(item, rng, low - 0.75 * number, rng.uniform(0.6, 0.75))
    return item


def _shield(item, rng, z, size):
    red, blue = Paint((0.65, 0.02, 0.02)), Paint((0.02, 0.1, 0.5))
    kind = rng.integers(5)
    if kind <= 1:
        item.ellipsoid(TRAFFIC_SIGN, red if kind == 0 else blue, (size, 0.06, size), (0.0, 0.06, z))
        inner = 0.7 * size if kind == 0 else 0.35 * size
        item.ellipsoid(TRAFFIC_SIGN, _WHITE, (inner, 0.04, inner), (0.0, 0.09, z + (size - inner) / 2))
    elif kind == 2:
        item.frustum(TRAFFIC_SIGN, red, (size * 1.1, 0.04, size), (0.0, 0.07, z), (0.02, 1.0))
        item.frustum(
            TRAFFIC_SIGN, _WHITE, (size * 0.72, 0.04, size * 0.62), (0.0, 0.09, z + 0.11), (0.02, 1.0)
        )
    else:
        paint = blue if kind == 3 else Paint((0.8, 0.6, 0.03))
        item.box(TRAFFIC_SIGN, paint, (size, 0.04, size), (0.0, 0.07, z))
        item.box(TRAFFIC_SIGN, _WHITE, (size * 0.5, 0.04, size * 0.5), (0.0, 0.09, z + size * 0.25))


def mound(rng, paint, size):
    """Build a hill of grass: the upper part of an ellipsoid with the axes `size`."""
    item = Item()
    item.ellipsoid(TERRAIN, paint, size, (0.0, 0.0, -size[2] * rng.uniform(0.5, 0.8)))
    return item
