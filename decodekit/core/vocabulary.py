"""The vocabulary of a model: the meaning of its token ids."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from decodekit.core.validation import shown
from decodekit.errors import PromptError


@runtime_checkable
class Tokenizer(Protocol):
    """The two methods of a Hugging Face tokenizer that decodekit calls."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of `text`, by default with the special tokens that the model expects."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool) -> str:
        """The text of the ids."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The ids of a model: their number, their special ones, and their text.

    Every field may be unknown: a model over bare ids needs none of them.

    Attributes:
        size: Number of ids that a prompt may hold.
        end_ids: Ids that end a hypothesis.
        pad_id: Fills columns that hold no token.
        bos_id: Starts a text; an empty prompt becomes this one token.
        decoder_start_id: Starts the text of the decoder in an encoder-decoder; None for decoder-only models.
        tokenizer: Turns strings into ids and back.

    Example:
        >>> Vocabulary(size=4, end_ids=(0,)).end_ids
        (0,)
    """

    size: int | None = None
    end_ids: tuple[int, ...] = ()
    pad_id: int | None = None
    bos_id: int | None = None
    decoder_start_id: int | None = None
    tokenizer: Tokenizer | None = None

    def ids(self, text: str) -> list[int]:
        """The ids of a prompt; a `PromptError` if there is no tokenizer, or it cannot read the text."""
        if self.tokenizer is None:
            raise PromptError(
                "Prompt: a string needs a tokenizer, and the model has none. Pass token ids, or "
                "HFModel(model, tokenizer)."
            )
        try:
            ids = self.tokenizer.encode(text)
        except (TypeError, UnicodeError) as error:
            raise PromptError(
                f"Prompt: a string must be encodable text, got {shown(text)}. Lone surrogates are not."
            ) from error
        if text and not ids:
            raise PromptError(
                f"Prompt: the tokenizer returned no ids for {shown(text)}. Is this the model's own tokenizer?"
            )
        return ids

    def continuation_ids(self, prompt_text: str | None, prompt: list[int], continuation: str) -> list[int]:
        """The ids of `continuation` after a prompt: the rest of the whole text's ids, if possible.

        `prompt_text` is None if the prompt was given as ids.
        """
        if prompt_text is not None:
            whole = self.ids(prompt_text + continuation)
            if whole[: len(prompt)] == prompt:
                return whole[len(prompt) :]
        if self.tokenizer is None:
            return self.ids(continuation)  # raises
        if self.decoder_start_id is not None and callable(self.tokenizer):
            # Marian's tokenizers split targets and sources in different ways.
            ids: list[int] = self.tokenizer(text_target=continuation, add_special_tokens=False)["input_ids"]
            return ids
        return self.tokenizer.encode(continuation, add_special_tokens=False)

    def text(self, prompt: list[int], continuation: list[int]) -> str | None:
        """The text of `continuation` after `prompt`, special tokens left out; None without tokenizer."""
        if self.tokenizer is None:
            return None
        # Some tokenizers drop the space in front of the first word: read the addition to the prompt.
        before = self.tokenizer.decode(prompt, skip_special_tokens=True)
        whole = self.tokenizer.decode(prompt + continuation, skip_special_tokens=True)
        if whole.startswith(before):
            return whole[len(before) :]
        return self.tokenizer.decode(continuation, skip_special_tokens=True)
