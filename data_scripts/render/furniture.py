"""Furniture and smaller things, each built at random from a generator and a room's style.

Every function returns an `Item` that stands on z = 0 with its back at y = 0 (things for walls: just off it)
and its front towards +y. Labels follow NYUv2's 13 classes; as there, cushions, lamps and plants are objects,
curtains belong to windows, rugs to the floor, doors to walls, shelves to furniture.
"""

import colorsys
import itertools
import math
from typing import NamedTuple

from data_scripts.render.materials import CANVAS, CARPET, OUTSIDE, PLAID, SCREEN, SPINES, STRIPES, WOOD
from data_scripts.render.raycast import Item, Paint

# places in NYUV2_CLASSES of simo.tasks
BED, BOOKS, CEILING, CHAIR, FLOOR, FURNITURE, OBJECTS, PICTURE, SOFA, TABLE, TV, WALL, WINDOW = range(13)

_BLACK = Paint((0.012, 0.012, 0.014), gloss=0.3)
_STEEL = Paint((0.35, 0.35, 0.37), gloss=0.8)
_LAMPSHADE = Paint((0.95, 0.85, 0.62), glow=1.1)


class Style(NamedTuple):
    """The paints that a room's furniture shares."""

    wood: Paint
    dark: Paint
    fabric: Paint
    cover: Paint
    trim: Paint


def tint(rng, hue=None, saturation=(0.1, 0.6), value=(0.3, 0.9)):
    """Draw a linear colour; `hue` in [0, 1) is drawn too if it is None."""
    hue = rng.random() if hue is None else hue % 1.0
    picked = colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value))
    return tuple(channel**2.2 for channel in picked)


def shaded(colour, factor):
    """Return a lighter or darker colour."""
    return tuple(min(channel * factor, 0.95) for channel in colour)


def wood_paint(rng, value):
    """Draw a paint for wooden things."""
    colour = tint(rng, rng.uniform(0.05, 0.1), (0.3, 0.7), value)
    return Paint(colour, shaded(colour, rng.uniform(0.5, 0.7)), WOOD, rng.uniform(0.12, 0.25), 0.15)


def fabric_paint(rng, value=(0.25, 0.85)):
    """Draw a paint for cloth: plain weave, stripes or plaid."""
    colour = tint(rng, None, (0.1, 0.6), value)
    material = rng.choice([CARPET, CARPET, PLAID, STRIPES])
    darker = shaded(colour, rng.uniform(0.7, 0.85))
    second = darker if material == CARPET else tint(rng, None, (0.05, 0.6), value)
    return Paint(colour, second, int(material), rng.uniform(0.05, 0.14))


def draw_style(rng):
    """Draw a room's style."""
    white = tuple([rng.uniform(0.6, 0.85)] * 3)
    wood = wood_paint(rng, (0.5, 0.85)) if rng.random() < 0.75 else Paint(white, gloss=0.1)
    cover = fabric_paint(rng, (0.5, 0.95))
    return Style(wood, wood_paint(rng, (0.2, 0.5)), fabric_paint(rng), cover, Paint(white))


def _legs(item, label, paint, width, depth, height, thick, centre_y):
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (width - thick) / 2, centre_y + y * (depth - thick) / 2, 0.0)
            item.box(label, paint, (thick, thick, height), at)


# --- small things ----------------------------------------------------------------------------------------


def book_pile(rng, count=None):
    """Build books lying on each other."""
    item, z = Item(), 0.0
    for _ in range(count or rng.integers(2, 6)):
        colour = tint(rng, None, (0.3, 0.95), (0.25, 0.9))
        size = (rng.uniform(0.24, 0.34), rng.uniform(0.2, 0.26), rng.uniform(0.03, 0.07))
        yaw = rng.uniform(-0.5, 0.5)
        item.box(BOOKS, Paint(colour, shaded(colour, 0.7), STRIPES, size[0] * 1.2), size, (0.0, 0.0, z), yaw)
        z += size[2]
    return item


