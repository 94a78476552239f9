"""Whether a model's forward pass may be recorded, and what was found out when it was tried."""

from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules_of_torch

from decodekit.accelerate.cuda_graph import record
from decodekit.accelerate.tape import CannotRecordError
from decodekit.errors import ModelError
from decodekit.models.hf.forward_lock import lock_of
from decodekit.models.hf.forward_signature import inner

# A recording costs about as much as it saves in so many steps.
WORTHWHILE = 32
# Whose modules are known to do nothing beside what they compute.
_KNOWN = ("torch.", "transformers.")
_KNOWN_ATTENTION = {None, "sdpa", "eager"}
_BRANCHES = {"auto", "trie"}


@final
class PassRecorder:
    """Records the passes of a model's runs, where that gives what the model gives.

    A replay runs none of the model's Python: what hooks and patched methods do beside computing would be
    left out, so a model that has some is not recorded.

    Args:
        model: A transformers model.
        config: Of its text.
        wanted: True raises where a pass cannot be recorded; `"auto"` records on the CPU where it can, if the
            model is all transformers' and torch's own; False never does.
        cache: As `HFModel` takes it: only what runs over branches is recorded.
        must: Whether to raise over another cache at once, because passes are compiled.

    Raises:
        ModelError: If `wanted` is none of these, or True over another cache.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401
        config: Any,  # noqa: ANN401
        wanted: bool | Literal["auto"],  # noqa: FBT001
        cache: str,
        *,
        must: bool = False,
    ) -> None:
        if wanted is not True and wanted is not False and wanted != "auto":
            raise ModelError(f"HFModel: recorded must be True, False or 'auto', got {wanted!r:.80}.")
        self._model, self._config, self.wanted = model, config, wanted
        self.cache = cache
        self._tried = ""  # what a try has found
        if wanted is True or must:
            self.check_cache()

    @property
    def refusal(self) -> str:
        """Why passes are not recorded; empty: they are."""
        if self.wanted is False:
            return "recorded=False"
        if self.cache not in _BRANCHES:
            return f"cache={self.cache}"
        if self.wanted == "auto" and self._model.device.type != "cpu":
            return "only on the CPU unless asked for"
        if self.wanted == "auto" and self._model.dtype not in {torch.float32, torch.float64}:
            return "only in float32 and float64 unless asked for"  # where a trie rounds as rows do, or nearly
        return self._tried or self.obstacle(strict=self.wanted == "auto")

    def obstacle(self, *, strict: bool = False) -> str:
        """What of the model a replay would leave out; empty: nothing.

        Args:
            strict: Whether modules and attention of the user's own count too, of which that is not known.
        """
        with lock_of(self._model):  # another thread's pass has forwards and an attention of its own
            return self._obstacle(strict=strict)

    def _obstacle(self, *, strict: bool) -> str:
        if inner(self._model) is not self._model:
            return "it is compiled"
        attention = getattr(self._config, "_attn_implementation", None)
        if strict and attention not in _KNOWN_ATTENTION:
            return f"its attention is {attention}"
        if modules_of_torch._global_forward_hooks or modules_of_torch._global_forward_pre_hooks:  # noqa: SLF001
            return "all modules have hooks"
        found = (_obstacle_of(name, module, strict=strict) for name, module in self._model.named_modules())
        return next((obstacle for obstacle in found if obstacle), "")

    def record(self, run: Callable[[], Tensor], *, must: bool) -> Callable[[], Tensor]:
        """What to call in place of a pass. Where it cannot be recorded, and need not be, it runs.

        Args:
            run: A pass, which gives the same when it is run again.
            must: Whether to raise where it cannot be recorded.
        """
        recording = record(run, self._model.device)

        def recorded() -> Tensor:
            if self._tried and not must:
                return run()
            try:
                return recording()
            except CannotRecordError as error:
                self._tried = str(error).partition(": ")[2]
                if must or self.wanted is True:
                    raise ModelError(
                        f"HFModel: a pass of {type(self._model).__name__} must be such that it can be "
                        f"recorded: {self._tried} Use it without capture=True and recorded=True."
                    ) from error
            return run()

        return recorded

    def check_cache(self) -> None:
        """Raises if the cache that was asked for is not one of branches."""
        if self.cache not in _BRANCHES:
            raise ModelError(
                f"HFModel: what is recorded or compiled must run over a trie, got cache={self.cache!r}. "
                "Use cache='auto'."
            )

    def check(self, refusal: str) -> None:
        """Raises if passes cannot be recorded.

        Args:
            refusal: What else speaks against it; empty: nothing.
        """
        self.check_cache()
        if found := refusal or self._tried or self.obstacle():
            raise ModelError(
                f"HFModel: {type(inner(self._model)).__name__} cannot be recorded: {found}. Use it without "
                "capture=True, recorded=True and compiled=True."
            )


def _obstacle_of(name: str, module: nn.Module, *, strict: bool) -> str:
    where = f"its {name}" if name else "it"
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # noqa: SLF001 - torch's
    # transformers leaves its own, which collect states where they are asked for.
    if any(not getattr(hook, "__module__", "").startswith("transformers.") for hook in hooks):
        return f"{where} has hooks"
    if "forward" in vars(module) or module._compiled_call_impl is not None:  # noqa: SLF001
        return f"{where} has a forward of its own"
    kind = type(module)
    if strict and not f"{kind.__module__}.".startswith(_KNOWN):
        return f"{where} is of {kind.__module__}"
    return ""
