"""A small ray caster: solids, procedural materials, soft light, one bounce, a camera's sensor.

A scene is a handful of arrays, so that the compiled kernel needs no Python objects. It is made of *solids*
(boxes turned about the vertical, ellipsoids, upright cylinders), gathered in *groups* with a bounding box
each, inside one big box, the *shell*, whose six faces are the room's floor, ceiling and walls (out of
doors: the ground and the sky). World axes: x and y level, z up, metres.

Labels, depth and normals come from one ray through the centre of each pixel and are exact; colour is
averaged over 2 x 2 rays a pixel, each with one shadow ray to a point of an area light and one bounce.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

BOX, ELLIPSOID, CYLINDER, SHELL = range(4)
PLAIN, WOOD, PLANKS, CARPET, STRIPES, TILES, PLAID, SPINES, CANVAS, SCREEN, OUTSIDE = range(11)

# Columns of a solid's row: geometry, then surface.
X, Y, Z, HALF_X, HALF_Y, HALF_Z, COS, SIN, KIND = range(9)
LABEL, MATERIAL, RED, GREEN, BLUE, RED_2, GREEN_2, BLUE_2, SCALE, GLOSS, GLOW, GRAIN_SEED = range(12)
GEOMETRY_COLUMNS = 9

_OFF_SURFACE = 1e-3  # metres by which secondary rays start away from the surface that they leave


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

    def _solid(self, kind, label, paint, size, at, yaw):
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
        """Return what the kernel reads: geometry (N, 9), surface (N, 12), groups (G, 8), lights (L, 15)."""
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


# --- the kernel: rays against solids ---------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def _hit_solid(geometry, i, ox, oy, oz, dx, dy, dz, limit):
    """Distance at which the ray enters solid i, or `limit`. Rays never start inside a solid."""
    px, py, pz = ox - geometry[i, X], oy - geometry[i, Y], oz - geometry[i, Z]
    cos, sin = geometry[i, COS], geometry[i, SIN]
    hx, hy, hz = geometry[i, HALF_X], geometry[i, HALF_Y], geometry[i, HALF_Z]
    lx, ly = cos * px + sin * py, cos * py - sin * px
    ex, ey, ez = cos * dx + sin * dy + 1e-12, cos * dy - sin * dx + 1e-12, dz + 1e-12
    kind = geometry[i, KIND]
    if kind == BOX:
        ix, iy, iz = 1.0 / ex, 1.0 / ey, 1.0 / ez
        bx, by, bz = abs(ix) * hx, abs(iy) * hy, abs(iz) * hz
        near = max(-lx * ix - bx, -ly * iy - by, -pz * iz - bz)
        far = min(-lx * ix + bx, -ly * iy + by, -pz * iz + bz)
        return near if 0.0 < near < far and near < limit else limit
    # Ellipsoids and cylinders become round after a division by their half axes.
    lx, ly, lz, ex, ey, ez = lx / hx, ly / hy, pz / hz, ex / hx, ey / hy, ez / hz
    if kind == ELLIPSOID:
        a, b, c = ex * ex + ey * ey + ez * ez, lx * ex + ly * ey + lz * ez, lx * lx + ly * ly + lz * lz - 1.0
        root = b * b - a * c
        if root <= 0.0:
            return limit
        near = (-b - math.sqrt(root)) / a
        return near if 0.0 < near < limit else limit
    a, b, c = ex * ex + ey * ey, lx * ex + ly * ey, lx * lx + ly * ly - 1.0
    root = b * b - a * c
    if root <= 0.0:
        return limit
    root = math.sqrt(root)
    cap = abs(1.0 / ez)
    near = max((-b - root) / a, -lz / ez - cap)
    far = min((-b + root) / a, -lz / ez + cap)
    return near if 0.0 < near < far and near < limit else limit


@njit(cache=True, error_model="numpy")
def _hit_shell(geometry, ox, oy, oz, dx, dy, dz):
    """Distance to the shell around the ray, and the row of the face that it meets."""
    tx = (math.copysign(geometry[0, HALF_X], dx) + geometry[0, X] - ox) / (dx + math.copysign(1e-12, dx))
    ty = (math.copysign(geometry[0, HALF_Y], dy) + geometry[0, Y] - oy) / (dy + math.copysign(1e-12, dy))
    tz = (math.copysign(geometry[0, HALF_Z], dz) + geometry[0, Z] - oz) / (dz + math.copysign(1e-12, dz))
    if tz <= tx and tz <= ty:
        return tz, 1 if dz > 0.0 else 0
    if tx <= ty:
        return tx, 3 if dx > 0.0 else 2
    return ty, 5 if dy > 0.0 else 4


@njit(cache=True, error_model="numpy")
def _closest(geometry, groups, ox, oy, oz, dx, dy, dz):
    """Distance to the first surface that the ray meets, and its row."""
    t, row = _hit_shell(geometry, ox, oy, oz, dx, dy, dz)
    ix, iy, iz = 1.0 / (dx + 1e-12), 1.0 / (dy + 1e-12), 1.0 / (dz + 1e-12)
    for g in range(groups.shape[0]):
        ax, bx = (groups[g, 0] - ox) * ix, (groups[g, 3] - ox) * ix
        ay, by = (groups[g, 1] - oy) * iy, (groups[g, 4] - oy) * iy
        az, bz = (groups[g, 2] - oz) * iz, (groups[g, 5] - oz) * iz
        near = max(min(ax, bx), min(ay, by), min(az, bz))
        far = min(max(ax, bx), max(ay, by), max(az, bz))
        if far > 0.0 and near < far and near < t:
            for i in range(int(groups[g, 6]), int(groups[g, 7])):
                s = _hit_solid(geometry, i, ox, oy, oz, dx, dy, dz, t)
                if s < t:
                    t, row = s, i
    return t, row


@njit(cache=True, error_model="numpy")
def _blocked(geometry, surface, groups, ox, oy, oz, dx, dy, dz):
    """Say whether a solid that does not glow lies on the ray before distance 1."""
    ix, iy, iz = 1.0 / (dx + 1e-12), 1.0 / (dy + 1e-12), 1.0 / (dz + 1e-12)
    for g in range(groups.shape[0]):
        ax, bx = (groups[g, 0] - ox) * ix, (groups[g, 3] - ox) * ix
        ay, by = (groups[g, 1] - oy) * iy, (groups[g, 4] - oy) * iy
        az, bz = (groups[g, 2] - oz) * iz, (groups[g, 5] - oz) * iz
        near = max(min(ax, bx), min(ay, by), min(az, bz))
        far = min(max(ax, bx), max(ay, by), max(az, bz))
        if far > 0.0 and near < far and near < 1.0:
            for i in range(int(groups[g, 6]), int(groups[g, 7])):
                if _hit_solid(geometry, i, ox, oy, oz, dx, dy, dz, 1.0) < 1.0 and surface[i, GLOW] == 0.0:
                    return True
    return False


@njit(cache=True, error_model="numpy")
def _normal(geometry, i, x, y, z):
    """Outward normal of solid i at a point of its surface, and the point in the solid's own frame."""
    px, py, lz = x - geometry[i, X], y - geometry[i, Y], z - geometry[i, Z]
    cos, sin = geometry[i, COS], geometry[i, SIN]
    hx, hy, hz = geometry[i, HALF_X], geometry[i, HALF_Y], geometry[i, HALF_Z]
    lx, ly = cos * px + sin * py, cos * py - sin * px
    kind = geometry[i, KIND]
    nx, ny, nz = 0.0, 0.0, 0.0
    if kind == ELLIPSOID:
        nx, ny, nz = lx / (hx * hx), ly / (hy * hy), lz / (hz * hz)
    elif kind == CYLINDER:
        if abs(lz) > hz - 1e-7:
            nz = lz
        else:
            nx, ny = lx / (hx * hx), ly / (hy * hy)
    else:
        ax, ay, az = abs(lx) - hx, abs(ly) - hy, abs(lz) - hz
        side = -1.0 if kind == SHELL else 1.0
        if az >= ax and az >= ay:
            nz = side * lz
        elif ax >= ay:
            nx = side * lx
        else:
            ny = side * ly
    scale = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx * scale, ny * scale, nz * scale
    return cos * nx - sin * ny, sin * nx + cos * ny, nz, lx, ly, lz


