"""From raw downloads, or from nothing at all, to the prepared layouts that `simo.datasets` reads."""

RENDERER = "scenes-1"  # change it whenever the same seed no longer gives the same picture
