"""A Chromium of the system: finds it, and prints pages with it.

python tools/browser.py
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simo.errors import SimoError
from simo.files import atomic_path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLACES = ("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",)


def find_chromium():
    """Path of the browser that the variable CHROMIUM names, else of one that is installed.

    Raises
    ------
    SimoError
        If there is none.
    """
    named = os.environ.get("CHROMIUM")
    found = next(filter(None, map(shutil.which, [named] if named else [*NAMES, *PLACES])), None)
    if not found:
        looked = (
            f"CHROMIUM is {named}, which is no program" if named else f"none of {', '.join(NAMES)} is there"
        )
        raise SimoError(f"no Chromium: {looked}; install Chromium or Chrome, or set CHROMIUM to its path")
    return found


def print_page(page, target):
    """Print a local page, with its formulas drawn, as a PDF.

    Parameters
    ----------
    page, target : Path
        HTML and PDF.

    Raises
    ------
    SimoError
        If there is no Chromium, or it prints nothing.
    """
    chromium = find_chromium()
    with atomic_path(target) as temporary, tempfile.TemporaryDirectory() as profile:
        # pages of our own need no sandbox, which not every system allows
        options = ["--headless", "--disable-gpu", "--no-sandbox", f"--user-data-dir={profile}"]
        options += ["--no-pdf-header-footer", "--virtual-time-budget=120000"]  # milliseconds, for scripts
        command = [chromium, *options, f"--print-to-pdf={temporary}", page.resolve().as_uri()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode or not Path(temporary).is_file():
            raise SimoError(f"{chromium} printed no {target.name}:\n{done.stdout}")


if __name__ == "__main__":
    try:
        print(find_chromium())
    except SimoError as error:
        sys.exit(f"error: {error}")
