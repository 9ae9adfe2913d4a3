"""A student's architecture and first weights: a pretrained model's, fresh ones, or some layers of a deeper model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import UsageError, UserError, nearest
from schemas.training import CutConfig, StudentConfig
from trainer.models.hub import ModelFiles, first_line, locate
from trainer.models.loading import check_complete, decoder, description, explained, loading_options

#: Lists of a config that are not one entry a layer, however long they are.
_NOT_PER_LAYER: Final = ("architectures", "_token_id", "_token_ids")
_PROBE: Final = ((7, 3, 1, 5, 11, 2, 13, 6, 4),)  # token ids
#: How far hidden states may differ, relative to the largest: the same sums, by the same operations.
_ROUNDING: Final = 1e-5


def initial_model(config: StudentConfig, seed: int) -> Any:
    """The student's model (transformers.PreTrainedModel) in float32, before training; `seed`: of fresh weights.

    Raises UserError (no such model, not a causal language model, weights missing, an architecture that cannot be cut),
    UsageError (keys or layers that the model does not have), ResourceError (the hub cannot be reached, no memory).
    """
    where = config.origin()
    if where is None:
        kind = config.config["model_type"]
        with _told(f"The student (a {kind})"):
            return _fresh(_new_description(config.config), seed, config.trust_remote_code)
    subject = f"The student {config.model!r}"
    source = locate(where, "student")
    described = description(where, source, subject)
    with _told(subject):
        described = _overridden(described, config.config)
        if config.init == "config":
            return _fresh(described, seed, config.trust_remote_code)
    model = _pretrained(subject, where, source, described)
    if isinstance(config.init, CutConfig):
        with _told(subject):
            return _cut(model, config.init.layers, subject, config.trust_remote_code)
    return model


def _pretrained(subject: str, where: ModelConfig, source: ModelFiles, description: Any) -> Any:
    try:
        model, report = transformers.AutoModelForCausalLM.from_pretrained(
            source.name,
            config=description,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are then told, by name, and refused
            **source.options(where.trust_remote_code),
            **loading_options(where, source),
        )
    except UserError:
        raise
    except Exception as error:  # as above
        raise explained(error, subject, where, source) from error
    check_complete(subject, model, report, None)
    return model.to(torch.float32)  # what a GGUF file or a model's own code may have set otherwise


def _fresh(description: Any, seed: int, trust_remote_code: bool) -> Any:
    """A model with random weights, run once: that sizes in a config do not fit each other shows only then."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(
            description, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
        model.eval()(input_ids=_probe(model), use_cache=False)
    return model


def _new_description(values: dict[str, Any]) -> Any:
    """A config of `model_type`, with its class's defaults for all that is not said."""
    kind = values["model_type"]
    if kind not in transformers.CONFIG_MAPPING:
        raise UsageError(
            f"`model_type` {kind!r} is not known to transformers{_hint(kind, transformers.CONFIG_MAPPING)}"
        )
    changes = {key: value for key, value in values.items() if key != "model_type"}
    _check_known(transformers.AutoConfig.for_model(kind), changes)
    return transformers.AutoConfig.for_model(kind, **changes)


def _overridden(description: Any, overrides: dict[str, Any]) -> Any:
    """The same config with other values; lists of one entry a layer follow the number of layers."""
    if overrides.get("model_type", description.model_type) != description.model_type:
        raise UsageError(
            f"the model is a {description.model_type}, which `model_type: {overrides['model_type']}` cannot change; leave "
            "that out, or leave out `model`"
        )
    text = description.get_text_config(decoder=True)
    changes = {text.attribute_map.get(key, key): value for key, value in overrides.items() if key != "model_type"}
    if not changes:
        return description
    _check_known(text, changes)
    depth = int(text.num_hidden_layers)
    wanted = changes.get(text.attribute_map.get("num_hidden_layers", "num_hidden_layers"), depth)
    lists = _per_layer(text, depth) if wanted != depth else {}
    if isinstance(wanted, int) and wanted < depth:
        return _with(description, {key: value[:wanted] for key, value in lists.items()} | changes)
    # further layers have no entries
    return _with(description, changes, by_default=lists)


