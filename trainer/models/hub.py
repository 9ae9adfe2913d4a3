"""Where a model's files are, and who it is: a hash over its weights, computed once."""

import contextlib
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import huggingface_hub  # by its parts' whole names: it loads each when it is named, which takes a quarter of a second

from schemas import embedded, errors
from schemas.config import ModelConfig
from schemas.errors import ResourceError, UserError, sentence
from schemas.files import sha256_of, write_text
from schemas.plain import json_object

_PROBE_SECONDS: Final = 10.0
#: A file that was changed so recently may change again within one tick of the clock that its times are told by.
_SETTLED_SECONDS: Final = 3.0
_HASH_LENGTH: Final = 64
#: In the order in which transformers looks for them; an index names further files.
_WEIGHTS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model's folder or hub id, pinned."""

    name: str
    revision: str | None = None  # commit of a hub id
    gguf_file: str | None = None
    local_only: bool = False  # the hub could not be reached: only what its local cache holds

    def options(self, trust_remote_code: bool) -> dict[str, Any]:
        """Arguments of every `from_pretrained` from here."""
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": self.local_only}
        if self.revision is not None:
            options["revision"] = self.revision
        if self.gguf_file is not None:
            options["gguf_file"] = self.gguf_file
        return options


def locate(config: ModelConfig, role: str = "teacher") -> ModelFiles:
    """The model's folder, or its hub id at the commit that its revision is now.

    `config.model` may also be a GGUF file, or an embedded one's name. `role`: what messages call it. Raises UserError if it
    is neither there nor on the hub.
    """
    files = located_here(config, role)
    if files is not None:
        return files
    commit = hub_commit(f"The {role} {config.model!r}", config.model, config.revision)
    if commit is None:
        return ModelFiles(config.model, config.revision, config.gguf_file, local_only=True)
    return ModelFiles(config.model, commit, config.gguf_file)


def located_here(config: ModelConfig, role: str = "teacher") -> ModelFiles | None:
    """As `locate`, of this machine's own files alone: None for what must be a hub id. Raises UserError for what cannot be
    one either."""
    subject = f"The {role} {config.model!r}"
    path = Path(embedded.resolve(config.model)).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return ModelFiles(str(path.parent), gguf_file=path.name)
    if path.is_dir():
        if config.gguf_file is not None and not (path / config.gguf_file).is_file():
            raise UserError(f"{subject}: there is no file {config.gguf_file} in that folder.")
        if config.gguf_file is None and not (path / "config.json").is_file():
            files = sorted(each.name for each in path.glob("*.gguf"))
            hint = (
                f"Name one of its GGUF files: {', '.join(files)}." if files else "Save a model there, or name another."
            )
            raise UserError(f"{subject}: the folder holds no config.json. {hint}")
        return ModelFiles(str(path), gguf_file=config.gguf_file)
    if path.is_file() or path.is_absolute() or config.model.startswith((".", "~")) or config.model.count("/") > 1:
        raise UserError(f"{subject}: no such folder. Give a folder with a config.json, a GGUF file, or a hub id.")
    return None


def hub_commit(subject: str, name: str, revision: str | None) -> str | None:
    """The commit that a revision of the hub id `name` is now; None if the hub cannot be reached.

    Asked once, where loading itself would retry for most of a minute. Raises UserError, beginning with `subject`, if the
    hub has no such id or revision.
    """
    from huggingface_hub import errors  # which it does not load by its name

    try:
        return huggingface_hub.HfApi().model_info(name, revision=revision, timeout=_PROBE_SECONDS).sha
    except errors.HFValidationError as error:
        raise UserError(f"{subject} is no local folder and no valid hub id ({first_line(error)}).") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{subject} has no revision {revision!r} on the hub.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{subject} is no local folder, and the hub has no such id or it is private. Check the spelling, or log in."
        ) from None
    except (errors.HTTPError, errors.OfflineModeIsEnabled):  # type: ignore[attr-defined]  # of whichever HTTP client it uses
        return None