def book_row(rng, length, room_above, depth):
    """Build books standing side by side along x, backs at y = 0, no longer than `length`."""
    item, x = Item(), -length / 2
    while x < length / 2 - 0.1:
        run = min(rng.uniform(0.12, 0.34), length / 2 - x)
        paint = Paint((0.5, 0.5, 0.5), None, SPINES, rng.uniform(0.03, 0.055))
        size = (run, depth * rng.uniform(0.7, 0.92), room_above * rng.uniform(0.68, 0.92))
        item.box(BOOKS, paint, size, (x + run / 2, size[1] / 2, 0.0))
        x += run + (0.002 if rng.random() < 0.8 else rng.uniform(0.05, 0.15))
    return item


def ornament(rng):
    """Build a thing for a table or a shelf: vase, lamp, bowl with fruit, box, globe or plant."""
    item, paint = Item(), Paint(tint(rng, None, (0.2, 0.9), (0.3, 0.95)), gloss=0.5)
    kind = rng.integers(6)
    size = rng.uniform(0.14, 0.24)
    if kind == 0:
        item.ellipsoid(OBJECTS, paint, (size, size, size * 1.3), (0.0, 0.0, 0.0))
        item.cylinder(OBJECTS, paint, (size * 0.4, size * 0.4, size * 0.6), (0.0, 0.0, size * 1.1))
        for x in (-0.4, 0.1, 0.5):
            bloom = Paint(tint(rng, None, (0.5, 1.0), (0.6, 1.0)))
            at = (x * size, 0.2 * x * size, size * (1.6 + abs(x)))
            item.ellipsoid(OBJECTS, bloom, (size * 0.5,) * 3, at)
    elif kind == 1:
        item.cylinder(OBJECTS, paint, (size * 0.8, size * 0.8, 0.03), (0.0, 0.0, 0.0))
        item.cylinder(OBJECTS, paint, (0.04, 0.04, size * 1.3), (0.0, 0.0, 0.03))
        item.cylinder(OBJECTS, _LAMPSHADE, (size * 1.2, size * 1.2, size), (0.0, 0.0, size * 1.3))
    elif kind == 2:
        item.cylinder(OBJECTS, paint, (size * 1.5, size * 1.5, size * 0.4), (0.0, 0.0, 0.0))
        for x, y in ((-0.35, 0.1), (0.3, 0.25), (0.0, -0.35)):
            fruit = Paint(tint(rng, rng.uniform(0.0, 0.3), (0.7, 1.0), (0.6, 1.0)), gloss=0.3)
            item.ellipsoid(OBJECTS, fruit, (size * 0.6,) * 3, (x * size, y * size, size * 0.2))
    elif kind == 3:
        item.box(OBJECTS, paint, (size * 1.5, size, size), (0.0, 0.0, 0.0), rng.uniform(-0.4, 0.4))
    elif kind == 4:
        item.cylinder(OBJECTS, _STEEL, (size * 0.6, size * 0.6, size * 0.25), (0.0, 0.0, 0.0))
        item.ellipsoid(OBJECTS, paint, (size * 1.2,) * 3, (0.0, 0.0, size * 0.2))
    else:
        item.put(plant(rng, rng.uniform(0.3, 0.45)), (0.0, 0.0, 0.0))
    return item


def plant(rng, height):
    """Build a pot with leaves."""
    item, leaf = Item(), tint(rng, rng.uniform(0.22, 0.4), (0.5, 0.9), (0.2, 0.55))
    pot = Paint(tint(rng, rng.uniform(0.0, 0.12), (0.1, 0.7), (0.4, 0.9)))
    item.cylinder(OBJECTS, pot, (height * 0.35, height * 0.35, height * 0.35), (0.0, 0.0, 0.0))
    for _ in range(5):
        x, y = rng.uniform(-0.15, 0.15, 2) * height
        paint = Paint(shaded(leaf, rng.uniform(0.7, 1.4)), shaded(leaf, 0.4), CARPET, 0.04)
        size = rng.uniform(0.25, 0.4, 3) * height
        item.ellipsoid(OBJECTS, paint, tuple(size), (x, y, height * rng.uniform(0.35, 0.7)))
    return item