@njit(cache=True, error_model="numpy")
def _ray(camera, x, y):
    """Direction through (x, y), in image heights from the centre; its length makes distances z-depths."""
    a, b = x / camera[4, 0], -y / camera[4, 0]
    return (
        camera[3, 0] + a * camera[1, 0] + b * camera[2, 0],
        camera[3, 1] + a * camera[1, 1] + b * camera[2, 1],
        camera[3, 2] + a * camera[1, 2] + b * camera[2, 2],
    )


@njit(cache=True, error_model="numpy")
def trace_truth(geometry, surface, groups, camera, height, width):
    """Cast one ray through the centre of each pixel.

    Returns
    -------
    row, label : ndarray
        int64 (H, W): which solid, and its label.
    depth : ndarray
        float32 (H, W), metres along the optical axis.
    normal : ndarray
        float32 (H, W, 3) in the camera's frame: x right, y up, z towards the viewer.
    """
    rows, label = np.empty((height, width), np.int64), np.empty((height, width), np.int64)
    depth, normal = np.empty((height, width), np.float32), np.empty((height, width, 3), np.float32)
    ox, oy, oz = camera[0]
    for v in range(height):
        for u in range(width):
            dx, dy, dz = _ray(camera, (u + 0.5 - width / 2) / height, (v + 0.5 - height / 2) / height)
            t, i = _closest(geometry, groups, ox, oy, oz, dx, dy, dz)
            nx, ny, nz, _, _, _ = _normal(geometry, i, ox + t * dx, oy + t * dy, oz + t * dz)
            rows[v, u], label[v, u], depth[v, u] = i, int(surface[i, LABEL]), t
            for axis in range(3):
                toward = camera[1 + axis, 0] * nx + camera[1 + axis, 1] * ny + camera[1 + axis, 2] * nz
                normal[v, u, axis] = -toward if axis == 2 else toward
    return rows, label, depth, normal