def identity(config: ModelConfig, role: str = "teacher", weights: bool = True) -> dict[str, Any]:
    """Who a model is: `name`, `revision` (commit of a hub id, else None), `sha256`.

    The name is a hub id, or the own name of a folder or GGUF file. The hash is over config.json, the weight files (unless
    not `weights`) and with `trust_remote_code` the code in a folder (or over the GGUF file alone), so it is the same
    wherever they lie. Each file's is computed once, and remembered in the hub's folder for assets as long as nothing
    says that the file was touched. Loads no weights. Raises as `locate`, and if there are no weights.
    """
    from transformers.utils.hub import extract_commit_hash  # here, since it takes longer than to refuse a wrong name

    source = locate(config, role)
    files = _files(config, source, role, weights)
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(f"{_file_hash(path)}  {name}\n".encode())
    folder = Path(source.name)
    # the local cache has a folder for each commit
    revision = extract_commit_hash(str(next(iter(files.values()))), None) if source.local_only else source.revision
    name = source.gguf_file or folder.resolve().name if folder.is_dir() else source.name
    return {"name": name, "revision": revision, "sha256": digest.hexdigest()}


def _files(config: ModelConfig, source: ModelFiles, role: str, weights: bool) -> dict[str, Path]:
    """The files that make the model, by name."""
    if source.gguf_file is not None:
        path = _find(source, source.gguf_file)
        if path is None:
            raise _nothing(config, source, role, source.gguf_file)
        return {"weights.gguf": path}
    description = _find(source, "config.json")
    listed = next(((name, path) for name in _WEIGHTS if (path := _find(source, name)) is not None), None)
    if description is None or (weights and listed is None):
        raise _nothing(config, source, role, "config.json and model.safetensors" if weights else "config.json")
    files = {"config.json": description}
    if config.trust_remote_code:
        files |= {code.name: code for code in Path(source.name).glob("*.py")}
    if not weights or listed is None:
        return files
    name, path = listed
    if not name.endswith(".index.json"):
        return files | {name: path}
    for shard in _shards(path):
        where = _find(source, shard)
        if where is None:
            raise _nothing(config, source, role, shard)
        files[shard] = where
    return files


def _find(source: ModelFiles, name: str) -> Path | None:
    from transformers.utils import cached_file

    path = cached_file(
        source.name,
        name,
        revision=source.revision,
        local_files_only=source.local_only,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def _shards(index: Path) -> list[str]:
    """The files of weights that an index names, all in its folder. Raises `UserError` for one that is damaged."""
    named = (json_object(index.read_bytes()) or {}).get("weight_map")
    shards = set(named.values()) if isinstance(named, dict) and all(map(_is_file_name, named.values())) else set()
    if not shards:
        raise UserError(
            f"{index} is damaged: it says in which files beside it the weights are. Download the model again."
        )
    return sorted(shards)


def _is_file_name(value: object) -> bool:
    return isinstance(value, str) and value == Path(value).name and value not in {"", ".."}


def folder_of(source: ModelFiles) -> Path | None:
    """Where its files lie on this machine; None where there are none."""
    description = _find(source, source.gguf_file or "config.json")
    return None if description is None else description.parent


def _nothing(config: ModelConfig, source: ModelFiles, role: str, wanted: str) -> UserError:
    subject = f"The {role} {config.model!r}"
    if source.local_only:
        return unreachable(subject)
    return UserError(f"{subject} lacks {wanted}; download it again, or save it with `save_pretrained`.")


def _file_hash(path: Path) -> str:
    """SHA-256 of a file, remembered; where nothing can be remembered it is computed every time.

    `ctime` changes with every write, and cannot be set back as `mtime` can; a file put in another's place has another
    inode.
    """
    path = path.resolve()
    state = path.stat()
    touched = (path, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    note = None
    with contextlib.suppress(OSError, ValueError):  # ValueError: a file where the folder should be, or no text in ours
        note = (
            huggingface_hub.cached_assets_path("mta-prep", "weights")
            / hashlib.sha256(repr(touched).encode()).hexdigest()
        )
        known = note.read_text(encoding="ascii")
        if len(known) == _HASH_LENGTH:
            return known
    value = sha256_of(path)
    if note is not None and time.time() - state.st_ctime > _SETTLED_SECONDS:
        with contextlib.suppress(OSError):
            write_text(note, value)
    return value


def unreachable(subject: str) -> ResourceError:
    """The error for what is neither here nor to be had."""
    return ResourceError(
        f"{subject} is no local folder, the hub cannot be reached, and its local cache lacks it. Name a folder, or try again "
        "with a network connection."
    )


def untrusted(subject: str) -> UserError:
    """The error for code that the user has not allowed to run."""
    return UserError(
        f"{subject} comes with code of its own, which is run only with --trust-remote-code, or `trust_remote_code: true` in a "
        "config; read it before you do."
    )


def first_line(error: Exception) -> str:
    """An exception's first line as a sentence."""
    return sentence(errors.first_line(error))
