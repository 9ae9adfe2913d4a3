"""The teacher's forward pass: documents packed without padding, only as deep as needed, only what was asked for kept."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, Int64, Shaped
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from schemas.errors import UserError
from schemas.signals import Scalar
from trainer.maths.ragged import flat_index, flatten, normalize_rows, pointers, spread
from trainer.models.head import NextTokens, next_tokens
from trainer.models.loading import LanguageModel
from trainer.models.packed_attention import Pack, packed, told_layers
from trainer.models.probes import close, probes

#: Kinds of layers, as configs name them, that a pack may have.
_KINDS: Final = frozenset({"full_attention", "sliding_attention"})

_Result = tuple[dict[int, Tensor], dict[int, Tensor]]  # hidden states and attention, by layer, flat


class _DeepEnough(Exception):  # noqa: N818  # no error: all that is wanted is there
    """Ends a forward pass from within."""


@dataclass(frozen=True)
class Request:
    """What to keep of a forward pass. Layers are indices into `hidden_states`.

    `attention` layers are from 1 to the depth: that of index l is the attention inside the block whose output is
    `hidden_states[l]`. `final`, `topk`, `sorted` and `scalars` need a whole teacher.
    """

    layers: tuple[int, ...] = ()
    attention: tuple[int, ...] = ()
    final: bool = False
    topk: int | None = None
    sorted: int | None = None
    scalars: tuple[Scalar, ...] = ()

    @property
    def of_logits(self) -> bool:
        """Whether something is computed of logits."""
        return self.topk is not None or self.sorted is not None or bool(self.scalars)

    @property
    def of_last(self) -> bool:
        """Whether the last hidden states are needed."""
        return self.final or self.of_logits

    @property
    def deepest(self) -> int | None:
        """For `load_model`: decoder layers that have to run, None for all."""
        return None if self.of_last else max((*self.layers, *self.attention), default=0)


@dataclass(frozen=True)
class Captured:
    """What was asked for of a batch of documents: flat, in the order given."""

    rows: Int64[Tensor, " pointers"]  # of tokens, on the CPU
    states: dict[int, Float[Tensor, "tokens _"]]  # in the model's dtype, on the device of their layer
    attention: dict[int, Float32[Tensor, " tokens"]]  # of the last query, over heads; adds up to 1 in a document
    final: Float[Tensor, "top_tokens _"] | None  # after the final norm
    topk: (
        tuple[Int32[Tensor, "top_tokens k"], Float32[Tensor, "top_tokens k"]] | None
    )  # indices, log-probabilities, best first
    sorted: Float32[Tensor, "top_tokens most"] | None  # probabilities, falling
    scalars: Mapping[Scalar, Shaped[Tensor, " top_tokens"]]


def batches_of(lengths: Sequence[int] | Int[np.ndarray, " documents"], budget: int) -> list[list[int]]:
    """Batches of documents of like length, longest first: number of documents times the longest is within `budget` tokens.

    A longer document is alone in its batch; documents of no token are in none. A function of its arguments only.
    """
    batches: list[list[int]] = []
    longest = 0
    for document in sorted(np.flatnonzero(lengths).tolist(), key=lambda document: (-int(lengths[document]), document)):
        if not batches or (len(batches[-1]) + 1) * longest > budget:
            batches.append([])
            longest = int(lengths[document])
        batches[-1].append(document)
    return batches


class Forward:
    """Runs a teacher on batches of documents, one batch at a time. `packed`: without padding; else padded on the right.

    Packed is any model that attends through transformers' attention interface in ways that `packed_attention` knows,
    and that gives the same hidden states for documents in a pack as for each alone, which is tried. `head`: the
    teacher's, if `final` or something of logits is asked for. `widths`: features of the hidden states of every layer in
    memory (some models, OPT-350m for one, project the last one).
    """

    def __init__(self, teacher: LanguageModel, request: Request, longest: int | None = None) -> None:
        """`longest`: tokens of the longest document to come, if that is known; ways to run are tried up to there.

        Raises UserError naming the architecture if neither way gives the hidden states of documents alone, or if the
        model's logits are asked for and not understood; ValueError for layers that the teacher does not have."""
        loaded = len(teacher.layers)
        for layer in (*request.layers, *request.attention, *([teacher.depth] if request.of_last else [])):
            if not 0 <= layer <= loaded:
                raise ValueError(f"layer {layer} of a teacher with {loaded} of {teacher.depth} layers in memory")
        if 0 in request.attention:
            raise ValueError("layer 0 is the embeddings, which attend to nothing")
        if request.topk is not None and not 0 < request.topk <= teacher.vocab_size:
            raise ValueError(f"the {request.topk} likeliest of {teacher.vocab_size} tokens")
        self.teacher = teacher
        self.request = request
        self.head = teacher.head() if request.of_last else None
        config = teacher.model.config.get_text_config(decoder=True)
        self._kinds = tuple(getattr(config, "layer_types", None) or ())
        windowed = (
            self._kinds or ("sliding_attention" if getattr(config, "sliding_window", None) else "",) * teacher.depth
        )
        self._sliding = frozenset(layer for layer, kind in enumerate(windowed, 1) if kind == "sliding_attention")
        self.widths: dict[int, int] = {}
        self.packed = self._can_pack(longest)

    @torch.no_grad()
    def __call__(
        self, documents: Sequence[Int[np.ndarray, " _"]], top: Bool[Tensor, " tokens"] | None = None
    ) -> Captured:
        """One forward pass over documents' token ids, each with at least one.

        `top`: of which tokens `final`, `topk`, `sorted` and `scalars` are kept, on the CPU; None: of all.

        Memory that runs out is an error for which `trainer.models.memory.out_of_memory` is true. Raises UserError for a document
        longer than the model can take.
        """
        lengths = [len(document) for document in documents]
        limit = self.teacher.max_length
        if not lengths or min(lengths) == 0:
            raise ValueError("a batch is of documents with at least one token")
        if limit is not None and max(lengths) > limit:
            raise UserError(
                f"A document has {max(lengths)} tokens, and the teacher ({self.teacher.architecture}) takes at most {limit}; "
                f"prepare the dataset with a teacher `max_length` of {limit} or less."
            )
        least, most = min(map(np.min, documents)), max(map(np.max, documents))
        if least < 0 or most >= self.teacher.vocab_size:
            raise UserError(
                f"A document has token {least if least < 0 else most}, and the teacher ({self.teacher.architecture}) knows 0 to "
                f"{self.teacher.vocab_size - 1}; prepare the dataset with this teacher's own tokenizer."
            )
        request = self.request
        wanted = frozenset((*request.layers, *([self.teacher.depth] if request.of_last else [])))
        run = self._run_packed if self.packed else self._run_padded
        states, attention = run(documents, wanted, frozenset(request.attention))
        final = states[self.teacher.depth] if request.of_last else None
        if final is not None and top is not None:
            final = final[top.nonzero().squeeze(1).to(final.device, non_blocking=True)]
        summary = self._next_tokens(documents, top, final)
        return Captured(
            rows=pointers(lengths),
            states={layer: states[layer] for layer in request.layers},
            attention={layer: attention[layer] for layer in request.attention},
            final=final if request.final else None,
            topk=summary.topk,
            sorted=summary.sorted,
            scalars=summary.scalars,
        )

    def _next_tokens(
        self, documents: Sequence[Int[np.ndarray, " _"]], top: Bool[Tensor, " tokens"] | None, final: Tensor | None
    ) -> NextTokens:
        """What is asked for of the logits that `final`, the last states of the tokens in `top`, give."""
        if not self.request.of_logits or self.head is None or final is None:
            return NextTokens(None, None, {})
        own = torch.cat([torch.from_numpy(np.append(document[1:], -1).astype(np.int64)) for document in documents])
        request, following = self.request, own if top is None else own[top]
        return next_tokens(self.head, final, request.topk, request.scalars, following, request.sorted)

    def _run_packed(
        self, documents: Sequence[Int[np.ndarray, " _"]], wanted: frozenset[int], attention: frozenset[int]
    ) -> _Result:
        rows = pointers([len(document) for document in documents])
        ids = torch.from_numpy(np.concatenate(documents).astype(np.int64))
        position = torch.arange(len(ids)) - spread(rows[:-1], rows)
        ids, position = (tokens[None].to(self.teacher.device, non_blocking=True) for tokens in (ids, position))
        pack = Pack(rows, self.teacher.hidden_size, attention, self._sliding)
        with packed(self.teacher.model, pack), told_layers(self.teacher.layers, pack):
            states, _ = self._states({"input_ids": ids, "position_ids": position}, wanted, max(attention, default=0))
        return {layer: state.squeeze(0) for layer, state in states.items()}, pack.kept

    def _run_padded(
        self, documents: Sequence[Int[np.ndarray, " _"]], wanted: frozenset[int], attention: frozenset[int]
    ) -> _Result:
        rows = [torch.from_numpy(document.astype(np.int64)) for document in documents]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        index, tokens = flat_index(mask)
        inputs: dict[str, Any] = {
            "input_ids": ids.to(self.teacher.device),
            "attention_mask": mask.to(self.teacher.device),
        }
        if not attention:
            states, _ = self._states(inputs, wanted)
            return {layer: flatten(state, index) for layer, state in states.items()}, {}
        with eager(self.teacher.model):
            states, output = self._states(inputs | {"output_attentions": True}, wanted, stop=False)
        kept = attention_told(output, attention, len(self.teacher.layers), index, tokens)
        if kept is None:
            raise UserError(
                f"The teacher ({self.teacher.architecture}) does not give its attention; leave out the signal `attention`."
            )
        return {layer: flatten(state, index) for layer, state in states.items()}, kept

    def _states(
        self, inputs: dict[str, Any], wanted: frozenset[int], deepest: int = 0, stop: bool = True
    ) -> tuple[dict[int, Tensor], Any]:
        """Hidden states as the model has them; and its output, if it runs to its end.

        It ends behind the deepest layer of `wanted`, or `deepest` if that is more, unless `stop` is False.
        """
        states: dict[int, Tensor] = {}
        ids = inputs["input_ids"]
        depth = self.teacher.depth
        deepest = max((*wanted, deepest)) if stop else depth

        def before_all(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if 0 in wanted:
                states[0] = self._vectors(0, arguments[0] if arguments else named.get("hidden_states"), ids)
            if deepest == 0:
                raise _DeepEnough

        def behind(layer: int) -> Callable[..., None]:
            def note(_module: nn.Module, _arguments: tuple[Any, ...], output: Any) -> None:
                if layer in wanted:
                    states[layer] = self._vectors(layer, output[0] if isinstance(output, tuple | list) else output, ids)
                if layer == deepest:
                    raise _DeepEnough

            return note

        with ExitStack() as hooks:
            for layer, module in enumerate(self.teacher.layers, 1):
                if layer == 1:
                    hooks.callback(module.register_forward_pre_hook(before_all, with_kwargs=True).remove)
                # the last of all is taken behind the final norm
                if layer < depth and (layer in wanted or layer == deepest):
                    hooks.callback(module.register_forward_hook(behind(layer)).remove)
            try:
                output = self.teacher.body(**inputs, use_cache=False, return_dict=True)
            except _DeepEnough:
                output = None
        if output is not None and depth in wanted:
            states[depth] = self._vectors(depth, output[0], ids)
        return states, output

    def _vectors(self, layer: int, state: Any, ids: Int64[Tensor, "documents width"]) -> Tensor:
        """Whatever a model calls its hidden state at a layer: one vector a token is needed, else UserError."""
        if isinstance(state, Tensor) and state.ndim == 3 and state.shape[:2] == ids.shape:
            return state
        shape = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise UserError(
            f"The teacher ({self.teacher.architecture}) has no hidden state of one vector a token at layer {layer} "
            f"({shape} for tokens {tuple(ids.shape)}), so it cannot be cached; choose a decoder-only language model."
        )

    @torch.no_grad()
    def _can_pack(self, longest: int | None) -> bool:
        """Whether documents in a pack get the hidden states that they have alone; if not, padded ones must."""
        teacher = self.teacher
        expected = {}
        for probe in probes(teacher, longest):
            with teacher.running():
                alone = [self._alone(document, probe.deepest) for document in probe.documents]
            expected[probe] = {layer: torch.cat([states[layer] for states in alone]) for layer in alone[0]}
            self.widths.update((layer, state.shape[-1]) for layer, state in expected[probe].items())

        def agrees(run: Callable[..., _Result]) -> bool:
            return all(
                close(run(probe.documents, frozenset(states), frozenset())[0], states)
                for probe, states in expected.items()
            )

        if teacher.model.is_backend_compatible() and set(self._kinds) <= _KINDS:
            # what a model asks for that attention here does not know, or makes of what it gives, is a reason to pad
            with suppress(UserError), teacher.running():
                if agrees(self._run_packed):
                    return True
        with teacher.running():
            if agrees(self._run_padded):
                return False
        if torch.get_float32_matmul_precision() == "highest":
            reason = "so nothing can be learnt from them; choose another model."
        else:
            reason = (
                "since products of float32 are shortened here, to TF32 on a GPU; set "
                '`torch.set_float32_matmul_precision("highest")`, and leave TORCH_ALLOW_TF32_CUBLAS_OVERRIDE out of the '
                "environment."
            )
        raise UserError(
            f"The teacher ({teacher.architecture}) gives a document other hidden states in a batch than alone, {reason}"
        )

    def _alone(self, document: Int[np.ndarray, " _"], deepest: int) -> dict[int, Tensor]:
        """The hidden states 0 to `deepest` of one document by the plain model; of all its layers, also as it tells them."""
        loaded = len(self.teacher.layers)
        ids = torch.from_numpy(document.astype(np.int64))[None].to(self.teacher.device)
        wanted = frozenset(range(deepest + 1))
        if deepest < loaded:
            states, _ = self._states({"input_ids": ids}, wanted)
            return {layer: state.squeeze(0) for layer, state in states.items()}
        states, output = self._states({"input_ids": ids, "output_hidden_states": True}, wanted, stop=False)
        told = getattr(output, "hidden_states", None) or ()
        # behind a cut, the last one told is wrongly normed
        known = {layer: state for layer, state in enumerate(told) if layer < loaded or self.teacher.whole}
        if len(told) != loaded + 1 or not close(states, known):
            raise UserError(
                f"The teacher ({self.teacher.architecture}) does not give the outputs of its decoder layers as its hidden "
                "states, so they cannot be told apart; choose a decoder-only language model."
            )
        return {layer: state.squeeze(0) for layer, state in states.items()}


def attention_told(
    output: Any, wanted: Collection[int], depth: int, index: Int64[Tensor, " tokens"], rows: Int64[Tensor, " _"]
) -> dict[int, Float32[Tensor, " tokens"]] | None:
    """What the last query of each document pays its tokens, of wanted layers: from a padded output with `output_attentions`.

    Over heads; adds up to 1 in a document. None if the output does not tell it of all `depth` layers. `index`, `rows`: of
    `flat_index`, padding on the right.
    """
    matrices = getattr(output, "attentions", None) or ()
    if len(matrices) != depth or any(matrix is None for matrix in matrices):
        return None
    last = rows.diff() - 1
    paid = {}
    for layer in wanted:
        matrix = matrices[layer - 1]
        line = matrix.take_along_dim(last.to(matrix.device)[:, None, None, None], 2).squeeze(2)
        paid[layer] = normalize_rows(flatten(line.float().sum(1)[..., None], index).squeeze(1), rows)
    return paid


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """While it lasts, attention is computed as full matrices, which can be had."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
