"""The libraries that `peers.py` compares: `generate()`, CTranslate2, vLLM and decodekit."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import in_ctranslate2
import in_vllm
import torch
import transformers
from compiling import compiled_step, compiled_steps, forget, own_options
from random_models import make
from record import SEED
from works import Work

import decodekit as dk

Texts = list[list[int]]
Contender = Callable[[], Texts]
PEERS = ("generate", "compiled", "ctranslate2", "vllm", "decodekit")


class Bench:
    """A model, and the libraries that can run it.

    Args:
        name: Name of the model in `random_models.py`.
        device: "cpu" or "cuda".
        dtype: Precision of the model.
        threads: CPU threads.
        capture: True if decodekit replays a captured step.
        quick: True for a small model.
    """

    def __init__(
        self,
        name: str,
        device: str,
        dtype: torch.dtype,
        threads: int,
        *,
        capture: bool = False,
        quick: bool = False,
    ) -> None:
        self.device, self.threads = device, threads
        self.model = make(name, device, dtype, quick=quick)
        self.wrapped = dk.HFModel(self.model)
        self._options: dict[str, Any] = {"capture": True} if capture else {}
        self._ctranslate2: in_ctranslate2.Converted | None = None
        self._vllm: in_vllm.Engine | None = None

    @property
    def vllm_weights_are_its_own(self) -> bool:
        """True if vLLM has random weights of its own, so that its texts cannot be compared."""
        return self._vllm is not None and self._vllm.is_dummy

    def prompts(self, work: Work) -> torch.Tensor:
        """The prompts of a workload, the same for all libraries."""
        generator = torch.Generator().manual_seed(SEED)
        return torch.randint(1, 4000, (work.prompts, work.length), generator=generator).to(self.device)

    def run_of(self, peer: str, work: Work) -> Contender | None:
        """A function that decodes the workload and returns the best text of every prompt.

        Args:
            peer: One of `PEERS`.
            work: The workload.

        Returns:
            The function, or None if the library is not installed or does not support the workload.
        """
        makers: dict[str, Callable[[Work, torch.Tensor], Contender | None]] = {
            "generate": lambda work, ids: lambda: self.generate(work, ids),
            "compiled": self._compiled,
            "ctranslate2": self._in_ctranslate2,
            "vllm": self._in_vllm,
            "decodekit": lambda work, ids: lambda: self.decode(work, ids),
        }
        return makers[peer](work, self.prompts(work))

    def _compiled(self, work: Work, ids: torch.Tensor) -> Contender:
        """`generate` with a static cache and a compiled step."""
        forget()
        if work.beams == 1:
            return lambda: self.generate(work, ids, **own_options())
        step = compiled_step(self.model)

        def run() -> Texts:
            with compiled_steps(self.model, step):
                return self.generate(work, ids, cache_implementation="static")

        return run

    def _in_ctranslate2(self, work: Work, ids: torch.Tensor) -> Contender | None:
        """CTranslate2, if it is installed and supports the model, the algorithm, the device and the dtype."""
        is_known = isinstance(self.model, transformers.GPT2LMHeadModel) and not work.samples
        if not is_known or not in_ctranslate2.is_there(self.device, in_ctranslate2.numbers(self.model)):
            return None
        if self._ctranslate2 is None:
            self._ctranslate2 = in_ctranslate2.Converted(self.model, self.device, self.threads)
        return self._ctranslate2.run_of(work, ids.tolist())

    def _in_vllm(self, work: Work, ids: torch.Tensor) -> Contender | None:
        """vLLM, if it is installed, on a GPU; not for samples, which differ from those of `generate`."""
        if self.device != "cuda" or work.samples or find_spec("vllm") is None:
            return None
        if self._vllm is None:
            self._vllm = in_vllm.Engine(self.model)
        return self._vllm.run_of(work, ids.tolist())

    def decoder(self, work: Work) -> Any:  # noqa: ANN401 - a Decoder
        """The decoder of decodekit for a workload."""
        if work.samples:
            return dk.Sample(work.samples)
        return dk.BeamSearch(work.beams) if work.beams > 1 else dk.Greedy()

    def decode(self, work: Work, ids: torch.Tensor) -> Texts:
        """Decode with decodekit."""
        torch.manual_seed(SEED)
        out = dk.decode(
            self.wrapped, ids, self.decoder(work), max_new_tokens=work.new, end_ids=(), **self._options
        )
        texts: Texts = out.tokens.flatten(0, 1).tolist()
        return texts

    def generate(self, work: Work, ids: torch.Tensor, **options: Any) -> Texts:  # noqa: ANN401
        """Decode with transformers, with additional options."""
        torch.manual_seed(SEED)
        options |= {"num_beams": work.beams, "do_sample": bool(work.samples)}
        if work.samples:
            options |= {"num_return_sequences": work.samples, "top_k": 0}
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=work.new,
            eos_token_id=None,
            pad_token_id=0,
            **options,
        )
        texts: Texts = out[:, work.length :].tolist()
        return texts
