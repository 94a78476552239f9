"""The recordings are what they say: what can be computed anew comes out the same."""

import math

import pytest
import torch

from tests.recorded.recorded import HERE, Case, MarkovCase, cases, markov_cases, model, punished

# Some of each: every one takes a forward pass a token.
CONTRASTIVE = cases("transformers", "contrastive")[:-1:8]
DOLA = cases("transformers", "dola")[::13]


@pytest.mark.parametrize("case", cases("transformers", "greedy", "beam")[::3], ids=str)
def test_the_installed_transformers_answers_plain_searches_as_recorded(case: Case) -> None:
    rows, mask = case.padded()
    output = model(case.model).generate(
        rows,
        attention_mask=mask,
        max_new_tokens=case.max_new_tokens,
        eos_token_id=case.end or None,
        pad_token_id=case.pad,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
        **case.settings,
    )
    width = rows.shape[1]
    for row, expected in zip(output.sequences[:, width:].tolist(), case.sequences, strict=True):
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {case.pad}
    if case.scores is not None:
        # Both sum the same float32 log-probabilities, in kernels that differ in the last bits.
        torch.testing.assert_close(output.sequences_scores.tolist(), case.scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CONTRASTIVE, ids=str)
def test_contrastive_search_takes_the_candidate_of_the_best_score_at_every_recorded_step(case: Case) -> None:
    alpha, k = case.settings["penalty_alpha"], case.settings["top_k"]
    for row, (prompt, continuation) in enumerate(zip(case.prompts, case.sequences, strict=True)):
        tokens = list(prompt)
        for step, token in enumerate(continuation):
            with torch.no_grad():
                logits = model(case.model, torch.float64)(torch.tensor([tokens])).logits[0, -1]
                top = punished(case, logits, tokens).softmax(-1).topk(k)
                batch = torch.tensor([[*tokens, candidate] for candidate in top.indices.tolist()])
                outputs = model(case.model, torch.float64)(batch, output_hidden_states=True)
            states = torch.nn.functional.normalize(outputs.hidden_states[-1], dim=-1)
            closeness = (states[:, :-1] @ states[:, -1:].mT).amax((1, 2))
            best = int(((1 - alpha) * top.values - alpha * closeness).argmax())
            assert best == case.found["ranks"][step][row]
            assert int(top.indices[best]) == token
            tokens.append(token)


@pytest.mark.parametrize("case", DOLA, ids=str)
def test_dola_takes_the_greatest_difference_to_the_recorded_layer_at_every_step(case: Case) -> None:
    tokens = list(case.prompts[0])
    lm = model(case.model, torch.float64)
    for layer, token in zip(case.found["layers"], case.sequences[0], strict=True):
        with torch.no_grad():
            outputs = lm(torch.tensor([tokens]), output_hidden_states=True)
            final = outputs.logits[0, -1].log_softmax(-1)
            early = lm.get_output_embeddings()(outputs.hidden_states[layer][0, -1]).log_softmax(-1)
        difference = (final - early).masked_fill(final < final.max() + math.log(0.1), -math.inf)
        assert int(punished(case, difference, tokens).argmax()) == token
        tokens.append(token)


def test_a_batch_changes_the_answers_of_dola_and_of_nothing_else() -> None:
    differs = {case.kind for case in cases("transformers") if case.alone != case.sequences}
    assert differs == {"dola-batch"}


def test_padding_changes_some_answers_of_diverse_beams() -> None:
    matters = [case.found["pad_matters"] for case in cases("transformers", "group_beam")]
    assert 0 < sum(matters) < len(matters) / 2


def test_every_recording_of_diverse_beams_that_ends_nowhere_is_free_of_padding() -> None:
    assert not any(case.found["pad_matters"] for case in cases("transformers", "group_beam") if not case.end)


def test_contrastive_search_of_transformers_writes_banned_tokens() -> None:
    case = cases("transformers", "contrastive")[-1]
    banned = {tokens[0] for tokens in case.settings["bad_words_ids"]}
    assert banned & {token for tokens in case.sequences for token in tokens}


def test_constrained_beams_of_transformers_return_what_they_must_not() -> None:
    satisfied = [one for case in cases("transformers", "constrained") for one in case.found["satisfied"]]
    assert 0 < satisfied.count(False) < len(satisfied) / 2


def conditioned(values: list[float], greatest: float) -> list[float]:
    """Gumbel values moved so that the greatest is as given, in Kool et al.'s way."""
    top = max(values)
    return [
        -math.log(math.exp(-greatest) - math.exp(-top) + math.exp(-value)) if value > -math.inf else value
        for value in values
    ]


@pytest.mark.parametrize("case", markov_cases("gumbel"), ids=str)
def test_the_recorded_noise_gives_the_sequences_of_a_stochastic_beam_search(case: MarkovCase) -> None:
    for row, prompt in enumerate(case.prompts):
        noise = case.found["noise"][row]
        beams: list[tuple[float, float, list[int]]] = [(0.0, 0.0, [])]  # G, log-probability, text
        for _ in range(case.steps):
            grown = [beam for beam in beams if beam[2][-1:] == [0]]
            for greatest, score, text in beams:
                if text[-1:] == [0]:
                    continue
                following = case.matrix[(prompt + text)[-1]]
                scores = [score + math.log(probability) for probability in following]
                drawn = noise[",".join(map(str, text))]
                moved = conditioned([one + two for one, two in zip(scores, drawn, strict=True)], greatest)
                children = zip(moved, scores, range(len(moved)), strict=True)
                # At the root AllenNLP takes the best of all children, not of `per_node` of them.
                limit = case.per_node if text else len(moved)
                best = sorted(children, reverse=True)[:limit]
                grown += [(value, sum_, [*text, token]) for value, sum_, token in best]
            beams = sorted(grown, reverse=True)[: case.beams]
        beams.sort(key=lambda beam: -beam[1])
        assert [text for _, _, text in beams] == case.sequences[row]
        # Written with 7 digits.
        assert [score for _, score, _ in beams] == pytest.approx(case.found["scores"][row], rel=1e-6)
        assert [value for value, _, _ in beams] == pytest.approx(
            case.found["perturbed"][row], rel=1e-5, abs=1e-6
        )


@pytest.mark.parametrize("case", markov_cases("inclusion"), ids=str)
def test_the_recorded_frequencies_are_those_of_sampling_without_replacement(case: MarkovCase) -> None:
    draws = case.found["draws"]
    assert sum(case.found["counts"]) == case.beams * draws
    assert sum(case.found["exact"]) == pytest.approx(case.beams, abs=1e-5)
    for count, exact in zip(case.found["counts"], case.found["exact"], strict=True):
        deviation = math.sqrt(draws * exact * (1 - exact))
        assert abs(count - draws * exact) < 4 * deviation


@pytest.mark.parametrize("path", sorted(HERE.glob("model/*/*")) + sorted(HERE.glob("*.json")), ids=str)
def test_every_recorded_file_is_small(path: object) -> None:
    assert path.stat().st_size < (300_000 if path.suffix == ".json" else 60_000)  # type: ignore[attr-defined]