def floor_thing(rng):
    """Build something that stands about on a floor: plant, basket, crate, ball, floor lamp, suitcase."""
    item, paint = Item(), Paint(tint(rng, None, (0.2, 0.9), (0.25, 0.9)), gloss=0.2)
    kind = rng.integers(6)
    if kind == 0:
        return plant(rng, rng.uniform(0.8, 1.5))
    if kind == 1:
        woven = paint._replace(second=shaded(paint.colour, 0.5), material=PLAID, scale=0.05)
        item.cylinder(OBJECTS, woven, (0.4, 0.4, rng.uniform(0.35, 0.6)), (0.0, 0.0, 0.0))
    elif kind == 2:
        item.box(OBJECTS, paint, (rng.uniform(0.35, 0.6), 0.4, rng.uniform(0.25, 0.45)), (0.0, 0.0, 0.0))
        item.put(book_pile(rng), (0.0, 0.0, item.bounds()[0, 5]))
    elif kind == 3:
        size = rng.uniform(0.25, 0.6)
        item.ellipsoid(OBJECTS, paint, (size, size, size), (0.0, 0.0, 0.0))
    elif kind == 4:
        height = rng.uniform(1.3, 1.6)
        item.cylinder(OBJECTS, _STEEL, (0.3, 0.3, 0.03), (0.0, 0.0, 0.0))
        item.cylinder(OBJECTS, _STEEL, (0.04, 0.04, height), (0.0, 0.0, 0.03))
        item.cylinder(OBJECTS, _LAMPSHADE, (0.4, 0.4, 0.28), (0.0, 0.0, height))
    else:
        item.box(OBJECTS, paint, (0.45, 0.22, 0.62), (0.0, 0.0, 0.03))
        item.box(OBJECTS, _BLACK, (0.2, 0.03, 0.08), (0.0, 0.0, 0.65))
    return item


def scatter(rng, item, width, depth, z, count, centre_y):
    """Put books and ornaments on a top of `width` x `depth` at height z, side by side."""
    for slot in range(count):
        x = ((slot + 0.5) / count - 0.5) * (width - 0.1) + rng.uniform(-0.05, 0.05) * width / count
        y = centre_y + rng.uniform(-0.5, 0.5) * max(depth - 0.36, 0.0)
        thing = book_pile(rng) if rng.random() < 0.5 else ornament(rng)
        item.put(thing, (x, y, z))


# --- furniture -------------------------------------------------------------------------------------------


def bed(rng, style):
    """Build a bed: frame, mattress, cover, pillows, headboard."""
    item = Item()
    width, length = rng.choice([1.0, 1.4, 1.7]), rng.uniform(1.95, 2.1)
    low, thick = rng.uniform(0.22, 0.34), rng.uniform(0.18, 0.26)
    sheet = Paint(tint(rng, None, (0.0, 0.15), (0.8, 0.97)))
    item.box(BED, style.dark, (width + 0.06, 0.06, rng.uniform(0.8, 1.2)), (0.0, 0.03, 0.0))
    item.box(BED, style.dark, (width + 0.04, length - 0.06, low - 0.08), (0.0, length / 2 + 0.03, 0.08))
    _legs(item, BED, style.dark, width, length - 0.1, 0.1, 0.08, length / 2)
    item.box(BED, sheet, (width, length - 0.08, thick), (0.0, length / 2 + 0.03, low))
    fold = rng.uniform(0.5, 0.8)
    cover = (width + 0.05, length - fold, thick + 0.03 - 0.05)
    item.box(BED, style.cover, cover, (0.0, fold + (length - fold) / 2, low + 0.05))
    for x in (-0.25, 0.25) if width > 1.2 else (0.0,):
        pillow = Paint(tint(rng, None, (0.0, 0.5), (0.6, 0.97)))
        size = (min(0.7, width * 0.46), 0.42, 0.2)
        item.ellipsoid(OBJECTS, pillow, size, (x * width, 0.32, low + thick - 0.04))
    if rng.random() < 0.3:
        item.put(book_pile(rng), (rng.uniform(-0.2, 0.2), length * 0.7, low + thick + 0.03))
    return item


