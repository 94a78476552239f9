"""Context-aware decoding."""

from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_finite
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, normalize, weigh
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, for_rows, per_prompt
from decodekit.processors._shared.second_model import (
    SecondModelState,
    advance_second_model,
    check_model,
    read_second_prompts,
    start_second_model,
)
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class ContextAware(LogitsProcessor):
    r"""Trusts the context over what the model knew before.

    $P'(v) \propto P(v \mid c, x, y_{<t})\,
    (P(v \mid c, x, y_{<t}) / P(v \mid x, y_{<t}))^{\alpha}$. The scores are log-probabilities. What was
    banned stays banned. The second cache follows its beams. Not capturable: the host runs the second model's
    session.

    Args:
        model: The model that reads the prompts without context; as a rule the run's own.
        alpha: $\alpha$, at least 0; one number, or one for each prompt. 0 changes nothing. Usual
            values: 0.5-1.
        prompts: $x$, the prompts without their context $c$: one for each or one for all, anything that
            `decode` takes for prompts.

    Raises:
        ValueError: If `alpha` is not a finite number of at least 0.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if there are not as many `prompts` as prompts, or the models have
            different vocabularies.

    Example:
        >>> model, question = dk.load(), "The princess had a"
        >>> aware = ContextAware(model, 0.5, prompts=question)
        >>> dk.decode(model, "All that glitters is gold. " + question, dk.Greedy(), aware,
        ...           max_new_tokens=3).lengths
        tensor([[3]])

    Source:
        Shi et al., 2023, https://arxiv.org/abs/2305.14739, section 2.

    Hugging Face:
        None. With `ClassifierFreeGuidance(model, 1 + alpha, prompts)` the distribution is the same;
        that leaves it unnormalized, so that its beams are ranked differently.
    """

    model: Model
    alpha: PerPrompt
    prompts: Any = field(repr=False)

    # A session of another model is run by the host.
    capturable = False
    batch_independent = True

    def __post_init__(self) -> None:
        check_model("ContextAware", "model", self.model)
        alpha = per_prompt(
            "ContextAware",
            "alpha",
            self.alpha,
            lambda value: is_finite(value) and value >= 0,
            "a finite number of at least 0",
        )
        object.__setattr__(self, "alpha", alpha)  # a frozen field
        prompts = read_second_prompts("ContextAware", self.model, self.prompts)
        object.__setattr__(self, "prompts", prompts)

    def init(self, history: History) -> SecondModelState:
        """The second model, after the prompts without context."""
        check_per_prompt(self, history)
        return start_second_model("ContextAware", self.model, history, self.prompts)

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: SecondModelState
    ) -> tuple[Float32[Tensor, "rows vocab"], SecondModelState]:
        """The log-probabilities, with what the context adds counted once more."""
        logits, memory = advance_second_model("ContextAware", memory, history, scores)
        alpha = for_rows(self.alpha, history, scores)
        aware = (1 + alpha) * scores.log_softmax(-1) + weigh(-alpha, logits.log_softmax(-1))
        return normalize(keep_banned(aware, scores)), memory
