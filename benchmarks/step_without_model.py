"""What does a step cost beside the model, next to that of `model.generate()`?

    python benchmarks/step_without_model.py     # writes the "cpu" part of results/step_without_model.json
    python benchmarks/step_without_model.py --device cuda

The model costs nothing: it has one row of random scores for each row, whatever was said. So what is measured
is the processors alone, or all that a step does: processors, the choice of tokens, histories, finished
hypotheses. Both see the same scores in one run, in turns; where they do not choose the same there is no
result. A table shows the medians and their ratio; the JSON has the quartiles, the device, the versions and
the floor: reading the scores once, at the bandwidth measured in the same run.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
import transformers
import transformers.generation.logits_process as hf
import typer
from command_line import Capture, Device, Note, Out, Quick, Repeats, Threads
from floor import bandwidth
from measuring import in_turns
from record import SEED, circumstances, place, summary, write_part
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutput
from works import STEP_BARS, STEP_ROWS, STEP_VOCABULARY

import decodekit as dk

PROMPTS, ROWS = STEP_ROWS
LENGTH = 512
_CPU, _CUDA = ({device: STEP_BARS[device]} for device in ("cpu", "cuda"))
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
        bars: decodekit's share of the time, at most, by device, where one was set.
    """

    name: str
    decoder: str = ""
    top_k: int = 0
    scale: float = 1.0
    is_rounded: bool = False
    bars: dict[str, float] = field(default_factory=dict)


WORKS = (
    Work("repetition penalty, top-p 0.9", bars=_CPU),
    Work("repetition penalty, top-p 0.9, peaked scores", scale=4.0),
    Work("repetition penalty, top-p 0.9, scores from bfloat16", is_rounded=True),
    Work("repetition penalty, top-k 50, top-p 0.9", top_k=50),
    Work("a step of 8 beams: repetition penalty, top-p 0.9", "beams", bars=_CUDA),
    Work("a step of 8 samples: repetition penalty, top-p 0.9", "samples", bars=_CUDA),
    Work("a step of 8 samples: repetition penalty, top-k 50, top-p 0.9", "samples", top_k=50),
)
Contender = Callable[[], Tensor]


