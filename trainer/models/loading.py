"""Loading a teacher: any causal language model of transformers, no deeper than needed, in evaluation mode."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from schemas.config import ModelConfig
from schemas.errors import ResourceError, UsageError, UserError
from trainer.models.embeddings import Embeddings
from trainer.models.final_norm import FinalNorm, norm_behind, norm_of
from trainer.models.head import Head
from trainer.models.hub import ModelFiles, first_line, folder_of, locate, unreachable, untrusted
from trainer.models.limits import longest_document
from trainer.models.memory import out_of_memory
from trainer.models.pickles import require_readable_pickles

#: Names under which configs of transformers keep a factor on logits. Some multiply by it, some divide: the probe tells.
_SCALES: Final = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
_SOFT_CAP: Final = "final_logit_softcapping"
_PROBE: Final = ((11, 5, 2, 7, 3, 13, 1, 6),)  # token ids
#: Standard deviation of the probe's raw logits: far beyond any soft cap's linear part.
_PROBE_LOGITS: Final = 60.0
#: Of logits, relative to the largest: sums in another order. (In half precision, two of its own last digits.)
_ROUNDING: Final = 1e-5


class UnknownLogits(UserError):  # noqa: N818  # says what, as the others do
    """A model's logits are not what an output matrix makes of its last hidden states."""


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A loaded model, in evaluation mode and without gradients."""

    model: Any  # transformers.PreTrainedModel
    body: Any  # the part of it that turns token ids into last hidden states
    layers: nn.ModuleList  # its decoder layers, as many as there are in memory
    depth: int  # layers of the whole model: `hidden_states` has indices 0 to depth
    hidden_size: int
    vocab_size: int
    architecture: str  # class name, such as LlamaForCausalLM
    dtype: torch.dtype
    device: torch.device  # of its embeddings: where token ids go

    @property
    def whole(self) -> bool:
        """Whether all its layers are in memory."""
        return len(self.layers) == self.depth

    @property
    def max_length(self) -> int | None:
        """Tokens of the longest document it can take; None: no limit."""
        return longest_document(self.model.config.get_text_config(decoder=True), self.body)

    def require_room(self, longest: int, folder: Path, name: str) -> None:
        """Raises UserError, for a teacher of this name, if it does not take the longest row of a dataset."""
        limit = self.max_length
        if limit is not None and longest > limit:
            raise UserError(
                f"The longest row of {folder} has {longest} teacher tokens, and the teacher {name!r} takes {limit}; prepare the "
                f"dataset with a teacher `max_length` of {limit} or less."
            )

    def embeddings(self) -> Embeddings:
        """The input embeddings of every token. Raises `UserError` for a model that has no plain matrix of them."""
        return Embeddings(embedding_matrix(self.model))

    def head(self) -> Head:
        """The output matrix and what follows it, checked against the model itself on a probe.

        Raises UserError naming the architecture if the model does anything else to its logits.
        """
        if not self.whole:
            raise ValueError(f"a teacher cut after layer {len(self.layers)} of {self.depth} has no logits")
        matrix = self.model.get_output_embeddings()
        weight = getattr(matrix, "weight", None)
        if weight is None or weight.ndim != 2 or not weight.is_floating_point():
            raise UnknownLogits(
                f"The teacher ({self.architecture}) has no plain output matrix, so its logits cannot be had from a cache; "
                "leave out the signals `final` and `topk`, or load it unquantized."
            )
        plain = Head(weight, getattr(matrix, "bias", None))
        with self.running():
            final, logits = self._probe(matrix, plain)
        if not bool(final.isfinite().all() & logits.isfinite().all()):
            raise UserError(
                f"The model ({self.architecture}) gives NaN or infinite logits on a few tokens: its files are damaged, or "
                f"{str(self.dtype).removeprefix('torch.')} is too small for it; download it again, or load it in float32."
            )
        # some, ELECTRA for one, project the last hidden state on its way to the output matrix
        fits = final.shape[1] == weight.shape[1]
        candidates = _candidates(self.model.config.get_text_config(decoder=True), plain) if fits else []
        tolerance = max(2 * torch.finfo(logits.dtype).eps, _ROUNDING) * float(logits.abs().max())
        for head in candidates:
            if float((head.logits(final).float() - logits.float()).abs().max()) <= tolerance:
                return head
        raise UnknownLogits(
            f"The teacher ({self.architecture}) does something to its logits that is not known here, so a cache could not "
            "reproduce them; leave out the signals `final` and `topk`."
        )

    @torch.no_grad()
    def norm(self) -> FinalNorm | None:
        """The norm behind the last layer; None if there is none, or one that is not known here."""
        at_end = self._norm_behind()
        return None if at_end is None else norm_of(at_end[1], at_end[2])

    @torch.no_grad()
    def norm_name(self) -> str | None:
        """The name of its module in `body`, of whatever kind; None if there is none."""
        at_end = self._norm_behind()
        return None if at_end is None else at_end[0]

    def _norm_behind(self) -> tuple[str, nn.Module, Tensor] | None:
        if not self.whole:
            raise ValueError(
                f"a teacher cut after layer {len(self.layers)} of {self.depth} has no norm behind the last"
            )
        tokens = torch.tensor(_PROBE, device=self.device) % self.vocab_size

        def run() -> Tensor:
            last: Tensor = self.body(input_ids=tokens, use_cache=False, return_dict=True)[0]
            return last

        with self.running():
            return norm_behind(self.layers, self.body, run)

    @contextmanager
    def running(self) -> Iterator[None]:
        """While it lasts, whatever goes wrong in the model's own code, but for lack of memory, is a UserError naming it."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # some want an image, a language, or another mask, and say so in any way
            if out_of_memory(error):
                raise
            raise UserError(
                f"The model ({self.architecture}) does not run on a few tokens alone: {first_line(error)} Choose another one."
            ) from error

    @torch.no_grad()
    def _probe(
        self, matrix: nn.Module, plain: Head
    ) -> tuple[Float[Tensor, "tokens hidden"], Float[Tensor, "tokens vocabulary"]]:
        """Last hidden states, made so large that a soft cap shows, and the model's own logits of them."""
        factor = torch.zeros(())

        def enlarge(_module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal factor
            factor = _PROBE_LOGITS / plain.logits(arguments[0].flatten(0, 1)).float().std()
            return (arguments[0] * factor.to(arguments[0].dtype), *arguments[1:])

        tokens = torch.tensor(_PROBE, device=self.device) % self.vocab_size
        final = self.body(input_ids=tokens, use_cache=False, return_dict=True)[0]
        hook = matrix.register_forward_pre_hook(enlarge)
        try:
            logits = self.model(input_ids=tokens, use_cache=False, return_dict=True).logits
        finally:
            hook.remove()
        return (final * factor.to(final)).flatten(0, 1), logits.flatten(0, 1).to(final.device)


def embedding_matrix(model: Any) -> Float[Tensor, "vocabulary size"]:
    """A causal language model's input embeddings. Raises `UserError` if they are no plain matrix."""
    try:
        weight = getattr(model.get_input_embeddings(), "weight", None)
    except NotImplementedError:  # of models that the library does not know them of
        weight = None
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        raise UserError(
            f"The teacher ({type(model).__name__}) has no plain matrix of input embeddings, so they cannot be cached; leave out "
            "the signal `embeddings`, or load it unquantized."
        )
    return weight


def _candidates(config: Any, plain: Head) -> list[Head]:
    """What the config gives reason to expect behind the output matrix; what it names, before what it does not."""
    factors = [
        float(value) for name in _SCALES if isinstance(value := getattr(config, name, None), int | float) and value
    ]
    scales = [scale for factor in factors if factor != 1 for scale in (factor, 1 / factor)]
    cap = getattr(config, _SOFT_CAP, None)
    return [
        Head(plain.weight, plain.bias, soft_cap, scale)
        for scale, soft_cap in product([*scales, None], [float(cap), None] if cap else [None])
    ]


def description(config: ModelConfig, source: ModelFiles, subject: str) -> Any:
    """The model's config (transformers.PreTrainedConfig), without any weight. Raises UserError, beginning with `subject`."""
    try:
        return transformers.AutoConfig.from_pretrained(source.name, **source.options(config.trust_remote_code))
    except Exception as error:  # bad files make the library raise anything from KeyError to RuntimeError
        raise explained(error, subject, config, source) from error


def placed(config: ModelConfig, number: int) -> ModelConfig:
    """With `cuda` as its device, every process of a machine, by number, takes another GPU."""
    if config.device != "cuda" or not torch.cuda.is_available():
        return config
    return config.model_copy(update={"device": f"cuda:{number % torch.cuda.device_count()}"})


def load_model(config: ModelConfig, deepest: int | None, role: str = "teacher") -> LanguageModel:
    """Load the model with its first `deepest` decoder layers only; None (or its depth): whole, as `final` and `topk` need.

    A cut teacher gives `hidden_states` 0 to `deepest`; weights of further layers are never read. Raises UserError (no
    such model, not a causal language model, weights missing, code of its own without `trust_remote_code`), UsageError
    (`deepest` beyond its depth, quantization or device map without their libraries), ResourceError (the hub cannot be
    reached and its local cache lacks the model, no memory); `role`: what they call it.
    """
    source = locate(config, role)
    options = loading_options(config, source)
    subject = f"The {role} {config.model!r}"
    described = description(config, source, subject)
    try:
        depth = int(described.get_text_config(decoder=True).num_hidden_layers)
        if deepest is not None and deepest > depth:
            raise UsageError(f"{subject} has layers 0 (embeddings) to {depth}, not {deepest}.")
        cut = max(deepest, 1) if deepest is not None and deepest < depth else None
        kind, built = _model_class(described, depth, cut)
        model, report = kind.from_pretrained(
            source.name,
            config=described,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # which are then told, by name, and refused
            **source.options(config.trust_remote_code),
            **options,
        )
        if not config.device_map and not config.quantization:
            model = model.to(config.device)
    except UserError:
        raise
    except Exception as error:  # bad files make the libraries raise anything from KeyError to RuntimeError
        raise explained(error, subject, config, source) from error
    body, name = decoder(model, built, role)
    layers = body.get_submodule(name)
    del layers[cut if cut is not None else depth :]
    check_complete(subject, model, report, cut)
    model.eval().requires_grad_(False)
    text = described.get_text_config(decoder=True)
    return LanguageModel(
        model=model,
        body=body,
        layers=layers,
        depth=depth,
        hidden_size=int(text.hidden_size),
        vocab_size=int(text.vocab_size),
        architecture=type(model).__name__,
        dtype=model.dtype,
        device=model.get_input_embeddings().weight.device,
    )


def loading_options(config: ModelConfig, source: ModelFiles) -> dict[str, Any]:
    """How weights are to be loaded, as arguments of `from_pretrained`."""
    options: dict[str, Any] = {"dtype": "auto" if config.dtype == "auto" else getattr(torch, config.dtype)}
    if config.device_map and importlib.util.find_spec("accelerate") is None:
        raise UsageError("A device map needs the package `accelerate`; install it, or use --device.")
    if config.device_map:
        options["device_map"] = config.device_map
    if source.gguf_file is not None:
        if importlib.util.find_spec("gguf") is None:
            raise UsageError("A GGUF file needs the package `gguf`: pip install 'mta-prep[gguf]'.")
        if config.quantization:
            raise UsageError("A GGUF file is quantized already and is loaded unpacked; leave out `quantization`.")
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
        if config.dtype == "auto":
            options["dtype"] = torch.float32
    if config.quantization:
        if importlib.util.find_spec("bitsandbytes") is None:
            raise UsageError(
                f"Loading in {config.quantization} needs the package `bitsandbytes`; install it, or leave out `quantization`."
            )
        options["quantization_config"] = transformers.BitsAndBytesConfig(**{f"load_in_{config.quantization}": True})
        options.setdefault("device_map", {"": config.device})
    return options


def _model_class(description: Any, depth: int, cut: int | None) -> tuple[Any, int]:
    """The class to load with, and how many decoder layers it builds: the library's own for this config, made to build
    the first `cut` only; all, where the class comes with the model.

    Cutting what the class has built (without memory: on the meta device), and not the number of layers in the config,
    leaves alone whatever else a config says of depth; and the loader reads only what the model has a place for.
    """
    auto = transformers.AutoModelForCausalLM
    if cut is None or type(description) not in auto._model_mapping:
        return auto, depth
    whole = auto._model_mapping[type(description)]
    if isinstance(whole, tuple | list):
        named = {each.__name__: each for each in whole}
        whole = next((named[name] for name in description.architectures or () if name in named), whole[0])

    def build(self: Any, config: Any, *arguments: Any, **options: Any) -> None:
        whole.__init__(self, config, *arguments, **options)
        body, name = decoder(self, depth)
        del body.get_submodule(name)[cut:]
        gone = "|".join(map(str, range(cut, depth)))
        self._keys_to_ignore_on_load_unexpected.add(rf"(^|\.){name}\.({gone})\.")

    return type(whole.__name__, (whole,), {"__init__": build, "__module__": whole.__module__}), cut


def decoder(model: Any, built: int, role: str = "teacher") -> tuple[Any, str]:
    """The part of a causal language model that turns token ids into hidden states, and the name in it of its list of
    decoder layers, which holds `built` of them.

    Raises UserError naming the architecture if there is no such list, or more than one; `role`: what it calls the model.
    """
    root = model.get_decoder()
    found: dict[str, nn.ModuleList] = {}
    for name, module in root.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if isinstance(module, nn.ModuleList) and not inside and len(module) == built:
            found[name] = module
    usual = [name for name in found if name.rpartition(".")[2] in ("layers", "h", "blocks", "block")]
    names = usual or list(found)
    bodies = {
        path: module
        for path, module in root.named_modules()
        if isinstance(module, transformers.PreTrainedModel) and module is not model
    }
    if len(names) == 1:
        around = [path for path in bodies if path == "" or names[0].startswith(f"{path}.")]
        if around:
            path = max(around, key=len)
            return bodies[path], names[0][len(path) + 1 if path else 0 :]
    raise UserError(
        f"The {role} ({type(model).__name__}) is not built as one list of decoder layers, so its hidden states cannot "
        "be taken one by one; choose a decoder-only language model."
    )


def check_complete(subject: str, model: Any, report: dict[str, Any], cut: int | None) -> None:
    """Raises UserError if the files lack weights, which would be random; a cut model's output matrix is not used.

    `report`: what `from_pretrained` tells with `output_loading_info`.
    """
    missing = {*report["missing_keys"], *(key for key, *_shapes in report["mismatched_keys"])}
    if cut is not None:
        head = model.get_output_embeddings()
        unused = set(head.parameters()) if head is not None else set()
        missing -= {name for name, parameter in model.named_parameters() if parameter in unused}
    if missing:
        names = ", ".join(sorted(missing)[:3])
        raise UserError(
            f"{subject}: its files lack {len(missing)} of the weights of {type(model).__name__}, or hold them in another "
            f"shape ({names}{', …' if len(missing) > 3 else ''}). Download it again, or save it with `save_pretrained`."
        )


def explained(error: Exception, subject: str, config: ModelConfig, source: ModelFiles) -> UserError:
    """A sentence for what failed while loading."""
    if out_of_memory(error):
        return ResourceError(f"{subject} does not fit in the memory of {config.device_map or config.device}.")
    if "trust_remote_code" in str(error):
        return untrusted(subject)
    if source.local_only and isinstance(error, OSError):
        return unreachable(subject)
    folder = folder_of(source)
    try:
        if folder is not None:
            require_readable_pickles(folder)
    except UserError as unreadable:
        return UserError(f"{subject} cannot be loaded: {unreadable}")
    return UserError(f"{subject} cannot be loaded as a causal language model: {first_line(error)}")
