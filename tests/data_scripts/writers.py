"""Raw NYUv2 in the forms of its other public copies; `data_scripts.fixtures` writes the official one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from data_scripts.fixtures import draw_room, mark_fixture, write_nyuv2_lists
from data_scripts.nyuv2_pictures import PICTURES, STEP
from simo.files import atomic_path


def write_nyuv2_npy(raw, train=4, val=3, size=(288, 384), seed=0):
    """Write the folder of arrays that auto-lambda and MTAN release; all of it in float64.

    Parameters
    ----------
    raw : str or Path
        The folder.
    train, val : int
        Number of images; at least 2 in `val`, of which one tests.
    size : (int, int)
        Height and width.
    seed : int
        Seed of the content; the same one gives the same images in `write_nyuv2_parquet`.
    """
    raw, random = mark_fixture(raw), np.random.default_rng(seed)
    for folder, count in {"train": train, "val": val}.items():
        for index in range(count):
            for field, array in draw_room(random, size).items():
                with atomic_path(raw / folder / field / f"{index}.npy") as temporary:
                    np.save(temporary, array.astype(np.float64))


def write_nyuv2_parquet(raw, train=4, val=3, size=(288, 384), seed=0):
    """Write the shards of the Hugging Face copy: one for `train`, one for `val`, in row groups of two.

    Parameters
    ----------
    raw, train, val, size, seed
        As for `write_nyuv2_npy`.
    """
    raw, random = mark_fixture(raw), np.random.default_rng(seed)
    (raw / "data").mkdir(exist_ok=True)
    for folder, count in {"train": train, "val": val}.items():
        frames = [draw_room(random, size) for _ in range(count)]
        columns = {
            name: np.stack([np.moveaxis(frame[name], -1, 0) for frame in frames])
            for name in ("image", "depth", "normal")
        }
        columns["segmentation"] = np.stack([frame["label"] for frame in frames])
        columns["noise"] = np.zeros((count, 1, *size), np.float32)
        table = pa.table({name: _hub_array(values) for name, values in columns.items()})
        with atomic_path(raw / "data" / f"{folder}-00000-of-00001.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=2)


def _hub_array(values):
    """(N, ...) as a column of nested lists, marked as the array type of Hugging Face's `datasets`."""
    column = pa.array(values.ravel())
    for length in values.shape[:0:-1]:
        column = pa.ListArray.from_arrays(np.arange(0, len(column) + 1, length, dtype=np.int32), column)

    class HubArray(pa.ExtensionType):
        def __arrow_ext_serialize__(self):
            return repr((values.shape[1:], str(values.dtype))).encode()

    name = f"datasets.features.features.Array{values.ndim - 1}DExtensionType"
    return pa.ExtensionArray.from_storage(HubArray(column.type, name), column)


def write_nyuv2_pictures(raw, train=4, val=3, seed=0):
    """Write the folders of pictures: the frames of `write_nyuv2_mat`, mirrored, depth in 8 bits.

    What is not labelled stands at 39 of the 40 classes, and so does the first of the 13 classes.

    Parameters
    ----------
    raw, train, val, seed
        As for `write_nyuv2_mat`; the same seed gives the same images.
    """
    raw, random = mark_fixture(raw), np.random.default_rng(seed)
    for i in range(train + val):
        frame = draw_room(random, (480, 640))
        number, depth = frame["label"] + 1, frame["depth"][..., 0]
        arrays = {
            "nyu_images": np.round(frame["image"] * 255),
            "nyu_depths": np.round(np.where(depth == 0, 3, depth) / STEP),
            "nyu_labels40": np.where(number <= 1, 39, number - 1),
            "nyu_labels": 41 * number % 256,
        }
        for folder, suffix in PICTURES.items():
            with atomic_path(raw / folder / f"{i}.{suffix}") as temporary:
                Image.fromarray(arrays[folder].astype(np.uint8)[:, ::-1]).save(temporary, quality=95)
    write_nyuv2_lists(raw, train, val)
