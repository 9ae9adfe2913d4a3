"""What is meant for a GPU, through a stand-in that says it is one: the CPU's values, nothing on two devices at once.

And nothing waits for the device but where it is said here: what moves to the host is the list in each test.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten
from transformers import LlamaForCausalLM

from cached_batches import CHUNKS, ROWS, TEACHER_SIZE, TERMS, WORDS, term_of
from pipeline.parse import chart
from pipeline.parse.engine import Engine
from pipeline.text import Words
from schemas.config import ModelConfig
from schemas.signals import SCALARS
from stand_in_cuda import DEVICE, StandInCuda
from trainer.evaluation.generate import Generator, Prompt, Sampling
from trainer.maths import geometry, ragged, triangle
from trainer.maths.layer_signals import layer_signals
from trainer.maths.quantization import DTYPES, decode, encode, refuse_unstorable
from trainer.maths.soft_dtw import by_diagonal
from trainer.maths.warping import Band, table_sizes, warping
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head, next_tokens
from trainer.models.hidden_states import Forward, Request
from trainer.models.loading import load_model
from trainer.models.packed_attention import Pack, attend
from trainer.objectives import build
from trainer.objectives.base import Setting
from trainer.objectives.cross_entropy import CrossEntropy
from trainer.student.distiller import Distiller
from trainer.student.output_head import LogitWork
from two_tokenizers import TwoTokenizers, aligned, chunked

TOKENS = ragged.pointers([5, 1, 0, 7, 3])
SPANS = torch.tensor([[0, 2], [1, 4], [4, 5], [5, 6], [6, 9], [7, 8], [9, 13], [13, 16]])
UNITS = ragged.pointers([3, 1, 0, 3, 1])
FEATURES = 6


def values(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_both(work, exactly=True, make=lambda device: device):
    """`work` of what `make` gives for a device gives on the stand-in what it gives on the CPU; places that waited in it."""
    with torch.no_grad():
        expected, structure = tree_flatten(work(make("cpu")))
    with StandInCuda() as cuda:
        made = make("cuda:0")
        cuda.waits.clear()
        results, same_structure = tree_flatten(work(made))
    assert structure == same_structure
    for result, value in zip(results, expected, strict=True):
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(cuda.values(result), value, **cuda.tolerance(exactly))
        else:
            assert result == value
    return cuda.places()


def through(work, *tensors, exactly=True):
    """`on_both`, of a function of tensors that lie on the device."""
    return on_both(lambda device: work(*(tensor.to(device) for tensor in tensors)), exactly)


def test_the_stand_in_is_as_strict_as_the_device():
    with StandInCuda() as cuda:
        here, there = torch.ones(3), torch.ones(3, device="cuda")
        assert there.device == DEVICE
        assert (there + 1 + torch.tensor(2.0)).device == there.new_zeros(2).device == DEVICE
        assert there[torch.tensor([0, 2])].shape == (2,)
        for wrong in (
            lambda: here + there,
            lambda: here[there.long()],
            lambda: there.index_select(0, torch.tensor([0])),
        ):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises((TypeError, RuntimeError)):
            there.numpy()
        assert not cuda.waits
        there.sum().item(), there.cpu(), there.tolist(), float(there[0]), there[there > 0], there.nonzero()
        assert sum(cuda.waits.values()) == 6
    assert cuda.places() == {"elsewhere"}


@pytest.mark.parametrize(
    "work",
    [
        lambda hidden, weights: geometry.centrality_weights(hidden, TOKENS),
        lambda hidden, weights: geometry.uniform_weights(TOKENS, hidden.device),
        lambda hidden, weights: geometry.pool(hidden, weights, SPANS),
        lambda hidden, weights: geometry.unit_weights(weights, SPANS, UNITS),
        lambda hidden, weights: geometry.relations(hidden[: len(SPANS)], UNITS),
        lambda hidden, weights: geometry.student_units(hidden, TOKENS, SPANS, "centrality"),
        lambda hidden, weights: ragged.normalize_rows(weights, TOKENS),
        lambda hidden, weights: triangle.unit_pairs(triangle.later_units(UNITS), hidden.device),
        lambda hidden, weights: triangle.square(weights[:10], 5),
        lambda hidden, weights: triangle.from_fixed_point(triangle.to_fixed_point(weights)),
    ],
)
def test_geometry(work):
    places = through(work, values(16, FEATURES), values(16).softmax(0))
    assert places <= {"trainer/maths/triangle.py:to_fixed_point"}  # refuses what no cosine is


@pytest.mark.parametrize("state_tokens", ["covered", "all"])
@pytest.mark.parametrize("weights", ["centrality", "uniform"])
def test_layer_signals(weights, state_tokens):
    def work(hidden):
        wanted = {"relations", "units", "states"}
        signals = layer_signals(hidden, TOKENS, SPANS, UNITS, wanted, state_tokens, weights)
        return [signals.unit_weights, signals.relations, signals.units, signals.states, signals.token_weights]

    assert through(work, values(16, FEATURES)) == set()


def test_warping():
    partners = ragged.pointers([4, 2, 3, 0, 6])
    sizes = table_sizes(TOKENS, partners)
    cells = int(sizes.prod(1).sum())

    def work(x, y, attention):
        penalties = Band(width=0, entropy=1).penalties(attention, sizes)
        return warping([(x, y), (x[:, 1:], y[:, 1:])], TOKENS, partners, 2.0, penalties), penalties

    # the CPU goes table by table
    assert through(work, values(16, FEATURES), values(15, FEATURES), values(cells).sigmoid(), exactly=False) == set()
    assert through(lambda costs: by_diagonal(costs, sizes, 2.0), values(cells)) == set()


@pytest.mark.parametrize("storage", DTYPES)
def test_storage(storage):
    def stored(vectors):
        encoded = encode(vectors, storage)
        return decode(encoded.stored, encoded.scale), encoded.peak

    def refused(vectors):
        refuse_unstorable(encode(vectors, storage).peak, storage, str)

    assert through(stored, values(16, FEATURES)) == set()
    assert through(refused, values(16, FEATURES)) == {"trainer/maths/quantization.py:refuse_unstorable"}


@pytest.mark.parametrize("options", [{}, {"bias": True, "soft_cap": 3.0, "scale": 0.5}])
def test_logits(options):
    own = torch.tensor([3, 0, 10, -1, 5, 5, -1])

    def work(weight, bias, final):
        head = Head(weight, bias if options else None, options.get("soft_cap"), options.get("scale"))
        of_logits = next_tokens(head, final, 3, SCALARS, own)
        return head.logits(final), of_logits.topk, tuple(of_logits.scalars.values())

    assert through(work, values(11, FEATURES), values(11), values(7, FEATURES)) == set()


@pytest.mark.parametrize("options", [{}, {"sliding_window": 3}, {"softcap": 2.0}], ids=["plain", "sliding", "capped"])
@pytest.mark.parametrize("lengths", [(5, 1, 7, 3), (4, 4, 4)], ids=["ragged", "even"])
def test_packed_attention(options, lengths):
    rows = ragged.pointers(lengths)
    heads = [values(1, count, int(rows[-1]), 4, seed=count) for count in (4, 2)]

    def work(query, key, value):
        pack = Pack(rows, 16, attention=frozenset({1}), layer=1)
        return attend(torch.nn.Module(), query, key, value, None, mta_pack=pack, **options)[0], pack.kept[1]

    assert through(work, heads[0], heads[1], heads[1] + 1, exactly=False) == set()


@pytest.mark.parametrize("name", TERMS)
def test_a_step_with_every_term(source_of_all_terms, student_of_three, name):
    """From the batch as it is read to the step's loss: the student, its head, and a term of every kind."""
    source, student = source_of_all_terms, student_of_three()
    torch.manual_seed(0)
    terms = term_of(name, student)
    batch = source.fetch(np.argsort(source.documents.lengths("student"))[:3].tolist())  # angles are cubic

    def work(device):
        there = source.head.to(torch.device(device))
        distiller = Distiller(copy.deepcopy(student), copy.deepcopy(terms), there).to(device)
        denominators = distiller.denominators(batch)  # of values that are still on the CPU
        return distiller(batch.to(device), denominators, dict.fromkeys(terms, 1.0))

    assert on_both(work, exactly=False) == set()


