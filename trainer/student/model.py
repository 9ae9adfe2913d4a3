"""The model that learns: its hidden states with gradients, its documents packed without padding."""

import warnings
from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from schemas.errors import UsageError, UserError
from schemas.training import StudentConfig
from trainer.batches.batch import Batch
from trainer.maths.ragged import flat_index, flatten, pointers, spread
from trainer.models.hidden_states import Forward, Request, attention_told, eager
from trainer.models.loading import LanguageModel, UnknownLogits, decoder
from trainer.models.packed_attention import NAME, PACK, NotPackable, Pack, told_layers
from trainer.student.initialization import initial_model
from trainer.student.lora import with_adapters
from trainer.student.output_head import OutputHead


class Student(nn.Module):
    """A causal language model of transformers, `model`, whose output embeddings are its `head`.

    While `packed`, its attention takes documents from this class alone: to generate with it, export it. Only its modules
    are ever called and no weights are touched, so that they may be partitioned (ZeRO-3) or adapted (LoRA).
    """

    depth: int  # decoder layers: `hidden_states` has indices 0 (embeddings) to depth (after the final norm)
    hidden_size: int
    vocab_size: int
    architecture: str  # class name, such as LlamaForCausalLM
    max_length: int | None  # tokens of the longest document it can take; None: no limit
    packed: bool  # else documents are padded
    soft_cap: float | None  # of logits (`trainer.models.head.Head`)
    scale: float | None

    def __init__(self, model: Any, packing: bool = True, gradient_checkpointing: bool = False) -> None:
        """In training mode. Raises UserError naming the architecture if its hidden states or logits cannot be had as the
        objectives need them, UsageError if it has no gradient checkpointing."""
        super().__init__()
        model.eval()
        text = model.config.get_text_config(decoder=True)
        self.model = model
        self.depth = int(text.num_hidden_layers)
        self.hidden_size = int(text.hidden_size)
        self.vocab_size = int(text.vocab_size)
        self.architecture = type(model).__name__
        body, layers = decoder(model, self.depth, "student")
        self._body = next(path for path, module in model.named_modules() if module is body)
        self._layers = layers
        probe = LanguageModel(
            model=model,
            body=body,
            layers=body.get_submodule(layers),
            depth=self.depth,
            hidden_size=self.hidden_size,
            vocab_size=self.vocab_size,
            architecture=self.architecture,
            dtype=model.dtype,
            device=model.get_input_embeddings().weight.device,
        )
        self.max_length = probe.max_length
        packable = self._packable(probe)
        self._norm = probe.norm_name()
        self._put_head(probe)
        self.packed = packing and packable and self._hands_on(probe.device)
        if self.packed:
            model.set_attn_implementation(NAME)
        if gradient_checkpointing:
            self._recompute()
        self.train()

    @property
    def body(self) -> nn.Module:
        """The part of `model` that turns token ids into hidden states."""
        body: nn.Module = self.model.get_submodule(self._body)
        return body

    @property
    def layers(self) -> nn.ModuleList:
        """Its decoder layers."""
        layers = self.body.get_submodule(self._layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def head(self) -> OutputHead:
        """What turns last hidden states into logits."""
        head = self.model.get_output_embeddings()
        assert isinstance(head, OutputHead)
        return head

    def __call__(self, batch: Batch, layers: Collection[int]) -> dict[int, Float[Tensor, "tokens _"]]:
        # past a module's hooks, as this one has no weights of its own: DeepSpeed's take keys of a dictionary for names
        return self.forward(batch, layers)

    def forward(self, batch: Batch, layers: Collection[int]) -> dict[int, Float[Tensor, "tokens _"]]:
        """Hidden states of `layers` and of the last one, of every token of the batch, in its order.

        A batch without documents gives states of no token, but still runs every module, as partitioned weights need of
        every rank. Raises UserError for a document longer than the model can take, UsageError for layers it does not have.
        """
        return self.attending(batch, layers, ())[0]

    def attending(
        self, batch: Batch, layers: Collection[int], attention: Collection[int]
    ) -> tuple[dict[int, Float[Tensor, "tokens _"]], dict[int, Float32[Tensor, " tokens"]]]:
        """Hidden states as `forward` gives them; and what each document's last query pays its tokens, over heads.

        `attention`: layers from 1, the decoder layer whose output is the hidden state of that index. It adds up to 1 in a
        document and has no gradient. Where documents are padded it is had by a pass of its own, in eager attention.
        """
        for layer, least in (*((layer, 0) for layer in layers), *((layer, 1) for layer in attention)):
            if not least <= layer <= self.depth:
                first = "1" if least else "0 (embeddings)"
                raise UsageError(f"The student ({self.architecture}) has layers {first} to {self.depth}, not {layer}.")
        tokens = len(batch.ids)
        ids, rows = (batch.ids, batch.rows) if tokens else (batch.ids.new_zeros(1), pointers([1]))
        self._check_length(int(rows.diff().max()))
        inner = {*layers} - {self.depth}
        if self.packed:
            pack = Pack(rows, self.hidden_size, frozenset(attention))
            inputs, index = _packed_inputs(ids, pack)
            paid = pack.kept  # filled on the way
        else:
            inputs, index, rows = _padded_inputs(ids, rows)
            paid = self._padded_attention(inputs, index, rows, attention) if attention else {}
        with told_layers(self.layers, pack) if self.packed and attention else nullcontext():
            output = self.body(**inputs, use_cache=False, return_dict=True, output_hidden_states=bool(inner))
        states = {layer: output.hidden_states[layer] for layer in sorted(inner)} | {self.depth: output[0]}
        return (
            {layer: flatten(state, index)[:tokens] for layer, state in states.items()},
            {layer: paid[layer][:tokens] for layer in attention},
        )

    def final_norm(self, states: Float[Tensor, "positions hidden"]) -> Float[Tensor, "positions hidden"]:
        """States of an inner layer through the norm behind the last one, which learns from it."""
        assert self._norm is not None
        normed: Tensor = self.body.get_submodule(self._norm)(states)
        return normed

    def require_norm(self, where: str) -> None:
        """Raises UsageError for a student without a norm behind its last layer; `where`: the config's key of the term."""
        if self._norm is None:
            raise UsageError(
                f"{where}: the student ({self.architecture}) has no norm behind its last layer, so leave out `norm: true`."
            )

    def require_attention(self) -> None:
        """Raises UserError for a student that does not tell what its tokens attend to."""
        if not self.packed:
            ids = torch.zeros(2, dtype=torch.int64, device=self.model.get_input_embeddings().weight.device)
            self._padded_attention(*_padded_inputs(ids, pointers([2])), attention=(1,))

    @torch.no_grad()
    def _padded_attention(
        self,
        inputs: dict[str, Any],
        index: Int64[Tensor, " tokens"],
        rows: Int64[Tensor, " pointers"],
        attention: Collection[int],
    ) -> dict[int, Float32[Tensor, " tokens"]]:
        """As `attending` gives it, without dropout; `inputs`, `index`, `rows`: of `_padded_inputs`."""
        training = self.body.training
        self.body.eval()
        try:
            with eager(self.model):
                output = self.body(**inputs, use_cache=False, return_dict=True, output_attentions=True)
        finally:
            self.body.train(training)
        paid = attention_told(output, attention, self.depth, index, rows)
        if paid is None:
            raise UserError(
                f"The student ({self.architecture}) does not tell what its tokens attend to; set `weights: uniform` in all "
                "terms on spans, or choose another architecture."
            )
        return paid

    def _check_length(self, longest: int) -> None:
        if self.max_length is not None and longest > self.max_length:
            raise UserError(
                f"A document has {longest} tokens, and the student ({self.architecture}) takes at most {self.max_length}; "
                f"prepare the dataset with `mta-prep parse … --set student.max_length={self.max_length}`, or give this one's "
                f"student that limit with `mta-prep align DATASET --student TOKENIZER --max-length {self.max_length}`."
            )

    def _packable(self, probe: LanguageModel) -> bool:
        """Whether documents in a pack get the hidden states that they have alone."""
        try:
            return Forward(probe, Request()).packed
        except UserError as error:
            raise UserError(
                f"The student ({self.architecture}) does not give a document of a batch the hidden states that it has alone, "
                "layer by layer; choose another architecture."
            ) from error

    def _recompute(self) -> None:
        with warnings.catch_warnings():
            # its new name is not in every version of transformers 5
            warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)
            try:
                # the other kind recomputes outside of autograd's view, which partitioned weights need
                self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            except ValueError:
                raise UsageError(
                    f"The student ({self.architecture}) has no gradient checkpointing; leave it out."
                ) from None

    def _put_head(self, probe: LanguageModel) -> None:
        try:
            with torch.no_grad():
                known = probe.head()
        except UnknownLogits as error:
            raise UserError(
                f"The student ({self.architecture}) does something to its logits that is not known here; choose another "
                "architecture."
            ) from error
        self.soft_cap, self.scale = known.soft_cap, known.scale
        plain = self.model.get_output_embeddings()
        self.model.set_output_embeddings(OutputHead.around(plain, self.soft_cap, self.scale))

    @torch.no_grad()
    def _hands_on(self, device: torch.device) -> bool:
        """Whether a pack given to the body gets to its attention; the packed forward pass itself has been tried."""
        rows = pointers([2, 1])
        inputs, _ = _packed_inputs(torch.zeros(3, dtype=torch.int64, device=device), Pack(rows, self.hidden_size))
        before = self.model.config._attn_implementation
        self.model.set_attn_implementation(NAME)
        try:
            self.body(**inputs, use_cache=False, return_dict=True)
        except NotPackable:
            return False
        finally:
            self.model.set_attn_implementation(before)
        return True


