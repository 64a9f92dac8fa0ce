"""Rays against solids: the compiled kernel that finds what each pixel sees.

Scenes come as the arrays of `Scene.arrays` of `raycast`. All solids are convex, and rays never start inside
one. Numba stores the compiled code, beside this file or where `NUMBA_CACHE_DIR` says, and looks for changes
in the file of the outermost function only. A build has a cache for each state of the code; elsewhere, delete
it after editing this module or `materials`.
"""

import math

import numpy as np
from numba import njit

BOX, ELLIPSOID, CYLINDER, SHELL, FRUSTUM = range(5)

# Columns of a solid's row: geometry, then surface.
X, Y, Z, HALF_X, HALF_Y, HALF_Z, COS, SIN, KIND, TOP_X, TOP_Y = range(11)
LABEL, MATERIAL, RED, GREEN, BLUE, RED_2, GREEN_2, BLUE_2, SCALE, GLOSS, GLOW, GRAIN_SEED = range(12)
GEOMETRY_COLUMNS = 11


@njit(cache=True, error_model="numpy")
def _hit_frustum(geometry, i, lx, ly, lz, ex, ey, ez, limit):
    """Distance at which a ray in the frame of a box with sloping sides enters it, or `limit`."""
    hx, hy, hz = geometry[i, HALF_X], geometry[i, HALF_Y], geometry[i, HALF_Z]
    cap = hz / abs(ez)
    near, far = -lz / ez - cap, -lz / ez + cap
    for axis in range(2):
        half, top = (hx, geometry[i, TOP_X]) if axis == 0 else (hy, geometry[i, TOP_Y])
        place, step = (lx, ex) if axis == 0 else (ly, ey)
        slope = 0.5 * half * (top - 1.0) / hz  # by how much the half width grows with each metre upwards
        reach = 0.5 * half * (top + 1.0) + slope * lz
        for side in (-1.0, 1.0):
            outside, rate = side * place - reach, side * step - slope * ez
            t = -outside / rate
            if rate < 0.0:
                near = max(near, t)
            elif rate > 0.0:
                far = min(far, t)
            elif outside > 0.0:
                return limit
    return near if 0.0 < near < far and near < limit else limit


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
    if kind == FRUSTUM:
        return _hit_frustum(geometry, i, lx, ly, pz, ex, ey, ez, limit)
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
def closest(geometry, groups, ox, oy, oz, dx, dy, dz):
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
def blocked(geometry, surface, groups, ox, oy, oz, dx, dy, dz):
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
def surface_normal(geometry, i, x, y, z):
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
    elif kind == FRUSTUM:
        # The surface met is the one that the point is outside of, or least inside of.
        sx, sy = 0.5 * hx * (geometry[i, TOP_X] - 1.0) / hz, 0.5 * hy * (geometry[i, TOP_Y] - 1.0) / hz
        ax = (abs(lx) - 0.5 * hx * (geometry[i, TOP_X] + 1.0) - sx * lz) / math.sqrt(1.0 + sx * sx)
        ay = (abs(ly) - 0.5 * hy * (geometry[i, TOP_Y] + 1.0) - sy * lz) / math.sqrt(1.0 + sy * sy)
        if abs(lz) - hz >= max(ax, ay):
            nz = lz
        elif ax >= ay:
            nx, nz = math.copysign(1.0, lx), -sx
        else:
            ny, nz = math.copysign(1.0, ly), -sy
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
def ray_through(camera, x, y):
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
            dx, dy, dz = ray_through(camera, (u + 0.5 - width / 2) / height, (v + 0.5 - height / 2) / height)
            t, i = closest(geometry, groups, ox, oy, oz, dx, dy, dz)
            nx, ny, nz, _, _, _ = surface_normal(geometry, i, ox + t * dx, oy + t * dy, oz + t * dz)
            rows[v, u], label[v, u], depth[v, u] = i, int(surface[i, LABEL]), t
            for axis in range(3):
                toward = camera[1 + axis, 0] * nx + camera[1 + axis, 1] * ny + camera[1 + axis, 2] * nz
                normal[v, u, axis] = -toward if axis == 2 else toward
    return rows, label, depth, normal
