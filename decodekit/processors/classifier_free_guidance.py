"""Classifier-free guidance."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_finite
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, lift_impossible
from decodekit.processors._shared.parameters import PerPrompt, check_per_prompt, for_rows, per_prompt
from decodekit.processors._shared.second_model import (
    SecondModelState,
    advance_second_model,
    check_has_prompts,
    check_model,
    last_tokens,
    read_second_prompts,
    start_second_model,
)
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class ClassifierFreeGuidance(LogitsProcessor):
    r"""Moves the distribution away from what would be said without the prompt, or after a negative one.

    $s(v) = \gamma\,(\log P(v \mid x, y_{<t}) - \log P_2(v \mid \bar x, y_{<t}))
    + \log P_2(v \mid \bar x, y_{<t})$: above 1 what the prompt makes likelier becomes likelier still.
    The scores are not normalized; `Renormalize()` after it does that. What was banned stays banned. The
    second model's cache follows its beams. Not capturable: the host runs the second model's session.

    Args:
        model: The second model, $P_2$; as a rule the run's own.
        scale: $\gamma$, any finite number; one, or one for each prompt. 1 changes nothing and leaves
            the second model alone. Usual values: 1.2-3.
        prompts: $\bar x$, what the second model reads instead: one for each prompt or one for all,
            anything that `decode` takes for prompts. None: each prompt's last token.

    Raises:
        ValueError: If `scale` is not a finite number, or the second model is an encoder-decoder and there
            are no `prompts`.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if there are not as many `prompts` as prompts, or the models have
            different vocabularies.

    Example:
        >>> model = dk.load()
        >>> guided = ClassifierFreeGuidance(model, 3.0, prompts="There was an old woman")
        >>> dk.decode(model, "There was a king", dk.BeamSearch(3), guided, max_new_tokens=4).lengths
        tensor([[4]])

    Source:
        Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598, for images; Sanchez et al., 2023,
        https://arxiv.org/abs/2306.17806, for text and negative prompts.

    Hugging Face:
        `UnbatchedClassifierFreeGuidanceLogitsProcessor`, `generate(guidance_scale=scale,
        negative_prompt_ids=...)`: the same tokens under greedy search and sampling. Under beams ours
        differs on purpose: their second cache stays behind when beams are reordered.
    """

    model: Model
    scale: PerPrompt
    prompts: Any = field(default=None, repr=False)

    # A session of another model is run by the host.
    capturable = False
    batch_independent = True

    def __post_init__(self) -> None:
        check_model("ClassifierFreeGuidance", "model", self.model)
        scale = per_prompt(
            "ClassifierFreeGuidance",
            "scale",
            self.scale,
            is_finite,
            "a finite number",
        )
        object.__setattr__(self, "scale", scale)  # a frozen field
        if self.prompts is not None:
            prompts = read_second_prompts("ClassifierFreeGuidance", self.model, self.prompts)
            object.__setattr__(self, "prompts", prompts)
        check_has_prompts("ClassifierFreeGuidance", self.model, self.prompts)

    def init(self, history: History) -> SecondModelState | tuple[()]:
        """The second model, after its prompts."""
        check_per_prompt(self, history)
        if self.scale == 1:
            return ()
        prompts = last_tokens(history) if self.prompts is None else self.prompts
        return start_second_model("ClassifierFreeGuidance", self.model, history, prompts)

    def apply(
        self, history: History, scores: Float32[Tensor, "rows vocab"], memory: SecondModelState | tuple[()]
    ) -> tuple[Float32[Tensor, "rows vocab"], SecondModelState | tuple[()]]:
        """The guided scores."""
        log_probs = scores.log_softmax(-1)
        if not isinstance(memory, SecondModelState):
            return keep_banned(log_probs, scores), memory
        logits, memory = advance_second_model("ClassifierFreeGuidance", memory, history, scores)
        scale = for_rows(self.scale, history, scores)
        other = logits.log_softmax(-1)
        floor = lift_impossible(other)
        # In Hugging Face's order: the same rounding.
        guided = scale * (log_probs - floor) + floor
        # Below 1 the second model has a say of its own, and a veto.
        return keep_banned(guided, scores).masked_fill(
            (other == -torch.inf) & (scale < 1), -torch.inf
        ), memory
