"""Taskonomy's two targets that are computed from the picture itself: texture edges and 2D keypoints.

Both follow the definitions of the data set (Zamir et al., 2018): edges are Canny's detector without its
non-maximum suppression, keypoints the response of SURF's detector. Each is scaled to [0, 1] and clipped, as
the paper's code clips the data set's own values.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

LUMINANCE = np.array([0.299, 0.587, 0.114])
EDGE_SIGMA, KEYPOINT_SIGMA = 1.0, 1.5  # pixels
EDGE_FULL, KEYPOINT_FULL = 0.25, 0.02  # the responses that count as 1: about the 99th percentile in rooms


def edge_texture(image):
    """Length of the smoothed luminance's gradient.

    Parameters
    ----------
    image : ndarray
        (H, W, 3) in [0, 1].

    Returns
    -------
    ndarray
        float64 (H, W, 1) in [0, 1].
    """
    grey = image @ LUMINANCE
    across, down = (gaussian_filter(grey, EDGE_SIGMA, order) for order in ((0, 1), (1, 0)))
    return np.minimum(np.hypot(across, down) / EDGE_FULL, 1.0)[..., None]


def keypoints2d(image):
    """Determinant of the smoothed luminance's Hessian where it is positive: blobs, light or dark.

    SURF weighs the mixed derivative by 0.9 and multiplies by the scale, so that scales compare.

    Parameters
    ----------
    image : ndarray
        (H, W, 3) in [0, 1].

    Returns
    -------
    ndarray
        float64 (H, W, 1) in [0, 1].
    """
    grey = image @ LUMINANCE
    xx, yy, xy = (
        KEYPOINT_SIGMA**2 * gaussian_filter(grey, KEYPOINT_SIGMA, order) for order in ((0, 2), (2, 0), (1, 1))
    )
    return np.clip((xx * yy - (0.9 * xy) ** 2) / KEYPOINT_FULL, 0.0, 1.0)[..., None]