def nightstand(rng, style):
    """Build a bedside cabinet with things on it."""
    item, height = Item(), rng.uniform(0.45, 0.6)
    item.box(FURNITURE, style.wood, (0.45, 0.4, height - 0.06), (0.0, 0.2, 0.06))
    item.box(FURNITURE, style.dark, (0.39, 0.34, 0.06), (0.0, 0.2, 0.0))
    item.box(FURNITURE, style.dark, (0.36, 0.02, 0.03), (0.0, 0.41, height - 0.18))
    item.put(ornament(rng) if rng.random() < 0.6 else book_pile(rng), (0.0, 0.2, height))
    return item


def cabinet(rng, style, height=None):
    """Build a chest of drawers, a sideboard or a wardrobe; what is low carries things."""
    item = Item()
    height = height or rng.choice([0.75, 0.95, 1.9, 2.1])
    width, depth = rng.uniform(0.8, 1.5), rng.uniform(0.4, 0.55)
    front = style.wood if rng.random() < 0.7 else style.trim
    item.box(FURNITURE, style.wood, (width, depth, height - 0.06), (0.0, depth / 2, 0.06))
    item.box(FURNITURE, style.dark, (width - 0.06, depth - 0.06, 0.06), (0.0, depth / 2, 0.0))
    columns, rows = (2, 1) if height > 1.2 else (rng.integers(1, 3), rng.integers(2, 4))
    cell_x, cell_z = (width - 0.04) / columns, (height - 0.12) / rows
    for column in range(columns):
        for row in range(rows):
            x, z = (column - (columns - 1) / 2) * cell_x, 0.09 + row * cell_z
            item.box(FURNITURE, front, (cell_x - 0.02, 0.02, cell_z - 0.02), (x, depth + 0.01, z))
            handle = (0.02, 0.025, 0.25) if height > 1.2 else (0.16, 0.025, 0.02)
            side = -0.4 * cell_x * (2 * column - 1) if height > 1.2 else 0.0
            item.box(FURNITURE, _STEEL, handle, (x + side, depth + 0.0325, z + cell_z * 0.5))
    if height < 1.2:
        scatter(rng, item, width, depth, height, rng.integers(1, 4), depth / 2)
    return item


def bookshelf(rng, style):
    """Build shelves between two sides, filled mostly with books."""
    item = Item()
    width, depth, height = rng.uniform(0.8, 1.5), rng.uniform(0.26, 0.34), rng.uniform(1.2, 2.2)
    for x in (-1, 1):
        item.box(FURNITURE, style.wood, (0.03, depth, height), (x * (width - 0.03) / 2, depth / 2, 0.0))
    item.box(FURNITURE, style.dark, (width - 0.06, 0.01, height - 0.02), (0.0, 0.005, 0.01))
    rows = max(2, round(height / rng.uniform(0.33, 0.42)))
    cell = (height - 0.03) / rows
    for row in range(rows + 1):
        at = (0.0, depth / 2 + 0.005, row * cell)
        item.box(FURNITURE, style.wood, (width - 0.062, depth - 0.02, 0.03), at)
    for row in range(rows):
        z = row * cell + 0.03
        if rng.random() < 0.85:
            item.put(book_row(rng, width - 0.1, cell - 0.03, depth - 0.03), (0.0, 0.015, z))
        else:
            box = Paint(tint(rng), gloss=0.1)
            item.box(OBJECTS, box, (width * 0.4, depth * 0.8, cell * 0.6), (-width * 0.2, depth * 0.5, z))
    return item


