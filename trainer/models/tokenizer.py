"""One loader of tokenizers: exactly what `AutoTokenizer` builds, or a sentence why there is none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import huggingface_hub  # by its parts' whole names, as in `trainer.models.hub`

from schemas import embedded
from schemas.errors import UserError
from trainer.models.hub import ModelFiles, first_line, hub_commit, unreachable, untrusted

#: A folder with a tokenizer has one of these.
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
)


def load_tokenizer(name: str, revision: str | None, subject: str, remedy: str | None = None) -> Any:
    """A tokenizer (transformers.PreTrainedTokenizerBase) by folder, file, hub id, or an embedded one's name.

    The file is a `tokenizer.json`, which read alone knows no eos; a `tokenizer_config.json` beside it is used. Code that
    comes with a tokenizer is never run. Raises `UserError` if it is unusable, and `ResourceError` if a hub id is neither
    reachable nor cached: sentences that begin with `subject` and end with `remedy`, or with what else might help.
    """
    path = Path(embedded.resolve(name)).expanduser()
    if path.is_file() and not path.with_name("tokenizer_config.json").is_file():
        from transformers import PreTrainedTokenizerFast  # here, since it takes longer than to refuse a wrong name

        try:
            return PreTrainedTokenizerFast(tokenizer_file=str(path))
        except Exception as error:  # bad files make the library raise anything from KeyError to Exception
            raise _unusable(subject, error, remedy) from error
    if path.is_file() or path.is_dir():
        return tokenizer_beside(ModelFiles(str(path if path.is_dir() else path.parent)), subject, remedy)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.suffix == ".json":
        raise UserError(
            f"{subject}: no such folder or file. {remedy or 'Give a folder with a tokenizer.json, or a hub id.'}"
        )
    commit = hub_commit(subject, name, revision)
    if commit is None and not _is_cached(name, revision or "main"):
        raise unreachable(subject)
    files = ModelFiles(name, commit or revision or "main", local_only=commit is None)
    return tokenizer_beside(files, subject, remedy)


def tokenizer_beside(
    files: ModelFiles, subject: str, remedy: str | None = None, trust_remote_code: bool | None = None
) -> Any:
    """The tokenizer among a model's files. Raises as `load_tokenizer`.

    `trust_remote_code`: whether the user lets code be run that comes with it; None: there is no asking.
    """
    folder = Path(files.name)
    if folder.is_dir() and files.gguf_file is None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        save = "Save one there with `tokenizer.save_pretrained`, or name another folder or a hub id."
        raise UserError(
            f"{subject}: the folder holds no tokenizer (looked for {', '.join(TOKENIZER_FILES)}). {remedy or save}"
        )
    from transformers import AutoTokenizer

    options = files.options(bool(trust_remote_code))
    try:
        return AutoTokenizer.from_pretrained(files.name, **options)
    except Exception as error:  # likewise
        if files.local_only:
            raise unreachable(subject) from error
        if "trust_remote_code" not in str(error):
            raise _unusable(subject, error, remedy) from error
        if trust_remote_code is None:
            never = f"which is not run here. {remedy or 'Choose one that needs none.'}"
            raise UserError(f"{subject} comes with code of its own, {never}") from error
        raise untrusted(subject) from error


def _is_cached(name: str, revision: str) -> bool:
    """Whether the hub's local cache holds anything that a tokenizer can begin with."""
    files = (*TOKENIZER_FILES, "config.json")
    stored = (huggingface_hub.try_to_load_from_cache(name, file, revision=revision) for file in files)
    return any(isinstance(path, str) for path in stored)


def surrounding_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids of the special tokens that a tokenizer puts before a text (bos, [CLS]) and behind it ([SEP])."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    return around(list(probe["input_ids"]), probe["special_tokens_mask"])


def around(ids: list[int], special: Sequence[int]) -> tuple[list[int], list[int]]:
    """Ids before the first token that is not `special`, and behind the last; all are before where there is none."""
    special = [bool(flag) for flag in special]
    if all(special):
        return ids, []
    return ids[: special.index(False)], ids[len(ids) - special[::-1].index(False) :]


def behind_opening(tokenizer: Any, ids: Sequence[int], opening: Sequence[int]) -> int:
    """How many of a text's first tokens are the special ones that open a text (`surrounding_tokens`), with white space
    before them; 0 where it does not bring them along."""
    first = 0
    while first < len(ids) and not tokenizer.decode([ids[first]]).strip():
        first += 1
    last = first + len(opening)
    return last if opening and list(ids[first:last]) == list(opening) else 0


def _unusable(subject: str, error: Exception, remedy: str | None) -> UserError:
    return UserError(
        f"{subject} cannot be loaded: {first_line(error)} {remedy or 'Choose one with an intact tokenizer.json.'}"
    )
