"""How commands are spelled, for messages that name one."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from schemas.config import CacheConfig, ModelConfig, flat
from schemas.manifest import CONFIG

#: Flags of `mta-prep cache-teacher`, by the key of the config that each sets.
_CACHE_FLAGS: Final[Mapping[str, str]] = {
    "teacher.model": "--teacher",
    "teacher.revision": "--teacher-revision",
    "teacher.gguf_file": "--gguf-file",
    "teacher.dtype": "--dtype",
    "teacher.device": "--device",
    "teacher.device_map": "--device-map",
    "teacher.quantization": "--quantization",
    "teacher.trust_remote_code": "--trust-remote-code",
    "layers": "--layers",
    "signals": "--signals",
    "storage.units": "--units-storage",
    "storage.states": "--states-storage",
    "storage.final": "--final-storage",
    "state_tokens": "--state-tokens",
    "weights": "--weights",
    "topk": "--topk",
    "token_budget": "--token-budget",
    "shard_bytes": "--shard-size",
    "shard_tokens": "--shard-tokens",
    "limit": "--limit",
}


def parse_again(dataset: Path) -> str:
    """The command that makes a prepared dataset once more, into a folder OTHER."""
    return shlex.join(["mta-prep", "parse", "--config", str(dataset / CONFIG), "-o", "OTHER"])


def cache_teacher(config: CacheConfig, like: tuple[Path, CacheConfig] | None = None) -> str:
    """The command for a cache of this config, into a folder OTHER. `like`: folder and config of a cache to begin with.

    Flags are there for what differs from that one, or from the defaults. What is off has no flag: a `limit` of None is
    not to be had from a cache with one.
    """
    words = ["mta-prep", "cache-teacher"]
    if like is None:
        words.append(config.dataset)
        before = flat(CacheConfig(dataset="", teacher=ModelConfig(model=""), signals=("final",)).model_dump())
        del before["signals"]
    else:
        folder, base = like
        words += [*([config.dataset] if config.dataset != base.dataset else []), "--config", str(folder / CONFIG)]
        before = flat(base.model_dump())
    values = flat(config.model_dump())
    for key, flag in _CACHE_FLAGS.items():
        value = values[key]
        if value != before.get(key) and value is not None and value is not False:
            words += [flag] if value is True else [flag, _spelled(value)]
    return shlex.join([*words, "-o", "OTHER"])


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_spelled, value))
    return f"{value['layer']}:{value['granularity']}" if isinstance(value, Mapping) else str(value)
