"""From what a user names (files, globs, folders, `-`, datasets of a hub) to sources."""

import glob
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.read.csv_rows import Csv
from pipeline.read.folders import METADATA, canonical, splits_of
from pipeline.read.json_rows import JsonLines
from pipeline.read.sources import KNOWN, TEXT_FORMATS, LoadedDataset, Source, TextFile, file_source, is_data_file
from schemas.columns import SIDES, side_column
from schemas.commands import parse_again
from schemas.config import CsvConfig
from schemas.console import counted
from schemas.errors import ResourceError, UsageError, UserError, nearest, one_line
from schemas.files import written
from schemas.manifest import DATASET_FORMAT, MADE_BY, format_of, is_finished
from schemas.responses import manifest_of

STDIN: Final = "-"
#: Names of files left out that are told.
_SHOWN: Final = 5
HUB: Final = "hf://datasets/"

_PART: Final = r"[A-Za-z0-9_][\w.-]*"
_HUB_ID: Final = re.compile(rf"{_PART}/{_PART}", re.ASCII)
_HUB_URL: Final = re.compile(rf"{HUB}(?P<id>{_PART}/{_PART})(?:@(?P<revision>[^/]+))?(?:/(?P<path>.+))?", re.ASCII)


@dataclass(frozen=True)
class Opened:
    """The sources, in order, and the files beside them that were left out."""

    sources: list[Source]
    skipped: tuple[str, ...]
    unsplit: tuple[str, ...]  # data of no split, beside the split that was asked for

    def notes(self) -> tuple[str, ...]:
        """What was left out, in words."""
        left_out = {"they are no data": self.skipped, "their names tell no split": self.unsplit}
        return tuple(f"Not read, for {why}: {_first(names)}." for why, names in left_out.items() if names)


def open_inputs(
    inputs: Sequence[str], *, split: str | None, revision: str | None, spool: Path, csv: CsvConfig | None = None
) -> Opened:
    """The sources that `inputs` name, in order; those of a glob or folder sorted by name.

    An input is a file, a glob (`**` matches folders at any depth), a folder (one that `save_to_disk` wrote, or one with
    data files in it or in its `data` folder), `-` for JSON lines on standard input,
    `hf://datasets/OWNER/NAME[@REVISION][/PATH]`, or the bare `OWNER/NAME` of a hub where the working folder has nothing of
    that name. `split` and `revision` are those of datasets that have them; a folder whose files are of several splits
    has. Standard input is copied into the folder `spool`, so that it can be read again. `csv` says how CSV is written.

    Raises `UserError` for inputs that are missing or of unknown format, `UsageError` for a split, a revision or a `csv`
    that does not fit, `ResourceError` for a hub dataset that cannot be had.
    """
    opener = _Opener(split, revision, spool, csv or CsvConfig())
    sources = [source for given in inputs for source in opener.open(given)]
    opener.check_flags(sources, inputs)
    return Opened(sources, tuple(opener.skipped), tuple(opener.unsplit))


