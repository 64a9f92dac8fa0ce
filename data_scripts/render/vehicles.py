"""Cars, lorries, buses and trams.

Every function returns an `Item` that stands on z = 0, centred on x = y = 0, and faces +y. Lamps and plates
are put on the end that will be seen: `ahead` is True for a vehicle seen from behind.
"""

from data_scripts.render.furniture import shaded, tint
from data_scripts.render.materials import STRIPES
from data_scripts.render.raycast import Item, Paint
from data_scripts.render.streetlife import (
    BUS,
    CAR,
    CHASSIS,
    LIGHTS,
    METAL,
    PLATE,
    RUBBER,
    TRAIN,
    TRUCK,
    WHEELS,
    WINDOWS,
    labelled,
    lacquer,
)

_PLATE = Paint((0.8, 0.8, 0.76))
_GRILLE = Paint((0.03, 0.03, 0.033), gloss=0.2)


def _glass(rng):
    dark = rng.uniform(0.015, 0.09)
    return Paint((dark, dark * 1.1, dark * 1.25), gloss=0.9)


def _wheels(item, name, half_width, places, size):
    for y in places:
        for side in (-1, 1):
            at = (side * (half_width - 0.09), y, 0.0)
            item.ellipsoid(labelled(name, WHEELS), RUBBER, (0.26, size, size), at)
            at = (side * (half_width - 0.02), y, size * 0.24)
            item.ellipsoid(labelled(name, WHEELS), METAL, (0.14, size * 0.52, size * 0.52), at)


def _lamps(item, rng, name, ahead, half_width, y, z, size):
    """Put two lamps and a number plate on the end at y."""
    if ahead:
        paint = Paint((0.6, 0.015, 0.01), gloss=0.3, glow=rng.choice([0.3, 0.3, 1.5]))
    else:
        paint = Paint((0.85, 0.85, 0.8), gloss=0.5, glow=rng.choice([0.3, 0.3, 2.0]))
    for side in (-1, 1):
        at = (side * (half_width - size[0] / 2 - 0.06), y, z)
        item.box(labelled(name, LIGHTS), paint, (size[0], 0.08, size[1]), at)
    down = z - 0.06 if ahead and rng.random() < 0.5 else max(z - 0.28, 0.35)
    item.box(labelled(name, PLATE), _PLATE, (0.52, 0.07, 0.14), (0.0, y * 1.004, down))


def car(rng, ahead):
    """Build a hatchback, a saloon, an off-roader or a van."""
    item, paint, glass = Item(), lacquer(rng), _glass(rng)
    kind = rng.choice(4, p=[0.4, 0.3, 0.2, 0.1])
    length = rng.uniform(3.7, 4.2) if kind == 0 else rng.uniform(4.4, 4.9)
    half, high = rng.uniform(0.84, 0.92), (1.46, 1.43, 1.7, 1.95)[kind]
    waist = 0.62 * high
    back = (-0.46, -0.34, -0.47, -0.49)[kind] * length  # where the cabin begins, and where it ends
    front = (0.2, 0.2, 0.22, 0.36)[kind] * length
    body, windows = labelled(CAR, CHASSIS), labelled(CAR, WINDOWS)
    item.frustum(body, paint, (2 * half, length, waist - 0.5), (0.0, 0.0, 0.5), (0.93, 0.97))
    item.frustum(body, paint, (1.95 * half, length * 0.98, 0.28), (0.0, 0.0, 0.22), (1.025, 1.02))
    middle, long = (back + front) / 2, front - back
    slope = (0.72, 0.62, 0.8, 0.82)[kind]
    item.frustum(windows, glass, (1.8 * half, long, high - waist), (0.0, middle, waist), (0.8, slope))
    top = (1.46 * half, long * slope * 1.03, 0.07)
    item.frustum(body, paint, top, (0.0, middle, high - 0.03), (0.94, 0.94))
    for y in (back + 0.16 * long, middle + 0.02 * long):  # the posts between the windows
        item.frustum(body, paint, (1.82 * half, 0.09, high - waist), (0.0, y, waist), (0.8, 1.0))
    end = -length / 2 if ahead else length / 2
    item.box(body, _GRILLE, (1.3 * half, 0.05, 0.14), (0.0, end * 0.995, 0.36 if ahead else 0.48))
    _lamps(item, rng, CAR, ahead, half * 0.97, end * 0.985, waist - 0.27, (rng.uniform(0.26, 0.4), 0.17))
    _wheels(item, CAR, half, (-0.3 * length, 0.31 * length), rng.uniform(0.62, 0.7))
    return item


