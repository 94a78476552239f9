"""Classifier-free guidance."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from typing_extensions import override

from decodekit.core.history import History
from decodekit.core.prompt import Prompt
from decodekit.core.validation import FINITE, set_fields
from decodekit.models.protocols import Model
from decodekit.processors._shared.log_probs import keep_banned, lift_impossible
from decodekit.processors._shared.parameters import PerPrompt, for_rows, set_per_prompt
from decodekit.processors._shared.second_model import (
    SecondModelProcessor,
    check_model,
    prompts_or_last,
    read_prompts_or_last,
)
from decodekit.processors.base import Scores


@final
@dataclass(frozen=True)
class ClassifierFreeGuidance(SecondModelProcessor):
    r"""Moves the distribution away from the distribution without the prompt, or after a negative prompt.

    $s(v) = \gamma\,(\log P(v \mid x, y_{<t}) - \log P_2(v \mid \bar x, y_{<t}))
    + \log P_2(v \mid \bar x, y_{<t})$: above 1, tokens that the prompt makes likelier become likelier still.
    The scores are not normalized; `Renormalize()` after it normalizes them. Banned tokens stay banned. The
    second model's cache follows its beams. Not capturable: the host runs the second model's session.

    Args:
        model: The second model, $P_2$; usually the model of the run.
        scale: $\gamma$, any finite number; one number, or one per prompt. 1 changes nothing and does not
            run the second model. Usual values: 1.2-3.
        prompts: $\bar x$, the second model's prompts: one per prompt or one for all, in any form that
            `decode` takes. None: each prompt's last token.

    Raises:
        ValueError: If `scale` is not a finite number, or the second model is an encoder-decoder and there
            are no `prompts`.
        TypeError: If `model` is not a `Model`.
        DecodekitError: In a run, if the number of `prompts` is neither 1 nor the batch size, or the models
            have different vocabularies.

    Example:
        >>> model = dk.load()
        >>> guided = ClassifierFreeGuidance(model, 3.0, prompts="There was an old woman")
        >>> dk.decode(model, "There was a king", dk.BeamSearch(3), guided, max_new_tokens=4).lengths
        tensor([[4]])

    Source:
        Ho & Salimans, 2022, https://arxiv.org/abs/2207.12598, for images; Sanchez et al., 2023,
        https://arxiv.org/abs/2306.17806, for language models and negative prompts.

    Hugging Face:
        `UnbatchedClassifierFreeGuidanceLogitsProcessor`, `generate(guidance_scale=scale,
        negative_prompt_ids=...)`: the same tokens under greedy search and sampling. Under beam search the
        results differ on purpose: Hugging Face does not reorder the second cache with the beams.
    """

    model: Model
    scale: PerPrompt
    prompts: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_model("ClassifierFreeGuidance", "model", self.model)
        set_per_prompt(self, scale=FINITE)
        set_fields(self, prompts=read_prompts_or_last("ClassifierFreeGuidance", self.model, self.prompts))

    @override
    def second_models(self, history: History) -> list[tuple[Model, Prompt]]:
        return [] if self.scale == 1 else [(self.model, prompts_or_last(self.prompts, history))]

    @override
    def combine(self, history: History, scores: Scores, *logits: Scores) -> Scores:
        log_probs = scores.log_softmax(-1)
        if not logits:  # the scale is 1
            return keep_banned(log_probs, scores)
        scale = for_rows(self.scale, history, scores)
        second = logits[0].log_softmax(-1)
        floor = lift_impossible(second)
        # In Hugging Face's order: the same rounding.
        guided = keep_banned(scale * (log_probs - floor) + floor, scores)
        # Below 1 the second model's own weight is positive: a token impossible for it is banned.
        return guided.masked_fill((second == -torch.inf) & (scale < 1), -torch.inf)
