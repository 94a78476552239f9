"""Normalization of the scores."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.processors._shared.log_probs import normalize
from decodekit.processors.base import Scores, StatelessProcessor


@final
@dataclass(frozen=True)
class Renormalize(StatelessProcessor):
    r"""Normalizes the scores to log-probabilities, after processors that banned or changed some.

    $s'(v) = s(v) - \log \sum_u \exp s(u)$. Sampling does not change. Beam search does: without it, a beam
    loses score when its likely tokens are banned.

    Example:
        >>> Renormalize()(torch.tensor([[0]]), torch.tensor([[1.0, 1.0, -torch.inf]])).exp()
        tensor([[0.5000, 0.5000, 0.0000]])

    Hugging Face:
        `LogitNormalization()`, bit for bit. If all tokens are banned, Hugging Face returns NaN; in decodekit
        they stay banned.
    """

    argmax_invariant = False  # rounding can make nearly equal scores equal
    batch_independent = True

    @override
    def process(self, history: History, scores: Scores) -> Scores:
        return normalize(scores)