# --- the kernel: materials and light ---------------------------------------------------------------------


@njit(cache=True, error_model="numpy")
def _hash(i, j, k):
    """A number in [0, 1) that looks random and depends on three integers alone."""
    n = i * 374761393 + j * 668265263 + k * 2147483647 + 1013904223
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFFFFFF
    n = ((n ^ (n >> 16)) * 1103515245) & 0x7FFFFFFFFFFF
    return ((n >> 15) & 0xFFFFFF) / 16777216.0


@njit(cache=True, error_model="numpy")
def _noise(u, v, k):
    """Smooth noise in [0, 1] with features of size 1."""
    i, j = math.floor(u), math.floor(v)
    a, b = u - i, v - j
    a, b = a * a * (3.0 - 2.0 * a), b * b * (3.0 - 2.0 * b)
    i, j = int(i), int(j)
    top = _hash(i, j, k) * (1.0 - a) + _hash(i + 1, j, k) * a
    bottom = _hash(i, j + 1, k) * (1.0 - a) + _hash(i + 1, j + 1, k) * a
    return top * (1.0 - b) + bottom * b


@njit(cache=True, error_model="numpy")
def _hue(h, strength):
    """A linear colour of hue h, from white at strength 0 to full at 1."""
    r = min(max(abs(h * 6.0 - 3.0) - 1.0, 0.0), 1.0)
    g = min(max(2.0 - abs(h * 6.0 - 2.0), 0.0), 1.0)
    b = min(max(2.0 - abs(h * 6.0 - 4.0), 0.0), 1.0)
    return 1.0 + strength * (r - 1.0), 1.0 + strength * (g - 1.0), 1.0 + strength * (b - 1.0)


