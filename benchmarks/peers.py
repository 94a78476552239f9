"""decodekit against whom a user would pick instead, and against the least that the work can take.

    python benchmarks/peers.py                    # writes benchmarks/results/peers_cpu.json
    python benchmarks/peers.py --only "S, 4 x 512" --compiled

The same prompts, the same random GPT-2 in float32, in one run and in turns: `model.generate()`; on request
the same with a static cache and `torch.compile`, whose first use is timed too; CTranslate2, where it is
installed (`pip install ctranslate2`); and decodekit. Whose tokens are not those of `generate()` has no time.
Beside the medians stand the floor, bytes that must be read (all weights once a step, and the keys and values
of what is alive) over the bandwidth measured in the same run, and the memory of the cache at its largest.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table

import decodekit as dk
from decodekit.loop import run as steps_of
from decodekit.options import Options

SEED = 0
RESULTS = Path(__file__).parent / "results"
SHAPES = {
    "S": {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 4096},
    "L": {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257},
}
PEERS = ("generate", "compiled", "ctranslate2", "decodekit")


@dataclass(frozen=True)
class Work:
    """One thing to be decoded in several ways.

    Attributes:
        name: What it is.
        shape: Of the model.
        prompts: How many.
        length: Of each, in tokens.
        new: Tokens to say.
        beams: More than 1: beam search.
        samples: Samples of each prompt; 0: none.
        bars: decodekit's share of a peer's time, at most; `"floor"` how many times the floor, at most.
        cache_bar: decodekit's share of the memory of `generate`'s cache, at most.
    """

    name: str
    shape: str
    prompts: int
    length: int
    new: int
    beams: int
    samples: int
    bars: dict[str, float]
    cache_bar: float | None = None


WORKS = (
    Work("S, 4 x 512, 64 new, 8 beams", "S", 4, 512, 64, 8, 0, {"generate": 0.13}, 0.35),
    Work("S, 8 x 128, 64 new, 5 beams", "S", 8, 128, 64, 5, 0, {"generate": 0.33}),
    Work("S, 1 x 512, 64 new, 8 samples", "S", 1, 512, 64, 1, 8, {"generate": 0.30}),
    Work("L, 1 x 256, 32 new, 5 beams", "L", 1, 256, 32, 5, 0, {"generate": 0.27, "ctranslate2": 0.65}),
    Work("L, 4 x 256, 32 new, 5 beams", "L", 4, 256, 32, 5, 0, {"generate": 0.20, "ctranslate2": 0.42}),
    Work("L, 1 x 32, 32 new, 5 beams", "L", 1, 32, 32, 5, 0, {"generate": 0.36, "ctranslate2": 0.70}),
    Work("L, 8 x 32, 32 new, greedy", "L", 8, 32, 32, 1, 0, {"generate": 0.48, "ctranslate2": 0.78}),
    Work(
        "L, 1 x 32, 64 new, greedy",
        "L", 1, 32, 64, 1, 0,
        {"generate": 0.65, "ctranslate2": 1.0, "floor": 1.6},
    ),
)  # fmt: skip


class Bench:
    """A model, and everybody who can run it."""

    def __init__(self, shape: str, threads: int) -> None:
        torch.manual_seed(SEED)
        self.threads = threads
        config = transformers.GPT2Config(
            **SHAPES[shape], n_positions=1024, bos_token_id=0, eos_token_id=0, initializer_range=0.05
        )
        self.model: Any = transformers.GPT2LMHeadModel(config).eval()
        self.wrapped = dk.HFModel(self.model)
        self.weights = sum(weight.numel() for weight in self.model.parameters()) * 4
        self._converted: tuple[Any, list[str]] | None = None

    def prompts(self, work: Work) -> torch.Tensor:
        """The same for all."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(1, 4000, (work.prompts, work.length), generator=generator)

    def run_of(self, peer: str, work: Work) -> Callable[[], list[list[int]]] | None:
        """A function that does the work and returns the best continuation of every prompt; None: cannot."""
        ids = self.prompts(work)
        if peer == "decodekit":
            return lambda: self._decode(work, ids)
        if peer == "ctranslate2":
            return None if work.samples or find_spec("ctranslate2") is None else self._ctranslate2(work, ids)
        return lambda: self._generate(work, ids, compiled=peer == "compiled")

    def decoder(self, work: Work) -> Any:  # noqa: ANN401 - a Decoder
        """The algorithm of decodekit for the work."""
        if work.samples:
            return dk.Sample(work.samples)
        return dk.BeamSearch(work.beams) if work.beams > 1 else dk.Greedy()

    def _decode(self, work: Work, ids: torch.Tensor) -> list[list[int]]:
        torch.manual_seed(SEED)
        out = dk.decode(self.wrapped, ids, self.decoder(work), max_new_tokens=work.new, end_ids=())
        return out.tokens.flatten(0, 1).tolist()

    def _generate(self, work: Work, ids: torch.Tensor, *, compiled: bool) -> list[list[int]]:
        torch.manual_seed(SEED)
        options: dict[str, Any] = {"num_beams": work.beams, "do_sample": bool(work.samples)}
        if work.samples:
            options |= {"num_return_sequences": work.samples, "top_k": 0}
        if compiled:
            from transformers.generation import CompileConfig  # noqa: PLC0415 - only here

            config = CompileConfig(fullgraph=False, dynamic=True)
            config._compile_all_devices = True  # noqa: SLF001 - on the CPU it is off otherwise
            options |= {"cache_implementation": "static", "compile_config": config}
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.new,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        return out[:, work.length :].tolist()

    def _ctranslate2(self, work: Work, ids: torch.Tensor) -> Callable[[], list[list[int]]]:
        generator, tokens = self._convert()
        number = {token: place for place, token in enumerate(tokens)}
        prompts = [[tokens[token] for token in prompt] for prompt in ids.tolist()]

        def run() -> list[list[int]]:
            results = generator.generate_batch(
                prompts,
                beam_size=work.beams,
                max_length=work.new,
                min_length=work.new,
                include_prompt_in_result=False,
                sampling_topk=1,
            )
            return [[number[token] for token in result.sequences[0]] for result in results]

        return run

    def _convert(self) -> tuple[Any, list[str]]:
        """The same weights in CTranslate2; token `i` is called `ti`."""
        if self._converted is None:
            import ctranslate2  # noqa: PLC0415 - not everybody has it
            from ctranslate2.specs import transformer_spec  # noqa: PLC0415

            spec = gpt2_spec(self.model, transformer_spec)
            tokens = [f"t{number}" for number in range(self.model.config.vocab_size)]
            spec.register_vocabulary(tokens)
            spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = tokens[0]
            folder = tempfile.mkdtemp()
            spec.validate()
            spec.optimize()
            spec.save(folder)
            generator = ctranslate2.Generator(
                folder, device="cpu", intra_threads=self.threads, compute_type="float32"
            )
            self._converted = generator, tokens
        return self._converted


