"""ROUGE-L (Lin 2004) as the field computes it: the package `rouge_score`, with stemming, the best over references."""

import re
import unicodedata
from collections.abc import Sequence
from typing import Final, Literal

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

#: `field`: runs of a-z and 0-9 in lower case, stemmed from four letters on; `multilingual`: `Words`.
RougeTokenizer = Literal["field", "multilingual"]
#: Scripts that are written without space between words: their characters are words of their own.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD: Final = re.compile(rf"[{_UNSPACED}]_*|(?:(?![{_UNSPACED}])\w)+")


class Words(Tokenizer):  # type: ignore[misc]
    """Words of any script, in lower case and composed (NFKC), not stemmed; marks belong to their letters.

    Of scripts without space between words (Chinese, Japanese, Thai, Lao, Burmese, Khmer) every character is a word.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        composed = unicodedata.normalize("NFKC", text).lower()
        # marks that no letter composes with (vowel signs of Hindi) are no \\w, and part of a word
        joined = "".join("_" if unicodedata.category(char)[0] == "M" else char for char in composed)
        return [composed[found.start() : found.end()] for found in _WORD.finditer(joined)]


class RougeL:
    """Scores texts by their longest common subsequence of tokens with a reference."""

    def __init__(self, tokenizer: RougeTokenizer = "field") -> None:
        own = Words() if tokenizer == "multilingual" else None
        self._scorer = RougeScorer(["rougeL"], use_stemmer=own is None, tokenizer=own)

    def score(self, text: str, references: Sequence[str]) -> float:
        """F between precision LCS/|text| and recall LCS/|reference|, in percent, with the reference that gives the most.

        A text without any token scores 0, and so does, with the field's tokens, any text in another script than a-z.
        At least one reference.
        """
        return 100.0 * float(self._scorer.score_multi(references, text)["rougeL"].fmeasure)

    def sees_nothing(self, references: Sequence[str]) -> bool:
        """Whether no reference has a token, so that nothing can score."""
        return not any(self._scorer._tokenizer.tokenize(reference) for reference in references)
