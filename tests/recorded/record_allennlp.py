"""Records stochastic beam search as AllenNLP does it: `allennlp.json`.

The program is AllenNLP's beam search in the one file that OLMo took over; only that file is loaded. It needs
PyTorch alone, so the project's environment does:

    pip download --no-deps ai2-olmo==0.6.0 -d olmo
    unzip olmo/ai2_olmo-0.6.0-py3-none-any.whl olmo/beam_search.py
    python -m tests.recorded.record_allennlp olmo/beam_search.py

The models are matrices of transition probabilities (`matrices`: `[last][next]`, as `dk.testing.MarkovModel`
takes them); token 0 ends a text. Most searches start from a batch of the prompts `[[1], [2], ...]`. Kinds:

* `gumbel`: `noise` maps what was written so far ("" or "3,1") to the standard Gumbel noise that was drawn for
  its next tokens, `[prompt][text][next]`. Whoever adds the same noise must find the same `sequences`: the
  search is a deterministic function of it. `perturbed` are their perturbed log-probabilities G, by which they
  were chosen; `scores` their log-probabilities, by which they are ordered.
* `inclusion`: for every text how often it was among the k returned (`counts`), over `draws` searches
  at a fixed seed, and `exact`, the probability of that by enumeration: k draws without replacement from the
  distribution over whole texts.
* `beam`: the deterministic sampler, with a limit on the candidates of a node (`per_node`). Where there is a
  `length_penalty`, the log-probability over (length with the end token) ** penalty orders what is returned;
  the search itself goes by log-probability.

A sequence is written up to the end token; a text that ended stays in its beam, at no cost. The first step
takes the best of all tokens, whatever `per_node` says.

Oddities: with a `temperature`, the first step and the parents' log-probabilities stay untempered, so that the
search does not sample without replacement from the tempered model; none is recorded. With `per_node` below
the number of beams a child that belongs among the best k can be lost; some `gumbel` cases have it. Beams are
sorted by log-probability after every step, which changes nothing but the rows.
"""

import importlib.util
import itertools
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
END = 0
MATRICES = {
    "three": [[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.35, 0.25, 0.4]],
    "four": [
        [1.0, 0.0, 0.0, 0.0],
        [0.15, 0.1, 0.45, 0.3],
        [0.3, 0.5, 0.05, 0.15],
        [0.25, 0.2, 0.2, 0.35],
    ],
    "skewed": [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.02, 0.9, 0.04, 0.03, 0.01],
        [0.6, 0.1, 0.1, 0.15, 0.05],
        [0.05, 0.05, 0.7, 0.12, 0.08],
        [0.3, 0.01, 0.09, 0.2, 0.4],
    ],
}


