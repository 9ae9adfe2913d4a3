"""Disks of their own, which tests make as small as they like, or read-only."""

import os
import subprocess
import sys

import pytest


def mount(*arguments):
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    """A folder that is a disk, and what gives it another size, or other options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if sys.platform != "linux" or os.geteuid() or not mount("-t", "tmpfs", "-o", "size=4k", "tmpfs", folder):
        pytest.skip("no file system can be mounted here")

    def sized(size, options="rw"):
        assert mount("-o", f"remount,{options},size={size}", folder)

    yield folder, sized
    subprocess.run(["umount", "-l", folder], check=True)
