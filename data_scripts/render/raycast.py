"""A small ray caster: solids, procedural materials, soft light, one bounce, a camera's sensor.

A scene is a handful of arrays, so that the compiled kernel needs no Python objects. It is made of *solids*
(boxes and frusta turned about the vertical, ellipsoids, upright cylinders), gathered in *groups* with a
bounding box each, inside one big box, the *shell*, whose six faces are the room's floor, ceiling and walls
(out of doors: the ground and the sky). World axes: x and y level, z up, metres.

Labels, depth and normals come from one ray through the centre of each pixel and are exact; colour is
averaged over 2 x 2 rays a pixel, each with one shadow ray to a point of an area light and one bounce. The
compiled parts are `kernel` (what a ray hits), `materials` and `light`; `sensor` makes a photograph of it.
"""

import math
from typing import NamedTuple

import numpy as np

from data_scripts.render.kernel import (
    BOX,
    COS,
    CYLINDER,
    ELLIPSOID,
    FRUSTUM,
    GEOMETRY_COLUMNS,
    HALF_X,
    HALF_Y,
    HALF_Z,
    MATERIAL,
    SHELL,
    SIN,
    X,
    Y,
    Z,
    trace_truth,
)
from data_scripts.render.light import smooth_light, trace_colour
from data_scripts.render.materials import PLAIN, SKY
from data_scripts.render.sensor import expose


class Paint(NamedTuple):
    """How a surface looks: two linear colours that a material mixes, its size in metres, its shine."""

    colour: tuple
    second: tuple = None
    material: int = PLAIN
    scale: float = 0.1
    gloss: float = 0.0
    glow: float = 0.0


class Light(NamedTuple):
    """A rectangle that shines: centre, two half edges, colour, and where it faces (zeros: everywhere)."""

    centre: tuple
    half_u: tuple
    half_v: tuple
    colour: tuple
    facing: tuple = (0.0, 0.0, 0.0)


class Item:
    """A thing made of solids, in its own frame: x along its width, y from its back to its front, z up.

    `groups` is a list of lists of rows; each group gets a bounding box of its own in the scene.
    """

    def __init__(self):
        self.groups = [[]]

    def box(self, label, paint, size, at, yaw=0.0):
        """Add a box of `size` (width, depth, height) whose base is centred on `at`."""
        self._solid(BOX, label, paint, size, at, yaw)

    def ellipsoid(self, label, paint, size, at, yaw=0.0):
        """Add an ellipsoid with the axes `size` whose lowest point is `at`."""
        self._solid(ELLIPSOID, label, paint, size, at, yaw)

    def cylinder(self, label, paint, size, at, yaw=0.0):
        """Add an upright cylinder of `size` (width, depth, height) whose base is centred on `at`."""
        self._solid(CYLINDER, label, paint, size, at, yaw)

    def frustum(self, label, paint, size, at, top, yaw=0.0):
        """Add a box with sloping sides; `top` is its upper face's width and depth over those of its base."""
        self._solid(FRUSTUM, label, paint, size, at, yaw, top)

    def _solid(self, kind, label, paint, size, at, yaw, top=(1.0, 1.0)):
        second = paint.colour if paint.second is None else paint.second
        # The pattern's seed comes from the size and place, so that two equal chairs differ in grain only.
        grain = int(abs(at[0] * 7919 + at[1] * 104729 + at[2] * 1299709 + size[0] * 15485863)) % 65521
        self.groups[0].append(
            [
                at[0],
                at[1],
                at[2] + size[2] / 2,
                size[0] / 2,
                size[1] / 2,
                size[2] / 2,
                math.cos(yaw),
                math.sin(yaw),
                kind,
                *top,
                label,
                paint.material,
                *paint.colour,
                *second,
                paint.scale,
                paint.gloss,
                paint.glow,
                grain,
            ]
        )

    def placed(self, at, yaw=0.0):
        """Return a copy turned by `yaw` and moved to `at`."""
        cos, sin = math.cos(yaw), math.sin(yaw)
        copied = Item()
        copied.groups = [[_moved(row, at, cos, sin) for row in group] for group in self.groups]
        return copied

    def put(self, other, at, yaw=0.0):
        """Add a copy of another item; few solids join this item's first group, more stay a group."""
        for group in other.placed(at, yaw).groups:
            if len(group) < 4:
                self.groups[0].extend(group)
            else:
                self.groups.append(group)

    def bounds(self):
        """Return the bounding boxes of the groups, float64 (G, 6): lower corner, upper corner."""
        return np.array([_group_bounds(group) for group in self.groups if group])


def _moved(row, at, cos, sin):
    moved = list(row)
    moved[X] = cos * row[X] - sin * row[Y] + at[0]
    moved[Y] = sin * row[X] + cos * row[Y] + at[1]
    moved[Z] = row[Z] + at[2]
    moved[COS] = cos * row[COS] - sin * row[SIN]
    moved[SIN] = sin * row[COS] + cos * row[SIN]
    return moved


