"""Furnished rooms with exact labels, depth and normals, drawn from a seed.

A stand-in for NYUv2 in the miniature: the same 13 classes, the same layout of arrays. A room's camera stands
near the wall at y = 0; furniture goes along the other walls, then into the middle. Several directions of view
are tried and the one that shows most classes is kept.
"""

import math

import numpy as np

from data_scripts.render import furniture as f
from data_scripts.render.kernel import trace_truth
from data_scripts.render.materials import CARPET, PLAIN, PLANKS, STRIPES, TILES
from data_scripts.render.raycast import Item, Light, Paint, Scene, look, render, turned
from simo.tasks import NYUV2_CLASSES as CLASSES

_CEILING_PAINT = (0.72, 0.72, 0.7)


class Room:
    """A scene being furnished: what stands where, and how to find a free place.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every choice.
    """

    def __init__(self, rng):
        self.rng = rng
        self.style = f.draw_style(rng)
        self.width, self.depth = rng.uniform(2.8, 5.2), rng.uniform(3.4, 5.7)
        self.height = rng.uniform(2.35, 2.9)
        self.scene = Scene((self.width, self.depth, self.height), self._faces())
        x, y = rng.uniform(0.25, 0.75) * self.width, rng.uniform(0.35, 0.6)
        self.camera_at = (x, y, rng.uniform(1.15, 1.75))
        self.scene.reserve((x - 0.5, 0.0, 0.0), (x + 0.5, y + 0.9, self.height))

    def _faces(self):
        rng = self.rng
        kind = rng.choice([PLANKS, PLANKS, CARPET, TILES])
        colour = f.wood_paint(rng, (0.35, 0.85)).colour if kind == PLANKS else f.tint(rng, None, (0.02, 0.4))
        second = f.shaded(colour, 0.65 if kind != TILES else 0.4)
        floor = Paint(colour, second, int(kind), {PLANKS: 0.14, CARPET: 0.1, TILES: 0.4}[kind], 0.2)
        ceiling = Paint(tuple(c * rng.uniform(0.85, 1.15) for c in _CEILING_PAINT), scale=0.5)
        wall = f.tint(rng, None, (0.02, 0.35), (0.6, 0.95))
        pattern = rng.choice([PLAIN, PLAIN, STRIPES])
        wall = Paint(wall, f.shaded(wall, rng.uniform(0.7, 0.9)), int(pattern), rng.uniform(0.15, 0.35))
        accent = Paint(f.tint(rng, None, (0.2, 0.7), (0.4, 0.85)), scale=0.5)
        walls = [accent if rng.random() < 0.15 else wall for _ in range(4)]
        return [(f.FLOOR, floor), (f.CEILING, ceiling)] + [(f.WALL, paint) for paint in walls]

    def against(self, item, walls="blr", z=0.0, gap=0.03, tries=10):
        """Put an item with its back to one of the walls (back, left, right, front); say whether it fitted."""
        boxes = item.bounds()
        reach = np.abs(boxes[:, [0, 3]]).max() + 0.02
        for _ in range(tries):
            wall = walls[self.rng.integers(len(walls))]
            length = self.width if wall in "bf" else self.depth
            if length < 2 * reach:
                continue
            along = self.rng.uniform(reach, length - reach)
            at, yaw = {
                "b": ((along, self.depth - gap, z), math.pi),
                "f": ((along, gap, z), 0.0),
                "l": ((gap, along, z), -math.pi / 2),
                "r": ((self.width - gap, along, z), math.pi / 2),
            }[wall]
            if self.scene.fits(turned(boxes, at, yaw)):
                self.scene.add(item.placed(at, yaw))
                return True
        return False

    def standing(self, item, tries=10, any_way=True):
        """Put an item somewhere on the floor; say whether it fitted."""
        boxes = item.bounds()
        for _ in range(tries):
            at = (self.rng.uniform(0.3, self.width - 0.3), self.rng.uniform(1.2, self.depth - 0.3), 0.0)
            yaw = self.rng.uniform(-math.pi, math.pi) if any_way else self.rng.choice([0.0, math.pi / 2])
            if self.scene.fits(turned(boxes, at, yaw)):
                self.scene.add(item.placed(at, yaw))
                return True
        return False


