"""One row per public name: its laws, or the test module that covers it.

A new public name needs a row here: `test_public_names.py` checks it, and runs the laws.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

import decodekit as dk

Laws = Callable[[], None]

EXAMPLES = 10  # random cases a law; the classes' own test modules try more
BUNDLED_VOCAB = 50  # ids that prompts to the bundled model may hold: any will do


def processors(
    *instances: dk.LogitsProcessor | Callable[[list[int]], dk.LogitsProcessor], unbans: bool = False
) -> Laws:
    """A processor's laws, over some configurations of it."""

    def laws() -> None:
        for processor in instances:
            dk.testing.check_processor(processor, unbans=unbans, max_examples=EXAMPLES)

    return laws


def decoders(*instances: dk.Decoder[Any] | Callable[[list[int]], dk.Decoder[Any]], **options: Any) -> Laws:  # noqa: ANN401
    """A decoder's laws, over some configurations of it."""

    def laws() -> None:
        for decoder in instances:
            dk.testing.check_decoder(decoder, max_examples=EXAMPLES, **options)

    return laws


def scorers(*instances: dk.Scorer) -> Laws:
    """A scorer's laws, and those of a beam search that ranks by it and trusts its bound."""

    def laws() -> None:
        for scorer in instances:
            dk.testing.check_scorer(scorer, max_examples=10 * EXAMPLES)
            decoders(dk.BeamSearch(2, scorer=scorer, stop_rule=dk.Proved()))()

    return laws


def path_scorers(*instances: dk.PathScorer) -> Laws:
    """The laws of a beam search that ranks by a scorer with a memory and trusts its bound."""

    def laws() -> None:
        for scorer in instances:
            for decoder in (
                dk.BeamSearch(2, scorer=scorer, stop_rule=dk.Proved()),
                dk.BeamSearch(3, scorer=scorer, num_return=3),
            ):
                decoders(
                    decoder,
                    model=dk.testing.HashModelWithOutputs if scorer.outputs_spec else dk.testing.HashModel,
                )()

    return laws


def lookahead(numbers: list[int]) -> dk.BeamSearch:
    """A beam search that looks ahead, each prompt for something else."""
    model = dk.testing.HashModel(7, 1)
    constraints = [[dk.Phrase(number % 7), dk.OneOf([[2, 5], [4]])] for number in numbers]
    return dk.BeamSearch(2, scorer=dk.Lookahead(model, constraints, weight=0.5, steps=2), num_return=2)


def expansions(*instances: dk.Expansion) -> Laws:
    """The laws of a beam search that expands in some ways."""
    return decoders(*(dk.BeamSearch(3, expansion=expansion, num_return=2) for expansion in instances))


def stop_rules(*instances: dk.StopRule) -> Laws:
    """The laws of a beam search that stops by some configurations of a rule."""
    return decoders(*(dk.BeamSearch(3, stop_rule=rule, num_return=2) for rule in instances))


def criteria(*instances: dk.StoppingCriterion) -> Laws:
    """The laws of decoders, with some configurations of a criterion."""

    def laws() -> None:
        for criterion in instances:
            for decoder in (dk.Greedy(), dk.BeamSearch(3, num_return=2)):
                decoders(decoder, stop=criterion, captures=criterion.capturable)()

    return laws


def models(make: Callable[[], dk.Model], *, vocab: int, max_examples: int) -> Laws:
    """A model's laws, those of its session among them."""
    return lambda: dk.testing.check_model(make(), vocab=vocab, max_examples=max_examples)


def all_of(*several: Laws) -> Laws:
    """Laws one after the other."""

    def laws() -> None:
        for some in several:
            some()

    return laws


def score_is_the_sum_of_what_the_model_says_token_by_token() -> None:
    """In one pass (the bundled model) and step by step (a toy), next to the slow reference."""
    prompts = [[8], [8, 9, 10]]
    continuations = [[[11], [12, 13, 11]], [[11, 11], []]]
    for model in (dk.load(), dk.testing.HashModel(20)):
        scored = dk.score(model, prompts, continuations)
        log_probs = dk.testing.next_log_probs(model)
        for row, prompt in enumerate(prompts):
            for number, tokens in enumerate(continuations[row]):
                steps = [log_probs(prompt + tokens[:step])[token] for step, token in enumerate(tokens)]
                # float32 logarithms, from other sums
                assert scored.log_prob[row, number].item() == pytest.approx(sum(steps), rel=1e-5, abs=1e-6)
                assert len(tokens) == scored.lengths[row, number]
        assert scored.valid.all()


def grammars_keep_the_laws_of_processors() -> None:
    """Over the bundled tokenizer, whose ids from 1 on are single characters."""
    vocabulary = dk.load().vocabulary
    processors(
        dk.Grammar.regex(r"[!-%]{2}[!-(]*", vocabulary),
        dk.Grammar.json_schema({"type": "string"}, vocabulary),
    )()


