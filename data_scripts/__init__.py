"""From raw downloads, or from nothing at all, to the prepared layouts that `simo.datasets` reads."""
