"""ROUGE-L (Lin 2004) as the field computes it: the package `rouge_score`, with stemming, the best over references."""

import unicodedata
from collections.abc import Sequence
from typing import Any, Final, Literal

import regex
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

#: `field`: as published scores have it; `multilingual`: `Words`.
RougeTokenizer = Literal["field", "multilingual"]

#: Scripts whose words have no space between them.
_UNSPACED: Final = "ー" + "".join(  # a length mark of both kana, and so of neither
    rf"\p{{{script}}}"
    for script in ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Tham")
)
#: One character of these with the marks on it, or a run of letters, marks, digits and `_` of all others.
_TOKEN: Final = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[\w--[{_UNSPACED}]]+", regex.VERSION1)


class Words:
    """Tokens of any script, without stemming: words where spaces stand between them, else single characters.

    Text is compared without regard to case and to how Unicode composes it (NFKC, case folding).
    """

    def tokenize(self, text: str) -> list[str]:
        """As `rouge_score` calls it."""
        folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
        return list(_TOKEN.findall(folded))


class RougeL:
    """Scores texts by their longest common subsequence of tokens with a reference."""

    def __init__(self, tokenizer: RougeTokenizer = "field") -> None:
        """`field` is what `rouge_score` does by itself: runs of a-z and 0-9 of the text in lower case, stemmed from four
        letters on; nothing is left of other scripts. `multilingual` is `Words`."""
        self._tokenizer: Any = Words() if tokenizer == "multilingual" else DefaultTokenizer(use_stemmer=True)
        self._scorer = RougeScorer(["rougeL"], tokenizer=self._tokenizer)

    def score(self, text: str, references: Sequence[str]) -> float:
        """F between precision LCS/|text| and recall LCS/|reference|, in percent, with the reference that gives the most.

        A text or a reference without a token scores 0. At least one reference.
        """
        return 100.0 * float(self._scorer.score_multi(references, text)["rougeL"].fmeasure)

    def is_blank(self, text: str) -> bool:
        """Whether no token is left of it."""
        return not self._tokenizer.tokenize(text)
