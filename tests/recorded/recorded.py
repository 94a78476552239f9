"""The recorded answers of other libraries, and the models that gave them."""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float64, Int64
from torch import Tensor

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """One call, and its answer: what stands after the prompt, prompt-major, up to and with the end token.

    `alone` is what each prompt gave by itself: compare with that where a batch must not matter. `found` holds
    whatever else a recording script writes down; its docstring says what.
    """

    kind: str
    model: str
    prompts: list[list[int]]
    settings: dict[str, Any]
    end: list[int]
    pad: int
    max_new_tokens: int
    sequences: list[list[int]]
    scores: list[float] | None
    alone: list[list[int]]
    alone_scores: list[float] | None
    found: dict[str, Any]

    @property
    def per_prompt(self) -> int:
        return len(self.sequences) // len(self.prompts)

    @property
    def bodies(self) -> list[list[int]]:
        """`alone` without the end token: diverse and constrained beams write the first one for any."""
        return [tokens[:-1] if tokens[-1:] and tokens[-1] in self.end else tokens for tokens in self.alone]

    def padded(self) -> tuple[Int64[Tensor, "prompts columns"], Int64[Tensor, "prompts columns"]]:
        """The prompts padded on the left, or a source on the right, and their attention mask."""
        width = max(map(len, self.prompts))
        rows = [[self.pad] * (width - len(prompt)) + prompt for prompt in self.prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in self.prompts]
        if self.model == "marian":
            rows = [prompt + [self.pad] * (width - len(prompt)) for prompt in self.prompts]
            mask = [row[::-1] for row in mask]
        return torch.tensor(rows), torch.tensor(mask)

    def __str__(self) -> str:
        settings = "-".join(f"{name}={value}" for name, value in self.settings.items())
        return f"{self.kind}-{self.model}-{len(self.prompts)}-{self.end}-{settings}".replace(" ", "")


def case(described: dict[str, Any]) -> Case:
    answer = dict(described["answer"])
    sequences, scores = answer.pop("sequences"), answer.pop("scores", None)
    return Case(
        **{name: value for name, value in described.items() if name != "answer"},
        sequences=sequences,
        scores=scores,
        alone=answer.pop("alone", sequences),
        alone_scores=answer.pop("alone_scores", scores),
        found=answer,
    )


@dataclass(frozen=True)
class MarkovCase:
    """A search of AllenNLP over a matrix of transition probabilities: `dk.testing.MarkovModel(matrix, (0,))`.

    `sequences[prompt][beam]` end with the end token, 0, or at `steps` tokens. `found` holds the rest.
    """

    kind: str
    matrix: list[list[float]]
    prompts: list[list[int]]
    beams: int
    per_node: int
    steps: int
    sequences: list[list[list[int]]]
    found: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.kind}-{len(self.matrix)}-{self.beams}-{self.per_node}-{self.steps}"


@functools.cache
def read(library: str) -> dict[str, Any]:
    """The whole file of a library: `transformers`, `allennlp` or `ctranslate2`."""
    return dict(json.loads((HERE / f"{library}.json").read_text()))


def cases(library: str, *kinds: str) -> list[Case]:
    """The calls of transformers or CTranslate2, of these kinds, or of all."""
    described = read(library)["cases"]
    return [case(one) for one in described if not kinds or one["kind"] in kinds]


def markov_cases(*kinds: str) -> list[MarkovCase]:
    """AllenNLP's searches: `gumbel`, `inclusion`, `beam`."""
    file, made = read("allennlp"), []
    for described in file["cases"]:
        named = ("kind", "prompts", "beams", "per_node", "steps", "sequences")
        found = {name: value for name, value in described.items() if name not in (*named, "matrix")}
        matrix = file["matrices"][described["matrix"]]
        made.append(MarkovCase(**{name: described[name] for name in named}, matrix=matrix, found=found))
    return [case for case in made if not kinds or case.kind in kinds]


@functools.cache
def model(name: str, dtype: torch.dtype = torch.float32) -> transformers.PreTrainedModel:
    """A model of `model/`: `gpt2`, `gpt2-untied` or `marian`. Shared: do not change it."""
    kind = transformers.AutoModelForSeq2SeqLM if name == "marian" else transformers.AutoModelForCausalLM
    # eager, so that it can hand out its attention
    return kind.from_pretrained(HERE / "model" / name, dtype=dtype, attn_implementation="eager").eval()


def punished(case: Case, scores: Float64[Tensor, " vocab"], tokens: list[int]) -> Float64[Tensor, " vocab"]:
    """The repetition penalty and the blocked n-grams of a case, written out."""
    scores, penalty = scores.clone(), case.settings.get("repetition_penalty", 1.0)
    for token in set(tokens):
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    size = case.settings.get("no_repeat_ngram_size", 0)
    for start in range(len(tokens) - size + 1 if size else 0):
        if tokens[start : start + size - 1] == tokens[len(tokens) - size + 1 :]:
            scores[tokens[start + size - 1]] = -math.inf
    return scores
