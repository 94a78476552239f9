"""Experts and anti-experts."""

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.validation import NON_NEGATIVE
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, normalize, weigh
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import SecondModelProcessor, check_model
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class DExperts(SecondModelProcessor):
    r"""Steers towards an expert's distribution and away from an anti-expert's.

    $P'(v) \propto P(v)\,(P_+(v) / P_-(v))^{\alpha}$. The scores are log-probabilities. Banned tokens stay
    banned, so that `Chain(TopP(0.9), DExperts(...))` is the paper's truncation by the base model. Both
    caches follow their beams. Not capturable: the host runs the other models' sessions.

    Args:
        expert: $P_+$, a model of the wanted kind of text, with the same vocabulary; it reads the same
            prompts. With the run's own model the anti-expert works alone.
        antiexpert: $P_-$, a model of the unwanted kind of text.
        alpha: $\alpha$, at least 0; one number, or one per prompt. Usual values: 1-3.

    Raises:
        ValueError: If `alpha` is not a finite number of at least 0.
        TypeError: If `expert` or `antiexpert` is not a `Model`.
        DecodekitError: In a run, if the models have different vocabularies.

    Example:
        >>> base, kind, rude = (dk.testing.MarkovModel([[p, 1 - p]] * 2) for p in (0.6, 0.5, 0.8))
        >>> dk.decode(base, [[0]], dk.Greedy(), DExperts(kind, rude, 1.0), max_new_tokens=2).tokens
        tensor([[[1, 1]]])

    Source:
        Liu et al., 2021, https://arxiv.org/abs/2105.03023, section 2.

    Hugging Face:
        None.
    """

    expert: Model
    antiexpert: Model
    alpha: PerPrompt

    def __post_init__(self) -> None:
        check_model("DExperts", "expert", self.expert)
        check_model("DExperts", "antiexpert", self.antiexpert)
        set_per_prompt(self, alpha=NON_NEGATIVE._replace(advice="To steer the other way swap the models."))

    @override
    def second_models(self, history: History) -> list[tuple[Model, None]]:
        return [(self.expert, None), (self.antiexpert, None)]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        wanted, unwanted = logits
        alpha = for_rows(self.alpha, history, scores)
        towards, away = weigh(alpha, wanted.log_softmax(-1)), weigh(-alpha, unwanted.log_softmax(-1))
        steered = scores.log_softmax(-1) + towards + away
        return normalize(keep_banned(steered, scores))