@pytest.mark.parametrize(
    "objectives",
    [
        {"dskd": {}},
        {"dwa": {"normalise": "product", "scale": "document"}},
        {"dskd": {"top": 3}},
        {"dskd_eta": {}},
        {"dskd_eta": {"count": "kept"}},
        {"soft_dtw": {}, "dskd": {}},
    ],
    ids=lambda objectives: "-".join(objectives),
)
def test_terms_for_two_tokenizers(objectives):
    """From the batch to the term's sum, of which the denominators are known before."""
    problem = aligned(TwoTokenizers(dtype=torch.float32))
    torch.manual_seed(1)
    built = build(objectives, problem.setting(shared=problem.shared), "objectives")
    terms = nn.ModuleDict({name: problem.begun(term) for name, term in built.items()})
    divided_by = {name: term.denominators(problem.batch) for name, term in terms.items()}

    def work(device):
        there, (name, term), *others = problem.on(device), *copy.deepcopy(terms).to(device).items()
        for moved in (term, *(other for _, other in others)):
            there.give_matrices(moved)
        return there.value(term, divided_by=divided_by[name])

    assert on_both(work, exactly=False) == set()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside"])
@pytest.mark.parametrize(
    "objectives",
    [{"uld": {"k": 4}}, {"uld": {"alignment": "chunks", "source": "sorted", "k": 4}}, {"gold": {}}, {"mined": {}}],
    ids=str,
)
def test_terms_of_positions(objectives, beside):
    """With products of their own, and by the logits that cross-entropy has."""
    problem = chunked(aligned(TwoTokenizers(dtype=torch.float32)))
    teacher = problem.batch.teacher
    problem.batch = replace(problem.batch, teacher=replace(teacher, logprob=-torch.rand(len(teacher.targets))))
    (term,) = build(objectives, problem.setting(shared=problem.shared), "objectives").values()
    problem.begun(term)
    ce = CrossEntropy(CrossEntropy.options(), problem.setting())

    def work(device):
        there, moved = problem.on(device), copy.deepcopy(term).to(device)
        there.give_matrices(moved)
        batch, states = there.batch, {4: there.hidden}
        riding, rest = moved.work_beside(states, batch, 0.5) if beside else (None, moved.work(states, batch, 0.5))
        on_logits = LogitWork.of(batch, states, [ce], [0.25], None, riders=[] if riding is None else [riding])
        return there.head(there.hidden[batch.positions], on_logits, [] if rest is None else [rest])

    assert on_both(work, exactly=False) == set()


