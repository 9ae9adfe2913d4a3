"""No code from data (invariant 7): nothing that is read may run anything.

What each door refuses is tested where the door is: a model's own code (`tests/trainer/models/test_loading.py`), templates
(`tests/pipeline/read/test_template.py`), paths in manifests (`tests/pipeline/dataset/test_prepare.py`,
`tests/trainer/test_cache.py`). Here: there is no other door.
"""

import ast
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.parse import model
from schemas.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("schemas", "pipeline", "trainer") for path in (ROOT / package).rglob("*.py"))
#: Functions that run what they read; of these, the ones with arguments that make them harmless.
RUNNING = {
    "eval", "exec", "compile", "__import__",
    "pickle.load", "pickle.loads", "cloudpickle.load", "cloudpickle.loads", "dill.load", "joblib.load", "marshal.loads",
    "yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.load", "numpy.load", "np.load",
    "importlib.import_module", "os.system", "os.popen", "subprocess.getoutput",
}  # fmt: skip
HARMLESS = {"torch.load": ("weights_only", True)}


def calls(path):
    """(name, keywords, line) of every call in a file whose name is written out."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            constants = {
                word.arg: word.value.value
                for word in node.keywords
                if isinstance(word.value, ast.Constant) and word.arg
            }
            yield ast.unparse(node.func), constants, node.lineno


def test_nothing_that_runs_what_it_reads_is_called():
    assert len(SOURCES) > 100
    wrong = []
    for path in SOURCES:
        for name, keywords, line in calls(path):
            keyword, value = HARMLESS.get(name, (None, None))
            if name in RUNNING and (keyword is None or keywords.get(keyword) is not value):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name}")
            if keywords.get("trust_remote_code") is True or keywords.get("shell") is True:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} trusts")
    assert wrong == []


def test_the_scan_sees_what_it_looks_for(tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text("import torch\ntorch.load('a')\ntorch.load('a', weights_only=True)\nrun(shell=True)\n")
    assert [(name, keywords) for name, keywords, _ in calls(file)] == [
        ("torch.load", {}),
        ("torch.load", {"weights_only": True}),
        ("run", {"shell": True}),
    ]


def test_nothing_that_comes_with_the_project_is_a_pickle():
    for path in (ROOT / "data").rglob("*"):
        assert path.suffix not in {".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt"}, path
        assert not (path.is_file() and zipfile.is_zipfile(path)), path


class Trap:
    """Writes a file where it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


@pytest.mark.parametrize("name", ["benepar_model.bin", "benepar_en9.pt"])
def test_a_parser_that_would_run_something_runs_nothing(tmp_path, name):
    """Published benepar models are pickles, of tensors and plain values."""
    file, sprung = tmp_path / name, tmp_path / "sprung"
    torch.save({"config": Trap(sprung), "state_dict": {}}, file)
    (tmp_path / "config.json").write_text('{"benepar": {}}')
    with pytest.raises(UserError, match=f"{name} is damaged, or holds more"):
        model.load(str(tmp_path if name.endswith(".bin") else file))
    assert not sprung.exists()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        model.load(str(tmp_path if name.endswith(".bin") else file))