def the_bundled_model_is_an_ordinary_one() -> None:
    """Plain transformers loads the folder and says the same."""
    path = dk.bundled_path()
    plain = transformers.AutoModelForCausalLM.from_pretrained(path)
    inputs = transformers.AutoTokenizer.from_pretrained(path)("The king", return_tensors="pt")
    expected = plain.generate(**inputs, do_sample=False, max_new_tokens=8)
    for model in (dk.load(), dk.load(path), dk.HFModel(plain)):
        out = dk.decode(model, inputs, dk.Greedy(), max_new_tokens=8)
        assert expected.tolist() == out.sequences.tolist()


def seeded(seeds: list[int]) -> dk.Sample:
    return dk.Sample(2, seeds=seeds)


def beam_sampling(seeds: list[int]) -> dk.BeamSearch:
    return dk.BeamSearch(2, expansion=dk.SampledExpansion(torch.Generator().manual_seed(len(seeds))))


def from_a_generator(seeds: list[int]) -> dk.Sample:
    return dk.Sample(2, generator=torch.Generator().manual_seed(len(seeds)))


# What processors that hold further models are given, with the vocabulary of the laws.
SECOND, THIRD = dk.testing.HashModel(9, 5), dk.testing.HashModel(9, 6)

# One small class for each abstract one: what its contract asks for is enough to keep its laws.


class CountdownBan(dk.LogitsProcessor):
    """Bans a token that a row has said twice: its memory counts, and must follow its row."""

    def init(self, history: dk.History) -> Int64[Tensor, "rows vocab"]:
        return torch.zeros(len(history.tokens), 64, dtype=torch.long, device=history.tokens.device)

    def apply(
        self,
        history: dk.History,
        scores: Float32[Tensor, "rows vocab"],
        memory: Int64[Tensor, "rows vocab"],
    ) -> tuple[Float32[Tensor, "rows vocab"], Int64[Tensor, "rows vocab"]]:
        last = history.tokens.index_select(1, (history.position - 1).view(1))
        memory = memory.scatter_add(1, last, torch.ones_like(last))
        return scores.masked_fill(memory[:, : scores.shape[-1]] >= 2, -torch.inf), memory


class BanFirst(dk.StatelessProcessor):
    """Bans the token with id 0."""

    def process(
        self,
        history: dk.History,  # noqa: ARG002 - the contract's signature
        scores: Float32[Tensor, "rows vocab"],
    ) -> Float32[Tensor, "rows vocab"]:
        return scores.masked_fill(torch.arange(scores.shape[-1], device=scores.device) == 0, -torch.inf)


class SecondBestByHand(dk.Decoder[dk.RowState]):
    """Emits the second most probable token at every step, without `RowDecoder`."""

    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: dk.RowState
    ) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.topk(2).indices[:, 1], scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded:
        return state.decoded(hypotheses=1)


class SecondBest(dk.RowDecoder):
    """Emits the second most probable token at every step."""

    def choose(
        self,
        scores: Float32[Tensor, "rows vocab"],
        state: dk.RowState,  # noqa: ARG002 - the contract's signature
    ) -> Int64[Tensor, " rows"]:
        return scores.topk(2).indices[:, 1]


class PrefersEven(dk.AdjustingDecoder[dk.RowState, None]):
    """Greedy search that lowers the scores of odd ids before any processor."""

    batch_independent = True
    rows_per_prompt = 1

    def init(self, history: dk.History, limits: dk.Limits) -> dk.RowState:
        return dk.RowState.start(history, limits)

    def adjust(
        self,
        scores: Float32[Tensor, "rows vocab"],
        state: dk.RowState,  # noqa: ARG002 - the contract's signature
    ) -> Float32[Tensor, "rows vocab"]:
        return scores - 2.0 * (torch.arange(scores.shape[-1], device=scores.device) % 2)

    def step(
        self, scores: Float32[Tensor, "rows vocab"], state: dk.RowState
    ) -> tuple[dk.RowState, dk.Selection]:
        return state.emit(scores.argmax(-1), scores)

    def finalize(self, state: dk.RowState) -> dk.Decoded[None]:
        return state.decoded(hypotheses=1)


