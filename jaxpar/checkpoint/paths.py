"""Which paths a run's directory may have."""

import fnmatch
import re
from pathlib import Path
from typing import NoReturn

from jaxpar.errors import UserError

URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""How the URL of a bucket begins; of its two slashes, `Path` keeps one."""
WILDCARDS = re.compile(r"[*?\[\]]")


def run_path(path: str | Path) -> Path:
    """The path, if a run can be kept, or an existing one be read, there.

    Orbax looks for checkpoints with globs below the path as it is, so that it never
    finds again what it saves below a folder named a[e].

    Raises:
      UserError: it is a URL, an experiment's file or not UTF-8, or a wildcard is in it
        or in the working directory above it.
    """
    if URL.match(str(path)):
        url = re.sub(":/+", "://", str(path), count=1)
        raise UserError(
            f"{url} is no local path; a run needs a directory of a file system: mount "
            "the bucket, or choose another directory and copy it afterwards."
        )
    path = Path(path)
    if path.suffix == ".py" and path.is_file():
        _refuse_experiment(path)
    absolute = str(path.absolute())
    try:
        absolute.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{absolute!a} is not UTF-8, and a run needs a directory that is; choose "
            "another directory, or rename it."
        ) from error
    readable = fnmatch.fnmatchcase(absolute, absolute)
    if readable and (path / "config.json").is_file():
        return path
    if found := sorted(set(WILDCARDS.findall(absolute))):
        raise UserError(
            f"{absolute} contains {' '.join(found)}, which the checkpoint library "
            "takes for wildcards: a run there could not be read again. Choose a "
            "directory without * ? [ ] in its path, or rename it."
        )
    return path


def _refuse_experiment(file: Path) -> NoReturn:
    """Says what a run is, and where those of an experiment are."""
    found = sorted(Path("runs").glob(f"{file.stem}-*/config.json"))
    runs = [str(path.parent) for path in found]
    there = f"here are {', '.join(runs)}" if runs else "there is none here yet"
    raise UserError(
        f"{file} is an experiment; a run is the directory that training it makes, "
        f"runs/{file.stem}-FINGERPRINT unless --run-dir says another one: {there}."
    )