def _with(description: Any, changes: dict[str, Any], by_default: Iterable[str] = ()) -> Any:
    """A config read anew, with other values for the language model in it, some as its class has them by default."""
    values = description.to_dict()
    text = description.get_text_config(decoder=True)
    mine = values
    if text is not description:
        mine = next(values[key] for key, value in vars(description).items() if value is text)
    for key in by_default:
        del mine[key]
    mine |= changes
    found = type(description).from_dict(values)
    found.name_or_path = description.name_or_path  # where code that comes with a model is looked for
    return found


def _per_layer(text: Any, depth: int) -> dict[str, list[Any]]:
    """The lists in a config that have one entry a layer, such as `layer_types`."""
    return {
        key: list(value)
        for key, value in text.to_dict().items()
        if isinstance(value, list | tuple) and len(value) == depth and not key.endswith(_NOT_PER_LAYER)
    }


def _cut(whole: Any, layers: Sequence[int], subject: str, trust_remote_code: bool) -> Any:
    """A model of some of a deeper one's layers, in the order given.

    Built from its own config, as it will be when it is loaded again, and then filled, so that whatever a layer has of its
    place (its slot in a KV cache, its kind of attention) is right. That it computes what the chosen layers computed where
    they were is tried. The deeper model is used up.
    """
    text = whole.config.get_text_config(decoder=True)
    depth = int(text.num_hidden_layers)
    missing = [layer for layer in layers if not 0 <= layer < depth]
    if missing:
        raise UsageError(f"it has decoder layers 0 to {depth - 1}, so there is no layer {missing[0]} to keep")
    body, name = decoder(whole, depth, "student")
    prefix = next(path for path, module in whole.named_modules() if module is body.get_submodule(name)) + "."
    changes: dict[str, Any] = {
        key: [value[layer] for layer in layers] for key, value in _per_layer(text, depth).items()
    }
    changes[text.attribute_map.get("num_hidden_layers", "num_hidden_layers")] = len(layers)
    refused = UserError(
        f"{subject} ({type(whole).__name__}) cannot be cut: its layers compute something else in another place. Choose a "
        "model whose layers are alike, or start from all of them."
    )
    model = _fresh(_with(whole.config, changes), 0, trust_remote_code)
    state = whole.state_dict()
    mine = model.state_dict()
    names = {key: _moved(key, prefix, layers) for key in mine}
    if any(names[key] not in state or state[names[key]].shape != each.shape for key, each in mine.items()):
        raise refused
    model.load_state_dict({key: state[old] for key, old in names.items()})
    model.eval()
    whole.eval()
    new = decoder(model, len(layers), "student")[0]
    kept = nn.ModuleList([body.get_submodule(name)[layer] for layer in layers])
    body.set_submodule(name, kept)
    for key, value in changes.items():
        setattr(text, key, value)
    tokens = _probe(whole)
    with torch.no_grad():
        expected, found = (part(input_ids=tokens, use_cache=False, return_dict=True)[0] for part in (body, new))
    if float((found - expected).abs().max()) > _ROUNDING * float(expected.abs().max()):
        raise refused
    model.generation_config = whole.generation_config
    return model


def _probe(model: Any) -> Tensor:
    return torch.tensor(_PROBE, device=model.device) % int(model.config.get_text_config(decoder=True).vocab_size)


def _moved(key: str, prefix: str, layers: Sequence[int]) -> str:
    """A weight's name in the deeper model."""
    if not key.startswith(prefix):
        return key
    place, _, rest = key.removeprefix(prefix).partition(".")
    return f"{prefix}{layers[int(place)]}.{rest}"


def _check_known(description: Any, changes: dict[str, Any]) -> None:
    known = [*vars(description), *description.attribute_map]
    for key in changes:
        if not hasattr(description, key):
            raise UsageError(f"its config has no `{key}`{_hint(key, known)}")


def _hint(name: str, known: Iterable[str]) -> str:
    near = nearest(name, known)
    return f"; did you mean `{near}`?" if near else "."


@contextmanager
def _told(subject: str) -> Iterator[None]:
    """What is wrong with a config is told with whose it is; it makes the library raise anything from KeyError to Exception."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{subject}: {error}") from None
    except UserError:
        raise
    except Exception as error:
        raise UsageError(f"{subject} cannot be built from its config: {first_line(error)}") from error
