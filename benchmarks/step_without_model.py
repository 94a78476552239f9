"""Time of a step without the model, in decodekit and in `model.generate()`.

    python benchmarks/step_without_model.py     # writes the "cpu" part of results/step_without_model.json
    python benchmarks/step_without_model.py --device cuda

The model takes no time: it returns the same random scores at every step. The script measures the processors
alone, and whole steps: processors, the choice of tokens, histories and finished hypotheses. Both libraries
read the same scores, alternating in one process. If they choose different tokens, the script stops without a
result. The printed table shows the medians and their ratio. The JSON file has the quartiles, the device, the
versions, and the floor: the time to read the scores once, at the bandwidth measured in the same run.
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
    """A workload for both libraries.

    Attributes:
        name: A description.
        decoder: "" for the processors alone, or "beams" or "samples" for whole steps.
        top_k: `k` of a `TopK` before `TopP`; 0 for none.
        scale: Standard deviation of the random scores.
        is_rounded: True for scores in bfloat16, of which many are tied.
        bars: Targets by device: the largest allowed ratio of decodekit's time to that of transformers.
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
    """A model that takes no time, for decodekit."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits

    def start(self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int) -> tuple["FreeModel", Tensor]:
        """The model as its own session, with the same logits at every step."""
        del prompt, rows_per_prompt, capacity
        return self, self.logits

    def start_captured(
        self, prompt: dk.Prompt, *, rows_per_prompt: int, capacity: int
    ) -> tuple["FreeModel", Tensor]:
        """The result of `start`: there is nothing to record."""
        return self.start(prompt, rows_per_prompt=rows_per_prompt, capacity=capacity)

    def advance(self, tokens: Tensor, source_rows: Tensor | None) -> Tensor:
        """The same logits at every step."""
        del tokens, source_rows
        return self.logits


class FreeTransformer(transformers.PreTrainedModel, transformers.GenerationMixin):  # type: ignore[misc]
    """A model that takes no time, for transformers."""

    config_class = transformers.PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Tensor) -> None:
        config = transformers.PretrainedConfig(vocab_size=logits.shape[-1], is_encoder_decoder=False)
        super().__init__(config)
        self.anchor = torch.nn.Parameter(logits[:1, :1].clone(), requires_grad=False)  # gives the device
        self.logits = logits

    def forward(self, input_ids: Tensor, **_: object) -> CausalLMOutput:
        """The same logits at every step."""
        del input_ids
        return CausalLMOutput(logits=self.logits[:, None])


def runs(work: Work, vocab: int, device: str, steps: int, *, capture: bool = False) -> dict[str, Contender]:
    """The contenders: functions that take `steps` steps, and return the last scores or the texts.

    Args:
        work: The workload.
        vocab: Size of the vocabulary.
        device: "cpu" or "cuda".
        steps: Number of steps.
        capture: True if decodekit replays a captured step; only for whole steps.
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
    """The contenders for whole steps, from logits to texts; `ours_only` are options of decodekit."""
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
    """Milliseconds per step of every alternating run, and True if both libraries chose the same tokens.

    A captured step draws other random numbers, so only a captured step may choose other tokens.
    """
    first, second = (run() for run in contenders.values())
    is_same = torch.equal(first, second)
    if not is_same and not captured:
        raise SystemExit(f"{name}: the libraries choose different tokens, so their times cannot be compared.")
    times = in_turns(contenders, repeats, device)
    return {who: [1e3 * value / steps for value in values] for who, values in times.items()}, is_same


def main(
    *,
    repeats: Repeats = 5,
    steps: Annotated[int, typer.Option(help="Steps per run.")] = 3,
    vocab: Annotated[int, typer.Option(help="Size of the vocabulary.")] = STEP_VOCABULARY,
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
    print(LINE.format("workload", "transformers ms", "decodekit ms", "ratio", "target"))
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
