"""Logits after nodes of any lengths, in any order."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float32
from torch import Tensor

from decodekit.core.prompt import Prompt
from decodekit.core.validation import shown
from decodekit.decoders.exact.node import Node, group_by_length
from decodekit.errors import DecodekitError, ModelError
from decodekit.models.protocols import Model, ModelOutputsSpec, ModelWithOutputs
from decodekit.processors.base import Scores


class NodeLogits:
    """Runs the model over nodes, each from the start of its prompt."""

    def __init__(
        self, model: Model, prompt: Prompt, outputs_spec: ModelOutputsSpec, who: str, new: int
    ) -> None:
        self._model, self._prompt, self._outputs_spec = model, prompt, outputs_spec
        self._who, self._capacity = who, prompt.tokens.shape[1] + new
        self._ids = prompt.ids()
        self._accepts_padding = True  # until the model refuses a batch of different lengths

    def compute(self, nodes: Sequence[Node]) -> tuple[Scores, Float32[Tensor, "rows context"] | None]:
        """The logits after every node, and the attention if it is required."""
        if self._outputs_spec:
            return self._compute_stepwise(nodes)
        if self._accepts_padding:
            try:
                return self._compute_at_once(nodes), None
            except ModelError:
                self._accepts_padding = False  # any other reason raises again below
        groups = group_by_length(nodes)
        logits = torch.cat([self._compute_at_once([nodes[row] for row in group]) for group in groups])
        order = torch.tensor([row for group in groups for row in group], device=logits.device)
        return logits[order.argsort()], None

    def _compute_at_once(self, nodes: Sequence[Node]) -> Float32[Tensor, "rows vocab"]:
        """One pass over prompts and new tokens."""
        sequences = Prompt.from_ids([self._ids[node.prompt] + node.tokens() for node in nodes])
        prompt = replace(self._prompts_of(nodes), tokens=sequences.tokens, mask=sequences.mask)
        capacity = sequences.tokens.shape[1] + 1
        _, logits = self._model.start(prompt, rows_per_prompt=1, capacity=capacity)
        return logits

    def _compute_stepwise(
        self, nodes: Sequence[Node]
    ) -> tuple[Scores, Float32[Tensor, "rows context"] | None]:
        """One pass per new token: a session reports attention to the columns of the prompts only."""
        if not isinstance(self._model, ModelWithOutputs):
            raise DecodekitError(
                f"decode: {self._who} needs a model that shows {self._outputs_spec}, and "
                f"{shown(self._model)} has no start_with_outputs(). Use dk.HFModel, or write "
                "that method: see decodekit.ModelWithOutputs."
            )
        session, logits = self._model.start_with_outputs(
            self._prompts_of(nodes),
            rows_per_prompt=1,
            capacity=self._capacity,
            outputs_spec=self._outputs_spec,
        )
        sequences = [node.tokens() for node in nodes]
        logits, attention = logits.clone(), session.model_outputs.attention
        attention = None if attention is None else attention.clone()
        for step in range(max(map(len, sequences))):
            tokens = torch.tensor([(new[step:] or [0])[0] for new in sequences], device=logits.device)
            newest = session.advance(tokens, None)
            unread = torch.tensor([step < len(new) for new in sequences], device=logits.device)[:, None]
            logits = torch.where(unread, newest, logits)
            if attention is not None and session.model_outputs.attention is not None:
                attention = torch.where(unread, session.model_outputs.attention, attention)
        return logits, attention

    def _prompts_of(self, nodes: Sequence[Node]) -> Prompt:
        return self._prompt.take(torch.tensor([node.prompt for node in nodes]))
