"""Sampling without replacement, one sample after the other."""

import math
from collections.abc import Generator, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import NamedTuple, final

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from decodekit import rng
from decodekit.core.history import History
from decodekit.core.limits import Limits, Stopping
from decodekit.core.prompt import Prompt
from decodekit.core.pytrees import Memory
from decodekit.core.request import DecodeRequest
from decodekit.core.result import Decoded
from decodekit.core.validation import at_least, check_fields, set_fields
from decodekit.decoders.custom_loop import CustomLoop
from decodekit.decoders.finished_hypotheses import FinishedHypothesis, decoded
from decodekit.decoders.independent_row import IndependentRow
from decodekit.decoders.prompt_seeds import prompt_seeds, read_seeds
from decodekit.decoders.rows import raise_if_all_banned
from decodekit.decoders.without_replacement.sampled_mass import SampledMass
from decodekit.models.protocols import Model
from decodekit.processors.base import LogitsProcessor


@final
@dataclass(frozen=True)
class UniqueSample(CustomLoop[SampledMass]):
    r"""Draws different samples, one after the other, each from the distribution that remains.

    $P(y_k = y \mid y_1, \dots, y_{k-1}) = P(y) / (1 - \sum_{j<k} P(y_j))$ for a hypothesis $y$ that has not
    been drawn, so the first sample is one of `Sample`. Every prompt has a trie of visited hypotheses, with
    the fraction of each node's probability that is not sampled yet. A draw descends the trie by these
    fractions, and needs the model only for new nodes. In a round every prompt makes `parallel`
    draws: one pass over prompts and known tokens, then a pass for each further token. The draws of a round
    are independent. A repeated draw is rejected, which does not change the distribution.

    Samples differ as token sequences: the same string in other tokens is another sample.

    If fewer than `num_samples` hypotheses exist, all are returned; the rest is not valid, with finish reason
    `"missing"`. A hypothesis with every next token banned is a dead end, and is removed as if it had been
    drawn. Processors see each hypothesis token by token, as in the main loop. In every round, a second model
    reads each hypothesis again. Memory grows with the visited hypotheses: two numbers per next token.

    `Decoded.report` is a `SampledMass`: the unsampled probability at every draw, and estimates.

    Args:
        num_samples: Samples per prompt, at least 1.
        parallel: Draws per prompt and round, at least 1. Set it to `num_samples` for few rounds, each
            with `num_samples` rows per prompt.
        generator: The stream that a seed for each prompt is drawn from; None is torch's global one.
        seeds: One integer per prompt, instead of a generator: then a prompt's result does not depend on the
            batch. The first samples do not depend on `num_samples`.

    Raises:
        ValueError: If `num_samples` or `parallel` is not an integer of at least 1, if both `generator` and
            `seeds` are given, or if a seed does not fit 64 bits.
        DecodekitError: In a run, if the number of seeds differs from the batch size.
        DecodingError: In a run, if no hypothesis of a prompt can end.

    Example:
        >>> coin = dk.testing.MarkovModel([[0.25, 0.75], [0.25, 0.75]])
        >>> out = dk.decode(coin, [[0]], UniqueSample(5, seeds=[4]), max_new_tokens=2)
        >>> out.hypotheses()[0], out.finish_reason[0][3:]
        ([[1, 0], [0, 1], [1, 1], [0, 0]], ['length', 'missing'])

    Source:
        Shi, Bieber & Sutton, 2020, https://arxiv.org/abs/2002.09067: UniqueRandomizer.

    Hugging Face:
        None.
    """

    num_samples: int = 1
    _: KW_ONLY
    parallel: int = 1
    generator: torch.Generator | None = None
    seeds: Sequence[int] | Int64[Tensor, " batch"] | None = None

    def __post_init__(self) -> None:
        check_fields(self, num_samples=at_least(1), parallel=at_least(1))
        read_seeds(self)
        set_fields(self, num_samples=int(self.num_samples), parallel=int(self.parallel))

    @override
    def run(
        self, model: Model, processor: LogitsProcessor, request: DecodeRequest
    ) -> Generator[None, None, Decoded[SampledMass]]:
        prompts = request.prompt
        capacity = prompts.tokens.shape[1] + request.max_new_tokens
        seeds = prompt_seeds(self, len(prompts.tokens)).tolist()
        session, logits = model.start(prompts, rows_per_prompt=self.parallel, capacity=capacity)
        device, limits = logits.device, Limits.of(request, logits.shape[-1])
        history = prompts.to(device).history(capacity, 1)
        prompt_rows = IndependentRow.start(history, processor, limits)
        number, parallel = self.num_samples, self.parallel
        tries = [
            UniqueRandomizer(row, processor, seed, num_samples=number, parallel=parallel)
            for row, seed in zip(prompt_rows, seeds, strict=True)
        ]
        rows, depth = [(trie, draw) for trie in tries for draw in trie.draws], 0
        while True:
            yield
            for row, (trie, draw) in enumerate(rows):
                if not draw.finished and len(draw.tokens) == depth:
                    trie.advance(draw, logits[row : row + 1])
            if all(draw.finished for _, draw in rows):
                rows = [(trie, draw) for trie in tries for draw in trie.draws if not draw.finished]
                if not rows:
                    return _decoded(tries, number, limits, device)
                # All rows start at the depth of the shallowest draw, so that all are at one column.
                depth = min(len(draw.tokens) for _, draw in rows)
                numbers = [tries.index(trie) for trie, _ in rows]
                extended = _extended(prompts, numbers, [draw.tokens[:depth] for _, draw in rows])
                session, logits = model.start(extended, rows_per_prompt=1, capacity=capacity)
            else:
                # Deeper draws emit their known tokens; finished ones emit padding.
                tokens = [limits.pad_id if draw.finished else draw.tokens[depth] for _, draw in rows]
                logits = session.advance(torch.tensor(tokens, device=device), None)
                depth += 1


