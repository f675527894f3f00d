"""What sees no internals: the length of a prompt, its words, and the embedding layer. A detector that does no better reads nothing from inside."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from mi_audit.stats.auroc import auroc_value
from mi_audit.stats.checks import Bools, Floats
from mi_audit.suites.prompt import Prompt

LENGTH: Final = "length"
BAG_OF_WORDS: Final = "bag of words"
EMBEDDING: Final = "embedding"

_WORD: Final = r"\w+"


def sign_of_length(n_tokens: NDArray[np.int64], labels: Bools) -> float:
    """1 where, in the suite that a probe is fitted to, positives are the longer prompts, else −1; so that test labels have no part in it."""
    return 1.0 if auroc_value(n_tokens, labels) >= 0.5 else -1.0


@dataclass(frozen=True, eq=False)
class BagOfWords:
    """TF–IDF of words and pairs of words, and L2-regularised logistic regression (C = 1) on them, fitted to the texts that a probe is fitted to."""

    _words: TfidfVectorizer
    _regression: LogisticRegression

    @classmethod
    def fit(cls, prompts: Sequence[Prompt], labels: Bools) -> "BagOfWords | None":
        """None where the texts hold no words."""
        words = TfidfVectorizer(ngram_range=(1, 2), token_pattern=_WORD, sublinear_tf=True)
        texts = [text_of(prompt) for prompt in prompts]
        if not any(map(words.build_tokenizer(), texts)):
            return None
        regression = LogisticRegression(solver="newton-cg", tol=1e-8, max_iter=1000).fit(words.fit_transform(texts), labels)
        return cls(words, regression)

    def scores(self, prompts: Sequence[Prompt]) -> Floats:
        """Log-odds [n] that a prompt is positive, judged by its words."""
        return np.asarray(self._regression.decision_function(self._words.transform([text_of(prompt) for prompt in prompts])), dtype=np.float64)


def text_of(prompt: Prompt) -> str:
    """All that was said: the text, or every message, then the response; a line each."""
    said = [prompt.text or ""] if prompt.messages is None else [message.content for message in prompt.messages]
    return "\n".join([*said, *([prompt.response] if prompt.response else [])])