@njit(cache=True, error_model="numpy")
def _pattern(material, u, v, k):
    """Two-colour materials: the share of the second colour and a brightness, at (u, v) in pattern sizes."""
    i, j = int(math.floor(u)), int(math.floor(v))
    a, b = u - i, v - j
    if material == WOOD:
        rings = _noise(u * 0.35, v * 2.0, k) * 5.0 + _noise(u * 1.1, v * 9.0, k + 1) * 0.9
        return 0.5 + 0.5 * math.sin(rings * 2.5), 0.9 + 0.2 * _noise(u * 0.8, v * 14.0, k + 2)
    if material == PLANKS:
        a = u * 0.14 + 0.37 * (j % 5)
        board = int(math.floor(a))
        seam = 0.55 if b < 0.06 or a - board < 0.01 else 1.0
        return _hash(board, j, k), seam * (0.8 + 0.4 * _noise(u * 0.7, v * 7.0, k))
    if material == CARPET:
        return _noise(u, v, k), 0.75 + 0.5 * _hash(int(math.floor(u * 6.0)), int(math.floor(v * 6.0)), k)
    if material == STRIPES:
        return (1.0 if a < 0.5 else 0.0), 1.0
    if material == TILES:
        grout = a < 0.05 or b < 0.05
        return (1.0 if grout else 0.0), 0.85 + 0.3 * _hash(i, j, k)
    if material == PLAID:
        wide, long = (1.0 if a < 0.45 else 0.0), (1.0 if b < 0.45 else 0.0)
        return 0.5 * (wide + long), 0.9 + 0.2 * _hash(int(math.floor(u * 9.0)), int(math.floor(v * 9.0)), k)
    return 0.0, 0.94 + 0.12 * _noise(u, v, k)


@njit(cache=True, error_model="numpy")
def _picture(material, u, v, k):
    """Many-coloured materials: spines, paintings, screens, the view from a window; (u, v) in [-1, 1]."""
    if material == SPINES:
        spine = int(math.floor(u))
        r, g, b = _hue(_hash(spine, k, 3), 0.25 + 0.6 * _hash(spine, k, 4))
        shade = (0.08 + 0.6 * _hash(spine, k, 5)) * (0.55 if u - spine < 0.12 else 1.0)
        band = 1.9 if 0.45 < v + 0.3 * _hash(spine, k, 6) < 0.6 else 1.0
        return r * shade * band, g * shade * band, b * shade * band
    if material == OUTSIDE:
        garden = v < -0.35 + 0.5 * _noise(u * 3.0, 0.0, k)
        shade = 0.25 + 0.3 * _noise(u * 6.0, v * 6.0, k) if garden else 1.0
        return shade * (0.7 if garden else 0.86 + 0.1 * v), shade * 0.95, shade * (0.5 if garden else 1.0)
    # Paintings and screens: a lower and an upper field with a blob before them.
    low = v < -0.3 + 0.9 * _noise(u * 1.5 + 7.0, 0.0, k)
    away = (u - 0.8 * _hash(k, 1, 1) + 0.4) ** 2 + (v - 0.6 * _hash(k, 2, 1) + 0.2) ** 2
    part = 2 if away < 0.05 + 0.3 * _hash(k, 3, 1) else (1 if low else 0)
    r, g, b = _hue(_hash(k, part, 7), 0.2 + 0.7 * _hash(k, part, 8))
    shade = (0.1 + 0.7 * _hash(k, part, 9)) * (0.75 + 0.5 * _noise(u * 4.0, v * 4.0, k))
    return r * shade, g * shade, b * shade


