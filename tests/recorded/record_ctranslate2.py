"""Records beam search with patience and with a coverage penalty as CTranslate2 does it: `ctranslate2.json`.

In an environment of its own, from the root of the repository:

    python3 -m venv ct2
    ct2/bin/pip install torch==2.13.0 transformers==5.23.0 ctranslate2==4.8.5
    ct2/bin/python -m tests.recorded.record_ctranslate2

The models of `model/` are converted in float32, with `t0`, `t1`, ... for words; no tokenizer is needed. A
case is one batch; `settings` are CTranslate2's own arguments (and no minimum of length: it would ban the end
token from the softmax of the first step). Of every prompt the best hypotheses come back, with their scores,
written up to and with the end token. `alone` and `alone_scores` are what each prompt gave by itself, where
that differs: in a batch on the CPU, prompt number b, in the order of lengths, is given the first step's
attention of prompt b // beam_size, so that a coverage penalty is right for single prompts only.

What CTranslate2 computes, as its source says and as `test_recorded.py` reproduces:

* Beams go by the plain sum of log-probabilities. No penalty takes part in the search.
* Each step looks at the best 2k of k * vocabulary continuations. One of the best k that ends (at the last
  step: every one of the best k) becomes a hypothesis; the next of the others that does not end replaces it.
* Patience: the search is over with round(k * patience) hypotheses, or at the last step. But where neither
  penalty is set, it is over as soon as the best candidate of some step has ended and `num_hypotheses` are
  there, and patience means nothing.
* Scores are made at the end: sum / length ** length_penalty + coverage_penalty * coverage. All hypotheses
  that were collected are ranked by them, so patience can change which is first.
* Length counts the end token, whether it is shown (`return_end_token`) or not.
* Coverage is the sum over source positions, the source's end token among them, of log(min(1, attention)), the
  attention being that of the first head of the last layer, summed over the steps of the hypothesis, the one
  of the end token among them. Positions of coverage 0 are left out.
"""

import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ctranslate2
import torch
import transformers
from ctranslate2.converters.transformers import GPT2Loader, MarianMTLoader

HERE = Path(__file__).parent
VOCAB = 40
NEW = 10
CLOSE = 1e-4  # scores of one prompt, computed in batches of different shapes
SOURCES = [[3, 14, 15, 0], [9, 2, 6, 5, 22, 0], [35, 8, 0], [29, 31, 1, 12, 20, 4, 0]]
MORE_SOURCES = [[11, 11, 7, 30, 0], [5, 17, 0], [24, 33, 10, 2, 38, 19, 0]]
PROMPTS = [[3, 14, 15], [9, 2, 6], [35, 8, 21]]

Case = dict[str, Any]
Hypotheses = list[tuple[list[list[int]], list[float]]]


def convert(name: str, folder: str) -> ctranslate2.Translator | ctranslate2.Generator:
    """A model of `model/` as CTranslate2 runs it."""
    seq2seq = name == "marian"
    kind = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    loader = MarianMTLoader() if seq2seq else GPT2Loader()
    with torch.no_grad():
        spec = loader.get_model_spec(kind.from_pretrained(HERE / "model" / name, dtype=torch.float32))
    # Marian's last row is padding, which the loader takes away.
    loader.set_vocabulary(spec, [f"t{token}" for token in range(VOCAB - seq2seq)])
    for special in ("bos_token", "eos_token", "unk_token", *(["decoder_start_token"] if seq2seq else [])):
        setattr(spec.config, special, "t0")
    spec.validate()
    spec.optimize(quantization="float32")
    Path(folder).mkdir()
    spec.save(folder)
    options = {"compute_type": "float32", "inter_threads": 1, "intra_threads": 1}
    return (ctranslate2.Translator if seq2seq else ctranslate2.Generator)(folder, **options)


def words(tokens: list[int]) -> list[str]:
    return [f"t{token}" for token in tokens]


def ids(tokens: list[str]) -> list[int]:
    return [int(token[1:]) for token in tokens]


