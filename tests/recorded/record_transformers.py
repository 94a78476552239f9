"""Records what transformers 4.55.4 answers, where later versions lost the algorithm: `transformers.json`.

In an environment of its own, from the root of the repository:

    python3 -m venv t455
    t455/bin/pip install torch==2.13.0 transformers==4.55.4 'huggingface_hub<1.0' 'tokenizers<0.22'
    t455/bin/python -m tests.recorded.record_transformers

A case is one call of `generate` on a batch of prompts, left-padded with 7. Beside what the batch gave
(`sequences`, without the prompt, and `scores`, transformers' own `sequences_scores`), a case holds what the
same call gave each prompt alone, where that differs (`alone`), and what was found out about it:

* `pad_matters`: the answer changes with the id of padding, which no text holds. Diverse beam search counts
  the padding of a group that has finished as a token chosen, and penalises it in the groups after it.
* `satisfied` (constrained beams): whether each sequence holds the constraints after the prompt. Where it
  is False, transformers returned what it was told not to; it also counts a phrase in the prompt as fulfilled.
* `ranks` (contrastive search): `[step][prompt]`, which of the k candidates was taken, 0 the most probable.
* `layers` (DoLa): `[step]`, the layer contrasted with. It is chosen for a whole batch at once, so DoLa is
  recorded one prompt at a time; `dola-batch` shows that a batch gives something else.

Where several tokens end a text, diverse and constrained beams write the first of them, whichever ended it.

Every answer was also computed in double precision: a case where that changes a token is not recorded.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from transformers.generation import utils
from transformers.generation.beam_constraints import DisjunctiveConstraint, PhrasalConstraint
from transformers.generation.beam_search import ConstrainedBeamSearchScorer

from tests.recorded.transformers_cases import Case, every_case

HERE = Path(__file__).parent


def load(name: str) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        HERE / "model" / name, torch_dtype=torch.float32
    ).eval()


def constraint(described: dict[str, Any]) -> PhrasalConstraint | DisjunctiveConstraint:
    if "phrase" in described:
        return PhrasalConstraint(described["phrase"])
    return DisjunctiveConstraint(described["any_of"])


def call(
    model: transformers.PreTrainedModel, case: Case, prompts: list[list[int]], pad: int | None = None
) -> transformers.utils.ModelOutput:
    """`generate` as the case says, with prompts padded on the left."""
    pad = case["pad"] if pad is None else pad
    width = max(map(len, prompts))
    rows = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    settings = dict(case["settings"])
    if "constraints" in settings:
        settings["constraints"] = [constraint(described) for described in settings["constraints"]]
    return model.generate(
        torch.tensor(rows),
        attention_mask=torch.tensor(mask),
        max_new_tokens=case["max_new_tokens"],
        eos_token_id=case["end"] or None,
        pad_token_id=pad,
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=model.dtype == torch.float32,  # diverse beams in double precision cannot
        **settings,
    )


def continuations(
    output: transformers.utils.ModelOutput, case: Case, prompts: list[list[int]]
) -> list[list[int]]:
    """What stands after the prompt in every row, up to the first end token."""
    kept = []
    for row in output.sequences[:, max(map(len, prompts)) :].tolist():
        ends = [place for place, token in enumerate(row) if token in case["end"]]
        kept.append(row[: ends[0] + 1] if ends else row)
    return kept


def rounded(scores: torch.Tensor) -> list[float]:
    return [float(f"{score:.7g}") for score in scores.tolist()]


class Watch:
    """Notes which candidate contrastive search takes, and which layer DoLa contrasts with."""

    def __init__(self) -> None:
        self.ranks: list[list[int]] = []
        self.layers: list[int] = []
        self._rank, self._filter, self._select = (
            utils._ranking_fast,
            utils._relative_top_filter,
            utils._dola_select_contrast,
        )

    def __enter__(self) -> Self:
        def rank(*arguments: Any) -> torch.Tensor:  # noqa: ANN401
            chosen = self._rank(*arguments)
            self.ranks.append(chosen.tolist())
            return chosen

        def select(layers: list[int], logits: dict[int, torch.Tensor], final: torch.Tensor) -> torch.Tensor:
            def noting(scores: torch.Tensor, base: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                self.layers.append(next(layer for layer in layers if logits[layer] is base))
                return self._filter(scores, base)

            utils._relative_top_filter = noting
            return self._select(layers, logits, final)

        utils._ranking_fast, utils._dola_select_contrast = rank, select
        return self

    def __exit__(self, *_: object) -> None:
        utils._ranking_fast, utils._relative_top_filter, utils._dola_select_contrast = (
            self._rank,
            self._filter,
            self._select,
        )


def forget_beam_indices() -> None:
    """Keeps transformers from a crash: constrained beams that fell short have no indices, the others have."""
    methods = {name: getattr(ConstrainedBeamSearchScorer, name) for name in ("process", "finalize")}
    for name, method in methods.items():

        @functools.wraps(method)
        def without(*arguments: Any, _method: Callable[..., Any] = method, **options: Any) -> Any:  # noqa: ANN401
            return _method(*arguments, **{**options, "beam_indices": None})

        setattr(ConstrainedBeamSearchScorer, name, without)


def holds(tokens: list[int], phrase: list[int]) -> bool:
    return any(tokens[start : start + len(phrase)] == phrase for start in range(len(tokens)))


def satisfied(tokens: list[int], settings: dict[str, Any]) -> bool:
    """Whether the tokens hold every phrase that is demanded, and one of every choice."""
    demanded = [
        words if isinstance(words[0], list) else [words] for words in settings.get("force_words_ids", [])
    ] + [known.get("any_of", [known.get("phrase")]) for known in settings.get("constraints", [])]
    return all(any(holds(tokens, phrase) for phrase in phrases) for phrases in demanded)


def record(models: dict[str, tuple[Any, Any]], case: Case) -> Case | None:
    """The case with its answer, or None where double precision answers something else."""
    model, double = models[case["model"]]
    prompts = case["prompts"]
    with Watch() as watch:
        output = call(model, case, prompts)
    sequences = continuations(output, case, prompts)
    if sequences != continuations(call(double, case, prompts), case, prompts):
        return None
    answer: Case = {"sequences": sequences}
    beam_scores = getattr(output, "sequences_scores", None)
    if beam_scores is not None:
        answer["scores"] = rounded(beam_scores)
    singles = [call(model, case, [prompt]) for prompt in prompts] if len(prompts) > 1 else [output]
    alone = [
        tokens
        for prompt, single in zip(prompts, singles, strict=True)
        for tokens in continuations(single, case, [prompt])
    ]
    if alone != sequences:
        answer["alone"] = alone
        if beam_scores is not None:
            answer["alone_scores"] = [
                score for single in singles for score in rounded(single.sequences_scores)
            ]
    if case["kind"] == "group_beam":
        others = [continuations(call(model, case, prompts, pad), case, prompts) for pad in (13, 26, 38)]
        answer["pad_matters"] = any(other != sequences for other in others)
    if case["kind"] == "constrained":
        answer["satisfied"] = [satisfied(tokens, case["settings"]) for tokens in sequences]
    answer |= {"ranks": watch.ranks} if watch.ranks else {}
    answer |= {"layers": watch.layers} if watch.layers else {}
    return {**case, "answer": answer}


def main() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    forget_beam_indices()
    models = {name: (load(name), load(name).double()) for name in ("gpt2", "gpt2-untied")}
    recorded = [answered for case in every_case() if (answered := record(models, case))]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in recorded)
    library = f"transformers {transformers.__version__}, torch {torch.__version__}"
    text = f'{{"library": "{library}", "cases": [\n{lines}\n]}}\n'
    (HERE / "transformers.json").write_text(text)


if __name__ == "__main__":
    main()
