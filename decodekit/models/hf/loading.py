"""Models by name, and those that come with the package."""

from importlib.resources import files
from pathlib import Path

import torch

from decodekit.models.hf.model import HFModel
from decodekit.models.hf.pretrained import without_progress_bar

BUNDLED = ("fairytales", "en-fr")


def bundled_path(name: str = "fairytales") -> Path:
    """The folder of a bundled model, which transformers can load by itself.

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
        raise ValueError(f"bundled_path: name must be {known}, got {name!r:.80}. dk.load reads other models.")
    return Path(str(files("decodekit") / "assets" / name))


def load(
    name: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> HFModel:
    """Loads a model and its tokenizer through transformers: safetensors only, no remote code.

    Args:
        name: `"fairytales"` or `"en-fr"`, which are bundled and work offline; a folder, or a name on the
            hub or in its local cache. None is `"fairytales"`. A folder with a bundled name is `"./en-fr"`.
        device: Where to put it.
        dtype: Its precision; None: as the checkpoint's configuration says.

    Raises:
        ModelError: If there is no such model, or it is not a language model.

    Example:
        >>> dk.load()  # doctest: +ELLIPSIS
        HFModel(GPT2LMHeadModel, float32 on cpu, cache=auto...)

    Hugging Face:
        `AutoModelForCausalLM.from_pretrained(name)`, `AutoModelForSeq2SeqLM.from_pretrained(name)` for an
        encoder-decoder, and `AutoTokenizer.from_pretrained(name)`.
    """
    if name is None:
        name = BUNDLED[0]
    if name not in BUNDLED:  # a Path is never one of them
        return HFModel.from_pretrained(name, device=device, dtype=dtype)
    with without_progress_bar():  # it takes a blink
        return HFModel.from_pretrained(bundled_path(str(name)), device=device, dtype=dtype)