def _group_bounds(group):
    low, high = [math.inf] * 3, [-math.inf] * 3
    for row in group:
        cos, sin = abs(row[COS]), abs(row[SIN])
        reach = (cos * row[HALF_X] + sin * row[HALF_Y], sin * row[HALF_X] + cos * row[HALF_Y], row[HALF_Z])
        for axis in range(3):
            low[axis] = min(low[axis], row[axis] - reach[axis])
            high[axis] = max(high[axis], row[axis] + reach[axis])
    return low + high


def turned(boxes, at, yaw):
    """Return boxes around the boxes (G, 6) after a turn by `yaw` and a move to `at`."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    centre = (boxes[:, :3] + boxes[:, 3:]) / 2 @ turn.T + at
    half = (boxes[:, 3:] - boxes[:, :3]) / 2 @ np.abs(turn).T
    return np.concatenate([centre - half, centre + half], axis=1)


class Scene:
    """Items and lights inside a shell.

    Parameters
    ----------
    size : tuple of float
        Width, depth and height of the shell; its lower corner is the origin.
    faces : list of (int, Paint)
        Label and paint of the floor, the ceiling and the walls at x = 0, x = width, y = 0, y = depth.
    """

    def __init__(self, size, faces):
        self.lights = []
        self.bounds = np.zeros((0, 6))
        self._groups = []
        self._limit = np.add(size, 1e-6)
        shell = Item()
        for label, paint in faces:
            shell._solid(SHELL, label, paint, size, (size[0] / 2, size[1] / 2, 0.0), 0.0)
        self._shell = shell.groups[0]

    def fits(self, boxes, gap=0.02):
        """Say whether bounding boxes (G, 6) lie inside the shell and clear of what is there already."""
        if boxes[:, :3].min() < -1e-6 or (boxes[:, 3:] > self._limit).any():
            return False
        above = boxes[:, None, :3] > self.bounds[:, 3:] + gap
        below = boxes[:, None, 3:] < self.bounds[:, :3] - gap
        return bool((above | below).any(-1).all())

    def reserve(self, lower, upper):
        """Keep a box free of items that are added after this call and asked whether they fit."""
        self.bounds = np.vstack([self.bounds, [*lower, *upper]])

    def add(self, item):
        """Add a placed item."""
        self._groups.extend(group for group in item.groups if group)
        self.bounds = np.vstack([self.bounds, item.bounds()])

    def arrays(self):
        """Return what the kernel reads: geometry (N, 11), surface (N, 12), groups (G, 8), lights (L, 15)."""
        rows = list(self._shell)
        groups = np.zeros((len(self._groups), 8))
        for number, group in enumerate(self._groups):
            groups[number, :6] = _group_bounds(group)
            groups[number, 6:] = len(rows), len(rows) + len(group)
            rows.extend(group)
        rows = np.array(rows)
        geometry = np.ascontiguousarray(rows[:, :GEOMETRY_COLUMNS])
        surface = np.ascontiguousarray(rows[:, GEOMETRY_COLUMNS:])
        lights = np.array([np.concatenate(light) for light in self.lights])
        return geometry, surface, groups, lights


def look(origin, yaw, pitch, focal):
    """Describe a pinhole camera.

    Parameters
    ----------
    origin : tuple of float
        Where it stands.
    yaw, pitch : float
        Radians; yaw 0 looks along y and grows to the left, pitch grows upwards.
    focal : float
        Focal length over the height of the image.

    Returns
    -------
    ndarray
        float64 (5, 3): origin, right, up, forward, and the focal length three times.
    """
    forward = (-math.sin(yaw) * math.cos(pitch), math.cos(yaw) * math.cos(pitch), math.sin(pitch))
    right = (math.cos(yaw), math.sin(yaw), 0.0)
    up = np.cross(right, forward)
    return np.array([origin, right, up, forward, (focal, focal, focal)], dtype=np.float64)


def render(scene, camera, height, width, rng, ambient=0.3, key=0.2, noise=0.01, haze=None):
    """Photograph a scene and read off its ground truth.

    Parameters
    ----------
    scene : Scene
        What to draw.
    camera : ndarray
        From `look`.
    height, width : int
        Size in pixels.
    rng : numpy.random.Generator
        Source of everything that depends on the sensor; the scene itself draws nothing from it.
    ambient, key, noise : float
        Light that has bounced more than once, and see `expose`.
    haze : tuple, optional
        Distance in metres after which 1 / e of the light is left, and the haze's linear colour.

    Returns
    -------
    dict
        `image` float32 (H, W, 3), `label` int64 (H, W), `depth` float32 (H, W, 1),
        `normal` float32 (H, W, 3).
    """
    geometry, surface, groups, lights = scene.arrays()
    rows, label, depth, normal = trace_truth(geometry, surface, groups, camera, height, width)
    grain = int(rng.integers(1 << 30))
    own, albedo, direct, bounce = trace_colour(
        geometry, surface, groups, lights, ambient, camera, height, width, grain
    )
    light = smooth_light(direct, rows, normal, 1) + smooth_light(bounce, rows, normal, max(2, height // 32))
    radiance = own + albedo * light
    if haze is not None:
        veil = (1.0 - np.exp(-depth / haze[0])) * (surface[rows, MATERIAL] != SKY)
        radiance += veil[..., None] * (np.array(haze[1]) - radiance)
    image = expose(radiance, rng, key, noise)
    return {"image": image, "label": label, "depth": depth[..., None], "normal": normal}