def gpt2_spec(model: Any, specs: Any) -> Any:  # noqa: ANN401 - classes of transformers and CTranslate2
    """GPT-2's weights as CTranslate2 names them."""
    config = model.config
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, pre_norm=True, activation=specs.common_spec.Activation.GELUTanh
    )

    def norm(to: Any, module: Any) -> None:  # noqa: ANN401
        to.gamma, to.beta = module.weight.detach().numpy(), module.bias.detach().numpy()

    def linear(to: Any, module: Any) -> None:  # noqa: ANN401
        to.weight, to.bias = module.weight.detach().t().contiguous().numpy(), module.bias.detach().numpy()

    body = model.transformer
    spec.decoder.scale_embeddings = False
    spec.decoder.embeddings.weight = body.wte.weight.detach().numpy()
    spec.decoder.position_encodings.encodings = body.wpe.weight.detach().numpy()
    norm(spec.decoder.layer_norm, body.ln_f)
    spec.decoder.projection.weight = model.lm_head.weight.detach().numpy()
    for to, block in zip(spec.decoder.layer, body.h, strict=True):
        norm(to.self_attention.layer_norm, block.ln_1)
        linear(to.self_attention.linear[0], block.attn.c_attn)
        linear(to.self_attention.linear[1], block.attn.c_proj)
        norm(to.ffn.layer_norm, block.ln_2)
        linear(to.ffn.linear_0, block.mlp.c_fc)
        linear(to.ffn.linear_1, block.mlp.c_proj)
    return spec


def bandwidth() -> float:
    """Bytes a second that this process can read, from memory: the best of several sums over 512 MB."""
    numbers = torch.ones(2**27)
    numbers.sum()
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        numbers.sum()
        best = max(best, numbers.numel() * 4 / (time.perf_counter() - start))
    return best


def cache_bytes(bench: Bench, work: Work) -> dict[str, int]:
    """What the keys and values take at most: `generate`'s at its end, decodekit's buffers after each step."""
    config = bench.model.config
    token = config.n_layer * 2 * config.n_embd * 4
    rows = work.prompts * max(work.beams, work.samples, 1)
    most = 0
    options = Options(max_new_tokens=work.new, end_ids=())
    for progress in steps_of(bench.wrapped, bench.prompts(work), bench.decoder(work), (), options):
        layers = progress.session._cache.content.layers  # noqa: SLF001 - nobody else wants to know
        most = max(most, sum(buffer.nbytes for layer in layers for buffer in layer._buffers))  # noqa: SLF001
    return {"generate": rows * (work.length + work.new - 1) * token, "decodekit": most}


