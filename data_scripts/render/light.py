"""Light: area lights with shadows, one bounce, highlights; compiled."""

import math

import numpy as np
from numba import njit

from data_scripts.render.kernel import (
    GLOSS,
    GLOW,
    MATERIAL,
    RED,
    RED_2,
    blocked,
    closest,
    ray_through,
    surface_normal,
)
from data_scripts.render.materials import SKY, albedo_at, hashed

_OFF_SURFACE = 1e-3  # metres by which secondary rays start away from the surface that they leave


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
    t, i = closest(geometry, groups, x, y, z, dx, dy, dz)
    if surface[i, MATERIAL] == SKY:
        for c in range(3):
            out[c] += 0.5 * surface[i, GLOW] * (surface[i, RED + c] + surface[i, RED_2 + c])
        return
    x, y, z = x + t * dx, y + t * dy, z + t * dz
    nx, ny, nz, _, _, _ = surface_normal(geometry, i, x, y, z)
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
                dx, dy, dz = ray_through(camera, a / height, b / height)
                t, i = closest(geometry, groups, ox, oy, oz, dx, dy, dz)
                x, y, z = ox + t * dx, oy + t * dy, oz + t * dz
                nx, ny, nz, lx, ly, lz = surface_normal(geometry, i, x, y, z)
                slant = -(dx * nx + dy * ny + dz * nz) / math.sqrt(dx * dx + dy * dy + dz * dz)
                footprint = t / (2.0 * height * camera[4, 0] * max(math.sqrt(max(slant, 0.0)), 0.2))
                colour = albedo_at(geometry, surface, i, lx, ly, lz, footprint)
                if surface[i, MATERIAL] == SKY:  # it shines and nothing shines on it
                    for c in range(3):
                        own[v, u, c] += 0.25 * surface[i, GLOW] * colour[c]
                    continue
                x, y, z = x + nx * _OFF_SURFACE, y + ny * _OFF_SURFACE, z + nz * _OFF_SURFACE
                # One light: each sub-pixel has a quarter of it. Two: two opposite quarters of either.
                n = (column + line) % count
                h = 4 * (v * width + u) + k
                p, q = column - hashed(h, grain, 1), line - hashed(h, grain, 2)
                sx, sy, sz, shine = _toward_light(lights, n, p, q, x, y, z, nx, ny, nz)
                if shine > 0.0 and blocked(geometry, surface, groups, x, y, z, sx, sy, sz):
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
                    p, q = 0.5 * (column + hashed(h, grain, 3)), 0.5 * (line + hashed(h, grain, 4))
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
