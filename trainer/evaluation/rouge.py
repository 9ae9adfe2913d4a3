"""ROUGE-L (Lin 2004) as the field computes it: the package `rouge_score`, with stemming, the best over references."""

from collections.abc import Sequence

from rouge_score.rouge_scorer import RougeScorer


class RougeL:
    """Scores texts by their longest common subsequence of tokens with a reference."""

    def __init__(self) -> None:
        self._scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def score(self, text: str, references: Sequence[str]) -> float:
        """F between precision LCS/|text| and recall LCS/|reference|, in percent, with the reference that gives the most.

        Tokens are what `rouge_score` makes: runs of a-z and 0-9 of the text in lower case, stemmed from four letters
        on. A text without any scores 0, and so does any text in another script. At least one reference.
        """
        return 100.0 * float(self._scorer.score_multi(references, text)["rougeL"].fmeasure)
