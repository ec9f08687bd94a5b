"""File systems of paths, and which of them are on a network."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kt_study.errors import DatabaseError

NETWORK_FILE_SYSTEMS = frozenset([
    "nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "pvfs2",
    "orangefs", "panfs", "davfs", "wekafs", "ocfs2", "gfs2", "mmfs", "fuse.sshfs", "fuse.glusterfs", "fuse.ceph",
    "fuse.cephfs", "fuse.s3fs", "fuse.rclone", "fuse.juicefs", "fuse.beegfs", "fuse.gcsfuse", "fuse.davfs2",
    "fuse.orangefs", "fuse.weed",
])  # fmt: skip
"""The kernel's names of file systems on which SQLite's locks or its shared memory are not reliable."""


def file_system(path: str | Path) -> str:
    """The kernel's name of the file system of `path`, which need not exist; empty if the kernel does not say."""
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in mount_table().splitlines():
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])  # blanks and the like
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def mount_table() -> str:
    """The kernel's list of mounts; empty if there is none."""
    table = Path("/proc/self/mountinfo")
    return table.read_text(encoding="utf-8", errors="surrogateescape") if table.exists() else ""


def require_local_disk(path: str | Path, what: str) -> None:
    """Refuse a network file system, where a database's locks are not reliable. Raises DatabaseError."""
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise DatabaseError(
            f"{what} {path} is on a network file system ({kind}), where file locks are not reliable; put it on a local disk "
            "of one machine, or run `kt-study db start --dir FOLDER` with a folder on such a disk and use the URL it prints"
        )
