"""Parsers on every kind of encoder that benepar knows: tiny random ones, our trees against stock benepar's.

Random weights give varied trees and, float32 being what it is, no ties; the tokenizers are trained here.
"""

import json
import shutil
import warnings
from functools import cache
from pathlib import Path

import benepar
import pytest
import torch
import transformers
from benepar.nkutil import HParams
from benepar.parse_chart import ChartParser
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pipeline.bench.parser import score_of, stock_examples
from pipeline.parse import network
from pipeline.parse.engine import Engine
from pipeline.parse.scoring import joined_chains
from pipeline.read.segment import Segmenter
from pipeline.text import Words
from schemas import embedded
from schemas.config import SegmentConfig

PIECES = 3000
LABELS = ["", "ADJP", "ADVP", "NP", "NP::QP", "PP", "S", "S::VP", "SBAR::S::VP", "VP", "X"]
TAGS = ["NN", "VB", "DT", "IN", "."]
ODD = ["Yes", "?", "( a )", "« Weiß » — „ es “", "don't can't", "x" * 60, "a " * 60 + "b", "x=[1,2]; 日本語 🙂🎉 !"]


@cache
def corpus() -> list[str]:
    lines = Path(embedded.resolve("embedded:sample")).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["output"] for line in lines]


@cache
def sentences() -> list[Words]:
    """Sentences of the embedded corpus as the pipeline cuts them, and odd ones."""
    texts = corpus()[::2]
    documents = Segmenter(SegmentConfig()).segment(texts, [()] * len(texts))
    real = {sentence.words for document in documents for sentence in document.sentences if sentence.words.words}
    odd = [Words(tuple(text.split()), (*[True] * (len(text.split()) - 1), False)) for text in ODD]
    return odd + sorted(real, key=lambda sentence: sentence.words)[::3]


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    names = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        corpus(),
        trainers.UnigramTrainer(vocab_size=PIECES, special_tokens=names, unk_token="<unk>", show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        corpus(), trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=names, show_progress=False)
    )
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tokenizer


def byte_level(names: list[str], framed: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(vocab_size=PIECES, special_tokens=names, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = (
        processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
        if framed
        else processors.ByteLevel(trim_offsets=False)
    )
    return tokenizer


def bert_like() -> dict[str, object]:
    return {
        "vocab_size": PIECES,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "initializer_range": 0.3,
    }


def write_bert(folder: Path) -> None:
    word_pieces().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 512}
    settings |= {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": "[MASK]"}))
    transformers.BertConfig(**bert_like()).save_pretrained(folder)


def write_electra(folder: Path) -> None:
    write_bert(folder)
    transformers.ElectraConfig(**bert_like(), embedding_size=24).save_pretrained(folder)


def write_roberta(folder: Path) -> None:
    byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], framed=True).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 512, "add_prefix_space": False}
    settings |= {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>"}
    settings |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = transformers.RobertaConfig(**bert_like(), max_position_embeddings=514, type_vocab_size=1)
    config.pad_token_id, config.bos_token_id, config.eos_token_id = 1, 0, 2
    config.save_pretrained(folder)


def write_gpt2(folder: Path) -> None:
    byte_level(["<|endoftext|>"], framed=False).save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 512, "add_prefix_space": False}
    settings |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers.GPT2Config(
        vocab_size=PIECES,
        n_positions=512,
        n_embd=32,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=0,
    ).save_pretrained(folder)


