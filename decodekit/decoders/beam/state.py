"""What evolves during a beam search."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.pytrees import Memory
from decodekit.decoders.beam.finished import Finished
from decodekit.decoders.beam.records import Records


class BeamState(NamedTuple):
    """The state of a beam search.

    Attributes:
        history: What the live hypotheses have said, prompt included.
        limits: Where hypotheses end.
        observed: The model's log-probabilities of the current step; None between steps.
        attention: What the model attended to in the current step, if the scorer asks; None between steps.
        log_probs: The live hypotheses' sums of processed scores; minus infinity for beams that do
            not exist.
        guides: What the live hypotheses are ranked by, where a scorer guides the search; else None.
        live: What is written down about the live hypotheses.
        memory: What the scorer remembers about them.
        stopping: What the stopping criteria remember about them.
        finished: The best hypotheses that have ended.
        lost: No hypothesis that the search has let go of scores more than this.
        open: Prompts whose search goes on.
        stuck: Prompts on which every token of every beam was banned before a hypothesis had ended.
        done: No prompt is open, or one is stuck.
    """

    history: History
    limits: Limits
    model_scores: Float32[Tensor, "rows vocab"] | None
    attention: Float32[Tensor, "rows context"] | None
    log_probs: Float32[Tensor, "batch beams"]
    guides: Float32[Tensor, "batch beams"] | None
    live: Records
    memory: Memory
    stopping: Stopping
    finished: Finished
    pruned_bound: Float32[Tensor, " batch"]
    open: Bool[Tensor, " batch"]
    all_banned: Bool[Tensor, " batch"]
    done: Bool[Tensor, ""]


def stable_prefix(state: BeamState, num_return: int) -> list[list[list[int]]]:
    """The tokens that no further step can change, of the `num_return` best hypotheses of every prompt."""
    step = int(state.history.position) - state.limits.prompt_length
    live, exists = state.live.tokens[..., :step].tolist(), (state.log_probs > -torch.inf).tolist()
    finished, used = state.finished.records.tokens.tolist(), state.finished.used.tolist()
    lengths, is_open = state.finished.lengths.tolist(), state.open.tolist()
    prompts = []
    for prompt, goes_on in enumerate(is_open):
        ended = [
            tokens[:length]
            for tokens, length, is_used in zip(finished[prompt], lengths[prompt], used[prompt], strict=True)
            if is_used
        ]
        if goes_on:
            beams = zip(live[prompt], exists[prompt], strict=True)
            running = [tokens for tokens, is_live in beams if is_live]
            # Only the best is sure to exist: constraints may leave no way on for the others.
            ended = [common_start(running + ended)] * max(1, len(ended))
        prompts.append(ended[:num_return] or [[]])  # a stuck prompt has none, and the run says so next
    return prompts


def common_start(texts: list[list[int]]) -> list[int]:
    """What all of them begin with."""
    start = []
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        start.append(tokens[0])
    return start
