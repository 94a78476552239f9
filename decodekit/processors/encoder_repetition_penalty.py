"""A bonus for the tokens of the source."""

from dataclasses import dataclass
from typing import final

import torch
from typing_extensions import override

from decodekit.core.history import History, Source
from decodekit.core.validation import POSITIVE, set_fields
from decodekit.processors._shared.parameters import PerPrompt, for_rows, map_per_prompt, set_per_prompt
from decodekit.processors._shared.sources import SourceIds, SourceProcessor, read_source
from decodekit.processors.base import Scores, put


@final
@dataclass(frozen=True)
class EncoderRepetitionPenalty(SourceProcessor):
    """Makes every token of the source likelier.

    The inverse of `RepetitionPenalty`: multiplies a positive score by the penalty and divides a negative one
    by it; once, regardless of the number of occurrences. Padding of the source does not count.

    Args:
        penalty: Above 0; 1 changes nothing, above 1 encourages tokens of the source, below 1 discourages
            them; one number, or one per prompt. Usual values: 1.05-1.5.
        source: The ids to encourage, for all prompts, or a list of them, one per prompt. None: the encoder's
            input, and for decoder-only models the prompt.

    Raises:
        ValueError: If `penalty` is not a finite number above 0, or `source` holds anything but integers of at
            least 0; in a run, if the number of sources differs from the batch size.

    Example:
        >>> model = dk.testing.MarkovModel([[0.3, 0.4, 0.3]] * 3)
        >>> keep = EncoderRepetitionPenalty(2.0)
        >>> dk.decode(model, [2], dk.Greedy(), keep, max_new_tokens=2).hypotheses()
        [[[2, 2]]]

    Hugging Face:
        `EncoderRepetitionPenaltyLogitsProcessor(penalty, encoder_input_ids)`, bit for bit without padding,
        which Hugging Face treats as tokens. `generate` passes the encoder's ids, or the prompt.
    """

    penalty: PerPrompt
    source: SourceIds = None

    def __post_init__(self) -> None:
        set_per_prompt(self, penalty=POSITIVE)
        set_fields(self, source=read_source("EncoderRepetitionPenalty", self.source))

    @override
    def compare(self, history: History, scores: Scores, source: Source) -> Scores:
        given = scores.gather(1, torch.where(source.valid, source.tokens, 0).clamp(max=scores.shape[-1] - 1))
        # The inverse is rounded first, as in Hugging Face.
        inverse = for_rows(map_per_prompt(lambda penalty: 1 / penalty, self.penalty), history, scores)
        raised = torch.where(given < 0, given * inverse, given / inverse)
        return put(scores, *source, raised)
