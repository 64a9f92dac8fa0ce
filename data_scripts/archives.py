"""Zip files from the internet, read member by member: nothing is extracted.

A member that is too large, or expands too much, is refused before it is read; what is encrypted, truncated or
corrupt when it is. What macOS and Windows add of their own (`__MACOSX`, `.DS_Store`, ...) is left out.
"""

import zipfile
from functools import lru_cache
from pathlib import Path, PurePosixPath

from simo.errors import SimoError, require
from simo.files import decoding, is_litter

LARGEST = 8 * 2**30  # bytes of a member
RATIO = 200  # bytes for each in the archive: deflate reaches 1032, a label map 100
SPARED = 16 * 2**20  # up to so many bytes the ratio does not matter: a small file of zeros harms nobody


class ZipReader:
    """Members of a zip file, read without extracting it.

    Parameters
    ----------
    path : str or Path
        The file.

    Raises
    ------
    SimoError
        If it is missing, no zip file, or truncated.
    """

    def __init__(self, path):
        self.path = Path(path)
        with decoding(f"{self.path}, a zip file,"):
            self._archive = zipfile.ZipFile(self.path)
        files = [info for info in self._archive.infolist() if not info.is_dir()]
        named = {PurePosixPath(info.filename.replace("\\", "/")).as_posix(): info for info in files}
        self._members = {name: info for name, info in named.items() if not is_litter(name)}

    @property
    def names(self):
        """Paths of all files in the archive, in its order."""
        return list(self._members)

    def read(self, name):
        """Bytes of one file; SimoError if it is not there, too large, encrypted, truncated or corrupt."""
        if name not in self._members:
            raise SimoError(f"{self.path} has no member {name!r}: download it again from its official source")
        info = self._members[name]
        most = min(LARGEST, max(SPARED, RATIO * info.compress_size))
        size = info.file_size
        require(f"the size of {name!r} in {self.path}", size, size <= most, f"at most {most} bytes")
        with decoding(f"{name!r} in {self.path}"):
            return self._archive.read(info)


@lru_cache(maxsize=16)
def open_zip(path):
    """A ZipReader, opened once in each process."""
    return ZipReader(path)