def write_t5(folder: Path) -> None:
    unigram().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    settings |= {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers.T5Config(
        vocab_size=PIECES, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, initializer_factor=1.5
    ).save_pretrained(folder)


WRITERS = {
    "bert": write_bert,
    "electra": write_electra,
    "roberta": write_roberta,
    "gpt2": write_gpt2,
    "t5": write_t5,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """Folder of a tiny encoder of the given kind, in the layout of a release: configuration and tokenizer."""

    @cache
    def write(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        WRITERS[kind](folder)
        return folder

    return write


def random_parser(folder: Path, **changes: object) -> ChartParser:
    """benepar's parser on that encoder with random weights, large enough for trees of all shapes."""
    settings = {
        "use_pretrained": True,
        "use_chars_lstm": False,
        "use_encoder": True,
        "predict_tags": True,
        "force_root_constituent": True,
        "d_model": 64,
        "num_layers": 2,
        "num_heads": 4,
        "d_kv": 16,
        "d_ff": 64,
        "d_label_hidden": 32,
        "d_tag_hidden": 32,
        "tag_loss_scale": 5.0,
        "encoder_max_len": 512,
        "morpho_emb_dropout": 0.2,
        "attention_dropout": 0.2,
        "relu_dropout": 0.1,
        "residual_dropout": 0.2,
    }
    torch.manual_seed(1)
    parser = ChartParser(
        tag_vocab={tag: index for index, tag in enumerate(TAGS)},
        label_vocab={label: index for index, label in enumerate(LABELS)},
        char_vocab=None,
        hparams=HParams(**settings | changes),
        pretrained_model_path=str(folder),
    )
    with torch.no_grad():
        for name, weight in parser.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))  # biases and norms that start as constants count too
            elif name.startswith("f_label.3"):
                weight.mul_(3)
    return parser.eval()


def stock_trees(parser: ChartParser, given: list[Words]) -> list[tuple[list[tuple[int, int, str]], tuple[str, ...]]]:
    """Labelled spans and tags from benepar's own `parse`, spans without a label left out."""
    inputs = [
        benepar.InputSentence(
            words=[network.plain_form(word) for word in sentence.words],
            space_after=list(sentence.space_after),
            escaped_words=list(sentence.words),
        )
        for sentence in given
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-struct's own
        outputs = list(parser.parse(inputs, return_compressed=True, subbatch_max_tokens=1000))
    names = {index: label for label, index in parser.label_vocab.items()}
    return [
        (
            [
                (int(start), int(end), label)
                for start, end, index in zip(output.starts, output.ends, output.labels, strict=True)
                for label in names[int(index)].split("::")
                if label
            ],
            tuple(TAGS[int(tag)] for tag in output.tags) if output.tags is not None else None,
        )
        for output in outputs
    ]


def assert_trees_are_stocks(parser: ChartParser, given: list[Words]) -> None:
    expected = stock_trees(parser, given)
    found = Engine(parser, token_budget=1024).constituents(given)
    shapes = [str([span[:2] for span in spans]) for spans, _ in expected if len(spans) > 8]
    assert len(set(shapes)) > len(shapes) / 2  # the weights do give varied trees
    unlike = 0
    for sentence, (spans, tags), tree in zip(given, expected, found, strict=True):
        assert tree is not None, sentence.words
        ours = [(start, end, label) for (start, end), label in zip(tree.spans.tolist(), tree.labels, strict=True)]
        if ours != spans:
            # random scores can tie to within the rounding of sums of some dozens of them; a tie it must then be
            (scores,) = parser.parse(stock_examples([sentence]), return_scores=True)
            theirs = set(joined_chains(spans))
            assert abs(score_of(parser, scores, theirs) - score_of(parser, scores, set(joined_chains(ours)))) < 1e-4, (
                sentence.words
            )
            unlike += 1
        assert tree.tags == tags
    assert unlike <= len(given) / 100


@pytest.mark.parametrize("kind", WRITERS)
def test_trees_equal_those_of_stock_benepar(encoder, kind):
    assert len(sentences()) > 200
    assert_trees_are_stocks(random_parser(encoder(kind)), sentences())


@pytest.mark.parametrize("changes", [{"use_encoder": False}, {"predict_tags": False, "force_root_constituent": False}])
@pytest.mark.parametrize("kind", WRITERS)
def test_trees_equal_with_parts_of_the_parser_left_out(encoder, kind, changes):
    assert_trees_are_stocks(random_parser(encoder(kind), **changes), sentences()[::5])


@pytest.mark.parametrize("kind", WRITERS)
def test_encoders_are_recognised_whatever_their_tokenizer_says(encoder, kind, tmp_path):
    """Releases name the tokenizer's class or not, with transformers 4's `Fast` or without."""
    for name in (None, "", "Fast"):
        folder = tmp_path / f"class{name}"
        shutil.copytree(encoder(kind), folder)
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        own = settings.pop("tokenizer_class")
        settings |= {} if name is None else {"tokenizer_class": own + name}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        retokenizer = random_parser(folder).retokenizer
        assert (retokenizer.is_t5, retokenizer.is_gpt2) == (kind == "t5", kind == "gpt2")


@pytest.mark.parametrize("kind", WRITERS)
def test_a_tokenizer_file_that_truncates_and_pads_is_kept_from_it(encoder, kind, tmp_path):
    folder = tmp_path / kind
    shutil.copytree(encoder(kind), folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=32)
    tokenizer.save(str(folder / "tokenizer.json"))
    assert_trees_are_stocks(random_parser(folder), sentences()[::10])


@pytest.mark.parametrize("kind", WRITERS)
def test_the_longest_sentence_that_fits_is_parsed_and_a_longer_one_is_none(encoder, kind, tmp_path):
    """Where the tokenizer states no limit, the encoder's table of positions is one; T5 has none."""
    folder = tmp_path / kind
    shutil.copytree(encoder(kind), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    engine = Engine(random_parser(folder, use_encoder=False))
    given = [Words(("a",) * words, (True,) * words) for words in range(505, 516)]
    subwords = [len(item.input_ids) for item in engine.encode(given)]
    fits = [tree is not None for tree in engine.constituents(given)]
    assert min(subwords) < 512 < max(subwords)
    assert fits == [kind == "t5" or count <= 512 for count in subwords]


@pytest.mark.parametrize(
    ("word", "plain"),
    [
        ("cat", "cat"),
        ("“", '"'),
        ("&amp;", "&"),
        ("&#x2014;", "--"),
        ("&none;", "&none;"),
        ("](", "("),
        ("Ｔｈｅ", "The"),
        ("𝐓𝐡𝐞", "The"),
    ],
)
def test_the_form_that_the_models_know(word: str, plain: str) -> None:
    assert network.plain_form(word) == plain