def test_a_token_without_embedding_is_no_number_on_a_device():
    ids = torch.tensor([5, 2, 3])
    embeddings = Embeddings(values(2, FEATURES), torch.tensor([2, 5]))
    with StandInCuda() as cuda:
        vectors = embeddings.to(DEVICE)(ids.to("cuda:0"))
    assert not cuda.waits
    vectors = cuda.values(vectors)
    assert vectors.isnan().any(1).tolist() == [False, False, True]
    assert torch.equal(vectors[:2], embeddings(ids[:2]))


def test_a_batch_knows_what_stays_on_the_host(source_of_all_terms):
    batch = source_of_all_terms.fetch(ROWS)
    with StandInCuda() as cuda:
        moved = batch.to("cuda:0")
        for part in (moved, *moved.layers.values()):
            here = {name for name, value in vars(part).items() if isinstance(value, torch.Tensor) and not value.is_cuda}
            assert here <= {"documents", "rows", "position_rows", "spans", "later", "state_index"}
        assert not cuda.waits


def test_denominators_of_values_that_a_live_teacher_has_on_its_device(source_of_all_terms):
    setting = Setting((WORDS, CHUNKS), TEACHER_SIZE, TEACHER_SIZE)
    terms = build({"dsa": {}, "hidden": {}, "srkl": {}}, setting, "objectives")
    batch = source_of_all_terms.fetch(ROWS)
    with StandInCuda() as cuda:
        moved = batch.to("cuda:0")
        for term in terms.values():
            torch.testing.assert_close(
                term.denominators(moved), term.denominators(batch), **cuda.tolerance(exactly=True)
            )
    assert cuda.places() == {
        "trainer/objectives/structure.py:product_total",
        "trainer/objectives/hidden.py:HiddenAlignment.denominators",
    }


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
def test_the_teachers_forward_pass(tiny_teacher, packed):
    documents = [np.arange(length) + 5 for length in (7, 1, 4)]

    def made(device):
        teacher = load_model(ModelConfig(model=str(tiny_teacher), device=device), None)
        forward = Forward(teacher, Request(layers=(0, 2), final=True, topk=3))
        assert forward.packed
        forward.packed = packed
        return forward

    def work(forward):
        captured = forward(documents)
        return captured.states, captured.final, captured.topk

    # of padded documents transformers asks whether there is any padding
    expected = set() if packed else {"trainer/models/hidden_states.py:Forward._states"}
    assert on_both(work, exactly=False, make=made) == expected


