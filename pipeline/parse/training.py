"""Training of a compact benepar `ChartParser` from bracketed trees (`make parser`).

Loss: the structured hinge of benepar (Kitaev & Klein 2018, after Stern et al. 2017): the best tree under scores raised
by 1 for every wrong label, minus the gold tree. The search needs no gradient, and all but the spans in which the two
trees differ cancel, so the label head is differentiated on those alone: exact, and most of what the chart part costs.
Batches hold sentences of like length. A run saves its state and goes on from it after any interruption. What is scored
and kept is the moving average of the weights (Polyak & Juditsky 1992), which is worth more than it costs.
"""

import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benepar.nkutil import HParams
from benepar.parse_chart import ChartParser
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from pipeline.parse import evaluation, model, network, scoring
from pipeline.parse.chart import best_trees, span_count, span_index
from pipeline.parse.engine import Engine
from pipeline.parse.treebank import GoldTree, read_trees, words_of
from schemas.errors import UserError
from schemas.files import write_text, written
from trainer.models.pickles import read_pickle

network.supply_what_transformers_dropped()

Weights = tuple[Tensor, ...] | list[Tensor]
#: Labels and tags of a run, beside its weights.
VOCABULARY = "vocabulary.json"
#: Averaged weights of the best epoch.
BEST = "best.pt"


@dataclass(frozen=True)
class Recipe:
    """What a parser is trained from, and how. Learning rates fall linearly to zero after the warm-up."""

    encoder: Path  # a folder with an encoder and its fast tokenizer, Hugging Face layout
    train: tuple[Path, ...]  # bracketed files, all of them used in every epoch
    rotating: tuple[Path, ...]  # larger files, of which every epoch takes the next `rotating_trees`
    dev: Path
    out: Path  # folder of the run's state
    start: Path | None = None  # weights of an earlier run of the same encoder and treebanks to begin with (its best.pt)
    epochs: int = 10
    patience: int = 3  # epochs without a better F1 on dev after which the run ends
    rotating_trees: int = 4000
    layers: int = 2
    d_model: int = 512
    d_ff: int = 1024
    max_words: int = 100
    batch_sentences: int = 32
    batch_words: int = 1200
    lr_encoder: float = 1e-4
    lr_chart: float = 5e-4
    warmup_steps: int = 150
    weight_decay: float = 0.01
    clip: float = 50.0
    averaging: float = 0.998  # decay of the moving average of the weights, per step
    min_label_count: int = 5
    seed: int = 42
    save_every_s: float = 300.0


@dataclass(frozen=True)
class Example:
    """One training sentence: subwords, gold label of each span that has one, gold tags."""

    encoded: network.Encoded
    spans: np.ndarray = field(repr=False)  # places in the triangular chart
    labels: np.ndarray = field(repr=False)
    tags: np.ndarray = field(repr=False)


def collapsed_spans(tree: GoldTree) -> list[tuple[int, int, str]]:
    """[start, end) spans, one each, with benepar's labels (`scoring.joined_chains`)."""
    return scoring.joined_chains(scoring.brackets(tree.tree))


def build_parser(recipe: Recipe, label_vocab: dict[str, int], tag_vocab: dict[str, int]) -> ChartParser:
    """An untrained chart part over the pretrained encoder."""
    hparams = HParams(
        use_pretrained=True,
        use_chars_lstm=False,
        use_encoder=True,
        pretrained_model=str(recipe.encoder),
        predict_tags=True,
        d_model=recipe.d_model,
        num_layers=recipe.layers,
        num_heads=8,
        d_kv=recipe.d_model // 8,
        d_ff=recipe.d_ff,
        d_label_hidden=256,
        d_tag_hidden=256,
        tag_loss_scale=5.0,
        encoder_max_len=512,
        morpho_emb_dropout=0.2,
        attention_dropout=0.1,
        relu_dropout=0.1,
        residual_dropout=0.1,
        force_root_constituent=True,
    )
    parser = ChartParser(tag_vocab=tag_vocab, label_vocab=label_vocab, char_vocab=None, hparams=hparams)
    for name, module in parser.pretrained_model.named_modules():
        if name.endswith("attention.self.dropout"):
            module.p = 0.0  # with it the fused attention kernel cannot be used, a sixth of a CPU step
    return parser


def examples_of(parser: ChartParser, trees: Sequence[GoldTree]) -> list[Example]:
    """Training examples; trees with a label chain outside the vocabulary are left out."""
    kept, spans, labels, tags = [], [], [], []
    for tree in trees:
        found = collapsed_spans(tree)
        if any(label not in parser.label_vocab for _, _, label in found):
            continue
        pos = [tag for _, tag in tree.tree.pos()]
        bounds = np.array([(start, end) for start, end, _ in found], dtype=np.int64)
        kept.append(words_of(tree))
        spans.append(span_index(bounds[:, 0], bounds[:, 1], len(pos)))
        labels.append(np.array([parser.label_vocab[label] for _, _, label in found], dtype=np.int64))
        tags.append(np.array([parser.tag_vocab.get(tag, -100) for tag in pos], dtype=np.int64))
    return [Example(*parts) for parts in zip(network.encode(parser, kept), spans, labels, tags, strict=True)]