def _packed_inputs(ids: Int64[Tensor, " tokens"], pack: Pack) -> tuple[dict[str, Any], Int64[Tensor, " tokens"]]:
    index = torch.arange(len(ids))
    position = (index - spread(pack.rows[:-1], pack.rows)).to(ids.device, non_blocking=True)
    return {"input_ids": ids[None], "position_ids": position[None], PACK: pack}, index


def _padded_inputs(
    ids: Int64[Tensor, " tokens"], rows: Int64[Tensor, " pointers"]
) -> tuple[dict[str, Any], Int64[Tensor, " tokens"], Int64[Tensor, " _"]]:
    """Padded on the right; where the tokens then are, and pointers of the documents that have any."""
    lengths = rows.diff()
    lengths = lengths[lengths > 0]
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).to(torch.int64)
    index, real_rows = flat_index(mask)
    padded = pad_sequence(list(torch.split(ids, lengths.tolist())), batch_first=True)
    return {"input_ids": padded, "attention_mask": mask.to(ids.device, non_blocking=True)}, index, real_rows


def load_student(config: StudentConfig, seed: int, dtype: torch.dtype = torch.float32) -> Student:
    """The student before training, on the CPU; `seed`: of fresh weights, adapters included.

    Raises UserError (no such model, weights missing, an architecture that cannot be trained or cut), UsageError (keys,
    layers or targets that the model does not have), ResourceError (the hub cannot be reached, no memory).
    """
    model = initial_model(config, seed).to(dtype)
    if getattr(model.config.get_text_config(decoder=True), "output_router_logits", False):
        raise UsageError(
            f"The student ({type(model).__name__}) asks for the loss of its router (`output_router_logits`), which is not "
            "trained here. Leave it out by `student.config: {output_router_logits: false}`."
        )
    if config.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            with_adapters(model, config.lora)
    return Student(model, config.packing, config.gradient_checkpointing)
