"""A stored parser with a BERT encoder, opened for inference alone: its weights and its tokenizer, and no code of others.

The names are those of benepar's `ChartParser` and of transformers' `BertModel`, so that the state dict of either fits;
what is computed with them is written in `pipeline.parse.packed`. transformers, benepar and nltk, which take longer to
import than a row takes to parse, are not needed. Nothing here has a `forward`: training and export load the real modules.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor, nn, zeros

#: What `BertTokenizer` makes of a `tokenizer_config.json`, where that is silent, by its name in `tokenizer.json`.
BERT_FORMS = {
    "lowercase": ("do_lower_case", True),
    "handle_chinese_chars": ("tokenize_chinese_chars", True),
    "strip_accents": ("strip_accents", None),
}


@dataclass(frozen=True)
class StoredTokenizer:
    """The part of a transformers tokenizer that the engine reads."""

    backend_tokenizer: Tokenizer
    model_max_length: int


@dataclass(frozen=True)
class StoredRetokenizer:
    """benepar's Retokenizer for `[CLS] … [SEP]`: the start is the first subword, the stop the last."""

    tokenizer: StoredTokenizer
    start_token_idx: int = 0
    stop_token_idx: int = -1
    is_t5: bool = False
    is_gpt2: bool = False


def is_plain_bert(definition: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether `BertTokenizer` would be what `tokenizer.json` says, whichever of the two files it reads."""
    normalizer = definition.get("normalizer") or {}
    model = definition.get("model") or {}
    return (
        settings.get("tokenizer_class") in {"BertTokenizer", "BertTokenizerFast"}
        and isinstance(settings.get("model_max_length"), int)
        and normalizer.get("type") == "BertNormalizer"
        and normalizer.get("clean_text") is True
        and all(normalizer.get(key) == settings.get(name, usual) for key, (name, usual) in BERT_FORMS.items())
        and (definition.get("pre_tokenizer") or {}).get("type") == "BertPreTokenizer"
        and model.get("type") == "WordPiece"
        and (model.get("continuing_subword_prefix"), model.get("max_input_chars_per_word")) == ("##", 100)
        and all(token["content"] in model["vocab"] and token["special"] for token in definition["added_tokens"])
    )


def open_tokenizer(folder: Path) -> StoredTokenizer | None:
    """The tokenizer of a parser's folder, or None where only transformers knows what it does."""
    files = (folder / "tokenizer.json", folder / "tokenizer_config.json")
    if not all(file.is_file() for file in files):
        return None
    text, settings = files[0].read_text(encoding="utf-8"), json.loads(files[1].read_text(encoding="utf-8"))
    if not is_plain_bert(json.loads(text), settings):
        return None
    tokenizer = Tokenizer.from_str(text)
    # stored with the file, and not meant for a parser: a sentence is neither cut nor filled up
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.encode("").tokens != ["[CLS]", "[SEP]"]:
        return None
    return StoredTokenizer(tokenizer, settings["model_max_length"])


def is_bert(config: dict[str, Any]) -> bool:
    """Whether a stored `config.json` describes a parser on a BERT encoder."""
    hparams = (config.get("benepar") or {}).get("hparams") or {}
    return (
        config.get("model_type") == "bert"
        and not config.get("is_decoder")
        and config.get("position_embedding_type", "absolute") == "absolute"
        and hparams.get("use_pretrained") is True
        and not hparams.get("use_chars_lstm")
    )


def _linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    # on no device: the values come from the file, and drawing others first takes time
    return nn.Linear(inputs, outputs, bias=bias, device="meta")


def _norm(features: int, eps: float = 1e-5) -> nn.LayerNorm:
    return nn.LayerNorm(features, eps=eps, device="meta")


def _table(*shape: int) -> nn.Parameter:
    return nn.Parameter(zeros(shape, device="meta"))


def _halves(inputs: int, outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: _linear(inputs // 2, outputs // 2) for name in ("linear_c", "linear_p")})


class StoredBert(nn.Module):
    """BERT's weights (Devlin et al. 2019), without the pooler."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = SimpleNamespace(**config)
        d, eps = config["hidden_size"], config["layer_norm_eps"]
        rows = {"word": "vocab_size", "position": "max_position_embeddings", "token_type": "type_vocab_size"}
        tables = {
            f"{name}_embeddings": nn.Embedding(config[key], d, _weight=_table(config[key], d))
            for name, key in rows.items()
        }
        self.embeddings = nn.ModuleDict({**tables, "LayerNorm": _norm(d, eps)})
        layers = [self._layer(d, config["intermediate_size"], eps) for _ in range(config["num_hidden_layers"])]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    @staticmethod
    def _layer(d: int, inner: int, eps: float) -> nn.ModuleDict:
        attention = {
            "self": nn.ModuleDict({name: _linear(d, d) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": _linear(d, d), "LayerNorm": _norm(d, eps)}),
        }
        return nn.ModuleDict(
            {
                "attention": nn.ModuleDict(attention),
                "intermediate": nn.ModuleDict({"dense": _linear(d, inner)}),
                "output": nn.ModuleDict({"dense": _linear(inner, d), "LayerNorm": _norm(d, eps)}),
            }
        )


class _Attention(nn.Module):
    def __init__(self, hparams: dict[str, Any]) -> None:
        super().__init__()
        heads, half, d_kv = hparams["num_heads"], hparams["d_model"] // 2, hparams["d_kv"]
        self.w_qkv_c, self.w_qkv_p = (_table(heads, half, 3, d_kv // 2) for _ in range(2))
        self.w_o_c, self.w_o_p = (_table(heads, d_kv // 2, half) for _ in range(2))
        self.scaling_factor = 1 / d_kv**0.5


class _Timing(nn.Module):
    def __init__(self, hparams: dict[str, Any]) -> None:
        super().__init__()
        self.timing_table = _table(hparams["encoder_max_len"], hparams["d_model"] // 2)
        self.norm = _norm(hparams["d_model"])


class StoredParser(nn.Module):
    """Weights, vocabularies and tokenizer of a parser: what `pipeline.parse.engine.Engine` reads of a `ChartParser`."""

    def __init__(self, config: dict[str, Any], tokenizer: StoredTokenizer, state: dict[str, Tensor]) -> None:
        super().__init__()
        settings = config["benepar"]
        hparams, self.label_vocab = settings["hparams"], settings["label_vocab"]
        d = hparams["d_model"]
        self.retokenizer = StoredRetokenizer(tokenizer)
        self.pretrained_model = StoredBert(config)
        self.project_pretrained = _linear(config["hidden_size"], d // 2 if hparams["use_encoder"] else d, bias=False)
        self.add_timing = _Timing(hparams) if hparams["use_encoder"] else None
        self.encoder = self._charts(hparams) if hparams["use_encoder"] else None
        self.f_label = self._head(d, hparams["d_label_hidden"], max(self.label_vocab.values()))
        self.f_tag: nn.Module | None = None
        self.tag_from_index: dict[int, str] | None = None
        if hparams["predict_tags"]:
            tags = settings["tag_vocab"]
            self.f_tag = self._head(d, hparams["d_tag_hidden"], max(tags.values()) + 1)
            self.tag_from_index = {index: tag for tag, index in tags.items()}
        self.decoder = SimpleNamespace(force_root_constituent=hparams.get("force_root_constituent", True))
        self.load_state_dict(state, assign=True)
        self.eval()

    @staticmethod
    def _charts(hparams: dict[str, Any]) -> nn.ModuleDict:
        d, inner = hparams["d_model"], hparams["d_ff"]
        layers = [
            nn.ModuleDict(
                {
                    "self_attn": _Attention(hparams),
                    "linear1": _halves(d, inner),
                    "linear2": _halves(inner, d),
                    "norm_attn": _norm(d),
                    "norm_ff": _norm(d),
                }
            )
            for _ in range(hparams["num_layers"])
        ]
        return nn.ModuleDict({"layers": nn.ModuleList(layers)})

    @staticmethod
    def _head(d: int, hidden: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(_linear(d, hidden), _norm(hidden), nn.ReLU(), _linear(hidden, outputs))