def test_the_parsers_search():
    lengths = np.array([1, 5, 2, 9, 3], dtype=np.int32)
    scores = values(sum(chart.span_count(int(length)) for length in lengths))
    expected = chart.best_trees(scores.numpy(), lengths)
    with StandInCuda() as cuda:
        nodes = chart.best_trees_on_device(scores.to("cuda:0"), lengths)
    np.testing.assert_array_equal(nodes, expected)
    assert cuda.waits == {("pipeline/parse/chart.py:best_trees_on_device", "aten._to_copy.default"): 1}


def test_the_parser(embedded_parser):
    texts = ("The small cat sat on the mat .", "Go !")
    sentences = [Words(tuple(text.split()), (True,) * len(text.split())) for text in texts]
    expected = Engine(embedded_parser.network).constituents(sentences)
    with StandInCuda() as cuda:
        engine = Engine(copy.deepcopy(embedded_parser.network), device="cuda:0")
        cuda.waits.clear()
        trees = engine.constituents(sentences)
    for tree, same in zip(trees, expected, strict=True):
        assert (tree.spans.tolist(), tree.labels, tree.tags) == (same.spans.tolist(), same.labels, same.tags)
    # split points, labels and tags: three copies a batch
    assert cuda.places() == {"pipeline/parse/chart.py:best_trees_on_device", "pipeline/parse/engine.py:Engine._batch"}
    assert cuda.waits.total() == 3


def test_generation(tiny_teacher):
    model = LlamaForCausalLM.from_pretrained(tiny_teacher).eval()
    prompts = [Prompt((5, 9, 2), row=0, seed=1), Prompt((7,), row=1, seed=1)]
    sampling = Sampling(temperature=0.8, top_k=20, top_p=0.9)
    expected = Generator(model, [3], 4, sampling)(prompts)
    with StandInCuda() as cuda:
        generator = Generator(copy.deepcopy(model).to("cuda:0"), [3], 4, sampling)
        cuda.waits.clear()
        assert generator(prompts) == expected
    # once a token for its logits' soundness, and in transformers for whether all have ended; the rest once a stage
    file = "trainer/evaluation/generate.py"
    assert cuda.places() == {f"{file}:_Sound.__call__", f"{file}:Generator.__call__", f"{file}:Generator._response"}
