"""NYUv2 from its copy on the Hugging Face Hub, parquet files of nested lists.

Columns `image` (3, 288, 384), `depth` (1, 288, 384) and `normal` (3, 288, 384) float32, `segmentation`
(288, 384) int64, and `noise`, which is not used. Their data types are Arrow extensions of the Hub's library
`datasets`; Arrow alone reads what is stored, lists of lists.
"""

import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_scripts.layouts import Broken
from simo.errors import SimoError
from simo.files import decoding, listed, reason, write_json

REPOSITORY = "tanganke/nyuv2"
REVISION = "b367b8b53c4dcefbcb4d9310b74976a63cc7f306"  # the one that public code pins, found in two places
DOWNLOAD_BYTES = 2_971_250_125  # of all shards, as the Hub lists them
COLUMNS = ("image", "segmentation", "depth", "normal")


def download(raw):
    """Fetch the shards at `REVISION` into a folder, or what is missing of them, and note the revision there.

    Raises
    ------
    SimoError
        If the disk is too small or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    raw = Path(raw)
    raw.mkdir(parents=True, exist_ok=True)
    print(f"fetching {REPOSITORY} at revision {REVISION}: {DOWNLOAD_BYTES / 1e9:.2f} GB into {raw}")
    free = shutil.disk_usage(raw).free
    missing = DOWNLOAD_BYTES - _fetched(raw)
    if free < missing:
        raise SimoError(
            f"{raw}: {missing / 1e9:.2f} GB are still to be fetched, the disk has "
            f"{free / 1e9:.2f} GB free: free some space, or choose another --raw"
        )
    plan = {"repo_type": "dataset", "revision": REVISION, "local_dir": raw, "allow_patterns": "*.parquet"}
    try:
        snapshot_download(REPOSITORY, **plan)
        if _fetched(raw) < 0.99 * DOWNLOAD_BYTES:  # without a network it takes what is in the folder for all
            raise SimoError(f"{_fetched(raw)} of {DOWNLOAD_BYTES} bytes came")
    except Exception as error:  # the Hub's, its HTTP library's and the system's errors have no common base
        raise SimoError(
            f"cannot fetch {REPOSITORY} at revision {REVISION} ({reason(error)}): give the same command "
            f"again to continue, or fetch https://huggingface.co/datasets/{REPOSITORY} by other means"
        ) from error
    write_json(raw / "revision.json", {"repository": REPOSITORY, "revision": REVISION})


def _fetched(raw):
    """Bytes of the shards that are in a folder."""
    return sum(path.stat().st_size for folder in ("train", "val") for path in shards(raw, folder))


def shards(raw, folder):
    """Files of `train` or `val` in order: in `data/`, as on the Hub, or directly in the raw folder."""
    return listed(raw / "data", f"{folder}-*.parquet") or listed(raw, f"{folder}-*.parquet")


def list_rows(raw, folder):
    """Every row of `train` or `val` in order, as (path, row within the file)."""
    return [(str(path), row) for path in shards(raw, folder) for row in range(_rows_of(str(path)).count)]


def read_row(path, row):
    """Arrays of one image.

    Returns
    -------
    dict of str to ndarray
        `image`, `depth` and `normal` (H, W, C) float32, `label` (H, W) int64, -1 not labelled.

    Raises
    ------
    Broken
        If the file is damaged or does not have the columns.
    """
    arrays = _rows_of(path).read(row)
    moved = {name: np.moveaxis(arrays[name], 0, -1) for name in ("image", "depth", "normal")}
    return moved | {"label": arrays["segmentation"]}


class _Rows:
    """Rows of a parquet file, one in memory at a time: cheap when asked for in ascending order.

    A row group has some hundred megabytes, and is streamed.
    """

    def __init__(self, path):
        import pyarrow.parquet

        self.path, self.next, self.batches = path, 0, None
        with decoding(f"{path}, a parquet file,", kind=Broken):
            self.file = pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
        self.count = self.file.metadata.num_rows
        missing = set(COLUMNS) - set(self.file.schema_arrow.names)
        if missing:
            raise Broken(f"{path} has no column {sorted(missing)[0]!r}: expected those of {REPOSITORY}")

    def read(self, row):
        """Arrays of a row by column name."""
        if self.batches is None or row < self.next:
            self.next = 0
            self.batches = self.file.iter_batches(1, columns=list(COLUMNS), use_threads=False)
        batches, self.batches = self.batches, None  # none to go on with if the next fails
        with decoding(f"row {row} of {self.path}", kind=Broken):
            while self.next <= row:
                batch = next(batches)
                self.next += 1
            arrays = {name: _nested(batch.column(name)) for name in COLUMNS}
        self.batches = batches
        return arrays


_rows_of = lru_cache(maxsize=1)(_Rows)


def _nested(column):
    """One row of nested lists, or of an extension type stored as such, as an array."""
    import pyarrow as pa

    shape, column = [], getattr(column, "storage", column)
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        inner = column.flatten()
        shape.append(len(inner) // max(len(column), 1))
        column = inner
    return column.to_numpy(zero_copy_only=False).reshape(shape)
