"""Workloads and targets of the comparison with other libraries, for the scripts and the documentation."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Work:
    """A workload that several libraries decode.

    Attributes:
        model: Name of the model in `random_models.py`.
        prompts: Number of prompts.
        length: Tokens per prompt.
        new: New tokens per prompt.
        beams: Number of beams; 1 for no beam search.
        samples: Samples per prompt; 0 for none.
        bars: Targets by library, or `"floor"`: the largest allowed ratio of decodekit's time to its time.
        cache_bar: Target for memory: the largest allowed ratio of decodekit's cache to that of `generate`.
    """

    model: str
    prompts: int
    length: int
    new: int
    beams: int = 1
    samples: int = 0
    bars: dict[str, float] = field(default_factory=dict)
    cache_bar: float | None = None

    @property
    def name(self) -> str:
        """A short description."""
        how = "greedy"
        if self.beams > 1:
            how = f"{self.beams} beams"
        elif self.samples:
            how = f"{self.samples} samples"
        return f"{self.model}, {self.prompts} x {self.length}, {self.new} new, {how}"

    @property
    def rows(self) -> int:
        """Number of rows in a batch."""
        return self.prompts * max(self.beams, self.samples, 1)

    def in_small(self) -> "Work":
        """The same with fewer prompts and tokens."""
        return replace(self, prompts=min(self.prompts, 2), length=6, new=4)


CPU_WORKS = (
    Work("S", 4, 512, 64, beams=8, bars={"generate": 0.13}, cache_bar=0.35),
    Work("S", 8, 128, 64, beams=5, bars={"generate": 0.33}),
    Work("S", 1, 512, 64, samples=8, bars={"generate": 0.30}),
    Work("L", 1, 256, 32, beams=5, bars={"generate": 0.27, "ctranslate2": 0.65}),
    Work("L", 4, 256, 32, beams=5, bars={"generate": 0.20, "ctranslate2": 0.42}),
    Work("L", 1, 32, 32, beams=5, bars={"generate": 0.36, "ctranslate2": 0.70}),
    Work("L", 8, 32, 32, bars={"generate": 0.48, "ctranslate2": 0.78}),
    Work("L", 1, 32, 64, bars={"generate": 0.65, "ctranslate2": 1.0, "floor": 1.6}),
)
CUDA_WORKS = (
    Work("GPT-2 124M", 1, 128, 256, bars={"generate": 0.15}),
    Work("Llama-3-8B", 1, 128, 128, bars={"floor": 1.25}),
    Work("Llama-3-8B", 1, 2048, 128, beams=8, bars={"generate": 0.35}, cache_bar=0.30),
    Work("GPT-2 XL", 8, 512, 128, beams=5, bars={"generate": 0.25, "compiled": 0.50}),
)
WORKS = {"cpu": CPU_WORKS, "cuda": CUDA_WORKS}

# A step without the model: prompts, rows per prompt, vocabulary size, and targets, the largest allowed ratio
# of decodekit's time to that of transformers: for the processors on the CPU, for the whole step on a GPU.
STEP_ROWS = (8, 8)
STEP_VOCABULARY = 151936
STEP_BARS = {"cpu": 0.50, "cuda": 0.20}
