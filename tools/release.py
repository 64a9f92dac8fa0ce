"""Checks what a release needs, and writes its archives into build/release/. Nothing is published or tagged.

    python tools/release.py [--check]

Source, records, the book as pages and as PDF, and trained models of the miniature, where they are there. The
same commit and the same build give the same archives, byte for byte: `SHA256SUMS` names each one's hash.
"""

import argparse
import hashlib
import io
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from report.notebooks import ROOT
from report.overview import commits_of
from report.records import load_records
from simo.errors import SimoError
from simo.files import atomic_path, listed
from tools.models_archive import CHECKPOINTS, check_models, models_of

TARGET = "build/release"
BOOK = "build/miniature/redraw"  # drawn from committed records: it holds no picture of others' photographs
LIMIT = 60_000_000  # bytes of the models' archive
# studies that name several commits, which the checklist says instead of refusing; the changelog says why
SEVERAL = {"photos/taskonomy_photos"}
# the window is so large that a merged encoder is found again in its realigned models, and stored once
XZ = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 << 20}]


def run(*command):
    """Run a command in the project; return its exit status and output."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.strip()


def git(*arguments):
    """Output of git as bytes; SimoError if it fails."""
    command = ["git", "-C", ROOT, *arguments]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise SimoError(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def read_version():
    """The version that `simo` says it has."""
    text = (ROOT / "simo" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


def check_git():
    """Yield what is not committed."""
    changed = git("status", "--porcelain").decode().splitlines()
    if changed:
        yield f"{len(changed)} files differ from the commit, such as {changed[0][3:]}: commit or remove them"


def check_version():
    """Yield where another version or day is named than in `simo` and the changelog's first entry."""
    version = read_version()
    first = re.search(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[1]
    name, _, date = first.partition(" - ")
    if name != version or not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        yield f"CHANGELOG.md begins with {first!r}, expected '{version} - YYYY-MM-DD': name both there"
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    found = f"{cited.get('version')} - {cited.get('date-released')}"
    if found != first:
        yield f"CITATION.cff has version and date-released {found!r}, CHANGELOG.md {first!r}: make them agree"


def check_records():
    """Yield studies whose records are not of one commit of this history; of `SEVERAL` any of these."""
    for folder in sorted({path.parents[1] for path in listed(ROOT / "records", "*/*/seed*/*.json")}):
        name = f"{folder.parent.name}/{folder.name}"
        again = f"make records PROFILE={folder.parent.name} STUDIES={folder.name}"
        commits = commits_of(load_records(folder))
        if not commits or (len(commits) > 1 and name not in SEVERAL):
            yield f"records/{name} are not of one clean commit: commit everything, then {again}"
            continue
        for commit in sorted(commits):
            if run("git", "merge-base", "--is-ancestor", commit, "HEAD")[0]:
                yield f"records/{name} are of commit {commit[:8]}, which HEAD does not come from: {again}"


def check_tests():
    """Yield what the tests of the committed records and of what is claimed from them say."""
    status, said = run(sys.executable, "-m", "pytest", "-q", "tests/report/test_committed_records.py")
    if status:
        yield f"tests/report/test_committed_records.py: {said.splitlines()[-1]}; make test says more"


def check_book():
    """Yield what of the book is missing, or older than what it is drawn from."""
    page, pdf = ROOT / BOOK / "_build/html/index.html", ROOT / BOOK / "book.pdf"
    settings = ["profile=miniature", "seeds=0", f"build={Path(BOOK).parent}"]
    status, said = run(
        sys.executable, "tools/pipeline.py", "redraw", "--config", *settings, "--", "--dry-run"
    )
    if status:
        yield f"tools/pipeline.py redraw: {said.splitlines()[-1]}"
    elif "nothing to be done" not in said:
        yield f"{BOOK}/_build/html is missing or out of date: make pdf"
    elif not pdf.is_file() or pdf.stat().st_mtime < page.stat().st_mtime:
        yield f"{BOOK}/book.pdf is missing or older than the book: make pdf"


CHECKS = {
    "everything is committed": check_git,
    "version and date": check_version,
    "records of one commit": check_records,
    "tests of the records": check_tests,
    "book and PDF": check_book,
    "models": lambda: check_models(ROOT),
}


def check():
    """Go through the checklist, a line each; return whether nothing is missing."""
    complete = True
    for name, find in CHECKS.items():
        problems = list(find())
        print(f"{'MISSING' if problems else 'ok':9}{name}", flush=True)
        for problem in problems:
            print(f"         - {problem}")
        complete = complete and not problems
    for name in sorted(SEVERAL):
        print(f"         records/{name} are of several commits: CHANGELOG.md says why")
    if not (ROOT / CHECKPOINTS).is_dir():
        print(f"         no archive of models: {CHECKPOINTS} is not there; make records trains them")
    return complete


def compress(archive):
    """A tar archive as xz."""
    return lzma.compress(archive, filters=XZ)


def pack(files, date):
    """Archive of files in the order of their names, all of one date, and nobody's.

    Parameters
    ----------
    files : dict of str to bytes or Path
        By the name in the archive.
    date : int
        In seconds since 1970.

    Returns
    -------
    bytes
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in sorted(files):
            content = files[name] if isinstance(files[name], bytes) else files[name].read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(content), date
            archive.addfile(entry, io.BytesIO(content))
    return compress(buffer.getvalue())


def contents():
    """What a release consists of: bytes by file name."""
    name, date = f"simo-{read_version()}", int(git("log", "-1", "--format=%ct"))
    parts, html = {}, ROOT / BOOK / "_build" / "html"
    if models := models_of(ROOT):
        parts[f"{name}-models.tar.xz"] = packed = pack(
            {f"{name}-models/{k}": v for k, v in models.items()}, date
        )
        if len(packed) > LIMIT:
            raise SimoError(
                f"the models' archive would have {len(packed) / 1e6:.0f} MB, more than {LIMIT / 1e6:.0f}: "
                "name fewer studies in tools/models_archive.py"
            )
    archive = ("-c", "tar.umask=0022", "archive", "--format=tar", f"--prefix={name}/", "HEAD")
    parts[f"{name}-source.tar.xz"] = compress(git(*archive))
    parts[f"{name}-records.tar.xz"] = compress(git(*archive, "records"))
    pages = [path for path in listed(html, "**/*") if path.is_file()]
    parts[f"{name}-book.tar.xz"] = pack(
        {f"{name}-book/{p.relative_to(html).as_posix()}": p for p in pages}, date
    )
    parts[f"{name}.pdf"] = (ROOT / BOOK / "book.pdf").read_bytes()
    return parts


def write(parts):
    """Write a release in place of the one before, its hashes last."""
    shutil.rmtree(ROOT / TARGET, ignore_errors=True)
    sums = "".join(f"{hashlib.sha256(parts[name]).hexdigest()}  {name}\n" for name in sorted(parts))
    for name, content in (parts | {"SHA256SUMS": sums.encode()}).items():
        with atomic_path(ROOT / TARGET / name) as temporary:
            temporary.write_bytes(content)
        print(f"{len(content) / 1e6:8.1f} MB  {TARGET}/{name}")


def main(argv=None):
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="say what is missing, and write nothing")
    options = parser.parse_args(argv)
    try:
        complete = check()
        if complete and not options.check:
            write(contents())
    except SimoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(not complete)


if __name__ == "__main__":
    sys.exit(main())
