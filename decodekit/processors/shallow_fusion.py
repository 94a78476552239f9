"""Shallow fusion with a language model."""

from dataclasses import dataclass, field
from typing import Any, final

from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_finite
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import weighted
from decodekit.processors._shared.parameters import PerPrompt, check_one_a_prompt, for_rows, per_prompt
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
class ShallowFusion(LogitsProcessor):
    r"""Adds a language model's log-probabilities, so that fluent tokens become likelier.

    $s'(v) = s(v) + w \log P_{LM}(v)$. The scores are not normalized: a beam's is the sum of them, and
    fusions add up. What either model gives probability 0 is banned. The language model's cache follows its
    beams. Not capturable: the host runs the language model's session.

    Args:
        model: The language model, with the same vocabulary. Beside an encoder-decoder, a decoder-only
            model reads what the decoder says; beside a decoder-only one, the prompts too.
        weight: $w$, any finite number; one, or one for each prompt. Below 0 it takes out a language model
            that the first has learned on the way. Usual values: 0.1-0.5.
        prompts: What the language model reads instead of the run's prompts: one for each or one for
            all, anything that `decode` takes for prompts.

    Raises:
        ValueError: If `weight` is not a finite number.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if there are not as many `prompts` as prompts, or the models have
            different vocabularies.

    Example:
        >>> model, lm = dk.testing.MarkovModel([[0.6, 0.4]] * 2), dk.testing.MarkovModel([[0.2, 0.8]] * 2)
        >>> dk.decode(model, [[0]], dk.Greedy(), ShallowFusion(lm, 0.5), max_new_tokens=2).tokens
        tensor([[[1, 1]]])

    Source:
        Gulcehre et al., 2015, https://arxiv.org/abs/1503.03535, section 4.1.

    Hugging Face:
        None.
    """

    model: Model
    weight: PerPrompt
    prompts: Any = field(default=None, repr=False)

    # A session of another model is run by the host.
    capturable = False
    batch_independent = True

    def __post_init__(self) -> None:
        check_model("ShallowFusion", "model", self.model)
        weight = per_prompt(
            "ShallowFusion",
            "weight",
            self.weight,
            is_finite,
            "a finite number",
        )
        object.__setattr__(self, "weight", weight)  # a frozen field
        if self.prompts is not None:
            prompts = read_second_prompts("ShallowFusion", self.model, self.prompts)
            object.__setattr__(self, "prompts", prompts)

    def init(self, history: History) -> SecondModelState:
        """The language model, after its prompts."""
        check_one_a_prompt(self, history)
        return start_second_model("ShallowFusion", self.model, history, self.prompts)

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: SecondModelState
    ) -> tuple[Float32[Tensor, "rows vocab"], SecondModelState]:
        """The scores plus the language model's."""
        logits, memory = advance_second_model("ShallowFusion", memory, history, scores)
        return scores + weighted(for_rows(self.weight, history, scores), logits.log_softmax(-1)), memory
