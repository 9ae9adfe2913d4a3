"""Trains the two embedded tokenizers on the embedded rows: `python data/tokenizers/train.py`. Two runs give equal bytes.

`bytelevel-bpe` is made as GPT-2's, without a beginning-of-text token; `sentencepiece-bpe` as Llama-2's, with byte fallback
and a dummy prefix. So between them they show most of what a pair of tokenizers can disagree in, also in their chat templates,
which stand beside what is written here (`chat_template.jinja`), made by hand of the tokens that there are.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
ROWS = HERE.parent / "sample" / "instructions.jsonl"
VOCABULARY = 4096
_BLANKS = {ord(" "): "▁", ord("\n"): None, ord("\r"): None, ord("\t"): None}
LETTERS = 600  # of the SentencePiece kind; rarer characters are spelled in bytes


def corpus() -> list[str]:
    """Every instruction, input and output of the embedded rows."""
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    return [row[field] for row in rows for field in ("instruction", "input", "output") if row.get(field)]


def byte_level(texts: list[str]) -> Tokenizer:
    """Byte-level BPE with GPT-2's cuts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentencepiece(texts: list[str]) -> Tokenizer:
    """BPE over characters, spaces as `▁`. The trainer knows no byte fallback: the 256 byte tokens are put in after."""
    special = ["<unk>", "<s>", "</s>"]
    base = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n\t]+"), "removed"),  # line breaks and tabs are spelled in bytes
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"▁?[\p{L}\p{M}]+|\p{N}|▁?[^\p{L}\p{M}\p{N}▁]+|▁+"), "isolated"),
        ]
    )
    # Chosen here, since the trainer's own choice among equally frequent letters changes from run to run.
    frequent = Counter("▁".join(text.translate(_BLANKS) for text in texts)).most_common()
    letters = [letter for letter, _ in sorted(frequent, key=lambda item: (-item[1], item[0]))[:LETTERS]]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(base), initial_alphabet=letters, limit_alphabet=LETTERS, show_progress=False
    )
    trained.train_from_iterator(texts, trainer)
    model = json.loads(trained.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokenizer = Tokenizer(
        models.BPE(
            {piece: index for index, piece in enumerate([*base, *pieces])},
            [tuple(merge) for merge in model["merges"]],
            unk_token="<unk>",  # noqa: S106  # no password
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def files() -> dict[str, str]:
    """Text of every file of both folders, by path below this one."""
    texts = corpus()
    common: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    made = {
        "bytelevel-bpe": (byte_level(texts), common | {"eos_token": "<|endoftext|>"}),
        "sentencepiece-bpe": (
            sentencepiece(texts),
            common | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        ),
    }
    written = {}
    for name, (tokenizer, config) in made.items():
        written[f"{name}/tokenizer.json"] = tokenizer.to_str() + "\n"
        written[f"{name}/tokenizer_config.json"] = json.dumps(config, indent=2) + "\n"
    return written


def main() -> None:
    """Write both folders beside this file."""
    for name, text in files().items():
        path = HERE / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
