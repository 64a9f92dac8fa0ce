"""What surfaces look like: procedural materials, compiled, that depend on the place and a seed alone."""

import math

from numba import njit

from data_scripts.render.kernel import (
    BLUE,
    BLUE_2,
    GRAIN_SEED,
    GREEN,
    GREEN_2,
    HALF_X,
    HALF_Y,
    HALF_Z,
    MATERIAL,
    RED,
    RED_2,
    SCALE,
)

PLAIN, WOOD, PLANKS, CARPET, STRIPES, TILES, PLAID, LEAVES, BRICKS, FACADE = range(10)  # of two colours
SPINES, CANVAS, SCREEN, OUTSIDE, SHOPS, SKY = range(10, 16)  # pictures


@njit(cache=True, error_model="numpy")
def hashed(i, j, k):
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
    top = hashed(i, j, k) * (1.0 - a) + hashed(i + 1, j, k) * a
    bottom = hashed(i, j + 1, k) * (1.0 - a) + hashed(i + 1, j + 1, k) * a
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
        return hashed(board, j, k), seam * (0.8 + 0.4 * _noise(u * 0.7, v * 7.0, k))
    if material == CARPET:
        return _noise(u, v, k), 0.75 + 0.5 * hashed(int(math.floor(u * 6.0)), int(math.floor(v * 6.0)), k)
    if material == STRIPES:
        return (1.0 if a < 0.5 else 0.0), 1.0
    if material == TILES:
        grout = a < 0.05 or b < 0.05
        return (1.0 if grout else 0.0), 0.85 + 0.3 * hashed(i, j, k)
    if material == PLAID:
        wide, long = (1.0 if a < 0.45 else 0.0), (1.0 if b < 0.45 else 0.0)
        return 0.5 * (wide + long), 0.9 + 0.2 * hashed(int(math.floor(u * 9.0)), int(math.floor(v * 9.0)), k)
    if material == LEAVES:
        return _noise(u, v, k), 0.45 + 0.7 * _noise(u * 2.3, v * 2.3, k) + 0.4 * _noise(u * 6.0, v * 6.0, k)
    if material == BRICKS:
        a += 0.5 * (j % 2)
        i, a = i + int(math.floor(a)), a - math.floor(a)
        joint = a < 0.05 or b < 0.12
        return (1.0 if joint else 0.0), 0.75 + 0.5 * hashed(i, j, k)
    if material == FACADE:
        return _windows(u, v, k)
    return 0.0, 0.94 + 0.12 * _noise(u, v, k)


@njit(cache=True, error_model="numpy")
def _windows(u, v, k):
    """A house's front, one storey high and a window wide in each unit: share of glass, brightness."""
    u *= 1.0 + 0.6 * hashed(k, 1, 11)
    i, j = int(math.floor(u)), int(math.floor(v))
    a, b = abs(u - i - 0.5), v - j
    half, ribbon = 0.2 + 0.14 * hashed(k, 2, 11), hashed(k, 3, 11) < 0.2  # ribbon: no wall between windows
    if 0.28 < b < 0.82 and (a < half or ribbon):
        bar = a < 0.03 or (ribbon and a > 0.46)
        return (0.2 if bar else 1.0), 0.45 + 1.3 * hashed(i, j, k) ** 2 + 0.5 * (b - 0.5)
    trim = 0.2 < b < 0.88 and (a < half + 0.08 or ribbon)
    ledge = b < 0.06
    grain = hashed(int(math.floor(u * 8.0)), int(math.floor(v * 8.0)), k)
    stain = 0.85 + 0.2 * _noise(u * 0.6, v * 0.6, k) + 0.1 * grain
    return 0.0, stain * (1.18 if trim else (0.8 if ledge else 1.0))


