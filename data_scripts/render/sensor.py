"""The camera's sensor and lens: from linear light to a photograph."""

import numpy as np


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