def floor_seconds(bench: Bench, work: Work, bytes_a_second: float) -> float:
    """All weights once for every step, and the keys and values of the prompts and of one text for each."""
    config = bench.model.config
    embeddings = config.n_positions * config.n_embd * 4  # of positions: a row is read, not the table
    token = config.n_layer * 2 * config.n_embd * 4
    read = work.new * (bench.weights - embeddings)
    columns = sum(work.prompts * (work.length + step) for step in range(1, work.new))
    return (read + columns * token) / bytes_a_second


def measure(bench: Bench, work: Work, repeats: int, *, compiled: bool) -> dict[str, Any]:
    """Seconds of every run, in turns, after one run each to warm up, whose tokens are compared."""
    runs = {
        peer: run
        for peer in PEERS
        if (peer != "compiled" or compiled) and (run := bench.run_of(peer, work)) is not None
    }
    first_use, said = {}, {}
    for peer, run in runs.items():
        start = time.perf_counter()
        said[peer] = run()
        first_use[peer] = round(time.perf_counter() - start, 3)
    same = {
        peer: sum(one == other for one, other in zip(tokens, said["generate"], strict=True)) / len(tokens)
        for peer, tokens in said.items()
    }
    if same["decodekit"] < 1:
        raise SystemExit(f"{work.name}: the tokens differ, so the times mean nothing.")
    seconds: dict[str, list[float]] = {peer: [] for peer in runs}
    for _ in range(repeats):
        for peer, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[peer].append(round(time.perf_counter() - start, 4))
    return {"seconds": seconds, "first_use_seconds": first_use, "same_texts": same}


def main(
    repeats: Annotated[int, typer.Option(help="Timed runs of each.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    only: Annotated[str, typer.Option(help="Only works whose name begins so.")] = "",
    compiled: Annotated[bool, typer.Option(help="With generate's static cache and torch.compile.")] = False,  # noqa: FBT002
    note: Annotated[str, typer.Option(help="What else was going on, for the record.")] = "",
    out: Annotated[Path, typer.Option(help="The JSON file.")] = RESULTS / "peers_cpu.json",
) -> None:
    """Measure, print the table and write the JSON."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    rows, benches = [], {}
    table = Table("work", *PEERS, "floor", "ratios (bars)", "cache")
    for work in (work for work in WORKS if work.name.startswith(only)):
        bench = benches.setdefault(work.shape, Bench(work.shape, threads))
        found = measure(bench, work, repeats, compiled=compiled)
        medians = {peer: statistics.median(times) for peer, times in found["seconds"].items()}
        floor = floor_seconds(bench, work, read := bandwidth())
        ratios = {
            peer: medians["decodekit"] / value for peer, value in medians.items() if peer != "decodekit"
        }
        ratios["floor"] = medians["decodekit"] / floor
        memory = cache_bytes(bench, work)
        share = memory["decodekit"] / memory["generate"]
        rows.append(
            {
                **asdict(work),
                **found,
                "median_seconds": {peer: round(value, 4) for peer, value in medians.items()},
                "spread": {peer: [min(times), max(times)] for peer, times in found["seconds"].items()},
                "ratios": {peer: round(value, 3) for peer, value in ratios.items()},
                "floor_seconds": round(floor, 4),
                "bandwidth_gb_per_second": round(read / 1e9, 2),
                "cache_bytes": memory,
                "cache_ratio": round(share, 3),
            }
        )
        table.add_row(
            work.name,
            *(f"{medians[peer]:.2f} s" if peer in medians else "" for peer in PEERS),
            f"{floor:.2f} s",
            ", ".join(
                f"{peer} {ratios[peer]:.2f} ({bar})" for peer, bar in work.bars.items() if peer in ratios
            ),
            f"{share:.2f}" + ("" if work.cache_bar is None else f" ({work.cache_bar})"),
        )
    Console(width=150).print(table)
    names = ["torch", "transformers", *(["ctranslate2"] if find_spec("ctranslate2") else [])]
    record = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{threads} threads of {os.cpu_count()}, {platform.machine()}",
        "versions": {name: version(name) for name in names} | {"python": platform.python_version()},
        "models": {name: f"random GPT-2, {shape}, float32" for name, shape in SHAPES.items()},
        "seed": SEED,
        "repeats": repeats,
        "note": note,
        "work": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