def _lights(room):
    """Put one or two windows into the walls, and up a lamp that is lit unless there are two."""
    rng, scene = room.rng, room.scene
    width, sill, daylight = rng.uniform(0.9, 1.8), rng.uniform(0.75, 1.0), rng.uniform(2.0, 9.0)
    height = min(rng.uniform(1.0, 1.5), room.height - sill - 0.2)
    for walls in ("bblr", "lrf")[: rng.integers(1, 3)]:
        if room.against(f.window(rng, room.style, width, height), walls, z=sill, gap=0.0):
            scene.lights.append(_daylight(room, width, height, daylight))
    lit = len(scene.lights) < 2
    glass = Paint((1.0, 0.95, 0.85), glow=2.5 if lit else 0.0)
    x, y = rng.uniform(0.3, 0.7) * room.width, rng.uniform(0.35, 0.7) * room.depth
    size, drop = rng.uniform(0.12, 0.3), rng.uniform(0.3, 0.6)
    lamp = Item()
    if rng.random() < 0.5:
        drop = 0.1
        lamp.cylinder(f.OBJECTS, glass, (2 * size, 2 * size, 0.08), (x, y, room.height - 0.081))
    else:
        z = room.height - drop
        lamp.ellipsoid(f.OBJECTS, glass, (0.32, 0.32, 0.26), (x, y, z))
        lamp.cylinder(f.OBJECTS, room.style.dark, (0.02, 0.02, drop - 0.251), (x, y, z + 0.25))
    scene.add(lamp)
    power = rng.uniform(2.0, 7.0)
    if lit:
        colour = (power, power * rng.uniform(0.8, 0.95), power * rng.uniform(0.55, 0.85))
        at = (x, y, room.height - drop - 0.02)
        scene.lights.append(Light(at, (size, 0.0, 0.0), (0.0, size, 0.0), colour))


def _daylight(room, width, height, power):
    """Return the light that falls in through the window that was added last."""
    lower, upper = room.scene.bounds[-1, :3], room.scene.bounds[-1, 3:]
    centre = (lower + upper) / 2
    spots = {
        (0.0, -1.0): room.depth - centre[1],
        (0.0, 1.0): centre[1],
        (1.0, 0.0): centre[0],
        (-1.0, 0.0): room.width - centre[0],
    }
    facing = min(spots, key=spots.get)
    inward = 0.2
    at = (centre[0] + inward * facing[0], centre[1] + inward * facing[1], centre[2])
    across = (width / 2 * abs(facing[1]), width / 2 * abs(facing[0]), 0.0)
    colour = (0.8 * power, 0.92 * power, 1.05 * power)
    return Light(at, across, (0.0, 0.0, height / 2), colour, (*facing, 0.0))


# --- kinds of room ---------------------------------------------------------------------------------------


def _bedroom(room):
    rng, style = room.rng, room.style
    sleeping = Item()
    bed = f.bed(rng, style)
    sleeping.put(bed, (0.0, 0.0, 0.0))
    edge = np.abs(bed.bounds()[:, [0, 3]]).max() + 0.3
    sides = (-1, 1) if rng.random() < 0.5 else (rng.choice([-1, 1]),)
    for side in sides:
        sleeping.put(f.nightstand(rng, style), (side * edge, 0.0, 0.0))
    if not room.against(sleeping, "bblr"):
        room.against(bed, "blr")
    room.against(f.tv_stand(rng, style) if rng.random() < 0.5 else f.cabinet(rng, style))
    room.against(f.bookshelf(rng, style) if rng.random() < 0.6 else f.desk(rng, style))
    room.against(f.chair(rng, style) if rng.random() < 0.6 else f.sofa(rng, style, 1))


def _living_room(room):
    rng, style = room.rng, room.style
    seating = Item()
    sofa = f.sofa(rng, style)
    seating.put(sofa, (0.0, 0.0, 0.0))
    size = rng.uniform((0.8, 0.5, 0.36), (1.2, 0.7, 0.46))
    low = f.table(rng, style, *size, rng.integers(1, 3))
    seating.put(low, (rng.uniform(-0.2, 0.2), rng.uniform(1.2, 1.45), 0.0))
    if not room.against(seating, "bllrr"):
        room.against(sofa)
    room.against(f.tv_stand(rng, style), "bblr")
    room.against(f.bookshelf(rng, style))
    room.standing(f.sofa(rng, style, 1) if rng.random() < 0.5 else f.chair(rng, style))


def _office(room):
    rng, style = room.rng, room.style
    for _ in range(rng.integers(1, 3)):
        room.against(f.desk(rng, style))
    room.against(f.bookshelf(rng, style))
    room.against(f.cabinet(rng, style))
    room.against(f.bookshelf(rng, style) if rng.random() < 0.5 else f.sofa(rng, style))
    room.standing(f.chair(rng, style))


def _dining_room(room):
    rng, style = room.rng, room.style
    room.standing(f.dining_set(rng, style), any_way=False)
    room.against(f.cabinet(rng, style, rng.uniform(0.75, 0.95)))
    room.against(f.tv_stand(rng, style) if rng.random() < 0.5 else f.bookshelf(rng, style))
    room.against(f.chair(rng, style))
    room.against(f.sofa(rng, style) if rng.random() < 0.4 else f.cabinet(rng, style))


