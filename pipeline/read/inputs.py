"""From what a user names (files, globs, folders, `-`, datasets of a hub) to sources."""

import glob
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pipeline.read.sources import KNOWN, LoadedDataset, Source, TextFile, file_source, is_data_file
from schemas.errors import ResourceError, UsageError, UserError, nearest
from schemas.files import flush

STDIN: Final = "-"
HUB: Final = "hf://datasets/"

_PART: Final = r"[A-Za-z0-9_][\w.-]*"
_HUB_ID: Final = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_HUB_URL: Final = re.compile(rf"{HUB}(?P<id>{_PART}/{_PART})(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?", re.ASCII)


def open_inputs(inputs: Sequence[str], *, split: str | None, revision: str | None, spool: Path) -> list[Source]:
    """The sources that `inputs` name, in order; those of a glob or folder sorted by name.

    An input is a file, a glob (`**` matches folders at any depth), a folder (one that `save_to_disk` wrote, or one with
    data files directly in it), `-` for JSON lines on standard input, `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, or
    the bare `OWNER/NAME` of a hub where the working folder has nothing of that name. `split` and `revision` are those
    of datasets that have them. Standard input is copied into the folder `spool`, so that it can be read again.

    Raises `UserError` for inputs that are missing or of unknown format, `UsageError` for a split or revision that does
    not fit, `ResourceError` for a hub dataset that cannot be had.
    """
    sources: list[Source] = []
    for given in inputs:
        path = Path(given)
        if given == STDIN:
            sources.append(TextFile(STDIN, _spool_stdin(spool), ".jsonl", None))
        elif given.startswith("hf://"):
            sources.append(_hub_url(given, split, revision))
        elif path.is_dir():
            sources.extend(_folder(path, split))
        elif path.exists():
            sources.append(file_source(path, path.as_posix()))
        elif glob.has_magic(given):
            sources.extend(_glob(given))
        elif _HUB_ID.fullmatch(given) and not is_data_file(path) and not path.parent.exists():
            sources.append(_hub_dataset(given, given, None, split, revision))
        else:
            raise _missing(path)
    _check_flags(sources, inputs, split, revision)
    return sources


def _check_flags(sources: Sequence[Source], inputs: Sequence[str], split: str | None, revision: str | None) -> None:
    for repeated in (name for name, times in Counter(source.name for source in sources).items() if times > 1):
        raise UsageError(f"{repeated} is named twice; its rows would be doubled. Name every input once.")
    if split is not None and not any(isinstance(source, LoadedDataset) for source in sources):
        raise UsageError(f"split {split!r}: none of the inputs has splits; only datasets of a hub or on disk have.")
    if revision is not None and not any(source.name.startswith(HUB) for source in sources):
        raise UsageError(f"input revision {revision!r}: none of the inputs ({', '.join(inputs)}) is on a hub.")


def _glob(pattern: str) -> list[Source]:
    matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(path for path in map(Path, matches) if path.is_file())
    if not found:
        raise UserError(f"No file matches {pattern}.")
    return _data_files(found, pattern)


def _folder(folder: Path, split: str | None) -> list[Source]:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        chosen = _choose_split(splits, split, folder.as_posix())
        return [_saved_dataset(folder / chosen)]
    if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
        if split is not None:
            raise UsageError(f"split {split!r}: {folder.as_posix()} is one dataset without splits.")
        return [_saved_dataset(folder)]
    inside = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))
    return _data_files(inside, f"{folder.as_posix()}/")


def _data_files(paths: Sequence[Path], given: str) -> list[Source]:
    """Sources of the data files among `paths`; a README between them is no mistake."""
    data = [path for path in paths if is_data_file(path)]
    if not data:
        deeper = f" For files in folders below, write {given}**/*.jsonl." if given.endswith("/") else ""
        raise UserError(f"{given} holds no data file. Known formats: {KNOWN}.{deeper}")
    return [file_source(path, path.as_posix()) for path in data]


def _saved_dataset(folder: Path) -> Source:
    import datasets  # takes a second to import; most runs do not need it

    try:
        return LoadedDataset(folder.as_posix(), datasets.load_from_disk(str(folder)))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder.as_posix()}: the dataset cannot be opened ({_one_line(error)}).") from None


def _hub_url(given: str, split: str | None, revision: str | None) -> Source:
    parts = _HUB_URL.fullmatch(given)
    if parts is None:
        raise UsageError(f"{given}: a dataset of a hub is written {HUB}OWNER/NAME[@REVISION][/PATH].")
    if parts["revision"] and revision and parts["revision"] != revision:
        raise UsageError(f"{given} names a revision, and the flag names another ({revision!r}); keep one.")
    return _hub_dataset(given, parts["id"], parts["path"], split, parts["revision"] or revision)


def _hub_dataset(given: str, name: str, path: str | None, split: str | None, revision: str | None) -> Source:
    """One split of a hub dataset, downloaded and cached by `datasets`, which runs no code from there."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    is_file = path is not None and is_data_file(Path(path))
    try:
        loaded = datasets.load_dataset(
            name,
            data_files=path if is_file else None,
            data_dir=None if is_file else path,
            split=split,
            revision=revision,
        )
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        the = "The" if given.startswith(HUB) else f"There is no file or folder {given} here, and the"
        raise ResourceError(
            f"{the} dataset {name!r} cannot be fetched from the hub ({_one_line(error)}). Check the name and the "
            f"network, log in with `hf auth login` if it is private or gated, or download it and give its path."
        ) from None
    except (ValueError, RuntimeError) as error:  # an unknown split or revision, several configurations, a script
        raise UsageError(
            f"{given}: {_one_line(error)}. Name its files directly if need be: {HUB}{name}/PATH.parquet"
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        split = _choose_split(list(loaded), split, given)
        loaded = loaded[split]
    place = f"{HUB}{name}" + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")
    return LoadedDataset(f"{place}#{loaded.split}", loaded)


def _choose_split(splits: Sequence[str], split: str | None, where: str) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None or split not in splits:
        asked = "choose one with --split" if split is None else f"it has no split {split!r}"
        raise UsageError(f"{where} has the splits {', '.join(splits)}: {asked}.")
    return split


def _spool_stdin(spool: Path) -> Path:
    """Standard input as a file of its own, whole or not there."""
    target = spool / "stdin.jsonl"
    partial = target.with_suffix(".partial")
    source = sys.stdin.buffer
    if stat.S_ISCHR(os.fstat(source.fileno()).st_mode):  # a terminal, or /dev/null
        raise UserError(
            f"{STDIN} stands for standard input, but nothing is piped in; write `… < rows.jsonl`, also to go on with an "
            "interrupted run."
        )
    try:
        spool.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        flush(spool)
    except OSError as error:
        raise ResourceError(f"{spool}: standard input cannot be kept there ({error.strerror}).") from None
    return target


def _missing(path: Path) -> UserError:
    """The error for a path that does not exist, with the nearest name that does."""
    folder, name = path.parent, path.name
    while not folder.is_dir():
        folder, name = folder.parent, folder.name
    near = nearest(name, [entry.name for entry in folder.iterdir()])
    hint = f" Did you mean {(folder / near).as_posix()}?" if near else ""
    return UserError(f"{path.as_posix()} does not exist.{hint}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
