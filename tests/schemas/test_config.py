"""Configs: unknown keys, overriding, a round trip through YAML."""

import pytest

from schemas.config import CacheConfig, ParseConfig
from schemas.errors import UsageError

MINIMAL = {"inputs": ["a.jsonl"], "teacher": {"tokenizer": "t"}, "student": {"tokenizer": "s"}}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"paser": {}}, r"unknown key `paser`; did you mean `parser`\?"),
        ({"teacher": {"tokenizer": "t", "max_lenght": 5}}, r"`teacher\.max_lenght`; did you mean `max_length`\?"),
        ({"parser": {"kind": "stanza"}}, r"`parser\.kind`.*'benepar' or 'spacy', got 'stanza'"),
        ({"inputs": []}, r"`inputs`"),
        ({"teacher": {"tokenizer": "t", "max_length": 1}}, r"`teacher\.max_length`.*greater than or equal to 2, got 1"),
        ({"csv": {"delimiter": ";;"}}, r"`csv\.delimiter`: one character is wanted .*, got ';;'"),
        ({"csv": {"escape": "none"}}, r"`csv`: only the quote can be `none`"),
        ({"csv": {"delimiter": "|", "quote": "|"}}, r"`csv`: delimiter, quote and escape must be different"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(values, message):
    with pytest.raises(UsageError, match=rf"^here: .*{message}"):
        ParseConfig.parse(MINIMAL | values, "here")


def test_yaml_gives_the_same_config_back(tmp_path):
    csv = {"delimiter": "tab", "quote": "none", "escape": "\\"}
    config = ParseConfig.parse(MINIMAL | {"limit": 3, "parser": {"keep_trees": True}, "csv": csv}, "here")
    assert (config.csv.delimiter, config.csv.quote, config.csv.escape) == ("\t", "", "\\")
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml(), encoding="utf-8")
    assert ParseConfig.parse(ParseConfig.from_yaml(path), "there") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read as YAML"),
        ("- a", "a mapping"),
        ("é".encode("latin-1"), "YAML"),
        ("a: " + "[" * 10**5, "YAML"),
    ],
)
def test_a_broken_file_is_named(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=message):
        ParseConfig.from_yaml(path)
    with pytest.raises(UsageError, match="No config file"):
        ParseConfig.from_yaml(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match="is a folder; a config is a YAML file"):
        ParseConfig.from_yaml(tmp_path)


@pytest.mark.parametrize("date", ["2024-99-99", "2023-02-29", "0000-01-01", "٢٠٢٤-٠١-٠١", "2024-1-1", ""])
def test_a_day_that_is_none(date):
    with pytest.raises(UsageError, match=r"`conversations\.date`"):
        ParseConfig.parse(MINIMAL | {"conversations": {"date": date}}, "here")
    assert (
        ParseConfig.parse(MINIMAL | {"conversations": {"date": "2024-02-29"}}, "here").conversations.date
        == "2024-02-29"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1000000", 10**6),
        ("512MiB", 2**29),
        ("2GB", 2 * 10**9),
        ("1.5 mib", 3 << 19),
        ("640k", 640_000),
        (1 << 20, 1 << 20),
    ],
)
def test_sizes(text, expected):
    values = {"dataset": "d", "teacher": {"model": "m"}, "signals": ["final"], "shard_bytes": text}
    config = CacheConfig.parse(values, "here")
    assert config.shard_bytes == expected
    assert f"shard_bytes: {expected}\n" in config.to_yaml()


@pytest.mark.parametrize("text", ["", "much", "5XB", "GiB", "nan", "infMB", "1..5K", "-1GB"])
def test_no_sizes(text):
    values = {"dataset": "d", "teacher": {"model": "m"}, "signals": ["final"], "shard_bytes": text}
    with pytest.raises(UsageError, match="`shard_bytes`: no size; write it like 512MiB, 2GB or 1000000, got"):
        CacheConfig.parse(values, "here")
