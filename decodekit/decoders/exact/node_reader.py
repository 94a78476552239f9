"""A model that reads texts from their beginnings, in any order."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.decoders.exact.branch import Node, by_length
from decodekit.errors import DecodekitError, ModelError
from decodekit.models.protocols import Model, ModelOutputsSpec, ModelWithOutputs


class NodeReader:
    """Reads texts of any lengths, each from its prompt on.

    Args:
        model: The model.
        prompt: The prompts.
        reveal: What it must show beside its logits.
        who: Who asks for that.
        new: New tokens at most.
    """

    def __init__(
        self, model: Model, prompt: Prompt, outputs_spec: ModelOutputsSpec, who: str, new: int
    ) -> None:
        self._model, self._prompt, self._outputs_spec = model, prompt, outputs_spec
        self._who, self._capacity = who, prompt.tokens.shape[1] + new
        self._ids = prompt.ids()
        self._pads = True  # texts of different lengths in one batch; False: the model refuses them

    def read(
        self, nodes: Sequence[Node]
    ) -> tuple[Float32[Tensor, "rows vocab"], Float32[Tensor, "rows context"] | None]:
        """The logits after every text, and what was attended to, if that is wanted."""
        if self._outputs_spec:
            return self._read_on(nodes)
        if self._pads:
            try:
                return self._read_anew(nodes), None
            except ModelError:
                self._pads = False  # if it is the padding that the model refuses, and else it says so again
        parts = by_length(nodes)
        logits = torch.cat([self._read_anew([nodes[row] for row in part]) for part in parts])
        places = torch.tensor([row for part in parts for row in part], device=logits.device)
        return logits[places.argsort()], None

    def _read_anew(self, nodes: Sequence[Node]) -> Float32[Tensor, "rows vocab"]:
        """In one pass over prompts and continuations."""
        texts = Prompt.from_ids([self._ids[node.prompt] + node.tokens() for node in nodes])
        prompt = replace(self._of(nodes), tokens=texts.tokens, mask=texts.mask)
        _, logits = self._model.start(prompt, rows_per_prompt=1, capacity=texts.tokens.shape[1] + 1)
        return logits

    def _read_on(
        self, nodes: Sequence[Node]
    ) -> tuple[Float32[Tensor, "rows vocab"], Float32[Tensor, "rows context"] | None]:
        """Token by token after the prompts: what is attended to is told of the prompts' columns."""
        if not isinstance(self._model, ModelWithOutputs):
            raise DecodekitError(
                f"decode: {self._who} needs a model that shows {self._outputs_spec}, and "
                f"{self._model!r:.80} has no start_with_outputs(). Use dk.HFModel, or write "
                "that method: see decodekit.ModelWithOutputs."
            )
        session, logits = self._model.start_with_outputs(
            self._of(nodes), rows_per_prompt=1, capacity=self._capacity, outputs_spec=self._outputs_spec
        )
        lines = [node.tokens() for node in nodes]
        logits, attention = logits.clone(), session.model_outputs.attention
        attention = None if attention is None else attention.clone()
        for step in range(max(map(len, lines))):
            tokens = torch.tensor([(line[step:] or [0])[0] for line in lines], device=logits.device)
            newest = session.advance(tokens, None)
            rows = torch.tensor([step < len(line) for line in lines], device=logits.device)[:, None]
            logits = torch.where(rows, newest, logits)
            if attention is not None and session.model_outputs.attention is not None:
                attention = torch.where(rows, session.model_outputs.attention, attention)
        return logits, attention

    def _of(self, nodes: Sequence[Node]) -> Prompt:
        """The prompts of some texts."""
        return self._prompt.take(torch.tensor([node.prompt for node in nodes]))
