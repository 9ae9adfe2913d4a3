"""How commands are spelled, for messages that name one."""

import shlex
from pathlib import Path

from schemas.config import CacheConfig, ModelConfig
from schemas.keys import flat, spelled
from schemas.manifest import CONFIG
from schemas.signals import WINDOW


def parse_again(dataset: Path) -> str:
    """The command that makes a prepared dataset once more, into a folder OTHER."""
    return shlex.join(["mta-prep", "parse", "--config", str(dataset / CONFIG), "-o", "OTHER"])


def cache_teacher(config: CacheConfig, like: tuple[Path, CacheConfig] | None = None) -> str:
    """The command for a cache of this config, into a folder OTHER. `like`: folder and config of a cache to begin with.

    It names what differs from that one, or from the defaults: by --set, but for what people write in other words.
    """
    words = ["mta-prep", "cache-teacher"]
    if like is None:
        words += [config.dataset, "--teacher", config.teacher.model]
        teacher = ModelConfig(model=config.teacher.model)
        base = CacheConfig(dataset=config.dataset, teacher=teacher, signals=("final",), window=WINDOW)
    else:
        folder, base = like
        words += [config.dataset] if config.dataset != base.dataset else []
        words += ["--config", str(folder / CONFIG)]
    if config.layers != base.layers:
        words += ["--layers", ",".join(f"{layer.layer}:{layer.granularity}" for layer in config.layers)]
    if config.signals != base.signals or like is None:
        words += ["--signals", ",".join(config.signals)]
    passed_over = {"dataset", "layers", "signals", *(() if "relations" in config.signals else ("window",))}
    before = flat(base.model_dump(exclude=passed_over))
    for key, value in flat(config.model_dump(exclude=passed_over)).items():
        if value != before[key]:
            words += ["--set", spelled(key, value)]
    return shlex.join([*words, "-o", "OTHER"])