def _study(room):
    rng, style = room.rng, room.style
    room.against(f.sofa(rng, style) if rng.random() < 0.5 else f.bed(rng, style))
    for _ in range(rng.integers(2, 4)):
        room.against(f.bookshelf(rng, style))
    room.against(f.desk(rng, style))
    room.standing(f.table(rng, style, 0.6, 0.6, rng.uniform(0.45, 0.6), 1))
    room.standing(f.chair(rng, style))


_KINDS = (_bedroom, _bedroom, _living_room, _living_room, _office, _dining_room, _study)


def furnish(rng):
    """Build a furnished room.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every choice.

    Returns
    -------
    Room
    """
    room = Room(rng)
    _lights(room)
    _KINDS[rng.integers(len(_KINDS))](room)
    for build in rng.choice([f.cabinet, f.bookshelf, f.chair, f.sofa], 2, replace=False):
        room.against(build(rng, room.style))
    for _ in range(rng.integers(2, 5)):
        room.against(f.picture(rng, room.style), "bblr", rng.uniform(1.15, 1.4), 0.0)
    if rng.random() < 0.3:
        room.against(f.screen(rng, rng.uniform(0.9, 1.3)), "blr", rng.uniform(1.0, 1.3), 0.0)
    if rng.random() < 0.35:
        room.against(f.door(rng, room.style), "lrb", gap=0.0)
    for _ in range(rng.integers(1, 4)):
        room.standing(f.floor_thing(rng))
    if rng.random() < 0.3:
        room.standing(f.book_pile(rng, 6))
    _finish(room)
    return room


def _finish(room):
    """Add what may lie under or behind the rest: a rug and skirting boards."""
    rng = room.rng
    if rng.random() < 0.5:
        rug = Item()
        size = (rng.uniform(0.4, 0.7) * room.width, rng.uniform(0.3, 0.55) * room.depth, 0.012)
        at = (room.width / 2, rng.uniform(0.45, 0.6) * room.depth, 0.0)
        rug.box(f.FLOOR, f.fabric_paint(rng), size, at)
        room.scene.add(rug)
    board, high = room.style.trim, rng.uniform(0.06, 0.12)
    skirting = Item()
    skirting.box(f.WALL, board, (room.width, 0.012, high), (room.width / 2, room.depth - 0.006, 0.0))
    for x in (0.006, room.width - 0.006):
        skirting.box(f.WALL, board, (0.012, room.depth - 0.03, high), (x, room.depth / 2, 0.0))
    for group in skirting.groups[0]:
        single = Item()
        single.groups = [[group]]
        room.scene.add(single)


# --- the view --------------------------------------------------------------------------------------------

_PROBE = 20  # the side of the small image by which a direction of view is judged
_COMMON = (f.CEILING, f.FLOOR, f.WALL, f.WINDOW)


def _score(label, depth):
    """Judge a view: many classes, a fair share of furniture, nothing right before the lens."""
    share = np.bincount(label.ravel(), minlength=len(CLASSES)) / label.size
    things = 1.0 - share[list(_COMMON)].sum()
    seen = (share > 0.01).sum() - 10.0 * max(0.0, share.max() - 0.5)
    return seen + 8.0 * min(things, 0.45) - (100.0 if depth.min() < 0.45 else 0.0)


def choose_view(room):
    """Return the best of several random cameras, in the form that `raycast.look` gives."""
    rng = room.rng
    geometry, surface, groups, _ = room.scene.arrays()
    focal = rng.uniform(0.72, 1.1)
    best, best_score = None, -math.inf
    for _ in range(6):
        x, y, z = room.camera_at
        origin = (x + rng.uniform(-0.2, 0.2), y + rng.uniform(-0.1, 0.2), z)
        middle = math.atan2(x - room.width / 2, room.depth - y)  # the yaw towards the back wall's middle
        camera = look(origin, middle + rng.uniform(-0.65, 0.65), rng.uniform(-0.4, -0.06), focal)
        _, label, depth, _ = trace_truth(geometry, surface, groups, camera, _PROBE, _PROBE)
        score = _score(label, depth)
        if score > best_score:
            best, best_score = camera, score
    return best


def render_room(seed, height=64, width=64):
    """Render the room of a seed.

    Parameters
    ----------
    seed : int
        In [0, 2**63). The same seed gives the same room and the same view at any size.
    height, width : int
        Size in pixels.

    Returns
    -------
    dict
        `image` float32 (H, W, 3) in [0, 1]; `label` int64 (H, W), an index of `CLASSES`; `depth` float32
        (H, W, 1), metres along the optical axis; `normal` float32 (H, W, 3), unit vectors in the camera's
        frame: x right, y up, z towards the viewer.
    """
    rng = np.random.default_rng(seed)
    (sensor,) = rng.spawn(1)
    room = furnish(rng)
    camera = choose_view(room)
    key, noise = rng.uniform(0.11, 0.21), rng.uniform(0.008, 0.02)
    ambient = rng.uniform(0.15, 0.4)
    return render(room.scene, camera, height, width, sensor, ambient, key, noise)
