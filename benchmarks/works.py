"""What is measured, and how quick decodekit is to be: for the scripts, and for the documentation."""

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Work:
    """One thing to be decoded in several ways.

    Attributes:
        model: Its name in `random_models.py`.
        prompts: How many.
        length: Of each, in tokens.
        new: Tokens to say.
        beams: More than 1: beam search.
        samples: Samples of each prompt; 0: none.
        bars: decodekit's share of a peer's time, at most; `"floor"` how many times the floor, at most.
        cache_bar: decodekit's share of the memory of `generate`'s cache, at most.
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
        """What it is."""
        how = "greedy"
        if self.beams > 1:
            how = f"{self.beams} beams"
        elif self.samples:
            how = f"{self.samples} samples"
        return f"{self.model}, {self.prompts} x {self.length}, {self.new} new, {how}"

    @property
    def rows(self) -> int:
        """Texts at a time."""
        return self.prompts * max(self.beams, self.samples, 1)

    def in_small(self) -> "Work":
        """The same with less to read and to say."""
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

# A step without the model: prompts, rows of each, tokens to choose from, and decodekit's share of the time of
# transformers, at most: of the processors on the CPU, of the whole step on a GPU.
STEP_ROWS = (8, 8)
STEP_VOCABULARY = 151936
STEP_BARS = {"cpu": 0.50, "cuda": 0.20}
