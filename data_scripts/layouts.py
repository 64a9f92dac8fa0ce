"""What raw and prepared data are described by: images, fields, layouts."""

from collections.abc import Callable
from dataclasses import dataclass, field

from simo.errors import SimoError


class Broken(SimoError):
    """A raw file that cannot be used; the image is dropped where the layout allows it."""


@dataclass(frozen=True)
class Image:
    """One image of the raw data with all that belongs to it.

    Attributes
    ----------
    folder : str
        `train`, `val` or `test`.
    index : int
        Its number in that folder: the position in the planned order, also where others are dropped.
    name : str
        What the original data set calls it.
    source : object
        Whatever the data set's `convert` needs to find the files; must be picklable.
    """

    folder: str
    index: int
    name: str
    source: object = None

    @property
    def id(self):
        """`folder/index`, as in splits and id map."""
        return f"{self.folder}/{self.index}"


@dataclass(frozen=True)
class Field:
    """One kind of array of a prepared data set.

    Attributes
    ----------
    name : str
        Its folder.
    dtype : str
        NumPy's name of the type as stored.
    channels : int or None
        Last axis of `(H, W, channels)`; None for `(H, W)`, a class map.
    low, high : float
        Allowed range of the stored values, both inclusive.
    classes : int or None
        Number of classes; None for values.
    optional : bool
        Whether raw data may come without it.
    """

    name: str
    dtype: str
    channels: int | None
    low: float
    high: float
    classes: int | None = None
    optional: bool = False

    def shape(self, size):
        """Shape of an array at image size `(H, W)`."""
        return (*size,) if self.channels is None else (*size, self.channels)

    def problem(self, array, size):
        """What is wrong with an array, in words; None if nothing is."""
        expected = f"{self.dtype} {self.shape(size)}"
        if f"{array.dtype} {array.shape}" != expected:
            return f"expected {expected}, found {array.dtype} {array.shape}"
        low, high = array.min(), array.max()
        if not (low >= self.low and high <= self.high):  # also refuses NaN
            return f"expected values from {self.low:g} to {self.high:g}, found {low:g} to {high:g}"
        return None


@dataclass(frozen=True)
class Layout:
    """What the prepared form of a data set must be.

    Attributes
    ----------
    dataset : str
        Its name, as in `simo.tasks.TASKS`.
    size : (int, int)
        Height and width of every array.
    fields : tuple of Field
        What each image has.
    counts : dict of str to int
        Images in each split of the official data.
    may_drop : bool
        Whether images with a broken file are left out; `counts` is then what there is at most.
    """

    dataset: str
    size: tuple
    fields: tuple
    counts: dict
    may_drop: bool = False


@dataclass(frozen=True)
class RawData:
    """Raw data of which every file has been located, none of it decoded.

    Attributes
    ----------
    layout : Layout
        What becomes of it.
    source : str
        Name of the raw format.
    images : list of Image
        In the order of the id map.
    splits : dict of str to list of str
        Split to its `folder/i`.
    convert : callable
        Module-level function from an Image to a dict of field name to array; raises `Broken`.
    options : dict
        What else decides the result, for `request.json`.
    fixture : bool
        Whether it is made-up test data.
    """

    layout: Layout
    source: str
    images: list
    splits: dict
    convert: Callable
    options: dict = field(default_factory=dict)
    fixture: bool = False