class NextTokens(NamedTuple):
    """The distribution of the token after a hypothesis, on the host, without banned tokens."""

    ids: Int64[Tensor, " choices"] | None  # the tokens; None: the whole vocabulary
    scores: Float32[Tensor, " choices"]  # their processed scores
    log_probs: Float32[Tensor, " choices"]  # the model's own log-probabilities

    @classmethod
    def from_scores(
        cls, logits: Float32[Tensor, "1 vocab"], scores: Float32[Tensor, "1 vocab"]
    ) -> "NextTokens":
        """The distribution for the model's logits and the processed scores."""
        same = scores is logits
        log_probs, scores = logits[0].log_softmax(-1).cpu(), scores[0].cpu()
        allowed = scores > -torch.inf
        if allowed.all():
            return cls(None, log_probs if same else scores, log_probs)  # one copy of equal distributions
        ids = torch.arange(len(scores), device="cpu")[allowed]
        return cls(ids, scores[allowed], log_probs[allowed])

    def token(self, place: int) -> int:
        """The id of the token at a place."""
        return place if self.ids is None else int(self.ids[place])

    def probs(self) -> Float64[Tensor, " choices"]:
        """The probabilities."""
        return self.scores.double().softmax(-1)


@dataclass(eq=False)
class TrieNode:
    """A hypothesis in the trie."""

    history: History  # of one row
    stopping: Stopping
    token: int = -1
    log_prob: float = 0.0  # the model's own log-probability of that token, in nats
    log_mass: float = 0.0  # log-probability of the hypothesis under the distribution that is sampled from
    finish_code: int = 0  # 0: not finished
    unsampled: float = 1.0  # the fraction of its probability that is not sampled yet
    next_tokens: NextTokens | None = None  # None until the model computes it
    # The visited children, by their place in `next_tokens`.
    children: dict[int, "TrieNode"] = field(default_factory=dict)
    # The model's logits, for processors that must read the hypothesis again.
    logits: Float32[Tensor, "1 vocab"] | None = None
    memory: Memory = None  # memory of the processors after it, if it can be stored

    def unsampled_probs(self, next_tokens: NextTokens) -> Float64[Tensor, " choices"]:
        """The unsampled probability of each next token, as a fraction of the node's probability.

        A product, never a difference: small values keep all their digits, and a sampled leaf gets exactly 0.
        """
        probs = next_tokens.probs()
        for place, child in self.children.items():
            probs[place] *= child.unsampled
        return probs


