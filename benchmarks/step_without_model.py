"""What does a step cost beside the model, next to that of `model.generate()`?

    python benchmarks/step_without_model.py      # writes the "cpu" part of results/step_without_model.json

The model costs nothing: it has one row of random scores for each row, whatever was said. So what is measured
is the processors alone, or all that a step does: processors, the choice of tokens, histories, finished
hypotheses. Both see the same scores in one run, in turns; where they do not choose the same there is no
result. A table shows the medians and their ratio; the JSON has the quartiles, the device and the versions.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import transformers.generation.logits_process as hf
import typer
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput

import decodekit as dk

SEED = 0
RESULTS = Path(__file__).parent / "results"
PROMPTS, ROWS, LENGTH = 8, 8, 512  # rows of each prompt
LINE = "{:64} {:>16} {:>13} {:>7} {:>6}"


@dataclass(frozen=True)
class Work:
    """One thing to be done in two ways.

    Attributes:
        name: What it is.
        decoder: "" for the processors alone, or "beams" or "samples" for whole steps.
        top_k: Of a processor before top-p; 0 for none.
        scale: How far apart the random scores are: their standard deviation.
        is_rounded: Whether they are those of a model in bfloat16, of which many are tied.
        bar: decodekit's share of the time, at most, where one was set.
    """

    name: str
    decoder: str = ""
    top_k: int = 0
    scale: float = 1.0
    is_rounded: bool = False
    bar: float | None = None


WORKS = (
    Work("repetition penalty, top-p 0.9", bar=0.5),
    Work("repetition penalty, top-p 0.9, peaked scores", scale=4.0),
    Work("repetition penalty, top-p 0.9, scores from bfloat16", is_rounded=True),
    Work("repetition penalty, top-k 50, top-p 0.9", top_k=50),
    Work("a step of 8 beams: repetition penalty, top-p 0.9", "beams"),
    Work("a step of 8 samples: repetition penalty, top-p 0.9", "samples"),
    Work("a step of 8 samples: repetition penalty, top-k 50, top-p 0.9", "samples", top_k=50),
)
Run = Callable[[], Tensor]


class FreeModel:
    """A model that costs nothing, for decodekit."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple["FreeModel", Tensor]:
        """Itself, with the same logits at every step."""
        del prompt, rows_per_prompt, capacity
        return self, self.logits

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        """The same logits at every step."""
        del tokens, source_rows
        return self.logits


class FreeTransformer(transformers.PreTrainedModel, transformers.GenerationMixin):
    """The same for transformers."""

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Tensor) -> None:
        config = transformers.PretrainedConfig(vocab_size=logits.shape[-1], is_encoder_decoder=False)
        super().__init__(config)
        self.anchor = torch.nn.Parameter(logits[:1, :1].clone(), requires_grad=False)  # says where it is
        self.logits = logits

    def forward(self, input_ids: Tensor, **_: object) -> CausalLMOutput:
        """The same logits at every step."""
        del input_ids
        return CausalLMOutput(logits=self.logits[:, None])


def runs(work: Work, vocab: int, device: str, steps: int) -> dict[str, Run]:
    """Who is measured: functions that make `steps` steps, and return the last scores or the texts."""
    generator = torch.Generator().manual_seed(SEED)
    logits = work.scale * torch.randn(PROMPTS * ROWS, vocab, generator=generator).to(device)
    if work.is_rounded:
        logits = logits.bfloat16().float()
    theirs: list[Any] = [hf.RepetitionPenaltyLogitsProcessor(1.1)]
    ours: list[dk.LogitsProcessor] = [dk.RepetitionPenalty(1.1)]
    if work.top_k:
        theirs.append(hf.TopKLogitsWarper(work.top_k))
        ours.append(dk.TopK(work.top_k))
    theirs.append(hf.TopPLogitsWarper(0.9))
    ours.append(dk.TopP(0.9))
    if work.decoder:
        ids = torch.randint(0, vocab, (PROMPTS, LENGTH), generator=generator).to(device)
        return whole_steps(work, logits, ids, (theirs, ours), steps)
    ids = torch.randint(0, vocab, (PROMPTS * ROWS, LENGTH), generator=generator).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    history, chain = dk.Prompt(ids, mask).history(LENGTH, 1), dk.Chain(*ours)

    def processors_of_transformers() -> Tensor:
        for _ in range(steps):
            scores = transformers.LogitsProcessorList(theirs)(ids, logits)
        return scores

    def processors_of_decodekit() -> Tensor:
        for _ in range(steps):
            scores, _ = chain.apply(history, logits, chain.init(history))
        return scores

    return {"transformers": processors_of_transformers, "decodekit": processors_of_decodekit}


