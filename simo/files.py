"""Writing files so that a crash leaves the old file or the new one, never half of one."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

from simo.errors import SimoError


@contextmanager
def atomic_path(path):
    """Yield a temporary path beside `path`, renamed to `path` when the block ends without error.

    Parameters
    ----------
    path : str or Path
        The file to write. Its folder is created.

    Yields
    ------
    Path
        A name in the same folder (so that the rename is atomic), with the same suffix.

    Raises
    ------
    SimoError
        If the operating system refuses the write: full disk, read-only folder, no permission.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise SimoError(
            f"cannot write {path}: {error.strerror or error}. What was there before is untouched; "
            "free some space or choose a folder that you may write to, then run again."
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


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
    """Read a JSON file; SimoError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SimoError(f"{path} does not exist") from error
    except ValueError as error:
        raise SimoError(f"{path} is not JSON: {error}") from error