def table(rng, style, width, depth, height, things=2):
    """Build a table or, with its back to a wall, a desk."""
    item, thick = Item(), rng.uniform(0.03, 0.06)
    legs = style.wood if rng.random() < 0.6 else style.dark
    if rng.random() < 0.2 and abs(width - depth) < 0.4:
        item.cylinder(TABLE, style.wood, (width, depth, thick), (0.0, depth / 2, height - thick))
        item.cylinder(TABLE, legs, (0.1, 0.1, height - thick), (0.0, depth / 2, 0.0))
        item.cylinder(TABLE, legs, (0.5, 0.5, 0.04), (0.0, depth / 2, 0.0))
        width = depth = 0.7 * min(width, depth)
    else:
        item.box(TABLE, style.wood, (width, depth, thick), (0.0, depth / 2, height - thick))
        item.box(TABLE, legs, (width - 0.14, depth - 0.14, 0.07), (0.0, depth / 2, height - thick - 0.07))
        leg = rng.uniform(0.05, 0.09)
        _legs(item, TABLE, legs, width - 0.06, depth - 0.06, height - thick, leg, depth / 2)
    scatter(rng, item, width, depth, height, things, item.bounds()[0, 4] / 2)
    return item


def chair(rng, style, paint=None):
    """Build a chair with four legs and a back of slats or cloth; its front is +y."""
    item, height = Item(), rng.uniform(0.43, 0.48)
    paint = paint or (style.wood if rng.random() < 0.4 else style.dark)
    seat = style.fabric if rng.random() < 0.6 else paint
    item.box(CHAIR, seat, (0.46, 0.44, 0.06), (0.0, 0.24, height - 0.06))
    _legs(item, CHAIR, paint, 0.44, 0.42, height - 0.06, 0.045, 0.24)
    top = rng.uniform(0.85, 1.05)
    if rng.random() < 0.5:
        for x in (-0.195, 0.195):
            item.box(CHAIR, paint, (0.045, 0.04, top - height), (x, 0.025, height))
        for z in (0.35, 0.75):
            size = (0.35, 0.025, (top - height) * 0.25)
            item.box(CHAIR, paint, size, (0.0, 0.025, height + z * (top - height)))
    else:
        item.box(CHAIR, seat, (0.44, 0.045, top - height - 0.05), (0.0, 0.03, height + 0.05))
        item.box(CHAIR, paint, (0.1, 0.03, 0.1), (0.0, 0.03, height - 0.02))
    return item


def office_chair(rng, style):
    """Build a swivel chair."""
    item, height = Item(), rng.uniform(0.44, 0.52)
    cloth = Paint(tint(rng, None, (0.0, 0.8), (0.08, 0.6)))
    for yaw in (0.0, 1.2566, 2.5133):
        item.box(CHAIR, _BLACK, (0.56, 0.05, 0.06), (0.0, 0.28, 0.0), yaw)
    item.cylinder(CHAIR, _STEEL, (0.06, 0.06, height - 0.14), (0.0, 0.28, 0.06))
    item.box(CHAIR, cloth, (0.5, 0.48, 0.09), (0.0, 0.28, height - 0.09))
    item.ellipsoid(CHAIR, cloth, (0.48, 0.14, 0.62), (0.0, 0.06, height + 0.04))
    for x in (-0.27, 0.27):
        item.box(CHAIR, _BLACK, (0.05, 0.3, 0.035), (x, 0.27, height + 0.18))
        item.box(CHAIR, _BLACK, (0.035, 0.05, 0.2), (x, 0.27, height - 0.02))
    return item


