"""A transformers model in vLLM, if vLLM is installed: beam search and greedy search."""

import copy
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from works import Work

Texts = list[list[int]]
MOST_BYTES = 8e9  # largest size of weights that are saved to disk for vLLM
MOST_COLUMNS = 4096  # longest text
SHARE = 0.3  # fraction of the GPU's memory for vLLM; the models of the other libraries need the rest


class Engine:
    """vLLM with the weights of the model, or with random weights of its own if the model is large.

    Args:
        model: A transformers model.
    """

    def __init__(self, model: Any) -> None:  # noqa: ANN401
        from vllm import LLM  # noqa: PLC0415 - optional

        size = sum(weight.nbytes for weight in model.parameters())
        self.is_dummy = size > MOST_BYTES
        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder)  # when the engine is deleted
        save(model, Path(folder), with_weights=not self.is_dummy)
        self._engine = LLM(
            folder,
            dtype=str(model.dtype).removeprefix("torch."),
            load_format="dummy" if self.is_dummy else "auto",
            max_model_len=min(model.config.max_position_embeddings, MOST_COLUMNS),
            gpu_memory_utilization=SHARE,
        )

    def run_of(self, work: Work, prompts: Texts) -> Callable[[], Texts]:
        """A function that decodes the workload and returns the best text of every prompt."""
        from vllm import SamplingParams  # noqa: PLC0415
        from vllm.sampling_params import BeamSearchParams  # noqa: PLC0415

        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        beams = BeamSearchParams(beam_width=work.beams, max_tokens=work.new, ignore_eos=True)
        greedy = SamplingParams(temperature=0.0, max_tokens=work.new, ignore_eos=True, detokenize=False)

        def search() -> Texts:
            found = self._engine.beam_search(given, beams)
            return [list(output.sequences[0].tokens[work.length :]) for output in found]

        def follow() -> Texts:
            found = self._engine.generate(given, greedy, use_tqdm=False)
            return [list(output.outputs[0].token_ids) for output in found]

        return search if work.beams > 1 else follow


def save(model: Any, folder: Path, *, with_weights: bool) -> None:  # noqa: ANN401
    """Save the files that vLLM loads: a configuration, optional weights, and a tokenizer for beam search."""
    if with_weights:
        model.save_pretrained(folder)
    else:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__]
        config.save_pretrained(folder)
    tokens = {f"t{number}": number for number in range(model.config.vocab_size)}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "t0")
    words = Tokenizer(WordLevel(tokens, special["unk_token"]))
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