class DrawnSample(NamedTuple):
    """A sample: the nodes of its tokens, and the unsampled probability before it was drawn."""

    nodes: list[TrieNode]
    unsampled: float


@dataclass(eq=False)
class Draw:
    """A draw that descends the trie."""

    number: int  # the number of draws started before
    path: list[TrieNode]  # the nodes so far; the first is the prompt's
    # Memory of the processors after a node of the path, where it cannot be stored in the trie.
    memory: tuple[TrieNode | None, Memory] | None = None
    finished: bool = False  # True if the last node is finished or has no next token

    @property
    def tokens(self) -> list[int]:
        """The new tokens so far."""
        return [node.token for node in self.path[1:]]


class UniqueRandomizer:
    """Samples without replacement from the continuations of one prompt.

    A draw descends from the root by unsampled probability, and waits at a node without a distribution of the
    next token. The draws of one round are independent. When all are finished, they are accepted in order and
    repetitions are rejected: rejection sampling of the remaining distribution.
    """

    def __init__(
        self, row: IndependentRow, processor: LogitsProcessor, seed: int, *, num_samples: int, parallel: int
    ) -> None:
        self.samples: list[DrawnSample] = []
        self.dead_ends: list[float] = []
        self.draws: list[Draw] = []
        self._row, self._processor = row, processor
        self._root = TrieNode(row.state.history, row.state.stopping)
        self._num_samples, self._parallel, self._num_draws = num_samples, parallel, 0
        self._seed = torch.tensor([seed], device="cpu")
        # Tensors are values and can be stored. Any other leaf may be a session of a second model, which
        # cannot go back and must read the hypothesis again.
        self._can_store = all(
            isinstance(leaf, Tensor | int | float | None) for leaf in tree_leaves(row.memory)
        )
        self._start_round()

    @property
    def unsampled(self) -> float:
        """The probability that is not sampled yet."""
        return self._root.unsampled

    def advance(self, draw: Draw, logits: Float32[Tensor, "1 vocab"]) -> None:
        """Continue a waiting draw with its logits.

        After the last draw of a round the next round starts, unless all samples are drawn.
        """
        node = draw.path[-1]
        if node.next_tokens is None:  # otherwise another draw waited at the same node
            row = self._row._replace(
                state=self._row.state._replace(history=node.history), memory=self._memory(draw)
            )
            row, scores = row.process(self._processor, logits)
            node.next_tokens = NextTokens.from_scores(logits, scores)
            if self._can_store:
                node.memory = row.memory
            else:
                draw.memory = (node, row.memory)
                node.logits = logits.clone()  # the session may reuse its buffer
        self._descend(draw)
        while self.draws and all(other.finished for other in self.draws):
            self._finish_round()
            self._start_round()

    def _start_round(self) -> None:
        self.draws = []
        if len(self.samples) < self._num_samples and self.unsampled > 0:
            numbers = range(self._num_draws, self._num_draws + self._parallel)
            self.draws = [Draw(number, [self._root]) for number in numbers]
            if self._num_draws == 0:  # the prompt's own memory serves one draw
                self.draws[0].memory = (None, self._row.memory)
            self._num_draws += self._parallel
        for draw in self.draws:
            self._descend(draw)

    def _descend(self, draw: Draw) -> None:
        """Move a draw down until it is finished or needs the model."""
        last = draw.path[-1]
        while not last.finish_code and last.next_tokens is not None and len(last.next_tokens.scores):
            last = self._sample_child(draw, last, last.next_tokens)
            draw.path.append(last)
        draw.finished = last.finish_code > 0 or last.next_tokens is not None

    def _sample_child(self, draw: Draw, node: TrieNode, next_tokens: NextTokens) -> TrieNode:
        """A child by unsampled probability."""
        stream = torch.tensor([draw.number], device="cpu")
        step = torch.tensor(len(draw.path) - 1, device="cpu")
        place = int(rng.draw_seeded(node.unsampled_probs(next_tokens)[None], self._seed, stream, step))
        if place not in node.children:
            node.children[place] = self._child(node, next_tokens, place)
        return node.children[place]

    def _child(self, node: TrieNode, next_tokens: NextTokens, place: int) -> TrieNode:
        token, device = next_tokens.token(place), node.history.tokens.device
        history = node.history.append(torch.tensor([token], device=device))
        log_prob = next_tokens.log_probs[place : place + 1]
        finish_code, stopping = self._row.state.limits.finish(history, log_prob.to(device), node.stopping)
        return TrieNode(
            history=history,
            stopping=stopping,
            token=token,
            log_prob=float(log_prob),
            log_mass=node.log_mass + math.log(float(next_tokens.probs()[place])),
            finish_code=int(finish_code),
        )

    def _finish_round(self) -> None:
        """Accept the new samples of a round, in order, and subtract their probability from the trie."""
        for draw in self.draws:
            *ancestors, last = draw.path
            if last.unsampled == 0 or len(self.samples) >= self._num_samples:
                continue
            if last.finish_code:
                self.samples.append(DrawnSample(draw.path[1:], self.unsampled))
            else:
                self.dead_ends.append(self.unsampled)
            last.unsampled = 0.0
            for node in reversed(ancestors):
                if node.next_tokens is not None:
                    node.unsampled = float(node.unsampled_probs(node.next_tokens).sum())

    def _memory(self, draw: Draw) -> Memory:
        """Memory of the processors before the logits that a draw waits for."""
        parent = draw.path[-2] if len(draw.path) > 1 else None
        if self._can_store:
            return self._row.memory if parent is None else parent.memory
        if draw.memory is not None and draw.memory[0] is parent:
            return draw.memory[1]
        memory = self._processor.init(self._root.history)
        for node in draw.path[:-1]:
            if node.logits is not None:
                _, memory = self._processor.apply(node.history, node.logits, memory)
        return memory