@njit(cache=True, error_model="numpy")
def _albedo(geometry, surface, i, lx, ly, lz, footprint):
    """Colour of solid i at a point of its frame; patterns finer than `footprint` metres fade away."""
    hx, hy, hz = geometry[i, HALF_X], geometry[i, HALF_Y], geometry[i, HALF_Z]
    ax, ay, az = abs(lx) - hx, abs(ly) - hy, abs(lz) - hz
    if az >= ax and az >= ay:
        u, v, hu, hv = lx, ly, hx, hy
    elif ax >= ay:
        u, v, hu, hv = ly, lz, hy, hz
    else:
        u, v, hu, hv = lx, lz, hx, hz
    material, scale, k = int(surface[i, MATERIAL]), surface[i, SCALE], int(surface[i, GRAIN_SEED])
    if material >= SPINES:
        if material == SPINES:
            return _picture(material, u / scale + 50.0, v / hv, k)
        if az >= ax and az >= ay or ax >= ay:  # the edges of a canvas or a screen
            return surface[i, RED], surface[i, GREEN], surface[i, BLUE]
        r, g, b = _picture(material, u / hu, v / hv, k)
        return r * surface[i, RED_2], g * surface[i, GREEN_2], b * surface[i, BLUE_2]
    if material == WOOD and hv > hu:  # the grain runs along the longer side
        u, v = v, u
    if material == PLANKS and k % 2 == 1:
        u, v = v, u
    share, shade = _pattern(material, u / scale, v / scale, k)
    sharp = min(max(1.6 * scale / footprint - 0.4, 0.0), 1.0)
    share, shade = 0.5 + sharp * (share - 0.5), 1.0 + sharp * (shade - 1.0)
    if material == PLAIN or material == TILES and sharp == 0.0:
        share = 0.0
    return (
        shade * (surface[i, RED] + share * (surface[i, RED_2] - surface[i, RED])),
        shade * (surface[i, GREEN] + share * (surface[i, GREEN_2] - surface[i, GREEN])),
        shade * (surface[i, BLUE] + share * (surface[i, BLUE_2] - surface[i, BLUE])),
    )


@njit(cache=True, error_model="numpy")
def _toward_light(lights, n, a, b, x, y, z, nx, ny, nz):
    """Vector to the point (a, b) of light n, and how strongly it lights a surface at (x, y, z)."""
    dx = lights[n, 0] + a * lights[n, 3] + b * lights[n, 6] - x
    dy = lights[n, 1] + a * lights[n, 4] + b * lights[n, 7] - y
    dz = lights[n, 2] + a * lights[n, 5] + b * lights[n, 8] - z
    square = dx * dx + dy * dy + dz * dz
    length = math.sqrt(square)
    cosine = (dx * nx + dy * ny + dz * nz) / length
    facing = -(dx * lights[n, 12] + dy * lights[n, 13] + dz * lights[n, 14]) / length
    if lights[n, 12] == 0.0 and lights[n, 13] == 0.0 and lights[n, 14] == 0.0:
        facing = 1.0
    # A floor under the square keeps a surface right beside the light from burning out.
    return dx, dy, dz, max(cosine, 0.0) * max(facing, 0.0) / (square + 0.05)


@njit(cache=True, error_model="numpy")
def _bounced(geometry, surface, groups, lights, ambient, x, y, z, nx, ny, nz, a, b, out):
    """Add to `out` what arrives at a surface from one random direction, picked by (a, b) in [0, 1)."""
    # Cosine-weighted: a point on a unit sphere that rests on the surface.
    height, angle = 2.0 * a - 1.0, 6.283185307 * b
    ring = math.sqrt(1.0 - height * height)
    dx, dy, dz = nx + ring * math.cos(angle), ny + ring * math.sin(angle), nz + 1.0001 * height
    length = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
    dx, dy, dz = dx / length, dy / length, dz / length
    t, i = _closest(geometry, groups, x, y, z, dx, dy, dz)
    x, y, z = x + t * dx, y + t * dy, z + t * dz
    nx, ny, nz, _, _, _ = _normal(geometry, i, x, y, z)
    for c in range(3):
        arriving = ambient
        for n in range(lights.shape[0]):
            arriving += lights[n, 9 + c] * _toward_light(lights, n, 0.0, 0.0, x, y, z, nx, ny, nz)[3]
        # Glowing things light the room through `lights`; seen from here they are merely bright.
        base = 0.5 * (surface[i, RED + c] + surface[i, RED_2 + c])
        out[c] += base * arriving + min(surface[i, GLOW], 1.0) * ambient


