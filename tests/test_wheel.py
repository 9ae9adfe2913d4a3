"""A wheel has all that the packages need, and works in any folder, whatever names that folder has of its own."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from documented import QUICK_START, blocks_of, commands_of
from schemas.errors import Exit

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "pipeline", "trainer", "data")
BESIDE = ("pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "LICENSE", "constraints.txt")
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
#: As a frontend calls a backend: first the one, then the other from what the first has packed.
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, f'build_{sys.argv[1]}')(sys.argv[2]))"
pytestmark = pytest.mark.xdist_group("wheel")


def build(kind: str, source: Path, out: Path) -> Path:
    """A distribution of a source tree."""
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind, str(out)], cwd=source, check=True, capture_output=True, text=True
    )
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """A source distribution, of a copy of the tree: nothing of an earlier build is in it, and tests are there to be left out."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in (*PACKAGES, "tests"):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in BESIDE:
        shutil.copy(ROOT / name, tree)
    return build("sdist", tree, out)


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """The wheel that a source distribution gives."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Folder of an environment's commands: the wheel is installed in it, and what that needs is found in this one's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "--no-index",
            "--no-deps",
            "--quiet",
            str(wheel),
        ],
        check=True,
        capture_output=True,
        env=os.environ | {"PIP_NO_CACHE_DIR": "1"},
    )
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder / "bin"


@pytest.fixture
def taken(tmp_path):
    """Where somebody works who has folders and modules of the names that the packages have, too."""
    folder = tmp_path / "taken"
    for name in ("data", "schemas", "datasets", "trainer", "pipeline"):
        (folder / name).mkdir(parents=True)
        (folder / name / "notes.txt").write_text("somebody's own\n", encoding="utf-8")
    # `trainer` and `pipeline` as places for files: as packages nothing could tell them from ours
    for name in ("schemas/__init__.py", "schemas/console.py", "data/__init__.py", "config.py", "text.py"):
        (folder / name).write_text("raise ImportError('this is no part of mta-prep')\n", encoding="utf-8")
    return folder


def run(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of the environment, in a folder, with nothing of the clone in sight."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    command = [str(installed / words[0]), *words[1:]]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def files_of_the_tree() -> dict[str, int]:
    """Every file of the packages, with its size."""
    return {
        str(path.relative_to(ROOT)): path.stat().st_size
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_a_wheel_has_all_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    ours = {name: size for name, size in sizes.items() if ".dist-info/" not in name}
    assert ours == files_of_the_tree()
    # that there is anything of each kind, whatever the tree has
    for name in ("data/parser/parser.safetensors", "data/constraints.txt", "trainer/configs/mta.yaml"):
        assert ours[name] > 0
    for pattern in ("schemas/pages/*.html", "pipeline/report/pages/*.html", "trainer/configs/deepspeed/*.json"):
        assert any(Path(name).match(pattern) for name in ours)


def test_a_source_distribution_has_what_a_wheel_is_made_of(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(BESIDE) <= names
    assert {name.partition("/")[0] for name in names} <= {
        "",
        "setup.cfg",
        "PKG-INFO",
        "mta_prep.egg-info",
        *PACKAGES,
        *BESIDE,
    }


def test_every_door_opens_where_names_are_taken(installed, taken):
    for words in (
        ("mta-prep", "train", "--config", "mta"),
        ("python", "-m", "trainer.train", "--config", "mta"),
        ("python", "-m", "trainer.evaluate", "run", "embedded:teacher", "--held-out", "prepared"),
        ("python", "-m", "pipeline", "info", "prepared"),
    ):
        refused = run(installed, taken, *words)
        assert (refused.returncode, refused.stderr) == (Exit.STATE, "Error: There is no folder prepared.\n"), words


@pytest.mark.slow  # a minute each: programs that import everything
@pytest.mark.parametrize("names", ["none", "taken"])
def test_the_quick_start_works(installed, names, taken, tmp_path):
    folder = taken if names == "taken" else tmp_path / "empty"
    folder.mkdir(exist_ok=True)
    launcher = str(Path(sys.executable).with_name("deepspeed"))
    for block in blocks_of("sh", [QUICK_START]):
        for words in commands_of(block):
            words = ["python", launcher, *words[1:]] if words[0] == "deepspeed" else words
            done = run(installed, folder, *words)
            assert done.returncode == 0, done.stdout + done.stderr
    for student in ("runs/sample/student", "runs/two/student"):
        assert (folder / student / "model.safetensors").is_file()
    assert (folder / "sample.html").stat().st_size > 0
