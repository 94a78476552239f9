"""A penalty on what the source does not say."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.validation import is_positive
from decodekit.processors._shared.parameters import (
    PerPrompt,
    check_per_prompt,
    for_rows,
    map_per_prompt,
    per_prompt,
)
from decodekit.processors._shared.sources import SourceIds, check_source, read_source, source_of
from decodekit.processors.base import LogitsProcessor, put


@final
@dataclass(frozen=True)
class EncoderRepetitionPenalty(LogitsProcessor):
    """Makes every token that stands in the source likelier, against what the source does not say.

    The inverse of `RepetitionPenalty`: a positive score is multiplied by the penalty, a negative one
    divided by it; once, however often the token occurs. Padding of the source does not count.

    Args:
        penalty: Above 0; 1 changes nothing, above 1 keeps to the source, below 1 leads away from it; one
            number, or one for each prompt. Usual values: 1.05-1.5.
        source: The ids to keep to, for all prompts, or a list of them, one for each prompt. None: what
            the encoder has read, and for decoder-only models the prompt.

    Raises:
        ValueError: If `penalty` is not a finite number above 0, or `source` holds anything but integers
            of at least 0; in a run, if there are not as many sources as prompts.

    Example:
        >>> model = dk.testing.MarkovModel([[0.3, 0.4, 0.3]] * 3)
        >>> keep = EncoderRepetitionPenalty(2.0)
        >>> dk.decode(model, [2], dk.Greedy(), keep, max_new_tokens=2).hypotheses()
        [[[2, 2]]]

    Hugging Face:
        `EncoderRepetitionPenaltyLogitsProcessor(penalty, encoder_input_ids)`, bit for bit without
        padding, which theirs takes for text. `generate` passes the encoder's ids, or the prompt.
    """

    penalty: PerPrompt
    source: SourceIds = None

    batch_independent = True

    def __post_init__(self) -> None:
        who = "EncoderRepetitionPenalty"
        kept = per_prompt(
            who,
            "penalty",
            self.penalty,
            is_positive,
            "a finite number above 0",
        )
        object.__setattr__(self, "penalty", kept)  # frozen fields
        object.__setattr__(self, "source", read_source(who, self.source))

    def init(self, history: History) -> Int64[Tensor, ""]:
        """The prompt's length in columns."""
        check_per_prompt(self, history)
        check_source("EncoderRepetitionPenalty", self.source, history)  # type: ignore[arg-type]
        return history.position.clone()

    def apply(
        self,
        history: History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, ""],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, ""]]:
        """The scores, with those of the source's tokens pushed up."""
        tokens, valid = source_of(self.source, history, memory)  # type: ignore[arg-type]
        said = scores.gather(1, torch.where(valid, tokens, 0).clamp(max=scores.shape[-1] - 1))
        # The inverse is rounded first, as in Hugging Face.
        inverse = for_rows(map_per_prompt(lambda penalty: 1 / penalty, self.penalty), history, scores)
        pushed = torch.where(said < 0, said * inverse, said / inverse)
        return put(scores, tokens, valid, pushed), memory
