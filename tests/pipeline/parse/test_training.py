"""Training on a tiny encoder: it learns, an interrupted run ends as an uninterrupted one, the stored model is the trained one."""

import warnings
from collections import Counter
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import benepar.decode_chart
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.utils.data import DataLoader
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from pipeline.parse import network, training
from pipeline.parse.examples import Plan, Steps, collate, examples_of
from pipeline.parse.gold import collapsed_spans, gold_sentence, read_sentences
from pipeline.parse.loss import loss_of
from pipeline.parse.recipe import Recipe, build_parser
from pipeline.parse.treebank import read_trees, words_of
from pipeline.parse.vocabulary import prune_wordpiece
from schemas.errors import ResourceError, UsageError, UserError

NOUNS = ["dog", "cat", "farmer", "child", "bird", "teacher", "river", "house"]
VERBS = ["sees", "finds", "likes", "follows"]


@pytest.fixture(scope="module")
def treebank(tmp_path_factory):
    """Trees of a small grammar, with a trace, function tags and a foreign label thrown in."""
    folder = tmp_path_factory.mktemp("treebank")
    trees = [
        f"(ROOT (S (NP-SBJ (DT the) (NN {NOUNS[i % 8]})) (VP (VBZ {VERBS[i % 4]}) (NP (NML (DT a) (NN {NOUNS[i // 3 % 8]}))"
        + (" (PP (IN near) (NP (DT the) (NN river)))" if i % 3 else "")
        + ") (NP (-NONE- *))) (. .)))"
        for i in range(60)
    ]
    (folder / "train.ptb").write_text("\n".join(trees[:50]) + "\n", encoding="utf-8")
    (folder / "dev.ptb").write_text("\n".join(trees[50:]) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, treebank):
    """A random two-layer BERT whose vocabulary holds much that is never used, pruned."""
    whole, pruned = tmp_path_factory.mktemp("encoder"), tmp_path_factory.mktemp("pruned")
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "的", ".", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*NOUNS, *VERBS, "the", "near", *(f"unused{i}" for i in range(50))]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **special)
    fast.save_pretrained(whole)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(whole)
    texts = [" ".join(words_of(tree).words) for tree in read_trees(treebank / "train.ptb")]
    before, after = prune_wordpiece(whole, pruned, texts, frequent=40)
    assert after < before
    return pruned


