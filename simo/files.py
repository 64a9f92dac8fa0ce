"""Reading and writing files: half of one is never left, and a refusing system is told from a damaged file."""

import errno
import json
import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path

from simo.errors import SimoError, require

# what a full or locked disk says without naming a file
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
# the last ones are `atomic_path`'s own, of a process that was killed
_LITTER = re.compile(r"\._.*|__MACOSX|\.DS_Store|Thumbs\.db|desktop\.ini|\..+\.\d+(\.[^.]+)?")


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`, renamed to `path` when the block ends without error.

    Parameters
    ----------
    path : str or Path
        The file to write. Its folder is created, and its permissions are those that the umask gives.

    Yields
    ------
    Path
        An empty file in the same folder (so that the rename is atomic), with the same suffix.

    Raises
    ------
    SimoError
        If the operating system refuses the write: full disk, read-only folder, no permission. An OSError of
        the block that is about another file, such as one that it reads, stays what it is.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch()  # what refuses refuses now, not after the block's work
            mode = temporary.stat().st_mode
        with _writing(path, only={str(temporary), str(path)}):
            yield temporary
        with suppress(PermissionError, NotImplementedError):  # file systems without permissions
            if temporary.stat().st_mode != mode:  # safetensors, say, lets nobody else read its files
                temporary.chmod(mode)
        with _writing(path):
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def _writing(path, only=None):
    """Explain an OSError of writing `path`; with `only`, that of these files and of the disk."""
    try:
        yield
    except OSError as error:
        about = {str(name) for name in (error.filename, error.filename2) if name is not None}
        own = only is None or error.errno in _DISK or about & only
        if not own and (error.errno or not error.strerror):  # `save_tensors` gives the text without number
            raise
        advice = "free some space or choose a folder that you may write to, then run again."
        what = f"cannot write {path}: {reason(error)}. What was there before is untouched"
        raise SimoError(f"{what}; {advice}") from error


@contextmanager
def decoding(what, advice="download it again", kind=SimoError):
    """Tell damage from trouble of the system, in a block that does nothing but read and decode a file.

    Whatever a decoder raises on damaged content is damage: libraries raise nearly every type of exception.
    That the system cannot read, or has no memory left, says nothing about the file.

    Parameters
    ----------
    what : str or Path
        The file, and where in it, as the message names it.
    advice : str
        What to do about damage.
    kind : type
        Of the error for a damaged or missing file.

    Raises
    ------
    kind
        If the file is missing, or its content cannot be decoded.
    SimoError
        If the system refuses; no `kind`, so that nobody takes it for damage.
    """
    try:
        yield
    except (SimoError, ImportError):
        raise
    except FileNotFoundError as error:
        raise kind(f"{what} is missing: {advice}") from error
    except Exception as error:
        if system := error if isinstance(error, MemoryError) else system_error(error):
            advice = "which says nothing about the file: correct the cause and run the same command again"
            raise SimoError(f"the system cannot read {what} ({reason(system)}), {advice}") from error
        raise kind(f"{what} cannot be decoded ({reason(error)}): {advice}") from error


def system_error(error):
    """The operating system's exception behind one, or None if a decoder dislikes content.

    Pillow, gzip and others report damage as an OSError without a number; HDF5 hides the system's number in
    its text, and zipfile and scipy hide the system's error behind one of their own.
    """
    while error:
        hidden = re.search(r"errno = (\d+)", str(error))
        number = getattr(error, "errno", None) or (hidden and int(hidden[1]))
        # EINVAL: a place before the file's start
        if isinstance(error, OSError) and number and number != errno.EINVAL:
            return error
        error = error.__cause__ or error.__context__
    return None


def reason(error):
    """What an exception says, in one line; its type if it says nothing."""
    text = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0].rstrip(". ")
    return text or type(error).__name__


def is_litter(path):
    """Whether a file, or a folder above it, was left by macOS, Windows or a killed run of ours."""
    return any(_LITTER.fullmatch(part) for part in Path(path).parts)


def listed(folder, pattern):
    """Paths below a folder that match a pattern, sorted, without litter, see `is_litter`."""
    folder = Path(folder)
    return sorted(path for path in folder.glob(pattern) if not is_litter(path.relative_to(folder)))


def write_json(path, value):
    """Write `value` as indented JSON with a final newline, atomically; NaN is refused.

    Parameters
    ----------
    path : str or Path
        The file to write.
    value : object
        Anything that `json` can express without NaN or infinity.
    """
    try:
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise SimoError(f"cannot write {path}: {error} (expected finite numbers, texts, lists)") from error
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path):
    """Read a JSON file; SimoError if it is missing, not JSON, or cannot be read."""
    with decoding(f"{path} (JSON)", "make it again"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


def read_object(path):
    """Read a JSON file that holds an object, as a dict; SimoError as `read_json`, or for another value."""
    value = read_json(path)
    require(path, f"{value!r:.60}", isinstance(value, dict), "an object with named entries")
    return value
