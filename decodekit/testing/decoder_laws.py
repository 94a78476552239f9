"""What must hold for every decoder."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decodekit.core.limits import Limits
from decodekit.core.prompt import Prompt
from decodekit.core.request import Stop
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.engine.decode import as_decoder, decode, decode_steps, read_criteria
from decodekit.engine.loop import check_state, on_model_outputs, start_session
from decodekit.engine.scoring import score
from decodekit.engine.step import step
from decodekit.processors.chain import Chain
from decodekit.testing.capture_laws import check_captures, shapes, tensors
from decodekit.testing.checking import check, repeatable
from decodekit.testing.strategies import prompts
from decodekit.testing.toy_models import HashModel

END_ID = 2  # of the toy models that laws are tried on


def check_decoder(
    decoder: Decoder[Any] | CustomLoop | Callable[[list[int]], Decoder[Any] | CustomLoop],
    *,
    batch_gives_alone: bool = True,
    captures: bool = True,
    stop: Stop = (),
    model: type[HashModel] = HashModel,
    max_examples: int = 30,
) -> None:
    """Raises unless a decoder keeps its contract, on toy models and random prompts.

    Shapes must not change in a step; source rows stay inside their prompt; steps after `done` change
    nothing; a batch gives what each prompt alone gives, and the same when finished prompts leave it; reported
    log-probabilities are the model's; a step can be captured. Of an algorithm with a loop of its own there
    are only results to look at.

    Args:
        decoder: What to check, or a function from the numbers of the prompts in a batch to a fresh
            decoder for them, where it depends on them (seeds) or has a state of its own (generator).
        batch_gives_alone: False where all rows share one random stream.
        captures: False where the step cannot be captured, or draws from a generator, which tensors
            without contents cannot.
        stop: Stopping criteria, as in `decode`: the laws hold for every one that keeps its contract.
        model: The class of the toy models, for decoders that need more than logits.
        max_examples: Random cases.

    Raises:
        AssertionError: If a law does not hold; hypothesis says for which case.

    Example:
        >>> check_decoder(dk.BeamSearch(3), max_examples=3)
    """

    def make(numbers: Sequence[int]) -> Decoder[Any] | CustomLoop:
        return decoder if isinstance(decoder, Decoder | CustomLoop) else decoder(list(numbers))

    @repeatable(max_examples)
    @given(prompts(vocab=7), st.integers(0, 2**31), st.integers(1, 6))
    def laws(batch: list[list[int]], seed: int, new: int) -> None:
        toy = model(7, seed, end_ids=(END_ID,))
        numbers = range(len(batch))
        one = make(numbers)
        if isinstance(one, Decoder):
            _check_steps(one, toy, batch, new, stop)
        out = decode(toy, batch, make(numbers), max_new_tokens=new, stop=stop)
        rescored = score(toy, batch, out).token_log_probs
        # What is missing, after all others, has no score. Single-precision logarithms, in another order.
        reported = out.token_log_probs[:, : rescored.shape[1], : rescored.shape[2]]
        torch.testing.assert_close(reported, rescored, atol=1e-5, rtol=1e-5)
        if isinstance(one, Decoder):
            again = as_decoder(cast("Decoder[Any, Any]", make(numbers)))
            stayed = _to_the_end(decode_steps(toy, batch, again, max_new_tokens=new, stop=stop))
            _check_same(stayed, out, "when finished prompts leave")
            check(torch.equal(stayed.parents, out.parents), "parents must be the same when prompts leave")
            late = decode(toy, batch, make(numbers), max_new_tokens=new, stop=stop, check_every=3)
            _check_same(out, late, "asked late whether it is done")
        for number, prompt in enumerate(batch if batch_gives_alone else []):
            alone = decode(toy, [prompt], make([number]), max_new_tokens=new, stop=stop)
            _check_same(_only(out, number), alone, f"with prompt {number} alone")

    laws()
    one = make(range(3))
    if captures and isinstance(one, Decoder):
        check_captures(one, stop=stop)


def _check_steps(
    decoder: Decoder[Any, Any], model: HashModel, batch: list[list[int]], new: int, stop: Stop
) -> None:
    """Runs past the end and looks at every step."""
    prompt = Prompt.from_ids(batch)
    rows, length = decoder.rows_per_prompt, prompt.tokens.shape[1]
    session, logits = start_session(model, prompt, decoder, capacity=length + new)
    limits = Limits(
        end_ids=(END_ID,),
        pad_id=0,
        prompt_length=length,
        max_new_tokens=new,
        vocab=logits.shape[-1],
        criteria=read_criteria(stop),
    )
    state = decoder.init(prompt.history(length + new, rows), limits)
    check_state(decoder, state, limits)
    state = on_model_outputs(decoder, session, state)
    nonfinite = torch.zeros(len(logits), dtype=torch.bool)
    # What a model shows at first may have shapes that only it knows.
    shape, result, memory = None if decoder.outputs_spec else shapes(state), None, ()
    for _ in range(new + decoder.delay + 3):
        old, before = tensors(state), [tensor.clone() for tensor in tensors(state)]
        state, selection, memory, _, nonfinite = step(decoder, Chain(), logits, state, memory, nonfinite)
        check(all(map(torch.equal, before, old)), f"{decoder!r} must not write to its old state")
        check(shape in (None, shapes(state)), f"{decoder!r} must keep the shapes of its state")
        shape = shapes(state)
        sources = selection.source_rows
        if sources is not None:
            same_prompt = sources // rows == torch.arange(len(sources)) // rows
            check(same_prompt.all(), f"{decoder!r} must keep source rows inside their prompt")
        if state.done:
            final = decoder.finalize(state)
            if result is not None:
                _check_same(result, final, "after further steps")
            result = final
        logits = session.advance(selection.tokens, sources)
        state = on_model_outputs(decoder, session, state)
    check(result is not None, f"{decoder!r} must be done after max_new_tokens steps")


def _to_the_end(steps: Generator[Any, None, Decoded]) -> Decoded:
    """The result of a run that is watched, so that no prompt leaves it before the end."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: Decoded = finished.value
            return result


def _only(out: Decoded, prompt: int) -> Decoded:
    """One prompt's part of a result, cut to its own length."""
    part = slice(prompt, prompt + 1)
    new = max(int(out.lengths[part].max()), 1)
    return replace(
        out,
        tokens=out.tokens[part, :, :new],
        lengths=out.lengths[part],
        finish_reason=out.finish_reason[part],
        valid=out.valid[part],
        token_log_probs=out.token_log_probs[part, :, :new],
        score=out.score[part],
    )


def _check_same(expected: Decoded, got: Decoded, when: str) -> None:
    for name in ("tokens", "lengths", "finish_reason", "valid", "token_log_probs", "score"):
        ours, theirs = getattr(expected, name), getattr(got, name)
        same = torch.equal(ours, theirs) if isinstance(ours, Tensor) else ours == theirs
        check(same, f"{name} must be the same {when}, got {theirs} for {ours}")