@pytest.fixture
def recipe(treebank, encoder, tmp_path):
    return Recipe(
        encoder=encoder,
        train=(treebank / "train.ptb",),
        rotating=(),
        dev=treebank / "dev.ptb",
        out=tmp_path / "state",
        epochs=8,
        d_model=32,
        d_ff=64,
        batch_sentences=8,
        lr_encoder=1e-3,
        lr_chart=5e-3,
        warmup_steps=5,
        min_label_count=1,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's scheduler and transformers' loader say much at this size
def test_it_learns_and_the_stored_model_scores_the_same(recipe, tmp_path):
    training.train(recipe)
    stored = training.export(recipe, tmp_path / "model")
    assert stored.f1() > 80
    assert stored.sentences == 10
    assert stored.f1("NP") > 80


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_interrupted_run_ends_as_an_uninterrupted_one(recipe, tmp_path, monkeypatch):
    recipe = replace(recipe, epochs=3)
    training.train(recipe)
    other = replace(recipe, out=tmp_path / "other", save_every_s=0.0)
    real, calls = training.loss_of, []

    def interrupted(*given):
        calls.append(None)
        if len(calls) in (5, 12):
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(training, "loss_of", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            training.train(other)
    training.train(other)
    one, two = (torch.load(run.out / "best.pt", weights_only=True) for run in (recipe, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_loss_that_is_no_number_ends_the_run(recipe, tmp_path, monkeypatch):
    plain, steps = training.loss_of, []

    def loss_of(*given):
        steps.append(given)
        return plain(*given) * (float("nan") if len(steps) == 3 else 1.0)

    monkeypatch.setattr(training, "loss_of", loss_of)
    with pytest.raises(UserError, match=r"^Step 3 of \d+: the loss is nan"):
        training.train(replace(recipe, out=tmp_path))
    assert len(steps) == 3
    assert not (tmp_path / training.BEST).exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_whose_time_is_over_before_an_evaluation_is_scored_at_its_end(recipe, tmp_path, monkeypatch, capsys):
    """Stopped in its first epoch, then given less time than it took: what it learnt is scored, once, and stored."""
    plain, steps = training.loss_of, []

    def loss_of(*given):
        steps.append(given)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(training, "loss_of", loss_of)
    with pytest.raises(KeyboardInterrupt):
        training.train(replace(recipe, minutes=60.0, save_every_s=0.0))
    assert not (recipe.out / training.BEST).exists()
    over = replace(recipe, minutes=1e-6)
    for _ in range(2):
        training.train(over)
    assert capsys.readouterr().out.count('"f1"') == 1
    assert len(steps) == 4
    state, best = (torch.load(recipe.out / name, weights_only=True) for name in (training.STATE, training.BEST))
    assert state["done"] == 3
    assert all(torch.equal(best[name], values) for name, values in state["averaged"].items())
    training.export(over, tmp_path / "model")


def test_a_run_whose_time_is_over_before_its_first_step_is_refused(recipe):
    over = replace(recipe, minutes=1e-6)
    with pytest.raises(UsageError, match=r"^The time of --minutes 1e-06 was over before the first step.* give more"):
        training.train(over)
    with pytest.raises(UserError, match=r"^There is no file .*best\.pt\.$"):
        training.export(over, recipe.out / "model")


@pytest.mark.parametrize(("goals", "best"), [(None, 1), ((80.0, 80.0, 80.0), 2), ((80.0, 80.0, 90.0), 0)])
def test_the_best_weights_are_those_nearest_to_all_goals(recipe, monkeypatch, goals, best):
    """Without goals the best F1; with some the evaluation whose worst margin is the best, NP and VP among them."""
    reached = [(82.0, 81.0, 89.0), (90.0, 79.0, 80.5), (81.5, 83.0, 81.5), (81.0, 80.9, 88.0)]
    looks = iter(reached)

    class Look:
        def __init__(self, scores):
            self.scores = dict(zip((None, "NP", "VP"), scores, strict=True))

        def f1(self, label=None):
            return self.scores[label]

        def as_dict(self):
            return {}

    chosen = []
    monkeypatch.setattr(training, "evaluate", lambda *_: Look(next(looks)))
    monkeypatch.setattr(training.model, "save", lambda *_: chosen.append(run.evaluations))
    run = training.Run(replace(recipe, goals=goals))
    for look in range(len(reached)):
        run.evaluations = look
        run.keep_if_best(0)
    assert chosen[-1] == best


def test_an_encoder_is_cut_to_its_first_layers(encoder, tmp_path):
    prune_wordpiece(encoder, tmp_path, [], frequent=40, layers=1)
    whole, part = (BertModel.from_pretrained(folder, add_pooling_layer=False) for folder in (encoder, tmp_path))
    assert part.config.num_hidden_layers == len(part.encoder.layer) == 1
    ids = torch.tensor([[2, 6, 7, 3]])
    assert torch.equal(part(ids).last_hidden_state, whole(ids, output_hidden_states=True).hidden_states[1])


def test_memory_that_runs_out_is_told_as_that(recipe, monkeypatch):
    def full(run):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(training.Run, "go", full)
    with pytest.raises(ResourceError, match=r"^Out of memory on cpu with --batch \d+\. .* goes on .* smaller --batch"):
        training.train(recipe)


def test_the_loss_is_benepars_own(recipe, treebank):
    """Value and gradients of the margin loss against benepar's, over full charts through torch-struct."""
    trees = list(read_trees(treebank / "train.ptb"))[:6]
    labels = {"": 0} | {
        label: i for i, label in enumerate(sorted({s[2] for t in trees for s in collapsed_spans(t)}), 1)
    }
    tags = {tag: i for i, tag in enumerate(sorted({tag for t in trees for _, tag in t.tree.pos()}))}
    parser = build_parser(recipe, labels, tags)
    parser.eval()  # no dropout: both see the same numbers
    parser.tag_loss_scale = 0.0
    batch = examples_of(parser, [gold_sentence(tree) for tree in trees])
    ours = loss_of(parser, collate(parser, batch))
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in parser.named_parameters() if p.grad is not None}
    parser.zero_grad()
    total = torch.zeros(())
    for item, tree in zip(batch, trees, strict=True):
        words = item.encoded.words
        posts, _ = network.fenceposts(parser, network.padded(parser, [item.encoded]))
        left, right = network.span_ends([words])
        flat = network.label_scores(parser, network.first_layer(parser, posts), left, right)
        chart = torch.zeros(words, words, len(labels)).index_put((left, right - 1), F.pad(flat, (1, 0)))
        gold = torch.tensor(benepar.decode_chart.ChartDecoder(labels).chart_from_tree(tree.tree))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch-struct's own
            total = total + parser.criterion(chart[None], gold[None])
    total = total / len(batch)
    total.backward()
    assert ours.item() == pytest.approx(total.item(), rel=1e-5)
    for name, gradient in gradients.items():
        theirs = dict(parser.named_parameters())[name].grad
        if theirs is not None and "f_tag" not in name:
            assert torch.allclose(gradient, theirs, atol=1e-5, rtol=1e-4), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_computes_the_same_loss(recipe, treebank):
    trees = [gold_sentence(tree) for tree in read_trees(treebank / "train.ptb")][:8]
    parser = build_parser(recipe, {"": 0, "S": 1, "NP": 2, "VP": 3, "PP": 4}, {"NN": 0, "DT": 1}).eval().double()
    batch = collate(parser, examples_of(parser, trees))
    teacher = torch.randn(len(batch.gold), 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    here = [loss_of(parser, batch).item(), loss_of(parser, batch, teacher, 0.5, 2.0).item()]
    gpu = torch.device("cuda")
    parser, batch, teacher = parser.to(gpu), batch.to(gpu), teacher.to(gpu)
    there = [loss_of(parser, batch).item(), loss_of(parser, batch, teacher, 0.5, 2.0).item()]
    assert there == pytest.approx(here, rel=1e-9)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_can_begin_with_the_weights_of_another(recipe, tmp_path):
    training.train(recipe)
    later = replace(
        recipe, out=tmp_path / "later", start=recipe.out / training.BEST, epochs=1, lr_encoder=0.0, lr_chart=0.0
    )
    training.train(later)
    one, two = (torch.load(run.out / training.BEST, weights_only=True) for run in (recipe, later))
    assert one.keys() == two.keys()
    # the average of equal weights is that weight to rounding
    assert all(torch.allclose(one[name].float(), two[name].float(), rtol=1e-5, atol=1e-7) for name in one)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stored_parser_is_taught_by_others_within_minutes(recipe, treebank, tmp_path, monkeypatch):
    """From a stored parser, with two teachers, sentences without trees, noise, and a clock in place of epochs."""
    recipe = replace(recipe, epochs=2)
    training.train(recipe)
    stored = recipe.out / training.STORED
    text = tmp_path / "text.txt"
    text.write_text("the dog sees a cat .\n\nthe farmer likes the river near the house .\n", encoding="utf-8")
    taught = replace(
        recipe,
        encoder=stored,
        out=tmp_path / "taught",
        rotating=(treebank / "train.ptb",),
        rotating_trees=60,  # more than there are: with the text's two, it begins anew
        text=(text,),
        teachers=(stored, stored),
        noise=0.3,
        long_words=5,
        minutes=0.05,
        patience=100,
    )
    clock = count(step=0.01)  # so long between any two looks at it, on whatever machine
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=clock.__next__))
    training.train(taught)
    assert training.export(taught, tmp_path / "model").f1() > 80
    run = training.Run(taught)
    assert run.fraction == 1.0  # the time was spent
    assert run.done > 0
    run.go()
    # what the teachers parsed is learnt from like a tree
    lengths, trees = run.steps.lengths, [len(item.spans) for item in run.steps.examples]
    assert lengths[-2:] == [6, 9]
    assert min(trees) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads, from Python 3.12 on
def test_other_processes_read_and_prepare_the_same(recipe, treebank):
    """Steps are a pure function of their number: with noise, over the ends of epochs, and in whatever process."""
    here = read_sentences(treebank / "train.ptb", 100)
    there = read_sentences(treebank / "train.ptb", 100, processes=2)
    assert [(item.words, item.labels, item.tags) for item in here] == [(i.words, i.labels, i.tags) for i in there]
    parser = build_parser(recipe, {"": 0, "S": 1, "NP": 2, "VP": 3, "PP": 4, "NP::NP": 5}, {"NN": 0, "DT": 1})
    plan = Plan(fixed=20, rotating=7, long_words=7, batch_sentences=8, batch_words=200, noise=0.4, seed=5)
    examples = examples_of(parser, here)
    assert len(examples) > 27
    steps = [Steps(parser, examples, plan)[step] for step in range(12)]
    loader = DataLoader(Steps(parser, examples, plan), sampler=range(12), batch_size=None, num_workers=2)
    for one, two in zip(steps, loader, strict=True):
        assert torch.equal(one.padded.input_ids, two.padded.input_ids)
        assert torch.equal(one.gold, two.gold)
        assert torch.equal(one.places, two.places)
        assert one.lengths.tolist() == two.lengths.tolist()
    order = Steps(parser, examples, plan)
    longer = sum(length > 7 for length in order.lengths[:20])
    for epoch in (0, 1, 6):
        rows = Counter(row for batch in order.epoch(epoch) for row in batch)
        assert sum(rows.values()) == 20 + longer + 7
        assert all(rows[row] == 1 + (order.lengths[row] > 7) for row in range(20))
    # those beyond the fixed ones take turns, from all over their files
    rotated = [{row for batch in order.epoch(epoch) for row in batch if row >= 20} for epoch in range(4)]
    assert [len(rows) for rows in rotated] == [7] * 4
    assert len(set().union(*rotated)) == 28
    assert max(rotated[0]) - min(rotated[0]) > 7
