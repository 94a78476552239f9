"""Context-aware decoding."""

from dataclasses import dataclass, field
from typing import Any, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import NON_NEGATIVE, set_fields
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, normalize, weigh
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import SecondModelProcessor, check_model, read_second_prompts
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class ContextAware(SecondModelProcessor):
    r"""Strengthens the context against the model's prior knowledge.

    $P'(v) \propto P(v \mid c, x, y_{<t})\,
    (P(v \mid c, x, y_{<t}) / P(v \mid x, y_{<t}))^{\alpha}$. The scores are log-probabilities. Banned tokens
    stay banned. The second cache follows its beams. Not capturable: the host runs the second model's session.

    Args:
        model: The model that reads the prompts without context; usually the model of the run.
        alpha: $\alpha$, at least 0; one number, or one per prompt. 0 changes nothing. Usual values: 0.5-1.
        prompts: $x$, the prompts without their context $c$: one per prompt or one for all, in any form
            that `decode` takes.

    Raises:
        ValueError: If `alpha` is not a finite number of at least 0.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if the number of `prompts` is neither 1 nor the batch size, or the models
            have different vocabularies.

    Example:
        >>> model, question = dk.load(), "The princess had a"
        >>> aware = ContextAware(model, 0.5, prompts=question)
        >>> dk.decode(model, "All that glitters is gold. " + question, dk.Greedy(), aware,
        ...           max_new_tokens=3).lengths
        tensor([[3]])

    Source:
        Shi et al., 2023, https://arxiv.org/abs/2305.14739, section 2.

    Hugging Face:
        None. `ClassifierFreeGuidance(model, 1 + alpha, prompts)` gives the same distribution; its scores are
        not normalized, so it ranks beams differently.
    """

    model: Model
    alpha: PerPrompt
    prompts: Any = field(repr=False)

    def __post_init__(self) -> None:
        check_model("ContextAware", "model", self.model)
        set_per_prompt(self, alpha=NON_NEGATIVE)
        set_fields(self, prompts=read_second_prompts(self.model, self.prompts))

    @override
    def second_models(self, history: History) -> list[tuple[Model, Prompt]]:
        return [(self.model, self.prompts)]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        alpha = for_rows(self.alpha, history, scores)
        aware = (1 + alpha) * scores.log_softmax(-1) + weigh(-alpha, logits[0].log_softmax(-1))
        return normalize(keep_banned(aware, scores))
