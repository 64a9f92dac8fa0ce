"""Zip files from the internet: every member is checked before one is read, and nothing is extracted.

Refused, with the member's name: absolute paths, `..`, links, devices, duplicates, encrypted members, members
or archives that are too large or expand too much, and archives that are truncated or corrupt. What macOS and
Windows add of their own (`__MACOSX`, `.DS_Store`, ...) is left out.
"""

import stat
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from simo.errors import SimoError
from simo.files import is_litter, reason, system_error


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold; what is larger is an attack or a mistake.

    Attributes
    ----------
    member : int
        Bytes of one member, extracted.
    total : int
        Bytes of all members together.
    ratio : float
        Extracted bytes for each byte in the archive. Deflate reaches 1032; a label map reaches 100.
    spared : int
        Up to this many bytes the ratio does not matter: a small file of zeros harms nobody.
    """

    member: int = 8 * 2**30
    total: int = 500 * 2**30
    ratio: float = 200.0
    spared: int = 16 * 2**20


class _Members:
    """The rules that members must obey, seen one after the other."""

    def __init__(self, path, limits):
        self.path, self.limits = path, limits
        self.total = 0
        self.seen = {}  # path to whether it is a file

    def refuse(self, name, why):
        raise SimoError(
            f"{self.path}: member {name!r} {why}; nothing of the archive was read: download it again from "
            "its official source"
        )

    def add(self, name, size, is_file):
        """Check name and size; return the safe relative path."""
        parts = PurePosixPath(name.replace("\\", "/")).parts
        if not parts or "\0" in name:
            self.refuse(name, "has no usable name")
        if name.startswith(("/", "\\")) or ":" in parts[0]:
            self.refuse(name, "has an absolute path")
        if ".." in parts:
            self.refuse(name, "leads out of the folder with '..'")
        if parts in self.seen and (is_file or self.seen[parts]):
            self.refuse(name, "is there twice")
        for depth in range(1, len(parts)):
            if self.seen.get(parts[:depth]):
                self.refuse(name, f"lies in {'/'.join(parts[:depth])!r}, which is a file")
        self.seen[parts] = is_file
        for depth in range(1, len(parts)):
            self.seen.setdefault(parts[:depth], False)
        self.total += size
        if size > self.limits.member:
            self.refuse(name, f"has {size} bytes, more than the limit of {self.limits.member}")
        if self.total > self.limits.total:
            self.refuse(name, f"makes more than {self.limits.total} bytes in all, the limit")
        return Path(*parts)

    def check_ratio(self, name, size, compressed):
        """Refuse what expands too much; `size` and `compressed` in bytes."""
        if size > self.limits.spared and size > self.limits.ratio * compressed:
            self.refuse(name, f"expands {compressed} bytes to {size}, over {self.limits.ratio:g} times")


class ZipReader:
    """Members of a zip file, read without extracting it.

    Parameters
    ----------
    path : str or Path
        The file.
    limits : Limits
        How much it may hold.

    Raises
    ------
    SimoError
        If it is no zip file, truncated, or has a member that is refused.
    """

    def __init__(self, path, limits=Limits()):
        self.path = Path(path)
        with _readable(self.path, "its list of members"):
            self._archive = zipfile.ZipFile(self.path)
        self._members = {}
        rules = _Members(self.path, limits)
        for info in self._archive.infolist():
            target = self._checked(info, rules)
            if not info.is_dir() and not is_litter(target):
                self._members[target.as_posix()] = info
        rules.check_ratio("(all)", rules.total, self.path.stat().st_size)

    def _checked(self, info, rules):
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            rules.refuse(info.filename, "is a link")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            rules.refuse(info.filename, "is a device or another special file")
        if info.flag_bits & 1:
            rules.refuse(info.filename, "is encrypted")
        rules.check_ratio(info.filename, info.file_size, info.compress_size)
        return rules.add(info.filename, info.file_size, not info.is_dir())

    @property
    def names(self):
        """Paths of all files in the archive, in its order."""
        return list(self._members)

    def read(self, name):
        """Bytes of one file; SimoError if it is not there, truncated or corrupt."""
        if name not in self._members:
            raise SimoError(f"{self.path} has no member {name!r}: download it again from its official source")
        with _readable(self.path, f"member {name!r}"):
            return self._archive.read(self._members[name])


@lru_cache(maxsize=16)
def open_zip(path):
    """A ZipReader with the default limits, opened and checked once in each process."""
    return ZipReader(path)


@contextmanager
def _readable(path, what):
    """Turn the many exceptions of damaged archives into one that names the archive and the place."""
    try:
        yield
    except FileNotFoundError as error:
        raise SimoError(f"archive {path} does not exist") from error
    except Exception as error:
        if isinstance(error, SimoError | MemoryError):
            raise
        if system := system_error(error):
            raise SimoError(
                f"the system refuses {what} of {path} ({reason(system)}), which says nothing about the file: "
                "correct the cause and run the same command again"
            ) from error
        raise SimoError(
            f"{path} is truncated or corrupt: cannot read {what} ({reason(error)}); download it again"
        ) from error
