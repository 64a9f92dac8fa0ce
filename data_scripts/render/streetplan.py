"""The plan of a street: how wide its strips are, what is free on them, its weather.

The street runs along y, its middle at x = 0; the camera stands on the lane at x > 0 and looks along y.
"""

import math

import numpy as np

from data_scripts.render.furniture import shaded
from data_scripts.render.materials import CARPET, SKY
from data_scripts.render.raycast import Light, Paint, Scene
from data_scripts.render.streetlife import ROAD, SKY_CLASS

REACH = 250.0  # metres from the street's x = y = 0 to where the sky is drawn
LANE = 3.3  # width of a lane in metres
KERB = 0.14  # height of pavements in metres


class Track:
    """A strip along the street that things share without touching: `x` from the street's middle, `z` high."""

    def __init__(self, x, z=0.0):
        self.x, self.z, self.taken = x, z, []

    def place(self, rng, length, near, far, tries=6):
        """Return the middle of a free stretch of `length` metres, likelier near than far, or None."""
        for _ in range(tries):
            begin = near + (far - near) * rng.random() ** 1.5
            if all(begin + length < low or high < begin for low, high in self.taken):
                self.taken.append((begin - 0.4, begin + length + 0.4))
                return begin + length / 2
        return None


class Side:
    """One side of the street: the sign of its x, the distances of kerb and frontage, and its tracks."""

    def __init__(self, rng, sign):
        self.sign = sign
        self.parking = rng.random() < 0.6
        self.kerb = LANE + (2.2 if self.parking else rng.uniform(0.1, 0.8))
        self.verge = rng.uniform(1.2, 2.4) if rng.random() < 0.45 else 0.0
        self.front = self.kerb + self.verge + rng.uniform(2.8, 4.8)
        self.parked = Track(sign * (self.kerb - 1.05))
        self.furniture = Track(sign * (self.kerb + 0.55), KERB)
        self.walkers = Track(sign * (self.front - rng.uniform(0.8, 1.4)), KERB)


class Street:
    """A scene being built, the view that it is built for, and the tracks that things are put on.

    `sides` are the left and the right one, `own` and `oncoming` the lanes; `focal` is the camera's focal
    length over the image's width, `eye` its x; `haze` is what `raycast.render` takes.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of every choice.
    """

    def __init__(self, rng):
        self.rng = rng
        self.focal = rng.uniform(0.8, 1.2)  # over the width of the image
        self.eye = LANE / 2 + rng.uniform(-0.35, 0.35)
        self.sides = (Side(rng, -1), Side(rng, 1))
        self.own, self.oncoming = Track(LANE / 2), Track(-LANE / 2)
        self.tram = rng.random() < 0.3
        self.foliage = rng.choice([None, None, None, 0.1])
        sky, self.haze, sun = _weather(rng)
        grey = rng.uniform(0.06, 0.2)
        asphalt = (grey, grey * rng.uniform(0.97, 1.03), grey * rng.uniform(0.95, 1.08))
        self.asphalt = Paint(asphalt, shaded(asphalt, rng.uniform(0.65, 0.85)), CARPET, 1.3)
        faces = [(ROAD, self.asphalt)] + [(SKY_CLASS, sky)] * 5
        self.scene = Scene((2 * REACH, 2 * REACH, 150.0), faces)
        self.scene.lights.append(sun)

    def near(self, x):
        """Distance at which something at x comes into view."""
        return 2.0 * self.focal * abs(x - self.eye) + 0.5

    def add(self, item, x, y, z=0.0, yaw=0.0):
        """Put an item at (x, y, z) of the street."""
        self.scene.add(item.placed((REACH + x, REACH + y, z), yaw))

    def put(self, item, track, length, near, far, yaw=0.0, aside=0.0):
        """Put an item on a track where it is free and in view, `aside` from its middle; or leave it out."""
        near = max(near, self.near(track.x))
        y = track.place(self.rng, length, near, max(far, near + 4.0))
        if y is not None:
            self.add(item, track.x + aside, y, track.z, yaw)


def _weather(rng):
    """Draw a sky, a haze and a sun: clear, cloudy, overcast, or low in the evening."""
    kind = rng.choice(["clear", "cloudy", "overcast", "evening"], p=[0.3, 0.3, 0.25, 0.15])
    bright, power, extent, high = 1.0, rng.uniform(2.0, 4.5), 0.008, rng.uniform(0.4, 1.1)
    low, zenith, clouds = (0.72, 0.83, 0.95), (0.22, 0.42, 0.85), rng.uniform(0.0, 0.4)
    if kind == "cloudy":
        clouds, power = rng.uniform(0.5, 0.75), power * 0.7
    elif kind == "overcast":
        low, zenith, clouds = (0.85, 0.87, 0.9), (0.6, 0.63, 0.68), rng.uniform(0.4, 0.8)
        power, extent = rng.uniform(0.1, 0.5), 0.25
    elif kind == "evening":
        low, zenith, clouds = (1.0, 0.78, 0.55), (0.4, 0.45, 0.62), rng.uniform(0.2, 0.6)
        high, bright = rng.uniform(0.2, 0.4), 0.8
    warm = min(high / 0.6, 1.0)
    colour = (power, power * (0.72 + 0.22 * warm), power * (0.45 + 0.37 * warm))
    haze = (rng.uniform(180.0, 700.0), tuple(0.9 * channel for channel in low))
    sky = Paint(low, zenith, SKY, clouds, glow=bright)
    return sky, haze, _sun(rng.uniform(0.0, 2 * math.pi), high, colour, extent)


def _sun(azimuth, high, colour, extent):
    """Return a sun `high` radians above the horizon: a light so far away that its rays are parallel."""
    far = 1e4
    toward = (math.sin(azimuth) * math.cos(high), math.cos(azimuth) * math.cos(high), math.sin(high))
    centre = (REACH + far * toward[0], REACH + far * toward[1], far * toward[2])
    across = (math.cos(azimuth) * far * extent, -math.sin(azimuth) * far * extent, 0.0)
    up = tuple(far * extent * part for part in np.cross(across, toward) / np.linalg.norm(across))
    return Light(centre, across, up, tuple(far * far * channel for channel in colour))
