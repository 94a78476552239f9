"""Recording of forward passes, and the reasons against it."""

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from decodekit.accelerate.cuda_graph import record
from decodekit.accelerate.tape import CannotRecordError
from decodekit.core.validation import shown
from decodekit.errors import ModelError
from decodekit.models.hf.forwards.forward import forward_lock, unwrapped

# A recording costs about as much as it saves in this number of steps.
MIN_STEPS = 32
# Packages whose modules have no side effects besides their computation.
_KNOWN_PACKAGES = ("torch.", "transformers.")
_KNOWN_ATTENTION = {None, "sdpa", "eager"}
_TRIE_CACHES = {"auto", "trie"}

Wanted = bool | Literal["auto"]


@final
class PassRecorder:
    """Records the passes of a model, if a replay computes the same.

    A replay runs none of the model's Python code, so a model with hooks or patched methods is not recorded.

    `wanted` and `cache` are the options `recorded` and `cache` of `HFModel`. Only passes over a trie are
    recorded, or compiled.
    """

    def __init__(
        self, model: Any, config: Any, wanted: Wanted, cache: str, *, compiled: bool = False
    ) -> None:
        if wanted is not True and wanted is not False and wanted != "auto":
            raise ModelError(f"HFModel: recorded must be True, False or 'auto', got {shown(wanted)}.")
        self._model, self._config, self.wanted = model, config, wanted
        self.cache = cache
        self._failure = ""  # the reason why an earlier recording failed
        if wanted is True or compiled:
            self.check_cache()

    @property
    def refusal(self) -> str:
        """The reason why passes are not recorded; empty if they are."""
        if self.wanted is False:
            return "recorded=False"
        if self.cache not in _TRIE_CACHES:
            return f"cache={self.cache}"
        if self.wanted == "auto" and self._model.device.type != "cpu":
            return "only on the CPU unless asked for"
        if self.wanted == "auto" and self._model.dtype not in {torch.float32, torch.float64}:
            return "only in float32 and float64 unless asked for"  # where a trie rounds (nearly) as rows do
        return self._failure or self.obstacle(strict=self.wanted == "auto")

    def obstacle(self, *, strict: bool = False) -> str:
        """The part that a replay would skip; empty if none. If strict, includes modules of other packages."""
        if unwrapped(self._model) is not self._model:
            return "it is compiled"
        with forward_lock(self._model):  # another thread's pass may have patched forwards and attention
            attention = getattr(self._config, "_attn_implementation", None)
            if strict and attention not in _KNOWN_ATTENTION:
                return f"its attention is {attention}"
            if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:  # noqa: SLF001
                return "all modules have hooks"
            modules = self._model.named_modules()
            found = (_obstacle_in(name, module, strict=strict) for name, module in modules)
            return next((obstacle for obstacle in found if obstacle), "")

    def record(self, run: Callable[[], Tensor], *, must: bool) -> Callable[[], Tensor]:
        """A recorded pass, which calls `run` if it cannot be recorded; with `must`, it raises instead."""
        recording = record(run, self._model.device)

        def recorded() -> Tensor:
            if self._failure and not must:
                return run()
            try:
                return recording()
            except CannotRecordError as error:
                self._failure = str(error).partition(": ")[2]
                if must or self.wanted is True:
                    raise ModelError(
                        f"HFModel: a pass of {type(self._model).__name__} cannot be recorded: "
                        f"{self._failure} Use it without capture=True and recorded=True."
                    ) from error
            return run()

        return recorded

    def check_cache(self) -> None:
        """Raises a `ModelError` unless the cache option allows a trie."""
        if self.cache not in _TRIE_CACHES:
            raise ModelError(
                f"HFModel: recording and compiling need a trie, got cache={self.cache!r}. Use cache='auto'."
            )

    def check(self, refusal: str) -> None:
        """Raises a `ModelError` if passes cannot be recorded, for this or any other reason."""
        self.check_cache()
        if reason := refusal or self._failure or self.obstacle():
            raise ModelError(
                f"HFModel: {type(unwrapped(self._model)).__name__} cannot be recorded: {reason}. Use it "
                "without capture=True, recorded=True and compiled=True."
            )


def _obstacle_in(name: str, module: nn.Module, *, strict: bool) -> str:
    subject = f"its {name}" if name else "it"
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # noqa: SLF001 - torch's
    # transformers installs hooks of its own, which collect hidden states on request.
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        return f"{subject} has hooks"
    if "forward" in vars(module) or module._compiled_call_impl is not None:  # noqa: SLF001
        return f"{subject} has a forward of its own"
    package = type(module).__module__
    if strict and not f"{package}.".startswith(_KNOWN_PACKAGES):
        return f"{subject} is of {package}"
    return ""