def loss_of(parser: ChartParser, batch: Sequence[Example]) -> Tensor:
    """Hinge loss over trees plus scaled tag cross-entropy, per sentence."""
    lengths = np.array([item.encoded.words for item in batch], dtype=np.int32)
    posts, tag_scores = network.fenceposts(parser, [item.encoded for item in batch])
    projected = network.first_layer(parser, posts)
    left, right = network.span_ends(lengths.tolist())
    counts = np.array([span_count(int(n)) for n in lengths])
    firsts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    gold = torch.zeros(int(counts.sum()), dtype=torch.long)
    for item, first in zip(batch, firsts, strict=True):
        gold[torch.from_numpy(item.spans + first)] = torch.from_numpy(item.labels)
    with torch.no_grad():
        raised = F.pad(network.label_scores(parser, projected, left, right), (1, 0)) + 1.0
        raised.scatter_add_(1, gold[:, None], torch.full_like(gold[:, None], -1.0, dtype=raised.dtype))
        roots = torch.from_numpy(firsts + lengths - 1)  # span (0, n)
        raised[roots, 0] = -math.inf
        best, label = raised.max(1)
        nodes = torch.from_numpy(best_trees(best.numpy(), lengths))
        predicted = torch.zeros_like(gold)
        predicted[nodes] = label[nodes]
        in_tree = torch.zeros_like(gold, dtype=torch.bool)
        in_tree[nodes] = True
        # a gold constituent that the tree lacks, or one the tree labels otherwise
        differ = torch.where(in_tree, predicted != gold, gold > 0).nonzero()[:, 0]
        margin = (in_tree & (predicted != gold)).sum()
    scores = F.pad(network.label_scores(parser, projected, left[differ], right[differ]), (1, 0))
    wanted, got = gold[differ], predicted[differ]
    difference = scores.gather(1, got[:, None]) * in_tree[differ, None] - scores.gather(1, wanted[:, None])
    loss = (difference.sum() + margin) / len(batch)
    tags = torch.from_numpy(np.concatenate([item.tags for item in batch]))
    assert tag_scores is not None
    total: Tensor = loss + parser.tag_loss_scale * F.cross_entropy(tag_scores, tags, ignore_index=-100)
    return total


def batches(examples: Sequence[Example], recipe: Recipe, shuffle: random.Random) -> Iterator[list[Example]]:
    """Batches of sentences of like length, in random order."""
    order = sorted(examples, key=lambda item: item.encoded.words + shuffle.random() * 3)
    groups: list[list[Example]] = [[]]
    for item in order:
        if len(groups[-1]) == recipe.batch_sentences or (len(groups[-1]) + 1) * item.encoded.words > recipe.batch_words:
            groups.append([])
        groups[-1].append(item)
    shuffle.shuffle(groups)
    yield from (group for group in groups if group)


def evaluate(parser: ChartParser, trees: list[GoldTree]) -> scoring.Scores:
    """EVALB scores of `parser` on gold words."""
    training = parser.training
    parser.eval()
    scores = evaluation.on_gold_words(Engine(parser), [trees], lambda count: None).total
    parser.train(training)
    return scores


def vocabularies(recipe: Recipe, trees: Sequence[GoldTree]) -> tuple[dict[str, int], dict[str, int]]:
    """Labels and tags with their numbers: those of the run that `recipe.start` belongs to, else the trees' frequent ones."""
    if recipe.start is not None:
        names = json.loads((recipe.start.parent / VOCABULARY).read_text(encoding="utf-8"))
        return names["labels"], names["tags"]

    def frequent(counts: Counter[str]) -> list[str]:
        return sorted(name for name, count in counts.items() if count >= recipe.min_label_count)

    labels = frequent(Counter(label for tree in trees for _, _, label in collapsed_spans(tree)))
    tags = frequent(Counter(tag for tree in trees for _, tag in tree.tree.pos()))
    return {"": 0} | {label: index for index, label in enumerate(labels, 1)}, {t: i for i, t in enumerate(tags)}


def moving_average(decay: float) -> Callable[[Weights, Weights, Tensor | int], None]:
    """Exponential moving average whose first steps weigh less, so that it forgets where it began."""

    @torch.no_grad()
    def update(average: Weights, now: Weights, steps: Tensor | int) -> None:
        rate = max(1 - decay, 9 / (10 + float(steps)))
        torch._foreach_lerp_(average, now, rate)

    return update