class _Opener:
    """Opens inputs one after the other, and notes what was left out and whether the split was of use."""

    def __init__(self, split: str | None, revision: str | None, spool: Path, csv: CsvConfig) -> None:
        self._split, self._revision, self._spool, self._csv = split, revision, spool, csv
        self._chose_split = False
        self.skipped: list[str] = []
        self.unsplit: list[str] = []

    def open(self, given: str) -> list[Source]:
        """The sources that one input names."""
        path = Path(given)
        if given == STDIN:
            return [TextFile(STDIN, _spool_stdin(self._spool), JsonLines(), None)]
        if given.startswith("hf://"):
            return [self._hub_url(given)]
        if path.is_dir():
            return self._folder(path)
        if path.is_file():
            return [self._file(path)]
        if path.exists():  # of a pipe nothing is left for who reads it a second time
            raise UsageError(
                f"{path.as_posix()} is no file but a pipe, socket or device; pipe what comes out of it into `{STDIN}`."
            )
        if glob.has_magic(given):
            return self._glob(given)
        if _HUB_ID.fullmatch(given) and not is_data_file(path) and not path.parent.exists():
            return [self._hub_dataset(given, given, None, self._revision)]
        raise _missing(path)

    def check_flags(self, sources: Sequence[Source], inputs: Sequence[str]) -> None:
        """No input twice, and no flag that none of them has a use for."""
        for repeated in (name for name, times in Counter(source.name for source in sources).items() if times > 1):
            raise UsageError(f"{repeated} is named twice; its rows would be doubled. Name every input once.")
        if self._split is not None and not self._chose_split:
            raise UsageError(
                f"split {self._split!r}: none of the inputs has splits; only datasets of a hub or on disk have, and folders "
                "with files of several."
            )
        if self._revision is not None and not any(source.name.startswith(HUB) for source in sources):
            raise UsageError(
                f"input revision {self._revision!r}: none of the inputs ({', '.join(inputs)}) is on a hub."
            )
        if self._csv != CsvConfig() and not any(
            isinstance(source, TextFile) and isinstance(source.form, Csv) for source in sources
        ):
            raise UsageError(
                "--csv-delimiter, --csv-quote and --csv-escape: none of the inputs is a .csv or .tsv file."
            )

    def _file(self, path: Path) -> Source:
        return file_source(path, path.as_posix(), self._csv)

    def _glob(self, pattern: str) -> list[Source]:
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
        found = sorted(path for path in map(Path, matches) if path.is_file())
        if not found:
            raise UserError(f"No file matches {pattern}.")
        data = self._data_files(found)
        if not data:
            raise UserError(f"{pattern} matches no data file. Known formats: {KNOWN}.")
        return [self._file(path) for path in data]

    def _folder(self, folder: Path) -> list[Source]:
        where = folder.as_posix()
        if is_finished(folder) and (kind := format_of(folder)) in MADE_BY:
            hint = f" `{parse_again(folder)}` makes it anew." if kind == DATASET_FORMAT else ""
            raise UsageError(f"{where} is a {MADE_BY[kind][0]}, not rows to make one of.{hint}")
        if (folder / "dataset_dict.json").is_file():
            splits = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
            return [_saved_dataset(folder / self._choose(splits, where))]
        if (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file():
            if self._split is not None:
                raise UsageError(f"split {self._split!r}: {where} is one dataset without splits.")
            return [_saved_dataset(folder)]
        data = self._data_files(_files_in(folder))
        if not data and (folder / "data").is_dir():  # as datasets lie on a hub
            data = self._data_files(_files_in(folder / "data"))
        if not data:
            raise UserError(f"{where}/ holds no data file. Known formats: {KNOWN}.{_deeper(folder)}")
        return [self._file(path) for path in self._of_split(data, where)]

    def _of_split(self, data: list[Path], where: str) -> list[Path]:
        """Of data files those of the one split, or of that which was asked for; all, where no name tells one.

        Raises `UsageError` where it cannot be told, or files without a split would go with it unsaid.
        """
        by_split, untold = splits_of(data)
        if not by_split or (self._split is None and len(by_split) == 1 and not untold):
            return data
        names = [path.name for path in untold]
        split = self._choose(list(by_split), where)
        if self._split is None:
            raise UsageError(
                f"{where} has the split {split} and {counted(len(names), 'file')} whose name tells none "
                f"({_first(names)}): --split {split} leaves such files out; to read them as well, name all files."
            )
        self.unsplit += [path.as_posix() for path in untold]
        return by_split[split]

    def _data_files(self, paths: Sequence[Path]) -> list[Path]:
        """Those with rows; a README between them is no mistake, but told."""
        manifests = {manifest_of(path) for path in paths if isinstance(TEXT_FORMATS.get(path.suffix), JsonLines)}
        data = [path for path in paths if is_data_file(path) and path.name not in METADATA and path not in manifests]
        self.skipped += [path.as_posix() for path in paths if path not in data]
        return data

    def _choose(self, splits: Sequence[str], where: str) -> str:
        """The one split, or the one that was asked for. Raises `UsageError` if that cannot be told."""
        self._chose_split = True
        split = self._split
        if split is None and len(splits) == 1:
            return splits[0]
        if split is not None and split not in splits:
            split = canonical(split)
        if split is None or split not in splits:
            asked = "choose one with --split" if split is None else f"it has no split {self._split!r}"
            raise UsageError(f"{where} has the splits {', '.join(splits)}: {asked}.")
        return split

    def _hub_url(self, given: str) -> Source:
        parts = _HUB_URL.fullmatch(given)
        if parts is None:
            raise UsageError(f"{given}: a dataset of a hub is written {HUB}OWNER/NAME[@REVISION][/PATH].")
        revision = self._revision
        if parts["revision"] and revision and parts["revision"] != revision:
            raise UsageError(f"{given} names a revision, and `input_revision` another ({revision!r}); keep one.")
        return self._hub_dataset(given, parts["id"], parts["path"], parts["revision"] or revision)

    def _hub_dataset(self, given: str, name: str, path: str | None, revision: str | None) -> Source:
        """One split of a hub dataset, downloaded and cached by `datasets`, which runs no code from there."""
        import datasets

        self._chose_split = True
        loaded = _load(given, name, path, self._split, revision)
        if isinstance(loaded, datasets.DatasetDict):
            loaded = loaded[self._choose(list(loaded), given)]
        place = f"{HUB}{name}" + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")
        if {side_column(side, "input_ids") for side in SIDES} < set(loaded.column_names):
            raise UsageError(f"{place} is a {MADE_BY[DATASET_FORMAT][0]}, not rows to make one of.")
        return LoadedDataset(f"{place}#{loaded.split}", loaded)


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith((".", "_")))