@dataclass(frozen=True)
class WordReward(dk.Scorer):
    """Adds a reward a token."""

    reward: float

    def __call__(
        self, log_probs: Float32[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"]
    ) -> Float32[Tensor, "*shape"]:
        return log_probs + self.reward * lengths

    def bound(
        self, log_probs: Float32[Tensor, "*shape"], lengths: Int64[Tensor, "*shape"], max_length: int
    ) -> Float32[Tensor, "*shape"]:
        return log_probs + self.reward * torch.full_like(lengths, max_length)


class Weakest(dk.PathScorer):
    """Ranks by the least likely token: its memory is one number a row."""

    def init(self, history: dk.History, limits: dk.Limits) -> Float32[Tensor, " rows"]:  # noqa: ARG002
        return torch.zeros(len(history.tokens), device=history.tokens.device)

    def update(
        self, extended: dk.ExtendedHypotheses, memory: Float32[Tensor, " hyps"]
    ) -> Float32[Tensor, " hyps"]:
        return torch.minimum(memory, extended.log_probs)

    def score(
        self,
        log_probs: Float32[Tensor, " hyps"],  # noqa: ARG002 - the contract's signature
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002
        memory: Float32[Tensor, " hyps"],
    ) -> Float32[Tensor, " hyps"]:
        return memory

    def upper_bound(
        self,
        log_probs: Float32[Tensor, " hyps"],  # noqa: ARG002
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002
        max_length: int,  # noqa: ARG002
        memory: Float32[Tensor, " hyps"],
    ) -> Float32[Tensor, " hyps"]:
        return memory


class Guiding(Weakest):
    """Ranks unfinished hypotheses by their least likely token as well."""

    stepwise = True

    def partial_score(
        self,
        log_probs: Float32[Tensor, " hyps"],
        lengths: Int64[Tensor, " hyps"],  # noqa: ARG002
        memory: Float32[Tensor, " hyps"],
    ) -> Float32[Tensor, " hyps"]:
        return log_probs + 3 * memory


class EvenFirst(dk.Expansion):
    """Prefers even ids."""

    def pick(self, log_probs: Float32[Tensor, "batch beams vocab"], number: int) -> dk.ExpansionResult:
        odd = torch.arange(log_probs.shape[-1], device=log_probs.device) % 2
        return dk.BestExpansion().pick(log_probs - 2.0 * odd, number)


@dataclass(frozen=True)
class Until(dk.StopRule):
    """Stops at some length, once there are enough finished hypotheses."""

    length: int

    def should_continue(self, status: dk.SearchStatus) -> Bool[Tensor, " batch"]:
        return ~status.full | (status.lengths < self.length)


class Third(dk.StoppingCriterion):
    """Finishes a hypothesis at its third token of the upper half: its memory counts."""

    reason = "third"

    def init(self, history: dk.History, run: dk.StoppingContext) -> Int64[Tensor, " rows"]:  # noqa: ARG002
        return torch.zeros(len(history.tokens), dtype=torch.long, device=history.tokens.device)

    def apply(
        self,
        history: dk.History,
        log_probs: Float32[Tensor, " rows"],  # noqa: ARG002
        memory: Int64[Tensor, " rows"],
    ) -> tuple[Bool[Tensor, " rows"], Int64[Tensor, " rows"]]:
        count = memory + (history.last() > 3)
        return count == 3, count


HEALING = [b"a", b"b", b"ab", b"", b"ba"]  # what ids say

CONFORMANCE: dict[str, Laws | str] = {
    # Processors
    "BadWords": processors(
        dk.BadWords([]), dk.BadWords([[2], [3, 4], [0, 0, 1]]), dk.BadWords([[2], [3]], end_ids=2)
    ),
    "Chain": processors(
        dk.Chain(),
        dk.Chain(dk.NoRepeatNGram(2), dk.Temperature(0.7), dk.TopP(0.9)),
        dk.Chain(CountdownBan(), dk.Chain(dk.MinNewTokens(2, end_ids=2))),
        dk.TopK(3) | dk.RepetitionPenalty(1.3),
    ),
    "ClassifierFreeGuidance": processors(
        dk.ClassifierFreeGuidance(SECOND, 1.5),
        dk.ClassifierFreeGuidance(SECOND, 1),
        lambda prompts: dk.ClassifierFreeGuidance(
            SECOND, [0.5 * number for number in prompts], [[number] * (1 + number) for number in prompts]
        ),
    ),
    "ContextAware": processors(
        dk.ContextAware(SECOND, 0.5, [[3, 4]]),
        lambda prompts: dk.ContextAware(
            SECOND, [0.5 * number for number in prompts], [[number] * (1 + number) for number in prompts]
        ),
    ),
    "ContrastiveGuidance": processors(
        dk.ContrastiveGuidance(SECOND),
        lambda prompts: dk.ContrastiveGuidance(
            SECOND, [0.1 * number for number in prompts], 0.5, [1.0 + number for number in prompts]
        ),
    ),
    "DExperts": processors(
        dk.DExperts(SECOND, THIRD, 2.0),
        lambda prompts: dk.DExperts(SECOND, THIRD, [0.5 * number for number in prompts]),
    ),
    "DRY": processors(
        dk.DRY(0.8),
        dk.DRY(1.5, 2, 1, breakers=(0, 3), window=5, max_match=3),
        dk.DRY(1.0, 1.5, 1, include_prompt=False),
        lambda prompts: dk.DRY([1.0 + number for number in prompts], allowed_length=1),
    ),
    "DynamicTemperature": processors(
        dk.DynamicTemperature(0.5, 2, 1.5),
        lambda prompts: dk.DynamicTemperature([0.5 + number for number in prompts], 9.0),
    ),
    "EncoderNoRepeatNGram": processors(
        *(dk.EncoderNoRepeatNGram(n) for n in (1, 2, 20)),
        dk.EncoderNoRepeatNGram(2, source=range(9)),
        lambda prompts: dk.EncoderNoRepeatNGram(2, source=[range(number, 9) for number in prompts]),
    ),
    "EncoderRepetitionPenalty": processors(
        dk.EncoderRepetitionPenalty(1.3),
        dk.EncoderRepetitionPenalty(0.5, source=[0, 5]),
        lambda prompts: dk.EncoderRepetitionPenalty(
            [1.5 + number for number in prompts], source=[[number] for number in prompts]
        ),
    ),
    "Ensemble": processors(
        dk.Ensemble([SECOND, THIRD], [2, 1, 1]),
        dk.Ensemble(SECOND, average="log_prob"),
        lambda prompts: dk.Ensemble(SECOND, [1, [0.5 * number for number in prompts]], "log_prob"),
    ),
    "EpsilonCutoff": processors(
        dk.EpsilonCutoff(0.1),
        dk.EpsilonCutoff(0.9, min_tokens_to_keep=3),
        lambda prompts: dk.EpsilonCutoff([0.1 + 0.2 * number for number in prompts]),
    ),
    "EtaCutoff": processors(
        dk.EtaCutoff(0.1),
        dk.EtaCutoff(0.9, min_tokens_to_keep=3),
        lambda prompts: dk.EtaCutoff([0.1 + 0.2 * number for number in prompts]),
    ),
    "ExponentialLengthDecay": processors(
        dk.ExponentialLengthDecay(0, 1.5, end_ids=(0, 2)),
        dk.ExponentialLengthDecay(1, 0.5, end_ids=2),
        lambda prompts: dk.ExponentialLengthDecay(prompts, [1.1 + number for number in prompts], end_ids=2),
    ),
    "ForcedBOS": processors(dk.ForcedBOS(0), dk.ForcedBOS(8), unbans=True),
    "ForcedEOS": processors(
        dk.ForcedEOS(1, end_ids=0),
        dk.ForcedEOS(3, end_ids=(2, 5)),
        lambda prompts: dk.ForcedEOS([1 + number for number in prompts], end_ids=0),
        unbans=True,
    ),
    "ForcedPrefix": processors(
        dk.ForcedPrefix([3, 4]),
        lambda prompts: dk.ForcedPrefix([[number % 9] * (number % 4) for number in prompts]),
        unbans=True,
    ),
    "FrequencyPenalty": processors(
        dk.FrequencyPenalty(0.7),
        dk.FrequencyPenalty(-1, include_prompt=True),
        lambda prompts: dk.FrequencyPenalty([number - 0.5 for number in prompts]),
    ),
    "Grammar": grammars_keep_the_laws_of_processors,
    "LogitsProcessor": processors(CountdownBan()),
    "MinLength": processors(
        dk.MinLength(0, end_ids=2),
        dk.MinLength(5, end_ids=(0, 2)),
        lambda prompts: dk.MinLength([3 + number for number in prompts], end_ids=2),
    ),
    "MinNewTokens": processors(
        dk.MinNewTokens(0, end_ids=2),
        dk.MinNewTokens(2, end_ids=2),
        dk.MinNewTokens(9, end_ids=(0, 2)),
        lambda prompts: dk.MinNewTokens(prompts, end_ids=2),
    ),
    "MinP": processors(
        dk.MinP(0.1),
        dk.MinP(1.0),
        dk.MinP(0.5, min_tokens_to_keep=3),
        lambda prompts: dk.MinP([0.1 + 0.2 * number for number in prompts]),
    ),
    "MirostatV1": processors(
        dk.MirostatV1(3.0),
        dk.MirostatV1(0.5, 1.0, 3),
        lambda prompts: dk.MirostatV1([1.0 + number for number in prompts], 0.5, 5),
    ),
    "MirostatV2": processors(
        dk.MirostatV2(3.0),
        dk.MirostatV2(0.5, 1.0),
        lambda prompts: dk.MirostatV2([1.0 + number for number in prompts], 0.5),
    ),
    "NoRepeatNGram": processors(*(dk.NoRepeatNGram(n) for n in (1, 2, 3, 20))),
    "PMI": processors(
        dk.PMI(SECOND, 1.0, 1.0),
        lambda prompts: dk.PMI(
            SECOND, [0.5 * number for number in prompts], 0.5, [[number] * (1 + number) for number in prompts]
        ),
    ),
    "PrefixConstraint": processors(
        dk.PrefixConstraint(lambda _, ids: [len(ids) % 9, int(ids.sum()) % 9]),
        lambda prompts: dk.PrefixConstraint(lambda prompt, ids: [(prompts[prompt] + int(ids[-1])) % 9]),
    ),
    "PresencePenalty": processors(
        dk.PresencePenalty(0.7),
        dk.PresencePenalty(-1, include_prompt=True),
        lambda prompts: dk.PresencePenalty([number - 0.5 for number in prompts]),
    ),
    "QuadraticSmoothing": processors(
        dk.QuadraticSmoothing(0.3),
        dk.QuadraticSmoothing(0.2, 4.0),
        lambda prompts: dk.QuadraticSmoothing([0.1 + number for number in prompts], 2.0),
    ),
    "Renormalize": processors(dk.Renormalize()),
    "RepetitionPenalty": processors(
        dk.RepetitionPenalty(1.3),
        dk.RepetitionPenalty(0.5, prompt_ignore_length=2),
        lambda prompts: dk.RepetitionPenalty(
            [0.5 + number for number in prompts], prompt_ignore_length=prompts
        ),
    ),
    "SanitizeScores": all_of(
        processors(dk.SanitizeScores()), processors(dk.SanitizeScores(unban=True), unbans=True)
    ),
    "SequenceBias": processors(
        dk.SequenceBias({(2,): 1.0, (3, 4): -1.5, (0, 3, 4): 2.0}), dk.SequenceBias({(1, 2): -torch.inf})
    ),
    "ShallowFusion": processors(
        dk.ShallowFusion(SECOND, 0.3),
        lambda prompts: dk.ShallowFusion(
            SECOND, [0.5 - number for number in prompts], [[number] for number in prompts]
        ),
    ),
    "StatelessProcessor": processors(BanFirst()),
    "SuppressTokens": processors(dk.SuppressTokens([]), dk.SuppressTokens([0, 5])),
    "SuppressTokensAtBegin": processors(
        dk.SuppressTokensAtBegin([]), dk.SuppressTokensAtBegin([0, 5]), dk.SuppressTokensAtBegin(0, begin=1)
    ),
    "SynthID": processors(
        dk.SynthID([654, 400, 836], 2),
        dk.SynthID([7], 3, context_history_size=1, skip_first_ngram_calls=True),
    ),
    "TailFree": processors(
        dk.TailFree(0.0), dk.TailFree(0.9), lambda prompts: dk.TailFree([0.9**number for number in prompts])
    ),
    "Temperature": processors(
        dk.Temperature(0.3),
        dk.Temperature(2),
        lambda prompts: dk.Temperature([0.5 + number for number in prompts]),
    ),
    "TokenHealing": processors(
        lambda prompts: dk.TokenHealing([[b"aba", b"", b"b"][number % 3] for number in prompts], HEALING),
        lambda prompts: dk.TokenHealing([b"ab" for _ in prompts], [*HEALING, b"abb", b"", b"c", b"d"]),
    ),
    "TopA": processors(
        dk.TopA(0.2), dk.TopA(1), lambda prompts: dk.TopA([1 / (1 + number) for number in prompts])
    ),
    "TopH": processors(
        dk.TopH(0.4), dk.TopH(1), lambda prompts: dk.TopH([0.1 + 0.2 * number for number in prompts])
    ),
    "TopK": processors(
        dk.TopK(1),
        dk.TopK(4),
        dk.TopK(100),
        dk.TopK(1, min_tokens_to_keep=2),
        lambda prompts: dk.TopK([1 + 3 * number for number in prompts]),
    ),
    "TopNSigma": processors(
        dk.TopNSigma(0.5), dk.TopNSigma(2), lambda prompts: dk.TopNSigma([0.5 + number for number in prompts])
    ),
    "TopP": processors(
        *(dk.TopP(p) for p in (0.0, 0.5, 0.9, 1.0)),
        dk.TopP(0.1, min_tokens_to_keep=2),
        lambda prompts: dk.TopP([0.3 * number for number in prompts]),
    ),
    "TrieConstraint": processors(
        dk.TrieConstraint([[1, 2], [1], [3, 4, 5], []], end_ids=(0, 8)),
        lambda prompts: dk.TrieConstraint(
            [[[1, 2], [1 + number % 7]] for number in prompts], end_ids=0, per_prompt=True
        ),
    ),
    "Typical": processors(
        dk.Typical(0.2),
        dk.Typical(0.9),
        dk.Typical(0.1, min_tokens_to_keep=3),
        lambda prompts: dk.Typical([0.1 + 0.2 * number for number in prompts]),
    ),
    "Watermark": processors(
        dk.Watermark(0.5),
        dk.Watermark(0.5, lists="hash"),
        dk.Watermark(0.5, seeding_scheme="selfhash", context_width=2),
        lambda prompts: dk.Watermark(
            0.5, [0.5 + number for number in prompts], seeding_scheme="selfhash", lists="hash"
        ),
    ),
    "XTC": processors(
        dk.XTC(0.1, 0, seeds=1),
        dk.XTC(0.1, 1, seeds=1),
        lambda prompts: dk.XTC([0.1 + 0.1 * number for number in prompts], 1, seeds=prompts),
    ),
    # Decoders
    "BeamSearch": decoders(
        dk.BeamSearch(1),
        dk.BeamSearch(2, num_return=2),
        dk.BeamSearch(4, scorer=dk.LogProb(), num_return=3),
        dk.BeamSearch(3, scorer=dk.LengthPenalty(-1.0)),
        dk.BeamSearch([3, 1, 2], num_return=2),
    ),
    "CoTAnswers": "tests/decoders/test_cot_decoding.py",
    "CoTDecoding": decoders(dk.CoTDecoding(3), dk.CoTDecoding(9, aggregate=True)),
    "BestFirst": decoders(
        dk.BestFirst(),
        dk.BestFirst(scorer=dk.LogProb(), num_return=3, at_once=2),
        dk.BestFirst(beams=2, num_return=2),
        dk.BestFirst(max_nodes=2, num_return=2),
    ),
    "BestExpansion": expansions(dk.BestExpansion()),
    "Certificate": "tests/decoders/beam/test_certificate.py",
    "ConstrainedBeamSearch": all_of(
        decoders(
            dk.ConstrainedBeamSearch(3, [dk.Phrase([3, 4])], num_return=2),
            lambda prompts: dk.ConstrainedBeamSearch(
                2, [[dk.Phrase(number % 7)] for number in prompts], ordered=True, scorer=dk.LogProb()
            ),
        ),
        decoders(
            dk.ConstrainedBeamSearch(3, [dk.OneOf([[3], [1, 1]])]), stop=dk.EndIds(4) | dk.RepetitionLoop(2)
        ),
    ),
    "Decoder": decoders(SecondBestByHand()),
    "RowDecoder": decoders(SecondBest()),
    "AdjustingDecoder": decoders(PrefersEven()),
    "DiverseBeamSearch": decoders(
        dk.DiverseBeamSearch(4, 2, num_return=3),
        dk.DiverseBeamSearch(2, 2, scorer=dk.LogProb(), num_return=2),
    ),
    "DepthFirst": decoders(
        dk.DepthFirst(max_nodes=30), dk.DepthFirst(scorer=dk.UIDVariance(0.5), num_return=2)
    ),
    "DiverseSiblings": expansions(dk.DiverseSiblings(0.0), dk.DiverseSiblings(0.7)),
    "Expansion": expansions(EvenFirst()),
    "ContrastiveSearch": decoders(
        dk.ContrastiveSearch(3),
        dk.ContrastiveSearch(9, 1.0),
        model=dk.testing.HashModelWithOutputs,
        stop=dk.RepetitionLoop(2, 1),
    ),
    "DoLa": decoders(
        dk.DoLa(),
        dk.DoLa(dk.BeamSearch(3, num_return=2), layers=[4, 1]),
        dk.DoLa(dk.ContrastiveSearch(2), layers="high", relative_top=0.5),
        lambda numbers: dk.DoLa(dk.Sample(2, seeds=numbers), layers=(3,)),
        model=dk.testing.HashModelWithOutputs,
        stop=dk.RepetitionLoop(2, 1),
    ),
    "Greedy": decoders(dk.Greedy()),
    "Diversity": "tests/decoders/diverse_beam/test_diversity.py",
    "Hamming": decoders(dk.DiverseBeamSearch(3, 3, diversity=dk.Hamming(1.5), num_return=2)),
    "Inclusion": "tests/decoders/without_replacement/test_inclusion.py",
    "DecodeOptions": "tests/typing/user_parts.py",
    "DecodeRequest": "tests/decoders/test_custom_loop.py",
    "EachOptions": "tests/typing/user_parts.py",
    "RunOptions": "tests/typing/user_parts.py",
    "StreamOptions": "tests/typing/user_parts.py",
    "NGramDiversity": decoders(
        dk.DiverseBeamSearch(4, 2, diversity=dk.NGramDiversity(1, 0.5), num_return=4),
        dk.DiverseBeamSearch(3, 3, diversity=dk.NGramDiversity(3, 1.5)),
    ),
    "OneOf": "tests/decoders/constrained_beam/test_constraints.py",
    "PerNodeExpansion": expansions(dk.PerNodeExpansion(1), dk.PerNodeExpansion(3)),
    "Phrase": "tests/decoders/constrained_beam/test_constraints.py",
    "ExpansionResult": expansions(EvenFirst()),
    "Acceptance": "tests/decoders/speculative/test_speculative.py",
    "Draft": "tests/decoders/speculative/drafts/test_base.py",
    "DraftSession": "tests/decoders/speculative/drafts/test_base.py",
    "Proposal": "tests/decoders/speculative/drafts/test_base.py",
    "EarlyExitModel": "tests/models/test_rereading.py",
    "VerifyingModel": "tests/models/test_rereading.py",
    "VerifyingSession": "tests/models/hf/test_verifying_sessions.py",
    "ArithmeticSample": all_of(
        decoders(lambda seeds: dk.ArithmeticSample(3, seeds=seeds)),
        decoders(lambda seeds: dk.ArithmeticSample(2, seeds=seeds), stop=dk.EndIds(4) | dk.RepetitionLoop(2)),
    ),
    "CustomLoop": "tests/decoders/test_custom_loop.py",
    "SampledExpansion": decoders(beam_sampling, captures=False, batch_gives_alone=False),
    "GroupHypotheses": "tests/decoders/diverse_beam/test_diversity.py",
    "Sample": all_of(decoders(seeded), decoders(from_a_generator, captures=False, batch_gives_alone=False)),
    "SampledMass": "tests/decoders/without_replacement/test_sampled_mass.py",
    "ConditionalPoissonBeams": all_of(
        decoders(lambda seeds: dk.ConditionalPoissonBeams(3, seeds=seeds)),
        decoders(
            lambda seeds: dk.ConditionalPoissonBeams(2, seeds=seeds), stop=dk.EndIds(4) | dk.RepetitionLoop(2)
        ),
    ),
    "StochasticBeamSearch": all_of(
        decoders(lambda seeds: dk.StochasticBeamSearch(3, seeds=seeds)),
        decoders(
            lambda seeds: dk.StochasticBeamSearch(2, seeds=seeds), stop=dk.EndIds(4) | dk.RepetitionLoop(2)
        ),
    ),
    "Speculative": all_of(
        decoders(
            dk.Speculative(dk.DraftModel(dk.testing.HashModel(7, 5))),
            dk.Speculative(dk.PromptLookup(), tokens=2),
            lambda numbers: dk.Speculative(
                dk.PromptLookup(), sample=True, num_samples=2, seeds=[31 * number for number in numbers]
            ),
        ),
        decoders(
            dk.Speculative(dk.DraftModel(dk.testing.HashModel(7, 5))),
            stop=dk.EndIds(4) | dk.RepetitionLoop(2),
        ),
    ),
    "UniqueSample": all_of(
        decoders(lambda seeds: dk.UniqueSample(3, seeds=seeds)),
        decoders(lambda seeds: dk.UniqueSample(2, seeds=seeds), stop=dk.EndIds(4) | dk.RepetitionLoop(2)),
    ),
    # Drafts
    "DraftModel": decoders(dk.Speculative(dk.DraftModel(dk.testing.HashModel(7, 5)), tokens=3)),
    "EarlyExit": "tests/decoders/speculative/drafts/test_early_exit.py",
    "PromptLookup": decoders(dk.Speculative(dk.PromptLookup(1))),
    # Stop rules
    "Heuristic": stop_rules(dk.Heuristic()),
    "Patience": stop_rules(dk.Patience(1.0), dk.Patience(2.0)),
    "Proved": stop_rules(dk.Proved()),
    "SearchStatus": stop_rules(Until(1)),
    "StopRule": stop_rules(Until(4), Until(100)),
    "WhenFull": stop_rules(dk.WhenFull()),
    # Stopping criteria
    "AllOf": criteria(dk.AllOf(dk.EndIds(3)), dk.EndIds([3, 4, 5]) & dk.MaxNewTokens(2)),
    "AnyOf": criteria(dk.AnyOf(dk.EndIds(3)), dk.EndIds(3) | dk.RepetitionLoop(2, 2)),
    "Confidence": criteria(dk.Confidence(0.3), dk.Confidence(0.01)),
    "EndIds": criteria(dk.EndIds(3), dk.EndIds([0, 3, 4], reason="said")),
    "MaxNewTokens": criteria(dk.MaxNewTokens(1), dk.MaxNewTokens(3)),
    "MaxTime": criteria(dk.MaxTime(1e-99), dk.MaxTime(1e6)),  # over at once on any clock, and never
    "RepetitionLoop": criteria(dk.RepetitionLoop(2, 1), dk.RepetitionLoop(2, 3)),
    "StopStrings": "tests/stopping/test_stop_strings.py",
    "StopWhen": criteria(dk.StopWhen(lambda ids: sum(ids) > 9, ids=True)),
    "StoppingCriterion": criteria(Third()),
    # Scorers
    "LengthPenalty": scorers(*(dk.LengthPenalty(alpha) for alpha in (-1.0, 0.0, 0.7, 2.0))),
    "LogProb": scorers(dk.LogProb()),
    "AdjustedScorer": path_scorers(dk.UIDMaximum(0.5, base=dk.LengthPenalty(1.0))),
    "BoundedLengthReward": path_scorers(
        dk.BoundedLengthReward(0.5, ratio=1.5), dk.BoundedLengthReward(1.0, length=2.5, base=Weakest())
    ),
    "BrevityPenalty": path_scorers(dk.BrevityPenalty(ratio=2.0), dk.BrevityPenalty(2.0, length=3)),
    "CombinedScorer": path_scorers(dk.Product([dk.LogProb(), Weakest()])),
    "CoveragePenalty": path_scorers(
        dk.CoveragePenalty(0.3), dk.CoveragePenalty(0.5, base=dk.LogProb(), stepwise=True)
    ),
    "GNMTLengthPenalty": scorers(*(dk.GNMTLengthPenalty(alpha) for alpha in (-1.0, 0.0, 0.6, 2.0))),
    "ExtendedHypotheses": path_scorers(Weakest()),
    "PathScorer": path_scorers(Weakest(), Guiding()),
    "Lookahead": decoders(lookahead, captures=False),  # the host runs the model
    "Product": path_scorers(dk.Product([dk.LogProb(), dk.LengthPenalty(0.5)])),
    "ScoreFunction": scorers(
        dk.ScoreFunction(lambda log_probs, lengths: log_probs / lengths),
        dk.ScoreFunction(
            lambda log_probs, lengths: log_probs - lengths, lambda log_probs, lengths, _: log_probs - lengths
        ),
    ),
    "Scorer": scorers(WordReward(0.5)),
    "SummaryCoveragePenalty": path_scorers(
        dk.SummaryCoveragePenalty(3.0), dk.SummaryCoveragePenalty(5.0, stepwise=True)
    ),
    "UIDLocalVariance": path_scorers(dk.UIDLocalVariance(0.5)),
    "UIDMaximum": path_scorers(dk.UIDMaximum(0.5)),
    "UIDSquared": path_scorers(dk.UIDSquared(0.2)),
    "UIDVariance": path_scorers(dk.UIDVariance(0.5), dk.UIDVariance(1.0, base=dk.LengthPenalty(1.0))),
    "WeightedSum": path_scorers(
        dk.WeightedSum([dk.LogProb(), dk.LengthPenalty(1.0)], [0.5, 2]),
        dk.WeightedSum([Guiding(), dk.UIDVariance(0.5)], [1, -0.5]),
    ),
    "WordReward": scorers(dk.WordReward(0.5), dk.WordReward(-0.5, base=dk.GNMTLengthPenalty(0.6))),
    # Models
    "HFModel": models(dk.load, vocab=BUNDLED_VOCAB, max_examples=2),
    "Model": models(lambda: dk.testing.HashModel(7), vocab=7, max_examples=EXAMPLES),
    "Session": models(
        lambda: dk.testing.MarkovModel([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3], [0.3, 0.3, 0.4]]),
        vocab=3,
        max_examples=EXAMPLES,
    ),
    "ModelOutputsSpec": "tests/models/hf/forwards/test_model_outputs.py",
    "ModelOutputs": "tests/models/hf/forwards/test_model_outputs.py",
    "CapturableModel": "tests/engine/test_capture.py",
    "ModelWithOutputs": "tests/models/hf/forwards/test_model_outputs.py",
    "SessionWithOutputs": "tests/models/hf/forwards/test_model_outputs.py",
    "ShrinkingSession": "tests/engine/batching/test_eviction.py",
    "MergeableSession": "tests/models/hf/test_sessions.py",
    "bundled_path": the_bundled_model_is_an_ordinary_one,
    "load": the_bundled_model_is_an_ordinary_one,
    # Scoring
    "Scored": score_is_the_sum_of_what_the_model_says_token_by_token,
    "score": score_is_the_sum_of_what_the_model_says_token_by_token,
    # Reranking
    "AggregableUtility": "tests/rerank/test_utility.py",
    "BLEU": "tests/rerank/test_bleu.py",
    "Channel": "tests/rerank/test_second_models.py",
    "ChrF": "tests/rerank/test_chrf.py",
    "Cosine": "tests/rerank/test_cosine.py",
    "ModelReport": "tests/rerank/test_log_linear.py",
    "Prior": "tests/rerank/test_second_models.py",
    "Pruning": "tests/rerank/test_pruning.py",
    "RiskReport": "tests/rerank/test_minimum_bayes_risk.py",
    "Utility": "tests/rerank/test_utility.py",
    "UtilityFunction": "tests/rerank/test_utility.py",
    "Votes": "tests/rerank/test_consistency.py",
    "best_of_n": "tests/rerank/test_reward.py",
    "mbr": "tests/rerank/test_minimum_bayes_risk.py",
    "mmi_antilm": "tests/rerank/test_log_linear.py",
    "mmi_bidi": "tests/rerank/test_log_linear.py",
    "noisy_channel": "tests/rerank/test_log_linear.py",
    "self_consistency": "tests/rerank/test_consistency.py",
    # What has no laws of its own: the tests beside it.
    "Decoded": "tests/core/test_result.py",
    "DecodekitError": "tests/engine/test_loop.py",
    "DecodingError": "tests/engine/test_loop.py",
    "History": "tests/core/test_history.py",
    "Limits": "tests/engine/test_loop.py",
    "ModelError": "tests/models/hf/test_model.py",
    "TextChunk": "tests/engine/test_streaming.py",
    "Prompt": "tests/core/test_prompt.py",
    "PromptError": "tests/core/test_prompt.py",
    "RowState": "tests/engine/test_loop.py",
    "StoppingContext": "tests/core/test_stopping_criterion.py",
    "Selection": "tests/engine/test_loop.py",
    "Stream": "tests/engine/test_streaming.py",
    "SynthIDDetector": "tests/processors/test_synthid_detector.py",
    "Trace": "tests/core/test_trace.py",
    "Vocabulary": "tests/core/test_vocabulary.py",
    "WatermarkDetector": "tests/processors/test_watermark_detector.py",
    "decode": "tests/engine/test_loop.py",
    "decode_each": "tests/engine/batching/test_scheduler.py",
    "stream": "tests/engine/test_streaming.py",
    "heal": "tests/processors/test_token_healing.py",
}
