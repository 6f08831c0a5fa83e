"""Fetches pinned packages by the ordinary clients, and unpacks them into the cache without installing them."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import paths
from mixbit.core.errors import MixbitError


class MissingPackage(MixbitError):
    """A package that a benchmark needs is not to be had; the message names it."""


def pip(requirement: str) -> Path:
    """The folder of the files of a Python package, as `name==version`.

    Raises:
        MissingPackage: pip does not get it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", ".", requirement]
    return _unpacked("pip", requirement, command)


def deb(name: str) -> Path:
    """The root of the files of a Debian package.

    Raises:
        MissingPackage: apt-get does not get it.
    """
    return _unpacked("apt-get", name, ["apt-get", "download", name])


def file_in(folder: Path, pattern: str) -> Path:
    """The first file of that pattern anywhere in the folder of a package.

    Raises:
        MissingPackage: there is none.
    """
    files = sorted(folder.rglob(pattern))
    if not files:
        raise MissingPackage(f"package {folder.name}: holds no file {pattern}; take the pinned version")
    return files[0]


def _unpacked(client: str, package: str, command: Sequence[str]) -> Path:
    """The folder of the package in the cache; it appears whole or not at all."""
    folder = paths.cache() / "packages" / client / package
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as scratch:
        archives, files = Path(scratch, "archives"), Path(scratch, "files")
        archives.mkdir()
        files.mkdir()
        _run(command, archives, f"package {package}: {client} does not get it")
        for archive in archives.iterdir():
            if archive.suffix == ".deb":
                _run(["dpkg-deb", "-x", str(archive), str(files)], archives, f"package {package}: dpkg-deb fails")
            else:
                _unpack(archive, files)
        files.rename(folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, which is a zip file by another name, or an archive of sources."""
    if archive.suffix == ".whl":
        shutil.unpack_archive(archive, folder, format="zip")
    else:
        shutil.unpack_archive(archive, folder, filter="data")


def _run(command: Sequence[str], folder: Path, problem: str) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingPackage(f"{problem}: {command[0]} is not installed") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise MissingPackage(f"{problem}: {said}")
