"""CTranslate2's recorded answers are what its docstring says: a slow search of our own finds them again."""

import math
from typing import Any, NamedTuple

import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from tests.recorded.recorded import Case, cases, model

COVERED = cases("ctranslate2", "beam")


class Beam(NamedTuple):
    score: float
    tokens: list[int]


def forward(
    case: Case, prompt: list[int], texts: list[list[int]]
) -> tuple[Float64[Tensor, "texts vocab"], list[Tensor]]:
    """The log-probabilities of what comes next, and the attention to the source of every step so far."""
    lm: Any = model(case.model, torch.float64)
    with torch.no_grad():
        if case.model != "marian":
            logits = lm(torch.tensor([prompt + text for text in texts])).logits[:, -1]
            return logits.log_softmax(-1), []
        start = [lm.config.decoder_start_token_id]
        outputs = lm(
            input_ids=torch.tensor([prompt] * len(texts)),
            decoder_input_ids=torch.tensor([start + text for text in texts]),
            output_attentions=True,
        )
        return outputs.logits[:, -1].log_softmax(-1), list(outputs.cross_attentions[-1][:, 0])


def final_score(case: Case, prompt: list[int], beam: Beam) -> float:
    """What becomes of a sum of log-probabilities at the end."""
    score = beam.score / len(beam.tokens) ** case.settings.get("length_penalty", 1.0)
    weight = case.settings.get("coverage_penalty", 0.0)
    if weight:
        attention = forward(case, prompt, [beam.tokens[:-1]])[1][0]
        score += weight * sum(math.log(min(1, covered)) for covered in attention.sum(0).tolist())
    return score


def search(case: Case, prompt: list[int]) -> list[tuple[float, list[int]]]:
    """CTranslate2's beam search, one prompt at a time, with patience."""
    k, wanted = case.settings["beam_size"], case.settings.get("num_hypotheses", 1)
    penalised = case.settings.get("length_penalty", 1.0) or case.settings.get("coverage_penalty", 0.0)
    enough = round(k * case.settings.get("patience", 1.0))
    beams, finished, top_ended = [Beam(0.0, [])], list[Beam](), False
    for step in range(case.max_new_tokens):
        log_probs, _ = forward(case, prompt, [beam.tokens for beam in beams])
        grown = [
            Beam(beam.score + score, [*beam.tokens, token])
            for beam, row in zip(beams, log_probs.tolist(), strict=True)
            for token, score in enumerate(row)
        ]
        candidates = sorted(grown, reverse=True)[: 2 * k]
        last = step + 1 == case.max_new_tokens
        ended = [last or beam.tokens[-1] in case.end for beam in candidates]
        spare = [beam for beam, end in zip(candidates[k:], ended[k:], strict=True) if not end]
        finished += [beam for beam, end in zip(candidates[:k], ended, strict=False) if end]
        top_ended |= ended[0]
        over = len(finished) >= enough if penalised else top_ended and len(finished) >= wanted
        if last or over:
            break
        beams = [spare.pop(0) if end else beam for beam, end in zip(candidates[:k], ended, strict=False)]
    ranked = [(final_score(case, prompt, beam), beam.tokens) for beam in finished]
    return sorted(ranked, reverse=True)[:wanted]


# Each takes a second: some of the settings that differ, and all of them once, when they were recorded.
@pytest.mark.parametrize("case", COVERED[::23], ids=str)
def test_patience_and_coverage_come_out_as_recorded(case: Case) -> None:
    assert case.alone_scores is not None
    for place, prompt in enumerate(case.prompts):
        expected = slice(place * case.per_prompt, (place + 1) * case.per_prompt)
        found = search(case, prompt)
        assert [tokens for _, tokens in found] == case.alone[expected]
        # float32 on their side; a coverage penalty divides small attentions.
        assert [score for score, _ in found] == pytest.approx(case.alone_scores[expected], abs=2e-4)


@pytest.mark.parametrize("case", cases("ctranslate2", "greedy"), ids=str)
def test_ctranslate2_and_transformers_agree_on_the_models(case: Case) -> None:
    for prompt, expected in zip(case.prompts, case.sequences, strict=True):
        tokens: list[int] = []
        while len(tokens) < case.max_new_tokens and not (tokens and tokens[-1] in case.end):
            tokens.append(int(forward(case, prompt, [tokens])[0][0].argmax()))
        assert tokens == expected


def test_only_a_coverage_penalty_makes_a_batch_of_ctranslate2_differ_from_its_prompts_alone() -> None:
    differs = [case for case in COVERED if case.alone_scores != case.scores]
    assert differs
    assert all(case.settings["coverage_penalty"] for case in differs)
