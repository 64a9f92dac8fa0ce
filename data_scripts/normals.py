"""Surface normals from a depth map and the camera's intrinsics.

In front of a pinhole camera a plane n·P = k is met by the ray r at depth k / (n·r): its *inverse* depth is
an affine function of the pixel's coordinates. It is also what a depth camera like the Kinect measures, with
noise that is the same everywhere. Hence, around each pixel, inverse depth is fitted by least squares in a
square window, and the three coefficients are the normal up to its length.

Pixels of other surfaces in the window are left out in two passes: the first fit takes the pixels whose depth
is near the centre's, the second those that lie near the plane of the first.
"""

import math

import numpy as np
from numba import njit

_RADIUS = 5  # of the window, in pixels: 11 x 11, a compromise between the sensor's noise and small things
_STEP = 0.06  # relative difference of depth that the first pass takes for another surface
_OFF_PLANE = 0.015  # the same in the second pass, from the plane of the first
_FEWEST = 12  # pixels that must remain


def normals_from_depth(depth, focal, centre, rows=None, columns=None):
    """Estimate the surface normal at pixels of a depth map.

    Parameters
    ----------
    depth : ndarray
        float32 (H, W), metres along the optical axis; 0 where it was not measured.
    focal : (float, float)
        Focal lengths fx and fy in pixels.
    centre : (float, float)
        Principal point cx and cy in pixels; the centre of the first pixel is 0.
    rows, columns : ndarray, optional
        int64 (h,) and (w,): at which pixels, every row with every column; all if not given.

    Returns
    -------
    ndarray
        float32 (h, w, 3): unit vectors in the camera's frame, x right, y up, z towards the viewer, that face
        the viewer; the zero vector where depth was not measured or too few pixels lie on one plane.
    """
    rows = np.arange(depth.shape[0]) if rows is None else rows
    columns = np.arange(depth.shape[1]) if columns is None else columns
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=depth > 0)
    return _normals(inverse, rows, columns, *map(float, focal), *map(float, centre))


@njit(cache=True)
def _normals(inverse, rows, columns, fx, fy, cx, cy):
    normals = np.zeros((len(rows), len(columns), 3), np.float32)
    for i in range(len(rows)):
        for j in range(len(columns)):
            row, column = rows[i], columns[j]
            here = inverse[row, column]
            if here <= 0.0:
                continue
            count, flat, a, b = _fit(inverse, row, column, here, 0.0, 0.0, _STEP)
            if count >= _FEWEST:
                count, flat, a, b = _fit(inverse, row, column, flat, a, b, _OFF_PLANE)
            if count < _FEWEST or flat <= 0.0:
                continue
            # 1/depth = flat + a (u - column) + b (v - row) = (x u' - y v' - z) / k with u' = (u - cx) / fx,
            # v' = (v - cy) / fy; k < 0 for a surface that is seen.
            x, y = -a * fx, b * fy
            z = flat + a * (cx - column) + b * (cy - row)
            length = math.sqrt(x * x + y * y + z * z)
            normals[i, j, 0], normals[i, j, 1], normals[i, j, 2] = x / length, y / length, z / length
    return normals


@njit(cache=True)
def _fit(inverse, row, column, flat, a, b, tolerance):
    """Fit inverse depth by `flat + a du + b dv` to the window's pixels that are near a first such plane.

    Returns how many pixels were near, 0 if they determine no plane, and the new coefficients.
    """
    n = su = sv = suu = suv = svv = sq = suq = svq = 0.0
    for dv in range(-_RADIUS, _RADIUS + 1):
        for du in range(-_RADIUS, _RADIUS + 1):
            y, x = row + dv, column + du
            if y < 0 or x < 0 or y >= inverse.shape[0] or x >= inverse.shape[1]:
                continue
            q, plane = inverse[y, x], flat + a * du + b * dv
            if q > 0.0 and abs(q - plane) < tolerance * plane:
                n, su, sv, sq = n + 1.0, su + du, sv + dv, sq + q
                suu, suv, svv = suu + du * du, suv + du * dv, svv + dv * dv
                suq, svq = suq + du * q, svq + dv * q
    if n == 0.0:
        return 0.0, flat, a, b
    mu, mv, mq = su / n, sv / n, sq / n
    uu, uv, vv = suu / n - mu * mu, suv / n - mu * mv, svv / n - mv * mv
    uq, vq = suq / n - mu * mq, svq / n - mv * mq
    determinant = uu * vv - uv * uv
    if determinant < 0.1:  # all on one line, or nearly; a full window has 100
        return 0.0, flat, a, b
    a, b = (uq * vv - vq * uv) / determinant, (vq * uu - uq * uv) / determinant
    return n, mq - a * mu - b * mv, a, b
