"""The numbers of the teaching notebook, on the real gpt2."""

from collections.abc import Sequence

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

import decodekit as dk

pytestmark = pytest.mark.gpt2

UNICORNS = (
    "In a shocking finding, scientist discovered a herd of unicorns living in a remote, previously "
    "unexplored valley, in the Andes Mountains. Even more surprising to the researchers was the fact that "
    "the unicorns spoke perfect English.\n\n\n"
)
TOTAL = 128  # tokens, prompt included


@pytest.fixture(scope="module")
def gpt2() -> dk.HFModel:
    for name in ("gpt2", "openai-community/gpt2"):
        try:
            model = AutoModelForCausalLM.from_pretrained(name, local_files_only=True)
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        except OSError:
            continue
        return dk.HFModel(model.float().eval(), tokenizer)
    pytest.skip("the gpt2 weights are not in the local Hugging Face cache")


def test_greedy_says_what_the_notebook_shows(gpt2: dk.HFModel) -> None:
    prompt = "Transformers are the"
    out = dk.decode(gpt2, prompt, dk.Greedy(), max_new_tokens=8)
    text = prompt + out.texts[0][0]
    assert text.startswith("Transformers are the most common type of particle. They are")


# The notebook prints two decimals.
@pytest.mark.parametrize(
    ("decoder", "processors", "expected"),
    [
        (dk.Greedy(), [], -83.32),
        (dk.BeamSearch(5), [], -78.34),
        (dk.BeamSearch(5), [dk.NoRepeatNGram(2)], -101.87),
    ],
    ids=["greedy", "5 beams", "5 beams, no pair of tokens twice"],
)
def test_the_unicorns_are_as_likely_as_in_the_notebook(
    gpt2: dk.HFModel, decoder: dk.Decoder, processors: Sequence[dk.LogitsProcessor], expected: float
) -> None:
    new = TOTAL - len(gpt2.vocabulary.ids(UNICORNS))
    out = dk.decode(gpt2, UNICORNS, decoder, processors, max_new_tokens=new)
    assert out.log_prob.item() == pytest.approx(expected, abs=0.02)