def load(path: str) -> ModuleType:
    """The file as a module, without the package around it."""
    spec = importlib.util.spec_from_file_location("allennlp_beam_search", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def cut(tokens: list[int]) -> tuple[int, ...]:
    """A text up to its end token."""
    return tuple(tokens[: tokens.index(END) + 1] if END in tokens else tokens)


def numbers(values: Tensor) -> list[Any]:
    return [numbers(value) if value.ndim else float(f"{value.item():.7g}") for value in values]


class Search:
    """One kind of search over one matrix."""

    def __init__(self, allennlp: ModuleType, matrix: str, sampler: Any, settings: dict[str, Any]) -> None:  # noqa: ANN401
        self.log_probs = torch.tensor(MATRICES[matrix], dtype=torch.float64).log()
        self.beam_search = allennlp.BeamSearch(END, sampler=sampler, **settings)

    def __call__(self, prompts: Tensor) -> tuple[Tensor, Tensor]:
        def step(last: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            return self.log_probs[last], state

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self.beam_search.search(prompts, {}, step)


def noting_sampler(allennlp: ModuleType, seed: int) -> Any:  # noqa: ANN401
    """A Gumbel sampler that keeps the noise it drew, with as many digits as are written down."""

    class Noting(allennlp.GumbelSampler):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.noise: list[Tensor] = []
            self.chosen: list[Tensor] = []
            self.perturbed = torch.empty(0)
            self.generator = torch.Generator().manual_seed(seed)

        def gumbel(self, phi: Tensor) -> Tensor:
            uniform = torch.rand(phi.shape, generator=self.generator, dtype=phi.dtype)
            noise = torch.tensor(numbers(-(-uniform.log()).log()), dtype=phi.dtype)
            self.noise.append(noise)
            return noise + phi

        def sample_beams(self, log_probs: Tensor, beams: int, state: Any) -> Any:  # noqa: ANN401
            scores, indices, state = super().sample_beams(log_probs, beams, state)
            self.chosen.append(indices)
            self.perturbed = state["G_phi_S"].view(-1, beams)
            return scores, indices, state

        def sample_nodes(self, log_probs: Tensor, per_node: int, state: Any) -> Any:  # noqa: ANN401
            scores, tokens, state = super().sample_nodes(log_probs, per_node, state)
            self.chosen.append(tokens)
            return scores, tokens, state

    return Noting()


def noise_by_text(sampler: Any, prompts: int, beams: int, per_node: int) -> list[dict[str, list[float]]]:  # noqa: ANN401
    """The noise of every text of the beam, prompt by prompt."""
    noise: list[dict[str, list[float]]] = [{} for _ in range(prompts)]
    for prompt in range(prompts):
        noise[prompt][""] = numbers(sampler.noise[0][prompt])
        texts = [[token] for token in sampler.chosen[0][prompt].tolist()]
        for step, drawn in enumerate(sampler.noise[1:]):
            for beam, text in enumerate(texts):
                if text[-1] != END:
                    noise[prompt][",".join(map(str, text))] = numbers(drawn[prompt * beams + beam])
            tokens = sampler.chosen[2 * step + 1].view(prompts, -1)[prompt].tolist()
            places = sampler.chosen[2 * step + 2][prompt].tolist()
            texts = [[*texts[place // per_node], tokens[place]] for place in places]
    return noise


def gumbel(allennlp: ModuleType) -> Iterator[dict[str, Any]]:
    grid = itertools.product(MATRICES, ((2, 2, 2), (2, 2, 4), (3, 3, 3), (3, 2, 4), (3, 3, 5)), range(3))
    for matrix, (beams, per_node, steps), seed in grid:
        sampler = noting_sampler(allennlp, seed)
        settings = {"beam_size": beams, "per_node_beam_size": per_node, "max_steps": steps}
        prompts = torch.arange(1, len(MATRICES[matrix]))
        sequences, scores = Search(allennlp, matrix, sampler, settings)(prompts)
        yield {
            "kind": "gumbel",
            "matrix": matrix,
            "prompts": prompts[:, None].tolist(),
            "beams": beams,
            "per_node": per_node,
            "steps": steps,
            "noise": noise_by_text(sampler, len(prompts), beams, per_node),
            "sequences": [[cut(tokens) for tokens in prompt] for prompt in sequences.tolist()],
            "scores": numbers(scores),
            "perturbed": numbers(sampler.perturbed),
        }


def texts(log_probs: Tensor, last: int, steps: int) -> dict[tuple[int, ...], float]:
    """Every whole text after `last`, and its probability."""
    if steps == 0:
        return {(): 1.0}
    found = {}
    for token, probability in enumerate(log_probs[last].exp().tolist()):
        if probability:
            rest = {(): 1.0} if token == END else texts(log_probs, token, steps - 1)
            found |= {(token, *text): probability * one for text, one in rest.items()}
    return found


def exact_inclusion(
    probabilities: list[float], k: int, remaining: float = 1.0, weight: float = 1.0
) -> list[float]:
    """The probability of each to be among k draws without replacement, by enumerating the draws in order."""
    total = [0.0] * len(probabilities)
    for first, probability in enumerate(probabilities):
        if not probability:
            continue
        reached = weight * probability / remaining
        total[first] += reached
        if k > 1:
            others = [0.0 if index == first else one for index, one in enumerate(probabilities)]
            rest = exact_inclusion(others, k - 1, remaining - probability, reached)
            total = [one + more for one, more in zip(total, rest, strict=True)]
    return total


def inclusion(allennlp: ModuleType, draws: int = 20_000) -> Iterator[dict[str, Any]]:
    grid = (("three", 2, 3, 1), ("three", 3, 3, 2), ("four", 2, 3, 1), ("four", 3, 2, 3), ("skewed", 3, 2, 1))
    for seed, (matrix, beams, steps, last) in enumerate(grid):
        torch.manual_seed(seed)
        settings = {"beam_size": beams, "max_steps": steps}
        search = Search(allennlp, matrix, allennlp.GumbelSampler(), settings)
        counts: dict[tuple[int, ...], int] = {}
        sequences, _ = search(torch.full((draws,), last))
        for tokens in sequences.flatten(0, 1).tolist():
            counts[cut(tokens)] = counts.get(cut(tokens), 0) + 1
        known = texts(search.log_probs, last, steps)
        chances = exact_inclusion(list(known.values()), beams)
        yield {
            "kind": "inclusion",
            "matrix": matrix,
            "prompts": [[last]],
            "beams": beams,
            "per_node": beams,
            "steps": steps,
            "draws": draws,
            "sequences": [list(known)],
            "probabilities": numbers(torch.tensor(list(known.values()), dtype=torch.float64)),
            "exact": numbers(torch.tensor(chances, dtype=torch.float64)),
            "counts": [counts.pop(text, 0) for text in known],
        }
        assert not counts


def beam(allennlp: ModuleType) -> Iterator[dict[str, Any]]:
    widths = ((3, 1), (3, 2), (3, 3), (2, 1), (2, 2))
    for matrix, (beams, per_node), steps, power in itertools.product(MATRICES, widths, (3, 5), (None, 1.0)):
        settings = {"beam_size": beams, "per_node_beam_size": per_node, "max_steps": steps}
        if power is not None:
            scorer = allennlp.LengthNormalizedSequenceLogProbabilityScorer(power)
            settings["final_sequence_scorer"] = scorer
        prompts = torch.arange(1, len(MATRICES[matrix]))
        sequences, scores = Search(allennlp, matrix, allennlp.DeterministicSampler(), settings)(prompts)
        yield {
            "kind": "beam",
            "matrix": matrix,
            "prompts": prompts[:, None].tolist(),
            "beams": beams,
            "per_node": per_node,
            "steps": steps,
            "length_penalty": power,
            "sequences": [[cut(tokens) for tokens in prompt] for prompt in sequences.tolist()],
            "scores": numbers(scores),
        }


def main() -> None:
    allennlp = load(sys.argv[1])
    recorded = itertools.chain(gumbel(allennlp), inclusion(allennlp), beam(allennlp))
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in recorded)
    library = f"ai2-olmo 0.6.0, torch {torch.__version__}"
    head = f'"library": "{library}", "matrices": {json.dumps(MATRICES)}, "end": {END}'
    (HERE / "allennlp.json").write_text(f'{{{head}, "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