def whole_steps(
    work: Work, logits: Tensor, ids: Tensor, processors: tuple[list[Any], list[Any]], steps: int
) -> dict[str, Run]:
    """`runs` from logits to texts."""
    theirs, ours = processors
    model = FreeTransformer(logits)
    options: dict[str, Any] = {"do_sample": False, "num_beams": ROWS}
    decoder: dk.Decoder[Any] = dk.BeamSearch(ROWS)
    if work.decoder == "samples":
        options = {"do_sample": True, "top_k": 0, "num_return_sequences": ROWS}
        decoder = dk.Sample(ROWS)

    def generate() -> Tensor:
        torch.manual_seed(SEED)
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            pad_token_id=0,
            use_cache=False,
            logits_processor=transformers.LogitsProcessorList(theirs),
            **options,
        )

    def decode() -> Tensor:
        torch.manual_seed(SEED)
        free = FreeModel(logits)
        return dk.decode(free, ids, decoder, ours, max_new_tokens=steps, end_ids=(), pad_id=0).sequences

    return {"transformers": generate, "decodekit": decode}


def wait(device: str) -> None:
    """Until the device has done what it was asked."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure(work: Work, vocab: int, device: str, repeats: int, steps: int) -> dict[str, list[float]]:
    """Milliseconds of a step in every run, the contenders in turns, after one run each to warm up."""
    contenders = runs(work, vocab, device, steps)
    first, second = (run() for run in contenders.values())
    if not torch.equal(first, second):
        raise SystemExit(f"{work.name}: what is chosen differs, so the times mean nothing.")
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return times


def summary(work: Work, times: dict[str, list[float]]) -> dict[str, Any]:
    """The work with medians, quartiles and the ratio of the medians."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    quartiles = {
        name: statistics.quantiles(values, n=4, method="inclusive") for name, values in times.items()
    }
    return {
        **asdict(work),
        "median_ms": {name: round(value, 3) for name, value in medians.items()},
        "quartiles_ms": {name: [round(low, 3), round(high, 3)] for name, (low, _, high) in quartiles.items()},
        "ratio": round(medians["decodekit"] / medians["transformers"], 3),
    }


def main(
    repeats: Annotated[int, typer.Option(help="Timed runs of each contender.")] = 5,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 3,
    vocab: Annotated[int, typer.Option(help="Tokens to choose from.")] = 151936,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    device: Annotated[str, typer.Option(help="Where to run: cpu or cuda.")] = "cpu",
    out: Annotated[Path, typer.Option(help="The JSON file; other devices' parts of it stay.")] = (
        RESULTS / "step_without_model.json"
    ),
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    print(LINE.format("work", "transformers ms", "decodekit ms", "ratio", "bar"))
    rows = []
    for work in WORKS:
        with torch.inference_mode():
            found = summary(work, measure(work, vocab, device, repeats, steps))
        rows.append(found)
        medians = (f"{found['median_ms'][name]:.1f}" for name in ("transformers", "decodekit"))
        bar = "" if work.bar is None else f"{work.bar:.2f}"
        print(LINE.format(work.name, *medians, f"{found['ratio']:.2f}", bar), flush=True)
    machine = torch.cuda.get_device_name() if device == "cuda" else f"{threads} threads, {platform.machine()}"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    record = json.loads(out.read_text()) if out.exists() else {}
    record[device] = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": machine,
        "versions": versions | {"python": platform.python_version()},
        "seed": SEED,
        "repeats": repeats,
        "steps": steps,
        "rows": [PROMPTS, ROWS],
        "length": LENGTH,
        "vocabulary": vocab,
        "work": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
