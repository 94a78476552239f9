"""What evolves during a beam search."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from decodekit.decoders.records import Entry, Records
from decodekit.history import History
from decodekit.limits import Limits, Stopping


class Finished(NamedTuple):
    """Each prompt's finished hypotheses, best first; slots that are not used score minus infinity."""

    records: Records
    lengths: Int64[Tensor, "batch slots"]
    scores: Float32[Tensor, "batch slots"]
    why: Int64[Tensor, "batch slots"]  # what finished them
    used: Bool[Tensor, "batch slots"]


class BeamState(NamedTuple):
    """The state of a beam search.

    Attributes:
        history: What the live hypotheses have said, prompt included.
        limits: Where hypotheses end.
        observed: The model's log-probabilities of the current step; None between steps.
        log_probs: The live hypotheses' sums of processed scores; minus infinity for beams that do
            not exist.
        live: What is written down about the live hypotheses.
        stopping: What the stopping criteria remember about them.
        finished: The best hypotheses that have ended.
        open: Prompts whose search goes on.
        stuck: Prompts on which every token of every beam was banned before a hypothesis had ended.
        done: No prompt is open, or one is stuck.
    """

    history: History
    limits: Limits
    observed: Float32[Tensor, "rows vocab"] | None
    log_probs: Float32[Tensor, "batch beams"]
    live: Records
    stopping: Stopping
    finished: Finished
    open: Bool[Tensor, " batch"]
    stuck: Bool[Tensor, " batch"]
    done: Bool[Tensor, ""]


class Candidates(NamedTuple):
    """The best one-token continuations of a prompt's live hypotheses, best first.

    Attributes:
        log_probs: Their sums of processed scores.
        source_beams: The beam of its prompt that each continues.
        entry: What is written down about the new token.
        why: What finishes each; 0: nothing does.
        stopping: What the stopping criteria remember about `beams` of them, and the next, and so on.
    """

    log_probs: Float32[Tensor, "batch candidates"]
    source_beams: Int64[Tensor, "batch candidates"]
    entry: Entry
    why: Int64[Tensor, "batch candidates"]
    stopping: list[Stopping]


def settled(state: BeamState, num_return: int) -> list[list[list[int]]]:
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
            ended = [_common_start(running + ended)] * max(1, len(ended))
        prompts.append(ended[:num_return] or [[]])  # a stuck prompt has none, and the run says so next
    return prompts


def _common_start(texts: list[list[int]]) -> list[int]:
    """What all of them begin with."""
    start = []
    for tokens in zip(*texts, strict=False):
        if len(set(tokens)) > 1:
            break
        start.append(tokens[0])
    return start