def sofa(rng, style, seats=None):
    """Build a sofa or, with one seat, an armchair: base, cushions, back, arms."""
    item = Item()
    seats = seats or rng.integers(2, 4)
    arm, depth, low = rng.uniform(0.12, 0.22), rng.uniform(0.8, 0.95), rng.uniform(0.24, 0.3)
    inner, top = seats * rng.uniform(0.58, 0.7), rng.uniform(0.72, 0.9)
    cloth = style.fabric
    deep = cloth._replace(colour=shaded(cloth.colour, 0.85))
    item.box(SOFA, deep, (inner + 0.02, depth - 0.06, low - 0.06), (0.0, depth / 2, 0.06))
    item.box(SOFA, cloth, (inner + 0.01, 0.2, top - 0.1), (0.0, 0.1, 0.1))
    _legs(item, SOFA, style.dark, inner, depth - 0.1, 0.06, 0.07, depth / 2)
    for x in (-1, 1):
        item.box(SOFA, cloth, (arm, depth, low + 0.28), (x * (inner + arm) / 2, depth / 2 + 0.005, 0.04))
    for seat in range(seats):
        x = (seat - (seats - 1) / 2) * inner / seats
        at = (x, 0.22 + (depth - 0.22) / 2, low)
        item.box(SOFA, cloth, (inner / seats - 0.015, depth - 0.24, 0.15), at)
        item.box(SOFA, cloth, (inner / seats - 0.03, 0.14, top - low - 0.18), (x, 0.27, low + 0.152))
        if rng.random() < 0.5:
            cushion = fabric_paint(rng)
            turn = rng.uniform(-0.3, 0.3)
            item.ellipsoid(OBJECTS, cushion, (0.44, 0.17, 0.42), (x, 0.42, low + 0.14), turn)
    return item


def screen(rng, width):
    """Build a television without a stand, its lower edge at z = 0."""
    item, height = Item(), width * 0.58
    bright = rng.random() < 0.35
    shown = (1.0, 1.0, 1.0) if bright else (0.06, 0.06, 0.07)
    paint = Paint(_BLACK.colour, shown, SCREEN, 1.0, 0.6, 0.8 * bright)
    item.box(TV, _BLACK, (width, 0.05, height), (0.0, 0.05, 0.0))
    item.box(TV, paint, (width - 0.06, 0.012, height - 0.06), (0.0, 0.081, 0.03))
    return item


def tv_stand(rng, style):
    """Build a low cabinet with a television and things beside it."""
    width, height, size = rng.uniform(1.3, 1.9), rng.uniform(0.4, 0.6), rng.uniform(0.95, 1.3)
    item = Item()
    item.box(FURNITURE, style.wood, (width, 0.42, height - 0.05), (0.0, 0.21, 0.05))
    item.box(FURNITURE, style.dark, (width - 0.08, 0.36, 0.05), (0.0, 0.21, 0.0))
    for x in (-0.25, 0.25):
        item.box(FURNITURE, style.dark, (width / 2 - 0.06, 0.02, height - 0.15), (x * width, 0.43, 0.1))
    item.box(TV, _BLACK, (0.4, 0.2, 0.02), (0.0, 0.2, height))
    item.box(TV, _BLACK, (0.08, 0.04, 0.08), (0.0, 0.18, height + 0.02))
    item.put(screen(rng, size), (0.0, 0.13, height + 0.07))
    if width - size > 0.5:
        item.put(book_pile(rng) if rng.random() < 0.5 else ornament(rng), (width / 2 - 0.14, 0.22, height))
    return item


def desk(rng, style):
    """Build a desk with a monitor, books and a chair before it."""
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.6, 0.75), rng.uniform(0.7, 0.76)
    item = table(rng, style, width, depth, height, things=0)
    item.box(FURNITURE, style.wood, (0.4, depth - 0.2, height - 0.2), (width / 2 - 0.3, depth / 2, 0.05))
    item.box(TV, _BLACK, (0.26, 0.18, 0.02), (0.0, 0.22, height))
    item.box(TV, _BLACK, (0.05, 0.03, 0.12), (0.0, 0.18, height + 0.02))
    item.put(screen(rng, rng.uniform(0.55, 0.75)), (0.0, 0.12, height + 0.12))
    item.box(OBJECTS, _BLACK, (0.42, 0.14, 0.02), (0.0, depth - 0.15, height), rng.uniform(-0.1, 0.1))
    item.put(book_pile(rng), (-width / 2 + 0.22, depth / 2, height))
    thing = book_pile(rng) if rng.random() < 0.5 else ornament(rng)
    item.put(thing, (width / 2 - 0.2, depth / 2 - 0.1, height))
    seat = office_chair(rng, style) if rng.random() < 0.6 else chair(rng, style)
    turn = math.pi + rng.uniform(-0.6, 0.6)
    item.put(seat, (rng.uniform(-0.25, 0.05), depth + rng.uniform(0.4, 0.6), 0.0), turn)
    return item