def _deeper(folder: Path) -> str:
    """Where data files are, if there are none in the folder itself."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and any(map(is_data_file, _files_in(path))))
    if not inside:
        return f" For files in folders below, write {folder.as_posix()}/**/*.jsonl."
    return f" Folders below do: name {' or '.join(path.as_posix() for path in inside[:5])}."


def _saved_dataset(folder: Path) -> Source:
    import datasets  # takes a second to import; most runs do not need it

    try:
        return LoadedDataset(folder.as_posix(), datasets.load_from_disk(str(folder)))
    except Exception as error:  # damaged files make the library raise anything from KeyError to AttributeError
        raise UserError(f"{folder.as_posix()}: the dataset cannot be opened ({one_line(error)}).") from None


def _load(given: str, name: str, path: str | None, split: str | None, revision: str | None) -> Any:
    """What `datasets` makes of it: a dataset, or one for each split."""
    import datasets
    from huggingface_hub.errors import HfHubHTTPError

    is_file = path is not None and is_data_file(Path(path))
    try:
        return datasets.load_dataset(
            name,
            data_files=path if is_file else None,
            data_dir=None if is_file else path,
            split=split,
            revision=revision,
        )
    except (OSError, HfHubHTTPError, datasets.exceptions.DatasetsError) as error:
        the = "The" if given.startswith(HUB) else f"There is no file or folder {given} here, and the"
        raise ResourceError(
            f"{the} dataset {name!r} cannot be fetched from the hub ({one_line(error)}). Check the name and the "
            f"network, log in with `hf auth login` if it is private or gated, or download it and give its path."
        ) from None
    except (ValueError, RuntimeError) as error:  # an unknown split or revision, several configurations, a script
        raise UsageError(
            f"{given}: {one_line(error)}. Name its files directly if need be: {HUB}{name}/PATH.parquet"
        ) from None


def _spool_stdin(spool: Path) -> Path:
    """Standard input as a file of its own, whole or not there."""
    target = spool / "stdin.jsonl"
    source = sys.stdin.buffer
    if stat.S_ISCHR(os.fstat(source.fileno()).st_mode):  # a terminal, or /dev/null
        raise UserError(
            f"{STDIN} stands for standard input, but nothing is piped in; write `… < rows.jsonl`, also to go on with an "
            "interrupted run."
        )
    try:
        spool.mkdir(parents=True, exist_ok=True)
        with written(target) as file:
            shutil.copyfileobj(source, file, 1 << 20)
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
