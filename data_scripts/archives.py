"""Archives from the internet: every member is checked before it is read, and nothing is half extracted.

Refused, with the member's name: absolute paths, `..`, links, devices, duplicates, encrypted members, members
or archives that are too large or expand too much, and archives that are truncated or corrupt. What macOS and
Windows add of their own (`__MACOSX`, `.DS_Store`, ...) is left out.
"""

import os
import shutil
import stat
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from simo.errors import SimoError
from simo.files import is_litter, reason, system_error

_BLOCK = 2**20


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
    """The rules that members of any archive must obey, seen one after the other."""

    def __init__(self, path, limits):
        self.path, self.limits = path, limits
        self.total = 0
        self.seen = {}  # path to whether it is a file

    def refuse(self, name, why):
        raise SimoError(
            f"{self.path}: member {name!r} {why}; nothing of the archive was kept: download it again from "
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

    def extract_to(self, folder):
        """Write all files into a folder."""
        needed, free = sum(info.file_size for info in self._members.values()), shutil.disk_usage(folder).free
        if needed > free:
            raise SimoError(
                f"{self.path} needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB free: "
                "free some space or choose another folder"
            )
        for name, info in self._members.items():
            with _readable(self.path, f"member {name!r}"), self._archive.open(info) as source:
                _copy(source, folder / name)


@lru_cache(maxsize=16)
def open_zip(path):
    """A ZipReader with the default limits, opened and checked once in each process."""
    return ZipReader(path)


def extract(archive, target, limits=Limits()):
    """Extract a zip or tar file into a new folder, all of it or nothing.

    A folder `target` that is already there was extracted completely, and is left alone.

    Parameters
    ----------
    archive : str or Path
        `.zip`, `.tar`, `.tar.gz`, `.tar.xz` or `.tar.bz2`; the content decides, not the name.
    target : str or Path
        The folder to create.
    limits : Limits
        How much the archive may hold.

    Returns
    -------
    Path
        `target`.

    Raises
    ------
    SimoError
        If the archive is missing, truncated or corrupt, or has a member that is refused.
    """
    archive, target = Path(archive), Path(target)
    if target.is_dir():
        return target
    if not archive.is_file():
        raise SimoError(f"archive {archive} does not exist")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        if zipfile.is_zipfile(archive):
            ZipReader(archive, limits).extract_to(partial)
        else:
            _extract_tar(archive, partial, limits)
        os.replace(partial, target)
    except OSError as error:
        raise SimoError(f"cannot extract {archive} to {target}: {reason(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


class _TarHeader(tarfile.TarInfo):
    """A header that may not be missing or damaged: tarfile takes such a one for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar):
        """Read the next header; only the block of zeros that ends an archive may end it."""
        offset = tar.offset
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            if offset == 0:
                raise  # perhaps another compression, which tarfile tries next
            raise SimoError(
                f"{tar.name} is truncated or corrupt after byte {offset} ({reason(error)}): download it again"
            ) from error


def _extract_tar(archive, folder, limits):
    rules = _Members(archive, limits)
    compressed = archive.stat().st_size
    name = None
    with _readable(archive, "its first member"):
        tar = tarfile.open(archive, tarinfo=_TarHeader)  # noqa: SIM115 - closed below
    with tar:
        while True:
            with _readable(archive, f"what follows member {name!r}" if name else "its first member"):
                member = tar.next()
            if member is None:
                break
            name = member.name
            if member.issym() or member.islnk():
                rules.refuse(name, "is a link")
            if not (member.isreg() or member.isdir()):
                rules.refuse(name, "is a device or another special file")
            path = rules.add(name, member.size, member.isreg()) if name.strip("./") else Path()
            rules.check_ratio(name, rules.total, compressed)
            try:
                tarfile.data_filter(member, str(folder))
            except tarfile.FilterError as error:
                rules.refuse(name, f"is refused by Python's data filter ({reason(error)})")
            if is_litter(path):
                continue
            if member.isdir():
                (folder / path).mkdir(parents=True, exist_ok=True)
                continue
            with _readable(archive, f"member {name!r}"), tar.extractfile(member) as source:
                _copy(source, folder / path)
        with _readable(archive, f"its end, after member {name!r}"):
            while tar.fileobj.read(_BLOCK):  # to the checksum of a compressed archive
                continue


def _copy(source, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as out:
        shutil.copyfileobj(source, out, _BLOCK)


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
        if system := system_error(error):  # of the disk, perhaps of the one that is written to
            raise SimoError(
                f"the system refuses {what} of {path} ({reason(system)}), which says nothing about the file: "
                "correct the cause and run the same command again"
            ) from error
        raise SimoError(
            f"{path} is truncated or corrupt: cannot read {what} ({reason(error)}); download it again"
        ) from error