@njit(cache=True, error_model="numpy")
def _picture(material, u, v, k):
    """Many-coloured materials: spines, paintings, screens, the view from a window; (u, v) in [-1, 1]."""
    if material == SPINES:
        spine = int(math.floor(u))
        r, g, b = _hue(hashed(spine, k, 3), 0.25 + 0.6 * hashed(spine, k, 4))
        shade = (0.08 + 0.6 * hashed(spine, k, 5)) * (0.55 if u - spine < 0.12 else 1.0)
        band = 1.9 if 0.45 < v + 0.3 * hashed(spine, k, 6) < 0.6 else 1.0
        return r * shade * band, g * shade * band, b * shade * band
    if material == OUTSIDE:
        garden = v < -0.35 + 0.5 * _noise(u * 3.0, 0.0, k)
        shade = 0.25 + 0.3 * _noise(u * 6.0, v * 6.0, k) if garden else 1.0
        return shade * (0.7 if garden else 0.86 + 0.1 * v), shade * 0.95, shade * (0.5 if garden else 1.0)
    if material == SHOPS:
        shop = int(math.floor(u))
        a, name = u - shop, hashed(shop, k, 12)
        r, g, b = _hue(name, 0.2 + 0.8 * hashed(shop, k, 13))
        if v > 0.45:  # the name above the window
            letters = 0.62 < v < 0.85 and 0.15 < a < 0.85 and hashed(int(math.floor(a * 22.0)), shop, k) < 0.6
            shade = 0.9 if letters else 0.08 + 0.4 * hashed(shop, k, 14)
            return (shade, shade, shade) if letters else (r * shade, g * shade, b * shade)
        frame = a < 0.06 or v < -0.8 or abs(a - 0.7) < 0.02
        shade = 0.3 if frame else 0.03 + 0.22 * name * _noise(a * 7.0, v * 2.5, k)
        return shade * (0.7 + 0.3 * r), shade * (0.7 + 0.3 * g), shade * (0.7 + 0.3 * b)
    # Paintings and screens: a lower and an upper field with a blob before them.
    low = v < -0.3 + 0.9 * _noise(u * 1.5 + 7.0, 0.0, k)
    away = (u - 0.8 * hashed(k, 1, 1) + 0.4) ** 2 + (v - 0.6 * hashed(k, 2, 1) + 0.2) ** 2
    part = 2 if away < 0.05 + 0.3 * hashed(k, 3, 1) else (1 if low else 0)
    r, g, b = _hue(hashed(k, part, 7), 0.2 + 0.7 * hashed(k, part, 8))
    shade = (0.1 + 0.7 * hashed(k, part, 9)) * (0.75 + 0.5 * _noise(u * 4.0, v * 4.0, k))
    return r * shade, g * shade, b * shade


@njit(cache=True, error_model="numpy")
def _sky(surface, i, x, y, z):
    """Sky at (x, y, z) from the middle of the ground: first colour low, second high, `scale` of clouds."""
    high = max(z, 0.0) / math.sqrt(x * x + y * y + z * z)
    blue = min(1.6 * high, 1.0) ** 0.6
    u, v, k = 3.0 * x / (z + 30.0), 3.0 * y / (z + 30.0), int(surface[i, GRAIN_SEED])
    billow = 0.55 * _noise(u, v, k) + 0.3 * _noise(2.1 * u, 2.1 * v, k) + 0.15 * _noise(4.7 * u, 4.7 * v, k)
    cloud = min(max(4.0 * (billow + surface[i, SCALE] - 1.0), 0.0), 0.9)
    return (
        surface[i, RED] * (1.0 - blue) + surface[i, RED_2] * blue * (1.0 - cloud) + cloud * blue,
        surface[i, GREEN] * (1.0 - blue) + surface[i, GREEN_2] * blue * (1.0 - cloud) + cloud * blue,
        surface[i, BLUE] * (1.0 - blue) + surface[i, BLUE_2] * blue * (1.0 - cloud) + cloud * blue,
    )


@njit(cache=True, error_model="numpy")
def albedo_at(geometry, surface, i, lx, ly, lz, footprint):
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
        if material == SKY:
            return _sky(surface, i, lx, ly, lz + hz)
        if material in (SPINES, SHOPS):
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
    mean = 0.25 if material in (FACADE, BRICKS) else 0.5
    share, shade = mean + sharp * (share - mean), 1.0 + sharp * (shade - 1.0)
    if material == PLAIN or material == TILES and sharp == 0.0:
        share = 0.0
    return (
        shade * (surface[i, RED] + share * (surface[i, RED_2] - surface[i, RED])),
        shade * (surface[i, GREEN] + share * (surface[i, GREEN_2] - surface[i, GREEN])),
        shade * (surface[i, BLUE] + share * (surface[i, BLUE_2] - surface[i, BLUE])),
    )
