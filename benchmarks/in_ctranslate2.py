"""A GPT-2 of transformers in CTranslate2, with the same weights and tokens."""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from works import Work

Texts = list[list[int]]


def is_there(device: str, kind: str) -> bool:
    """True if CTranslate2 is installed and supports the device and the precision."""
    if find_spec("ctranslate2") is None:
        return False
    import ctranslate2  # noqa: PLC0415 - optional

    if device == "cuda" and not ctranslate2.get_cuda_device_count():
        return False
    return kind in ctranslate2.get_supported_compute_types(device)


def numbers(model: Any) -> str:  # noqa: ANN401
    """CTranslate2's name of the precision of a transformers model."""
    return str(model.dtype).removeprefix("torch.")


class Converted:
    """The converted model; the name of token `i` is `ti`.

    Args:
        model: A GPT-2 of transformers.
        device: "cpu" or "cuda".
        threads: CPU threads.
    """

    def __init__(self, model: Any, device: str, threads: int) -> None:  # noqa: ANN401
        import ctranslate2  # noqa: PLC0415 - optional
        from ctranslate2.specs import transformer_spec  # noqa: PLC0415

        self._tokens = [f"t{number}" for number in range(model.config.vocab_size)]
        spec = gpt2_spec(model, transformer_spec)
        spec.register_vocabulary(self._tokens)
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = self._tokens[0]
        spec.validate()
        spec.optimize()
        with tempfile.TemporaryDirectory() as folder:
            spec.save(folder)
            self._generator = ctranslate2.Generator(
                folder,
                device=device,
                intra_threads=threads,
                compute_type=numbers(model),
            )

    def run_of(self, work: Work, prompts: Texts) -> Callable[[], Texts]:
        """A function that decodes the workload and returns the best text of every prompt."""
        number = {token: place for place, token in enumerate(self._tokens)}
        named = [[self._tokens[token] for token in prompt] for prompt in prompts]

        def run() -> Texts:
            results = self._generator.generate_batch(
                named,
                beam_size=work.beams,
                max_length=work.new,
                min_length=work.new,
                include_prompt_in_result=False,
                sampling_topk=1,
            )
            return [[number[token] for token in result.sequences[0]] for result in results]

        return run


def gpt2_spec(model: Any, specs: Any) -> Any:  # noqa: ANN401 - classes of transformers and CTranslate2
    """The weights of a GPT-2 under CTranslate2's names."""
    config = model.config
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layer, config.n_head, pre_norm=True, activation=specs.common_spec.Activation.GELUTanh
    )

    def array(weight: Any) -> Any:  # noqa: ANN401
        return weight.detach().float().cpu().contiguous().numpy()

    def norm(to: Any, module: Any) -> None:  # noqa: ANN401
        to.gamma, to.beta = array(module.weight), array(module.bias)

    def linear(to: Any, module: Any) -> None:  # noqa: ANN401
        to.weight, to.bias = array(module.weight.t()), array(module.bias)

    body = model.transformer
    spec.decoder.scale_embeddings = False
    spec.decoder.embeddings.weight = array(body.wte.weight)
    spec.decoder.position_encodings.encodings = array(body.wpe.weight)
    norm(spec.decoder.layer_norm, body.ln_f)
    spec.decoder.projection.weight = array(model.lm_head.weight)
    for to, block in zip(spec.decoder.layer, body.h, strict=True):
        norm(to.self_attention.layer_norm, block.ln_1)
        linear(to.self_attention.linear[0], block.attn.c_attn)
        linear(to.self_attention.linear[1], block.attn.c_proj)
        norm(to.ffn.layer_norm, block.ln_2)
        linear(to.ffn.linear_0, block.mlp.c_fc)
        linear(to.ffn.linear_1, block.mlp.c_proj)
    return spec
