"""The laws of decoders."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from decodekit.core.request import Stop
from decodekit.core.result import Decoded
from decodekit.decoders.base import Decoder
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.engine.batching.merging import result_of_prompt
from decodekit.engine.decode import decode, read_request
from decodekit.engine.loop import DecodingRun, start_session
from decodekit.engine.scoring import score
from decodekit.processors.base import Chain
from decodekit.testing.capture_laws import changes, check_captures, shapes, tensors
from decodekit.testing.checking import are_close, check, name_of, repeatable
from decodekit.testing.strategies import prompts
from decodekit.testing.toy_models import HashModel

VOCAB, END_ID = 7, 2  # of the toy models


def check_decoder(
    decoder: Decoder[Any] | CustomLoop | Callable[[list[int]], Decoder[Any] | CustomLoop],
    *,
    batch_gives_alone: bool = True,
    captures: bool = True,
    stop: Stop = (),
    model: type[HashModel] = HashModel,
    max_examples: int = 30,
) -> None:
    """Check the contract of a decoder, on toy models and random prompts.

    A step keeps the shapes of the state and does not write to it. Source rows stay inside their prompt.
    Steps after `done` change nothing. Each prompt of a batch gets the result it would get on its own, also
    if finished prompts are evicted. Reported log-probabilities are the model's own. A step can be captured. A
    `CustomLoop` has no steps: only its results are checked.

    Args:
        decoder: The decoder; or, for a decoder that depends on the prompts (seeds) or has state (a
            generator), a function from the indices of the prompts in a batch to a new decoder.
        batch_gives_alone: False if all rows share one random stream.
        captures: False if the step cannot be captured, or draws from a generator.
        stop: Stopping criteria, as in `decode`.
        model: The class of the toy models, for decoders that need more than logits.
        max_examples: Number of random cases.

    Raises:
        AssertionError: If a law does not hold; the message has the law and the case.
        DecodekitError: If the engine refuses the decoder, its state or the result of its `step`.

    Example:
        >>> check_decoder(dk.BeamSearch(3), max_examples=3)
    """

    def make(numbers: Sequence[int]) -> Decoder[Any] | CustomLoop:
        return decoder if isinstance(decoder, Decoder | CustomLoop) else decoder(list(numbers))

    @repeatable(max_examples)
    @given(prompts(VOCAB), st.integers(0, 2**31), st.integers(1, 6))
    def laws(batch: list[list[int]], seed: int, new: int) -> None:
        toy, numbers = model(VOCAB, seed, end_ids=(END_ID,)), range(len(batch))
        first = make(numbers)
        who = f"check_decoder: {name_of(first)}"
        if isinstance(first, Decoder):
            _check_steps(first, toy, batch, new, stop)
        out = decode(toy, batch, make(numbers), max_new_tokens=new, stop=stop)
        rescored = score(toy, batch, out).token_log_probs
        # Missing hypotheses come last and have no score. Tolerance: float32 logarithms in another order.
        reported = out.token_log_probs[:, : rescored.shape[1], : rescored.shape[2]]
        law = f"{who}: reported log-probabilities must be the model's own"
        holds = are_close(rescored, reported, atol=1e-5, rtol=1e-5)
        check(holds, law, reported=reported, model=rescored, tokens=out.tokens, prompts=batch)
        if isinstance(first, Decoder):
            # A run that is traced evicts no prompt.
            unevicted = decode(toy, batch, make(numbers), max_new_tokens=new, stop=stop, trace=1)
            law = f"{who} must give the same results when finished prompts are evicted"
            _check_same(unevicted, out, law, ("without", "with eviction"))
            check(torch.equal(unevicted.parents, out.parents), f"{law}, parents too")
            late = decode(toy, batch, make(numbers), max_new_tokens=new, stop=stop, check_every=3)
            law = f"{who} must give the same results when completion is checked later"
            _check_same(out, late, law, ("at once", "later"))
        for number, prompt in enumerate(batch if batch_gives_alone else []):
            alone = decode(toy, [prompt], make([number]), max_new_tokens=new, stop=stop)
            law = f"{who} must give each prompt the result of a call of its own: prompt {number} of {batch}"
            _check_same(result_of_prompt(out, number), alone, law, ("in the batch", "alone"))

    laws()
    one = make(range(3))
    if captures and isinstance(one, Decoder):
        check_captures(one, stop=stop)


def _check_steps(
    decoder: Decoder[Any, Any], model: HashModel, batch: list[list[int]], new: int, stop: Stop
) -> None:
    """Check every step of a run, and a few after its end."""
    who, rows = f"check_decoder: {name_of(decoder)}", decoder.rows_per_prompt
    options = {"max_new_tokens": new, "pad_id": 0, "stop": stop}
    request = read_request(model, batch, options, watched=True)
    capacity = request.prompt.tokens.shape[1] + new
    run = DecodingRun(
        decoder, Chain(), request, *start_session(model, request.prompt, decoder, capacity=capacity)
    )
    # Only the model knows the shapes of its first outputs.
    before, result = None if decoder.outputs_spec else shapes(run.state), None
    for _ in range(new + decoder.delay + 3):
        old, copies = tensors(run.state), [tensor.clone() for tensor in tensors(run.state)]
        run.step()
        check(all(map(torch.equal, copies, old)), f"{who} must not write to the state before a step")
        after = shapes(run.state)
        law = f"{who} must keep the shapes of its state"
        check(before in (None, after), law, changed=changes(before or [], after))
        before, sources = after, run.selection.source_rows
        if sources is not None:
            inside = sources // rows == torch.arange(len(sources)) // rows
            check(inside.all(), f"{who} must keep source rows inside their prompt", got=sources)
        if run.state.done:
            final = decoder.finalize(run.state)
            if result is not None:
                law = f"{who} must give the same results after further steps"
                _check_same(result, final, law, ("at the end", "later"))
            result = final
        run.logits = run.session.advance(*run.selection)
    check(result is not None, f"{who} must be done after max_new_tokens steps")


def _check_same(expected: Decoded, actual: Decoded, law: str, names: tuple[str, str]) -> None:
    """Check that two results are equal; `names` are the names of the results in the message."""
    for field in ("tokens", "lengths", "finish_reason", "valid", "token_log_probs", "score"):
        values = getattr(expected, field), getattr(actual, field)
        same = torch.equal(*values) if isinstance(values[0], Tensor) else values[0] == values[1]
        check(same, f"{law}: {field}", **dict(zip(names, values, strict=True)))
