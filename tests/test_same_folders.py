"""Fixtures of a folder are there in whatever order pytest is given files and folders."""

import subprocess
import sys
from pathlib import Path

import pytest

TEST = "def test_it(own):\n    assert own == 'own'\n"
FILES = {
    "a/conftest.py": "import pytest\n\n@pytest.fixture\ndef own():\n    return 'own'\n",
    "a/x/test_x.py": TEST,
    "a/y/test_y.py": TEST,
    "test_b.py": "def test_it():\n    pass\n",
}


@pytest.mark.parametrize(
    "given", [("a/x", "test_b.py", "a/y"), ("a/x/test_x.py", "test_b.py", "a/y/test_y.py")], ids=str
)
def test_a_file_between_folders_takes_no_fixture_away(tmp_path, given):
    for name, text in FILES.items():
        path = tmp_path / "tests" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (tmp_path / "tests" / "conftest.py").write_text(
        "from same_folders import pytest_collect_directory\n", encoding="utf-8"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/{name}" for name in given)]
    environment = {"PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "3 passed" in ran.stdout, ran.stdout