@njit(cache=True, error_model="numpy")
def _gleam(gloss, ox, oy, oz, x, y, z, nx, ny, nz, sx, sy, sz):
    """Highlight that a surface at (x, y, z) shows to the eye at o, lit from the direction s."""
    gx, gy, gz = ox - x, oy - y, oz - z
    g, s = math.sqrt(gx * gx + gy * gy + gz * gz), math.sqrt(sx * sx + sy * sy + sz * sz)
    gx, gy, gz = gx / g + sx / s, gy / g + sy / s, gz / g + sz / s
    half = (gx * nx + gy * ny + gz * nz) / math.sqrt(gx * gx + gy * gy + gz * gz)
    return gloss * max(half, 0.0) ** 60.0


@njit(cache=True, error_model="numpy")
def trace_colour(geometry, surface, groups, lights, ambient, camera, height, width, grain):
    """Cast 2 x 2 rays a pixel for colour, and from where they land one to a light and some to elsewhere.

    Returns
    -------
    own, albedo, direct, bounce : ndarray
        float64 (H, W, 3): glow and highlights; colour; light that comes straight from a light, or from other
        surfaces. A pixel's radiance is own + albedo * (direct + bounce).
    """
    own, albedo = np.zeros((height, width, 3)), np.zeros((height, width, 3))
    direct, bounce = np.zeros((height, width, 3)), np.zeros((height, width, 3))
    ox, oy, oz = camera[0]
    count = lights.shape[0]
    for v in range(height):
        for u in range(width):
            for k in range(4):
                column, line = k % 2, k // 2
                a, b = u + 0.25 + 0.5 * column - width / 2, v + 0.25 + 0.5 * line - height / 2
                dx, dy, dz = _ray(camera, a / height, b / height)
                t, i = _closest(geometry, groups, ox, oy, oz, dx, dy, dz)
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                nx, ny, nz, lx, ly, lz = _normal(geometry, i, x, y, z)
                slant = -(dx * nx + dy * ny + dz * nz) / math.sqrt(dx * dx + dy * dy + dz * dz)
                footprint = t / (2.0 * height * camera[4, 0] * max(math.sqrt(max(slant, 0.0)), 0.2))
                colour = _albedo(geometry, surface, i, lx, ly, lz, footprint)
                x, y, z = x + nx * _OFF_SURFACE, y + ny * _OFF_SURFACE, z + nz * _OFF_SURFACE
                # One light: each sub-pixel has a quarter of it. Two: two opposite quarters of either.
                n = (column + line) % count
                h = 4 * (v * width + u) + k
                p, q = column - _hash(h, grain, 1), line - _hash(h, grain, 2)
                sx, sy, sz, shine = _toward_light(lights, n, p, q, x, y, z, nx, ny, nz)
                if shine > 0.0 and _blocked(geometry, surface, groups, x, y, z, sx, sy, sz):
                    shine = 0.0
                shine *= 0.25 * count
                gleam = 0.0
                if surface[i, GLOSS] * shine > 0.0:
                    gleam = shine * _gleam(surface[i, GLOSS], ox, oy, oz, x, y, z, nx, ny, nz, sx, sy, sz)
                for c in range(3):
                    own[v, u, c] += 0.25 * surface[i, GLOW] * colour[c] + gleam * lights[n, 9 + c]
                    albedo[v, u, c] += 0.25 * colour[c]
                    direct[v, u, c] += shine * lights[n, 9 + c]
                if (column + line + u + v) % 2 == 0:  # two bounces a pixel are enough, as they get smoothed
                    p, q = 0.5 * (column + _hash(h, grain, 3)), 0.5 * (line + _hash(h, grain, 4))
                    out = bounce[v, u]
                    _bounced(geometry, surface, groups, lights, ambient, x, y, z, nx, ny, nz, p, q, out)
    return own, albedo, direct, bounce * 0.5