class FreeModel:
    """A model that costs nothing, for decodekit."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple["FreeModel", Tensor]:
        """Itself, with the same logits at every step."""
        del prompt, rows_per_prompt, capacity
        return self, self.logits

    def start_captured(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["FreeModel", Tensor]:
        """The same: there is nothing to record."""
        return self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        """The same logits at every step."""
        del tokens, source_rows
        return self.logits


class FreeTransformer(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
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


def runs(work: Work, vocab: int, device: str, steps: int, *, capture: bool = False) -> dict[str, Contender]:
    """Who is measured: functions that make `steps` steps, and return the last scores or the texts.

    Args:
        work: What is done.
        vocab: Tokens to choose from.
        device: Where.
        steps: How often.
        capture: Whether decodekit replays a captured step, where whole steps are done.
    """
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
        return whole_steps(work, logits, ids, (theirs, ours), steps, {"capture": True} if capture else {})
    ids = torch.randint(0, vocab, (PROMPTS * ROWS, LENGTH), generator=generator).to(device)
    mask = torch.ones_like(ids, dtype=torch.bool)
    history, chain = dk.Prompt(ids, mask).history(LENGTH, 1), dk.Chain(*ours)

    def processors_of_transformers() -> Tensor:
        scores = logits
        for _ in range(steps):
            scores = transformers.LogitsProcessorList(theirs)(ids, logits)
        return scores

    def processors_of_decodekit() -> Tensor:
        for _ in range(steps):
            scores, _ = chain.apply(history, logits, chain.init(history))
        return scores

    return {"transformers": processors_of_transformers, "decodekit": processors_of_decodekit}


def whole_steps(
    work: Work,
    logits: Tensor,
    ids: Tensor,
    processors: tuple[list[Any], list[Any]],
    steps: int,
    ours_only: dict[str, Any],
) -> dict[str, Contender]:
    """`runs` from logits to texts; `ours_only` are options of decodekit."""
    theirs, ours = processors
    model = FreeTransformer(logits)
    options: dict[str, Any] = {"do_sample": False, "num_beams": ROWS}
    decoder: dk.Decoder[Any] = dk.BeamSearch(ROWS)
    if work.decoder == "samples":
        options = {"do_sample": True, "top_k": 0, "num_return_sequences": ROWS}
        decoder = dk.Sample(ROWS)

    def generate() -> Tensor:
        torch.manual_seed(SEED)
        texts: Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=steps,
            pad_token_id=0,
            use_cache=False,
            logits_processor=transformers.LogitsProcessorList(theirs),
            **options,
        )
        return texts

    def decode() -> Tensor:
        torch.manual_seed(SEED)
        free = FreeModel(logits)
        options: dict[str, Any] = {"max_new_tokens": steps, "end_ids": (), "pad_id": 0} | ours_only
        return dk.decode(free, ids, decoder, ours, **options).sequences

    return {"transformers": generate, "decodekit": decode}


def measure(
    contenders: dict[str, Contender],
    name: str,
    device: str,
    repeats: int,
    steps: int,
    *,
    captured: bool = False,
) -> tuple[dict[str, list[float]], bool]:
    """Milliseconds of a step in every run, in turns, after one run each, and whether both chose the same.

    A captured step draws other random numbers: it alone may choose something else.
    """
    first, second = (run() for run in contenders.values())
    is_same = torch.equal(first, second)
    if not is_same and not captured:
        raise SystemExit(f"{name}: what is chosen differs, so the times mean nothing.")
    times = in_turns(contenders, repeats, device)
    return {who: [1e3 * value / steps for value in values] for who, values in times.items()}, is_same


def main(
    *,
    repeats: Repeats = 5,
    steps: Annotated[int, typer.Option(help="Steps of a run.")] = 3,
    vocab: Annotated[int, typer.Option(help="Tokens to choose from.")] = STEP_VOCABULARY,
    threads: Threads = 2,
    device: Device = "cpu",
    capture: Capture = True,
    note: Note = "",
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    is_captured = capture and device == "cuda"
    if quick:
        repeats, steps, vocab = 1, 1, 500
    bytes_a_second = bandwidth(device)
    print(LINE.format("work", "transformers ms", "decodekit ms", "ratio", "bar"))
    rows = []
    for work in WORKS:
        with torch.inference_mode():
            contenders = runs(work, vocab, device, steps, capture=is_captured)
            captured = is_captured and bool(work.decoder)
            times, is_same = measure(contenders, work.name, device, repeats, steps, captured=captured)
        found = {key: value for key, value in asdict(work).items() if key != "bars"}
        found |= {"bar": work.bars.get(device), **summary(times, "ms", against="transformers")}
        found["is_same"] = is_same
        rows.append(found)
        medians = (f"{found['median_ms'][name]:.1f}" for name in ("transformers", "decodekit"))
        bar = "" if found["bar"] is None else f"{found['bar']:.2f}"
        print(LINE.format(work.name, *medians, f"{found['ratio']:.2f}", bar), flush=True)
    part = circumstances(device, threads, repeats, note=note) | {
        "steps": steps,
        "rows": [PROMPTS, ROWS],
        "length": LENGTH,
        "vocabulary": vocab,
        "captured": is_captured,
        "bandwidth_gb_per_second": round(bytes_a_second / 1e9, 2),
        "floor_ms": round(1e3 * 4 * PROMPTS * ROWS * vocab / bytes_a_second, 4),
        "work": rows,
    }
    write_part(place(out, "step_without_model.json", quick=quick), device, part)


if __name__ == "__main__":
    typer.run(main)