def _extended(prompt: Prompt, numbers: list[int], tokens: list[list[int]]) -> Prompt:
    """Some of the prompts, each with new tokens, equally many for all."""
    some = prompt.take(torch.tensor(numbers))
    new = torch.tensor(tokens, dtype=torch.long, device=some.tokens.device).view(len(numbers), -1)
    mask = torch.ones_like(new, dtype=torch.bool)
    return replace(some, tokens=torch.cat([some.tokens, new], 1), mask=torch.cat([some.mask, mask], 1))


def _decoded(
    tries: list[UniqueRandomizer], number: int, limits: Limits, device: torch.device
) -> Decoded[SampledMass]:
    """The result, `number` samples per prompt, in the order in which they were drawn."""
    raise_if_all_banned(torch.tensor([not trie.samples for trie in tries]))
    log_masses = torch.full((len(tries), number), -torch.inf, dtype=torch.float64)
    unsampled = torch.zeros_like(log_masses)
    finished: list[list[FinishedHypothesis]] = [[] for _ in tries]
    for prompt, trie in enumerate(tries):
        for rank, (nodes, before) in enumerate(trie.samples):
            log_masses[prompt, rank], unsampled[prompt, rank] = nodes[-1].log_mass, before
            tokens, log_probs = [node.token for node in nodes], [node.log_prob for node in nodes]
            finished[prompt].append(FinishedHypothesis(tokens, log_probs, nodes[-1].finish_code, 0.0))
    report = SampledMass(
        log_probs=log_masses,
        unsampled=unsampled,
        remaining=torch.tensor([trie.unsampled for trie in tries], dtype=torch.float64),
        dead_ends=[trie.dead_ends for trie in tries],
    )
    out = decoded(finished, number, limits, device, rows_per_prompt=number).with_report(report)
    score = out.token_log_probs.double().sum(-1).float().masked_fill(~out.valid, -torch.inf)
    return replace(out, score=score)
