"""What a parser is trained from and how, and the untrained parser that a run begins with."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benepar.nkutil import HParams
from benepar.parse_chart import ChartParser

from pipeline.parse import model, network
from pipeline.parse.gold import GoldSentence
from pipeline.parse.places import WEIGHTS
from pipeline.parse.scoring import Scores
from schemas.errors import UserError

network.supply_what_transformers_dropped()

#: Labels and tags of a run, beside its weights.
VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class Recipe:
    """What a parser is trained from, and how. Learning rates fall linearly to zero after the warm-up."""

    encoder: (
        Path  # a folder with an encoder and its fast tokenizer, Hugging Face layout; or a stored parser to begin with
    )
    train: tuple[Path, ...]  # bracketed files, all of them used in every epoch
    rotating: tuple[Path, ...]  # larger files, of which every epoch takes the next `rotating_trees`
    dev: Path
    out: Path  # folder of the run's state
    start: Path | None = None  # weights of an earlier run of the same encoder and treebanks to begin with (its best.pt)
    labels: Path | None = None  # a stored parser whose labels and tags are taken in place of the trees' own
    text: tuple[Path, ...] = ()  # sentences without trees, which the teachers parse; they rotate, too
    teachers: tuple[Path, ...] = ()  # stored parsers of the same labels, whose scores are distilled
    distil_weight: float = 8.0
    temperature: float = 0.2  # the hinge's margins are of about 1, so scores are this sharp
    epochs: int = 10
    minutes: float | None = None  # time for the whole run in place of a number of epochs
    goals: tuple[float, float, float] | None = None  # F1 of all labels, NP and VP; see `quality`
    patience: int = 3  # evaluations on dev without a better one after which the run ends
    evaluate_every_s: float = 0.0  # seconds between evaluations on dev; 0: one at the end of every epoch
    rotating_trees: int = 4000
    layers: int = 2
    d_model: int = 512
    d_ff: int = 1024
    label_hidden: int = 256  # hidden units of the label head
    max_words: int = 100
    long_words: int = 100  # trees of every epoch that are longer come twice in it
    noise: float = 0.0  # share of words altered in every second sentence
    batch_sentences: int = 32
    lr_encoder: float = 1e-4
    lr_chart: float = 5e-4
    warmup_steps: int = 150
    weight_decay: float = 0.01
    clip: float = 50.0
    averaging: float = 0.998  # decay of the moving average of the weights, per step
    min_label_count: int = 5
    seed: int = 42
    save_every_s: float = 300.0
    device: str = "cpu"
    workers: int = 0  # processes that prepare batches, and read trees


def quality(scores: Scores, goals: tuple[float, float, float] | None) -> float:
    """What the best weights of a run are chosen by: F1 over all labels or, with goals, the smallest margin over one."""
    reached = (scores.f1(), scores.f1("NP"), scores.f1("VP"))
    return reached[0] if goals is None else min(score - goal for score, goal in zip(reached, goals, strict=True))


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
        d_label_hidden=recipe.label_hidden,
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
    return _for_fast_attention(parser)


def opened(recipe: Recipe, labels: dict[str, int], tags: dict[str, int]) -> ChartParser:
    """The parser that a run begins with, but for the weights of `recipe.start`."""
    if not (recipe.encoder / WEIGHTS).exists():
        return build_parser(recipe, labels, tags)
    parser = model.load(str(recipe.encoder)).network
    if parser.label_vocab != labels or parser.tag_vocab != tags:
        raise UserError(f"{recipe.encoder}: the stored parser's labels are not those of {recipe.out}.")
    return _for_fast_attention(parser)


def _for_fast_attention(parser: ChartParser) -> ChartParser:
    for name, module in parser.pretrained_model.named_modules():
        if name.endswith("attention.self.dropout"):
            module.p = 0.0  # with it the fused attention kernel cannot be used, a sixth of a CPU step
    return parser


def vocabularies(recipe: Recipe, sentences: Sequence[GoldSentence]) -> tuple[dict[str, int], dict[str, int]]:
    """Labels and tags with their numbers: those that `recipe` names or begins with, else the trees' frequent ones."""
    if recipe.start is not None:
        names = json.loads((recipe.start.parent / VOCABULARY).read_text(encoding="utf-8"))
        return names["labels"], names["tags"]
    stored = recipe.labels or recipe.encoder
    if (stored / WEIGHTS).exists():
        with model.reading(stored):
            settings = json.loads((stored / "config.json").read_text(encoding="utf-8"))["benepar"]
            return settings["label_vocab"], settings["tag_vocab"]

    def frequent(names: Iterator[str]) -> list[str]:
        return sorted(name for name, count in Counter(names).items() if count >= recipe.min_label_count)

    labels = frequent(label for item in sentences for label in item.labels)
    tags = frequent(tag for item in sentences for tag in item.tags)
    return {"": 0} | {label: index for index, label in enumerate(labels, 1)}, {t: i for i, t in enumerate(tags)}
