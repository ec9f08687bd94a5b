"""Checks that no other account can have written a file that is about to be run, unpickled or trusted.

A file is trusted if it, and every folder from the study folder down to it, belongs to the caller or to root and no one else
can write to it. Folders are checked from the top down: once a folder is known to be closed to others, its contents cannot be
replaced between the check and the use. For a file outside the study folder, its own folder is checked. For protection against
reading see `kt_study.files.write_private`.
"""

from __future__ import annotations

import grp
import os
import pwd
import shlex
import stat
from pathlib import Path

from kt_study.errors import UntrustedFile


def require_own(path: Path, study: Path | None = None) -> None:
    """Refuse a file or folder that another account may have written.

    Args:
        path: what is about to be used.
        study: the study folder; None for a file that belongs to none.

    Raises:
        UntrustedFile: with the command that fixes it.
        OSError: it does not exist, or cannot be read.
    """
    for place in _places(path, study):
        _require(place, os.lstat(place), study)


def require_own_study(study: Path, *files: str) -> None:
    """Refuse a study whose folder, or one of the files of its database that are there, another account may have written.

    The folder's modules are imported, and the job table says which function of which module makes a model.

    Raises:
        UntrustedFile: as `require_own`.
    """
    require_own(study, study)
    for file in files:
        if os.path.lexists(file):
            require_own(Path(file), study)


def read_own(path: Path, study: Path) -> bytes:
    """The content of a file that no other account can have written; the checked file is the one that is read.

    Raises:
        UntrustedFile, OSError: as `require_own`.
    """
    require_own(path, study)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as stream:
        _require(path, os.fstat(handle), study)
        return stream.read()


def require_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what neither the caller nor root owns. Raises UntrustedFile."""
    if status.st_uid in (os.geteuid(), 0):
        return
    link = "-h " if stat.S_ISLNK(status.st_mode) else ""
    raise UntrustedFile(
        f"{path} belongs to {_user(status.st_uid)}, not to you: work as {_user(status.st_uid)}, or take it over with "
        f"`chown {link}{_user(os.geteuid())} {shlex.quote(str(path))}` as root"
    )


def owner(path: Path) -> str:
    """The account that a file or folder belongs to. Raises OSError where it cannot be seen."""
    return _user(path.stat().st_uid)


def _require(place: Path, status: os.stat_result, study: Path | None) -> None:
    require_owner(place, status)
    if not _others_may_write(place, status, study):
        return
    raise UntrustedFile(
        f"{place} can be written by others ({stat.filemode(status.st_mode)}, group {_group(status.st_gid)}), who could "
        f"make kt-study run what they like as you; `chmod go-w {shlex.quote(str(place))}`"
    )


def _places(path: Path, study: Path | None) -> list[Path]:
    """What must be closed to others, from the top down: along the path as it is written, and where links lead."""
    written = _down(path.absolute(), study and study.absolute())
    real = _down(path.resolve(), study and study.resolve())
    return list(dict.fromkeys([*written, *real]))


def _down(path: Path, study: Path | None) -> list[Path]:
    folders = [path.parent]
    if study is not None and path.is_relative_to(study):
        folders = [folder for folder in path.parents if folder.is_relative_to(study)]
    return [*reversed(folders), path]


def _others_may_write(place: Path, status: os.stat_result, study: Path | None) -> bool:
    mode = status.st_mode
    if stat.S_ISLNK(mode):
        return False
    if mode & stat.S_ISVTX and stat.S_ISDIR(mode) and not (study and place.is_relative_to(study)):
        return False  # as /tmp: others may add files, but not exchange ours
    return bool(mode & stat.S_IWOTH or (mode & stat.S_IWGRP and not _is_private_group(place, status)))


def _is_private_group(place: Path, status: os.stat_result) -> bool:
    """Whether the group is the owner alone, as where each user has a group of the same name and therefore umask 002."""
    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    alone = not set(group.gr_mem) - {owner.pw_name}
    return group.gr_name == owner.pw_name and owner.pw_gid == status.st_gid and alone and not _has_acl(place)


def _has_acl(place: Path) -> bool:
    """Whether the mode's group bits are the mask of an access control list."""
    try:
        return bool(os.getxattr(place, "system.posix_acl_access"))
    except OSError:
        return False


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
