"""What the study makes once, whatever runs it: rows, datasets, the tuned teacher, its caches, the students before training.

    WORK/  rows/  data/  teacher/  students/  caches/  runs/  results/  costs/  failures/

Each is made under a lock and has a receipt in `costs/` when it is whole, so any number of processes may ask for it, and
an interrupted study goes on.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock

from schemas import embedded
from schemas.errors import UsageError
from schemas.files import sha256_of, write_text
from study.arms import Arm
from study.profiles import Profile

#: Of every test set; the training rows are `train`.
TEST: Final = "test-"
#: What the second pair's cache holds: everything its arms look at.
_CROSS_SIGNALS: Final = ("states", "final", "attention", "entropy", "argmax", "logprob", "sorted", "embeddings")


@dataclass(frozen=True)
class Study:
    """A profile, and the folder in which it is run."""

    profile: Profile
    work: Path
    device: str  # cpu or cuda

    def once(self, name: str, product: Path, make: Callable[[], object]) -> Path:
        """`product`, made if it has not been, by whoever comes first; the receipt says how long it took and how large it is."""
        receipt = self.work / "costs" / f"{name}.json"
        receipt.parent.mkdir(parents=True, exist_ok=True)
        if receipt.is_file():
            return product
        with FileLock(receipt.with_suffix(".lock")):
            if not receipt.is_file():
                began = time.monotonic()
                make()
                seconds = round(time.monotonic() - began, 2)
                write_text(receipt, json.dumps({"seconds": seconds, "bytes": size_of(product)}) + "\n")
        return product

    def costs(self) -> dict[str, dict[str, float]]:
        """Seconds and bytes of everything that was made once."""
        receipts = sorted((self.work / "costs").glob("*.json"))
        return {receipt.stem: json.loads(receipt.read_text(encoding="utf-8")) for receipt in receipts}

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return sorted(file.stem for file in (self.work / "rows").glob(f"{TEST}*.jsonl"))

    @property
    def largest_test(self) -> str:
        """The test set with the most rows, of several the first."""
        return min(self.tests, key=lambda test: (-len(_lines(self.rows(test))), test))

    def rows(self, name: str) -> Path:
        """A file of rows: `train`, or a test set."""
        return self.work / "rows" / f"{name}.jsonl"

    def take_rows(self, source: Path | None) -> None:
        """Copy the rows into the folder; without a source, split the embedded sample."""
        self.once("rows", self.work / "rows", lambda: self._take_rows(source))

    def _take_rows(self, source: Path | None) -> None:
        target = self.work / "rows"
        target.mkdir(parents=True, exist_ok=True)
        profile = self.profile
        if source is None:
            sample = Path(embedded.resolve("embedded:sample"))
            lines = _lines(sample)
            held = set(range(0, len(lines), 4))  # the sample goes by subjects
            parts = {
                "train": [line for number, line in enumerate(lines) if number not in held],
                f"{TEST}sample": [line for number, line in enumerate(lines) if number in held],
            }
        else:
            parts = {name: _lines(file) for name, file in sources(source).items()}
        for name, lines in parts.items():
            most = profile.rows if name == "train" else profile.test_rows
            write_text(target / f"{name}.jsonl", "".join(lines[:most]))

    def dataset(self, name: str, extractor: str = "benepar", cross: bool = False) -> Path:
        """The prepared dataset of a file of rows, for the first pair or the second."""
        label = name + ("-spacy" if extractor == "spacy" else "") + ("-cross" if cross else "")
        folder = self.work / "data" / label
        if cross:
            before = self.dataset(name, extractor)
            return self.once(f"data-{label}", folder, lambda: self._realign(name, before, folder))
        return self.once(f"data-{label}", folder, lambda: self._prepare(name, extractor, folder))

    def _prepare(self, name: str, extractor: str, folder: Path) -> None:
        from pipeline.dataset.prepare import prepare
        from schemas.config import ParseConfig

        side = {"tokenizer": self.profile.teacher, **self._limits(name)}
        # nothing is asked of the units of test rows
        parser = {"kind": extractor if name == "train" else "spacy"}
        values = {
            "inputs": [str(self.rows(name))],
            "teacher": side,
            "student": side,
            "parser": parser,
        }
        prepare(ParseConfig.parse(values, "study"), folder, workers=self.profile.workers, quiet=True)

    def _limits(self, name: str) -> dict[str, int]:
        length, prompt = self.profile.lengths if name == "train" else self.profile.test_lengths
        return {"max_length": length, "max_prompt_length": prompt}

    def _realign(self, name: str, dataset: Path, folder: Path) -> None:
        from pipeline.dataset.realign import realign

        # with another tokenizer nothing else of a side stays as it was
        side: dict[str, Any] = {"tokenizer": self.profile.cross_tokenizer, **self._limits(name)}
        realign(dataset, folder, {"student": side}, None, workers=1, overwrite=False, quiet=True)

    @property
    def teacher(self) -> Path:
        """The tuned teacher."""
        run = self.work / "teacher"
        return self.once("teacher", run / "student", self._tune)

    def _tune(self) -> None:
        from schemas.training import TrainConfig
        from study.training import trained

        profile = self.profile
        held_out = profile.teacher_held_out
        rows = sum(1 for _ in self.rows("train").open(encoding="utf-8")) - held_out
        values = {
            "student": {"model": profile.teacher},
            "data": {
                "dataset": str(self.dataset("train")),
                "batch_size": profile.batch_size,
                "held_out": held_out,
                "workers": 0,
            },
            "objectives": {"ce": {"weight": 1.0}},
            "optim": {"lr": profile.teacher_lr, "warmup": 0.1},
            "epochs": profile.teacher_epochs,
            "validate_every": max(1, rows // profile.batch_size),
            "checkpoint": {"best": True, "keep": 1},
            "log": {"tensorboard": False},
            "out": str(self.work / "teacher"),
        }
        trained(TrainConfig.parse(values, "study"), profile.tf32)

    def student(self, cross: bool) -> dict[str, Any]:
        """`student` of a training config."""
        profile = self.profile
        named = profile.cross_student if cross else profile.student
        if named is not None:
            return {"model": named}
        assert profile.kept is not None
        cut = {"model": str(self.teacher), "init": {"layers": list(profile.kept)}}
        folder = self.work / "students" / ("cross" if cross else "first")
        if cross:
            return {"model": str(self.once("cross-student", folder, lambda: self._transplant(cut, folder)))}
        return {"model": str(self.once("student", folder, lambda: self._cut(cut, folder)))}

    def _cut(self, cut: Mapping[str, Any], folder: Path) -> None:
        """Cutting is tried on the way, which takes as long as some steps do."""
        from schemas.training import StudentConfig
        from trainer.models.tokenizer import load_tokenizer
        from trainer.student.initialization import initial_model

        initial_model(StudentConfig.model_validate(cut), seed=0).save_pretrained(folder)
        load_tokenizer(str(self.teacher), None, "The student's tokenizer").save_pretrained(folder)

    def _transplant(self, cut: Mapping[str, Any], folder: Path) -> None:
        """The cut student with the embeddings that another tokenizer's tokens have in it, by their bytes; others are the mean."""
        import torch

        from schemas.training import StudentConfig
        from trainer.batches.documents import Documents
        from trainer.models.tokenizer import load_tokenizer
        from trainer.student.initialization import initial_model

        vocabulary = Documents(self.dataset("train", cross=True)).require_vocabulary("The second pair")
        tokenizer = load_tokenizer(self.profile.cross_tokenizer, None, "The second pair's tokenizer")
        model = initial_model(StudentConfig.model_validate(cut), seed=0)
        ours, theirs = vocabulary.shared.T
        for get, put in (
            (model.get_input_embeddings, model.set_input_embeddings),
            (model.get_output_embeddings, model.set_output_embeddings),
        ):
            old = get().weight.detach()
            known = old[theirs]
            new = known.mean(0).expand(len(tokenizer), -1).clone()
            new[ours] = known
            kind = torch.nn.Embedding if get is model.get_input_embeddings else torch.nn.Linear
            module = kind(*new.shape) if kind is torch.nn.Embedding else kind(new.shape[1], new.shape[0], bias=False)
            with torch.no_grad():
                module.weight.copy_(new)
            put(module)
        model.config.vocab_size = len(tokenizer)
        model.config.bos_token_id = tokenizer.bos_token_id
        model.config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.bos_token_id = tokenizer.bos_token_id
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.tie_weights()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def test_cache(self, test: str) -> Path:
        """The teacher's last states on a test set, exact."""
        return self._cache(f"cache-{test}", self.dataset(test), {"signals": ["final"], "storage": {"final": "fp32"}})

    def caches(self, arm: Arm) -> list[Path]:
        """Those that an arm's terms look at; a cache serves all arms with the same units, layers and weights."""
        if arm.live or arm.terms.keys() == {"ce"}:
            return []
        dataset = self.dataset("train", arm.extractor, arm.cross)
        layers = [{"layer": pair["teacher"], "granularity": pair["granularity"]} for pair in arm.layers(self.profile)]
        if arm.cross:
            return self._cross_caches(arm, layers)
        caches = [self._cache(f"cache-final-{arm.extractor}", dataset, {"signals": ["final"], "response_only": True})]
        places = "-".join(str(layer["layer"]) for layer in layers)
        if "fdd" in arm.terms:  # states before learnt tokens and of units are served by one cache
            values = {"signals": ["relations", "states"], "layers": layers, "state_tokens": "all"}
            caches.append(self._cache(f"cache-fdd-{places}", dataset, values))
        elif layers:
            label = f"cache-{arm.extractor}-{arm.units}-{places}-{arm.weights}"
            values = {"signals": ["relations", "states"], "layers": layers, "weights": arm.weights}
            caches.append(self._cache(label, dataset, values))
        return caches

    def _cross_caches(self, arm: Arm, layers: list[dict[str, Any]]) -> list[Path]:
        dataset, caches = self.dataset("train"), []
        if arm.terms.keys() - {"ce", "dsa"}:
            from schemas.config import ModelConfig
            from trainer.teacher.shape import shape_of

            depth = shape_of(ModelConfig(model=str(self.teacher))).depth
            last = [{"layer": depth, "granularity": "words"}]
            values = {"signals": _CROSS_SIGNALS, "layers": last, "state_tokens": "all", "response_only": True}
            caches.append(self._cache("cache-cross", dataset, values))
        if layers:
            caches.append(self._cache("cache-cross-relations", dataset, {"signals": ["relations"], "layers": layers}))
        return caches

    def _cache(self, name: str, dataset: Path, values: Mapping[str, Any]) -> Path:
        from pipeline.cache import plan
        from schemas.config import CacheConfig
        from trainer.teacher.shape import shape_of

        teacher = {"model": str(self.teacher), "dtype": "float32", "device": self.device}
        folder = self.work / "caches" / name

        def make() -> None:
            config = CacheConfig.parse({"dataset": str(dataset), "teacher": teacher, **values}, "study")
            plan.cache(plan.plan_cache(config, [], shape_of(config.teacher)), folder, workers=1, quiet=True)

        return self.once(name, folder, make)


def sources(folder: Path) -> dict[str, Path]:
    """The files of rows in a folder, by their names in the study. Raises `UsageError` for a folder without them."""
    files = {"train": folder / "train.jsonl"}
    files |= {f"{TEST}{file.stem}": file for file in sorted((folder / "test").glob("*.jsonl"))}
    if len(files) == 1 or not files["train"].is_file():
        raise UsageError(
            f"{folder} is not what the study learns from: it wants train.jsonl and a folder test of files of test rows "
            "there, one JSON object a line, each with `instruction`, `input` and `output` as Dolly has them."
        )
    return files


def digest(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's files of rows. Raises `UsageError` for what is none, or has no row."""
    total = hashlib.sha256()
    for name, file in sources(folder).items():
        _lines(file)
        total.update(f"{sha256_of(file)}  {name}\n".encode())
    return total.hexdigest()


def _lines(file: Path) -> list[str]:
    try:
        with file.open(encoding="utf-8", newline="\n") as stream:  # other line ends may stand inside a row
            lines = list(stream)
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is no UTF-8 ({error.reason} at byte {error.start}).") from None
    if not any(map(str.strip, lines)):
        raise UsageError(f"{file} is empty; the study wants rows in each of its files.")
    return lines


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