def run(engine: Any, case: Case, prompts: list[list[int]]) -> Hypotheses:  # noqa: ANN401
    """Tokens and scores of every prompt's hypotheses."""
    texts = [words(prompt) for prompt in prompts]
    settings = {**case["settings"], "return_scores": True}
    if case["model"] == "marian":
        lengths = {"min_decoding_length": 0, "max_decoding_length": case["max_new_tokens"]}
        results = engine.translate_batch(texts, **lengths, **settings)
        return [([ids(one) for one in result.hypotheses], result.scores) for result in results]
    settings |= {"end_token": words(case["end"]), "include_prompt_in_result": False}
    results = engine.generate_batch(texts, max_length=case["max_new_tokens"], **settings)
    return [(result.sequences_ids, result.scores) for result in results]


def ended(tokens: list[int], case: Case) -> list[int]:
    """The tokens, with the end token that CTranslate2 leaves out unless it is asked for it."""
    whole = len(tokens) == case["max_new_tokens"] or tokens[-1:] == case["end"]
    return tokens if whole else tokens + case["end"]


def flat(results: Hypotheses, case: Case) -> tuple[list[list[int]], list[float]]:
    sequences = [ended(tokens, case) for hypotheses, _ in results for tokens in hypotheses]
    return sequences, [float(f"{score:.7g}") for _, scores in results for score in scores]


def record(engines: dict[str, Any], case: Case) -> Case:
    engine, prompts = engines[case["model"]], case["prompts"]
    sequences, scores = flat(run(engine, case, prompts), case)
    answer: Case = {"sequences": sequences, "scores": scores}
    alone = flat([run(engine, case, [prompt])[0] for prompt in prompts], case)
    if alone[0] != sequences or any(abs(x - y) > CLOSE for x, y in zip(alone[1], scores, strict=True)):
        answer |= {"alone": alone[0], "alone_scores": alone[1]}
    return {**case, "answer": answer}


def every_case() -> Iterator[Case]:
    marian = {"model": "marian", "end": [0], "pad": VOCAB - 1, "max_new_tokens": NEW}
    gpt2 = {"prompts": PROMPTS, "end": [18], "pad": 7, "max_new_tokens": NEW}
    for prompts in (SOURCES, MORE_SOURCES):
        yield {"kind": "greedy", "prompts": prompts, **marian, "settings": {"beam_size": 1}}
        grid = itertools.product(
            (2, 4, 5), (1.0, 1.5, 2.0), (0.0, 0.2, 0.5, 1.0), (0.0, 0.6, 1.0), (False, True)
        )
        for number, (beams, patience, coverage, length, ends) in enumerate(grid):
            settings = {
                "beam_size": beams,
                "patience": patience,
                "coverage_penalty": coverage,
                "length_penalty": length,
                "num_hypotheses": (1, 2, beams)[number % 3],
                "return_end_token": ends,
            }
            if (number // 2 + ends + (prompts is SOURCES)) % 2:
                yield {"kind": "beam", "prompts": prompts, **marian, "settings": settings}
    for model in ("gpt2", "gpt2-untied"):
        yield {"kind": "greedy", "model": model, **gpt2, "settings": {"beam_size": 1}}
        for beams, patience, length in itertools.product((2, 4, 5), (1.0, 1.5, 2.0), (0.0, 0.6, 1.0)):
            settings = {
                "beam_size": beams,
                "patience": patience,
                "length_penalty": length,
                "num_hypotheses": beams,
                "return_end_token": True,
            }
            yield {"kind": "beam", "model": model, **gpt2, "settings": settings}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        engines = {name: convert(name, f"{folder}/{name}") for name in ("gpt2", "gpt2-untied", "marian")}
        recorded = [record(engines, case) for case in every_case()]
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in recorded)
    library = f"ctranslate2 {ctranslate2.__version__}, transformers {transformers.__version__}"
    (HERE / "ctranslate2.json").write_text(f'{{"library": "{library}", "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