def dining_set(rng, style):
    """Build a table with chairs around it."""
    width, depth = rng.uniform(1.2, 1.8), rng.uniform(0.8, 1.0)
    item = Item()
    item.put(table(rng, style, width, depth, rng.uniform(0.72, 0.77), rng.integers(1, 4)), (0.0, 0.0, 0.0))
    paint = style.wood if rng.random() < 0.5 else style.dark
    one = chair(rng, style, paint)
    places = itertools.product((-0.24 * width, 0.24 * width), ((-0.2, 0.0), (depth + 0.2, math.pi)))
    for x, (y, yaw) in places:
        if rng.random() < 0.85:
            out = rng.uniform(-0.05, 0.2) * (1 if yaw else -1)
            item.put(one, (x, y + out, 0.0), yaw + rng.uniform(-0.25, 0.25))
    return item


# --- things on walls -------------------------------------------------------------------------------------


def picture(rng, style):
    """Build a framed picture."""
    item, (width, height) = Item(), rng.uniform(0.45, 1.2, 2)
    frame = style.dark if rng.random() < 0.5 else Paint(tint(rng, 0.1, (0.0, 0.6), (0.1, 0.9)))
    canvas = Paint((0.7, 0.68, 0.62), (1.0, 1.0, 1.0), CANVAS, 1.0)
    item.box(PICTURE, frame, (width, 0.03, height), (0.0, 0.02, 0.0))
    item.box(PICTURE, canvas, (width - 0.1, 0.01, height - 0.1), (0.0, 0.041, 0.05))
    return item


def window(rng, style, width, height):
    """Build a window with a frame, bars, a view and perhaps curtains."""
    item = Item()
    sky = tuple(rng.uniform(0.75, 1.0) * c for c in (0.9, 0.97, 1.0))
    view = Paint((0.9, 0.95, 1.0), sky, OUTSIDE, 1.0, 0.0, 2.2)
    item.box(WINDOW, view, (width, 0.01, height), (0.0, 0.012, 0.0))
    for x in (-1, 0, 1) if rng.random() < 0.6 else (-1, 1):
        item.box(WINDOW, style.trim, (0.06, 0.05, height + 0.06), (x * width / 2, 0.03, -0.03))
    for z in (0.0, 1.0):
        item.box(WINDOW, style.trim, (width + 0.1, 0.06, 0.06), (0.0, 0.036, z * height - 0.03))
    if rng.random() < 0.6:
        cloth, reach = fabric_paint(rng, (0.5, 0.95)), height + rng.uniform(0.2, 0.5)
        for side in (-1, 1):
            for fold in range(4):
                x = side * (width / 2 - 0.02 + 0.09 * fold)
                item.cylinder(WINDOW, cloth, (0.11, 0.09, reach), (x, 0.12, height + 0.12 - reach))
        item.box(WINDOW, style.dark, (width + 0.8, 0.025, 0.03), (0.0, 0.12, height + 0.13))
    return item


def door(rng, style):
    """Build a closed door; NYUv2's 13 classes count doors as wall."""
    item, leaf = Item(), style.wood if rng.random() < 0.6 else style.trim
    item.box(WALL, style.trim, (1.0, 0.03, 2.1), (0.0, 0.016, 0.0))
    item.box(WALL, leaf, (0.86, 0.03, 2.02), (0.0, 0.027, 0.0))
    item.box(WALL, _STEEL, (0.12, 0.05, 0.025), (0.35, 0.06, 1.03))
    return item