def train(recipe: Recipe) -> Path:
    """Run the recipe to its end, from its saved state if there is one; returns the folder with the best weights."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    random.seed(recipe.seed)
    torch.manual_seed(recipe.seed)

    def load(paths: tuple[Path, ...]) -> list[GoldTree]:
        return [tree for path in paths for tree in read_trees(path) if len(tree.tree.leaves()) <= recipe.max_words]

    fixed, rotating = load(recipe.train), load(recipe.rotating)
    random.Random(recipe.seed).shuffle(rotating)
    dev = evaluation.gold_trees(recipe.dev)
    label_vocab, tag_vocab = vocabularies(recipe, fixed + rotating)
    parser = build_parser(recipe, label_vocab, tag_vocab)
    fixed_examples, rotating_examples = examples_of(parser, fixed), examples_of(parser, rotating)
    print(
        f"{len(fixed_examples)} + {len(rotating_examples)} trees, {len(label_vocab)} labels, {len(tag_vocab)} tags",
        flush=True,
    )

    def epoch_examples(epoch: int) -> list[Example]:
        if not rotating_examples:
            return fixed_examples
        start = epoch * recipe.rotating_trees
        part = [rotating_examples[i % len(rotating_examples)] for i in range(start, start + recipe.rotating_trees)]
        return fixed_examples + part

    plan = [list(batches(epoch_examples(e), recipe, random.Random(recipe.seed + e))) for e in range(recipe.epochs)]
    steps = sum(map(len, plan))
    encoder = list(parser.pretrained_model.parameters())
    chart = [p for name, p in parser.named_parameters() if not name.startswith("pretrained_model.")]
    if recipe.start is not None:
        parser.load_state_dict(read_pickle(recipe.start))
    averaged = AveragedModel(parser, multi_avg_fn=moving_average(recipe.averaging))
    optimizer = torch.optim.AdamW(
        [{"params": encoder, "lr": recipe.lr_encoder}, {"params": chart, "lr": recipe.lr_chart}],
        weight_decay=recipe.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / recipe.warmup_steps, max(0.0, 1 - step / steps))
    )
    done, best_f1, best_epoch = 0, 0.0, 0
    state_file = recipe.out / "state.pt"
    if state_file.exists():
        state = read_pickle(state_file)
        parser.load_state_dict(state["parser"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        done, best_f1, best_epoch = state["done"], state["best_f1"], state["best_epoch"]
        print(f"going on from step {done} of {steps}", flush=True)

    def save_state() -> None:
        state = {
            "parser": parser.state_dict(),
            "averaged": averaged.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "rng": torch.get_rng_state(),
            "done": done,
            "best_f1": best_f1,
            "best_epoch": best_epoch,
        }
        with written(state_file) as stream:
            torch.save(state, stream)

    write_text(recipe.out / VOCABULARY, json.dumps({"labels": label_vocab, "tags": tag_vocab}))
    parser.train()
    step, began, saved, sentences, running = 0, time.monotonic(), time.monotonic(), 0, 0.0
    for epoch, epoch_plan in enumerate(plan):
        for batch in epoch_plan:
            step += 1
            if step <= done:
                continue
            loss = loss_of(parser, batch)
            if not math.isfinite(value := float(loss.detach())):
                raise UserError(
                    f"Step {step} of {steps}: the loss is {value}, no finite number. Begin anew with a lower --lr-encoder "
                    "and --lr-chart, and another --state."
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parser.parameters(), recipe.clip)
            optimizer.step()
            schedule.step()
            averaged.update_parameters(parser)
            done, sentences, running = step, sentences + len(batch), 0.98 * running + 0.02 * float(loss.detach())
            if step % 50 == 0:
                rate = sentences / (time.monotonic() - began)
                print(f"epoch {epoch + 1} step {step}/{steps} loss {running:.3f} {rate:.1f} sentences/s", flush=True)
            if time.monotonic() - saved > recipe.save_every_s:
                save_state()
                saved = time.monotonic()
        if done == step:
            result = evaluate(averaged.module, dev)
            print(f"epoch {epoch + 1}: {json.dumps(result.as_dict())}", flush=True)
            if result.f1() > best_f1:
                best_f1, best_epoch = result.f1(), epoch
                with written(recipe.out / BEST) as stream:
                    torch.save(averaged.module.state_dict(), stream)
            save_state()
            saved = time.monotonic()
        if step <= done and epoch - best_epoch >= recipe.patience:
            print(f"no better F1 for {recipe.patience} epochs, stopped", flush=True)
            break
    return recipe.out


def export(recipe: Recipe, folder: Path) -> scoring.Scores:
    """Store the run's best weights at `folder` as they ship, and score that stored model on the dev trees."""
    names = json.loads((recipe.out / VOCABULARY).read_text(encoding="utf-8"))
    parser = build_parser(recipe, names["labels"], names["tags"])
    parser.load_state_dict(read_pickle(recipe.out / BEST))
    model.save(parser, recipe.encoder, folder)
    return evaluate(model.load(str(folder)).network, evaluation.gold_trees(recipe.dev))
