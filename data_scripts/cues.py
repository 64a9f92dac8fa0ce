"""Taskonomy's targets of pictures that are not Taskonomy's; two of them come from the picture itself.

Texture edges and 2D keypoints follow the definitions of the data set (Zamir et al., 2018): edges are Canny's
detector without its
non-maximum suppression, keypoints the response of SURF's detector. Each is scaled to [0, 1] and clipped, as
the paper's code clips the data set's own values. In small pictures seen in patches of 8 pixels, fine and
sparse targets are hardly learnable: an expert would do no better than a constant. So both are taken at a
coarse scale, and of SURF's response, a product of two curvatures, the square root, which is less sparse.
"""

import numpy as np
from scipy.ndimage import gaussian_filter

LUMINANCE = np.array([0.299, 0.587, 0.114])
EDGE_SIGMA, KEYPOINT_SIGMA = 2.0, 4.0  # pixels
EDGE_FULL, KEYPOINT_FULL = 0.084, 0.07  # the responses that count as 1: about the 99th percentile in rooms


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
    """Root of the determinant of the smoothed luminance's Hessian where it is positive: light or dark blobs.

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
    # cut off later than by default, since a filter that does not sum to 0 finds blobs on flat walls
    xx, yy, xy = (
        KEYPOINT_SIGMA**2 * gaussian_filter(grey, KEYPOINT_SIGMA, order, truncate=6.0)
        for order in ((0, 2), (2, 0), (1, 1))
    )
    response = np.sqrt(np.maximum(xx * yy - (0.9 * xy) ** 2, 0.0))
    return np.minimum(response / KEYPOINT_FULL, 1.0)[..., None]


def as_taskonomy(scene):
    """Fields of the prepared Taskonomy of a picture with depth and normals; depth on its logarithmic scale.

    Parameters
    ----------
    scene : dict of str to ndarray
        `image` (H, W, 3) in [0, 1], `depth` (H, W, 1) in metres, `normal` (H, W, 3), 0 where there is none.

    Returns
    -------
    dict of str to ndarray
        As `data_scripts.taskonomy.LAYOUT` describes; depth in Taskonomy's steps of 1/512 m. Pixels without
        normal or depth count for no task.
    """
    picture = fraction(scene["image"], np.uint8)
    steps = np.minimum((512 * scene["depth"]).round(), 65534)
    known = scene["normal"].any(axis=-1, keepdims=True) & (scene["depth"] > 0)
    return {
        "image": picture,
        "depth_zbuffer": fraction(np.log1p(steps) / np.log(2**16), np.uint16),
        "normal": fraction((scene["normal"] + 1) / 2, np.uint8),
        "edge_texture": fraction(edge_texture(picture / 255), np.uint16),
        "keypoints2d": fraction(keypoints2d(picture / 255), np.uint16),
        "mask_valid": known.astype(np.uint8),
    }


def fraction(values, kind):
    """Values in [0, 1] as fixed-point fractions of an unsigned type."""
    return (values * np.iinfo(kind).max).round().astype(kind)
