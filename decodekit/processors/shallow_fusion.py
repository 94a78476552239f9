"""Shallow fusion with a language model."""

from dataclasses import dataclass, field
from typing import Any, final

from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import FINITE, set_fields
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import weigh
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import SecondModelProcessor, check_model, read_second_prompts
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class ShallowFusion(SecondModelProcessor):
    r"""Adds a language model's log-probabilities, so that fluent tokens become likelier.

    $s'(v) = s(v) + w \log P_{LM}(v)$. The scores are not normalized: a beam's score is their sum. Several
    fusions add up. A token is banned if either model gives it probability 0. The language model's cache
    follows its beams. Not capturable: the host runs the language model's session.

    Args:
        model: The language model, with the same vocabulary. With an encoder-decoder, a decoder-only language
            model reads the decoder's tokens; with a decoder-only model, it reads the prompts too.
        weight: $w$, any finite number; one number, or one per prompt. A weight below 0 removes the implicit
            language model of the first model. Usual values: 0.1-0.5.
        prompts: The language model's prompts in place of the call's: one per prompt or one for all, in any
            form that `decode` takes.

    Raises:
        ValueError: If `weight` is not a finite number.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if the number of `prompts` is neither 1 nor the batch size, or the models
            have different vocabularies.

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

    def __post_init__(self) -> None:
        check_model("ShallowFusion", "model", self.model)
        set_per_prompt(self, weight=FINITE)
        if self.prompts is not None:
            set_fields(self, prompts=read_second_prompts(self.model, self.prompts))

    @override
    def second_models(self, history: History) -> list[tuple[Model, Prompt | None]]:
        return [(self.model, self.prompts)]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        return scores + weigh(for_rows(self.weight, history, scores), logits[0].log_softmax(-1))