@njit(cache=True, error_model="numpy")
def smooth_light(light, rows, normal, radius):
    """Average light over neighbouring pixels on the same flat or gently curved piece of the same solid."""
    height, width = rows.shape
    smooth = np.zeros_like(light)
    for v in range(height):
        for u in range(width):
            total = 0.0
            for y in range(max(v - radius, 0), min(v + radius + 1, height)):
                for x in range(max(u - radius, 0), min(u + radius + 1, width)):
                    same = normal[v, u, 0] * normal[y, x, 0] + normal[v, u, 1] * normal[y, x, 1]
                    if rows[y, x] == rows[v, u] and same + normal[v, u, 2] * normal[y, x, 2] > 0.8:
                        total += 1.0
                        for c in range(3):
                            smooth[v, u, c] += light[y, x, c]
            for c in range(3):
                smooth[v, u, c] /= total
    return smooth


# --- the camera's sensor ---------------------------------------------------------------------------------


def expose(radiance, rng, key=0.2, noise=0.01):
    """Turn linear radiance into a photograph: exposure, lens, noise, tone curve.

    Parameters
    ----------
    radiance : ndarray
        (H, W, 3), linear, not negative.
    rng : numpy.random.Generator
        Source of the noise and of the white balance's error.
    key : float
        Brightness that the scene's geometric mean is exposed to.
    noise : float
        Standard deviation of the sensor's noise at mid grey.

    Returns
    -------
    ndarray
        float32 (H, W, 3) in [0, 1].
    """
    height, width = radiance.shape[:2]
    luminance = radiance @ np.array([0.25, 0.6, 0.15])
    image = radiance * (key / np.exp(np.log(luminance + 1e-3 * luminance.mean()).mean()))
    # Half of the light's cast is taken out, as a camera's automatic white balance would.
    cast = image.mean((0, 1))
    image = image * (cast.mean() / cast) ** 0.5 * np.exp(rng.normal(0.0, 0.03, 3))
    y, x = np.mgrid[:height, :width]
    away = ((x + 0.5) / width - 0.5) ** 2 + ((y + 0.5) / height - 0.5) ** 2
    image = _softened(image, 0.5) * (1.0 - 0.45 * away)[..., None]
    sigma = noise * np.sqrt(0.1 + image / 0.2) * 0.5
    image = np.maximum(image + rng.normal(size=image.shape) * sigma, 0.0)
    # Highlights roll off instead of clipping; a little toe deepens the shadows.
    image = 1.0 - np.exp(-1.6 * image)
    image = image ** (1 / 2.2)
    image = image + 0.25 * image * (1.0 - image) * (2.0 * image - 1.0)
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def _softened(image, amount):
    """Mix an image with its neighbours' mean (weights 1, 2, 1 along each axis), as a lens does."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    lines = padded[:-2] + 2.0 * padded[1:-1] + padded[2:]
    blurred = (lines[:, :-2] + 2.0 * lines[:, 1:-1] + lines[:, 2:]) / 16.0
    return (1.0 - amount) * image + amount * blurred


def render(scene, camera, height, width, rng, ambient=0.3, key=0.2, noise=0.01):
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
    image = expose(own + albedo * light, rng, key, noise)
    return {"image": image, "label": label, "depth": depth[..., None], "normal": normal}