def truck(rng, ahead):
    """Build a lorry with a box, a tarpaulin or a tipper body."""
    item, paint, glass = Item(), lacquer(rng), _glass(rng)
    half, high, length = rng.uniform(1.15, 1.27), rng.uniform(2.9, 3.7), rng.uniform(6.5, 9.0)
    body, cab = labelled(TRUCK, CHASSIS), 2.0
    front = length / 2
    load = Paint(tint(rng, None, (0.0, 0.6), (0.5, 0.95)))
    if rng.random() < 0.4:
        load = Paint(load.colour, shaded(load.colour, 0.8), STRIPES, 0.5)
    item.box(body, load, (2 * half, length - cab - 0.2, high - 1.0), (0.0, -cab / 2 - 0.1, 1.0))
    item.box(body, _GRILLE, (1.7 * half, length - 0.4, 0.4), (0.0, -0.15, 0.62))
    if ahead:  # a door's frame, an under-run bar
        edge = Paint(shaded(load.colour, 0.5))
        item.box(body, edge, (0.08, 0.06, high - 1.1), (0.0, -front, 1.05))
        item.box(body, METAL, (1.9 * half, 0.12, 0.16), (0.0, -front + 0.1, 0.46))
    tall = min(high - 0.2, 2.7)
    item.frustum(body, paint, (2 * half, cab, tall - 0.5), (0.0, front - cab / 2, 0.5), (0.96, 0.9))
    item.box(labelled(TRUCK, WINDOWS), glass, (1.8 * half, 0.1, 0.75), (0.0, front - 0.1, tall - 1.05))
    item.box(labelled(TRUCK, WINDOWS), glass, (1.98 * half, 0.8, 0.6), (0.0, front - 0.75, tall - 0.95))
    end = -front if ahead else front
    _lamps(item, rng, TRUCK, ahead, half, end * 0.995, 0.78, (0.42, 0.22))
    _wheels(item, TRUCK, half, (front - 1.1, -front + 1.2, -front + 2.3), 0.98)
    return item


def bus(rng, ahead):
    """Build a town bus."""
    item, glass = Item(), _glass(rng)
    hue = rng.choice([0.0, 0.13, 0.35, 0.6])
    paint = Paint(tint(rng, hue, (0.5, 0.95), (0.6, 0.95)), gloss=0.4)
    half, high, length = 1.26, rng.uniform(2.95, 3.3), rng.uniform(8.5, 12.0)
    body, windows, front = labelled(BUS, CHASSIS), labelled(BUS, WINDOWS), length / 2
    item.box(body, paint, (2 * half, length, high - 0.45), (0.0, 0.0, 0.38))
    roof = (1.9 * half, length * 0.9, 0.2)
    item.frustum(body, Paint((0.7, 0.7, 0.7)), roof, (0.0, 0.0, high - 0.08), (0.9, 0.9))
    item.box(windows, glass, (2 * half + 0.04, length * 0.92, 0.95), (0.0, 0.0, 1.35))
    for y in (-0.3, -0.1, 0.1, 0.3):
        item.box(body, paint, (2 * half + 0.06, 0.1, 0.97), (0.0, y * length, 1.34))
    end, tall = (-front, 0.85) if ahead else (front, 1.45)
    item.box(windows, glass, (1.8 * half, 0.06, tall), (0.0, end, 2.4 - tall))
    board = Paint((0.9, 0.5, 0.05), (0.02, 0.02, 0.02), STRIPES, 0.22, glow=0.6)
    item.box(body, board, (1.1 * half, 0.08, 0.25), (0.0, end, high - 0.48))
    _lamps(item, rng, BUS, ahead, half, end, 0.72, (0.38, 0.24))
    _wheels(item, BUS, half, (0.3 * length, -0.28 * length), 0.98)
    return item


def tram(rng):
    """Build a tram of two cars; trains have no parts."""
    item, glass = Item(), _glass(rng)
    colour = tint(rng, rng.choice([0.0, 0.02, 0.12, 0.33, 0.6]), (0.6, 0.95), (0.5, 0.9))
    paint, trim = Paint(colour, gloss=0.4), Paint((0.75, 0.75, 0.7), gloss=0.3)
    half, high, length = 1.2, 3.35, 11.0
    for middle in (-5.75, 5.75):
        item.box(TRAIN, paint, (2 * half, length, 1.2), (0.0, middle, 0.35))
        item.frustum(TRAIN, trim, (2 * half, length, 1.75), (0.0, middle, 1.55), (0.94, 0.97))
        item.box(TRAIN, glass, (2 * half + 0.03, length * 0.92, 0.95), (0.0, middle, 1.6))
        item.box(TRAIN, RUBBER, (1.7 * half, length * 0.8, 0.35), (0.0, middle, 0.0))
        item.box(TRAIN, METAL, (1.4 * half, 2.2, 0.2), (0.0, middle, high - 0.05))
    item.box(TRAIN, RUBBER, (1.8 * half, 0.6, 2.6), (0.0, 0.0, 0.5))
    for end in (-length - 0.25, length + 0.25):
        item.box(TRAIN, glass, (1.75 * half, 0.06, 1.25), (0.0, end, 1.5))
        item.box(TRAIN, Paint((0.9, 0.55, 0.1), glow=1.0), (0.9 * half, 0.08, 0.22), (0.0, end, 2.9))
        for side in (-1, 1):
            lamp = Paint((0.9, 0.9, 0.85), glow=1.5)
            item.box(TRAIN, lamp, (0.25, 0.07, 0.16), (side * 0.75 * half, end, 0.9))
    return item
