"""The page docs/equivalence.md is generated from the outcomes of these calls.

After a change: `pytest tests/equivalence/test_page.py -n 0 --update-examples`, then read the diff.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import transformers

from tests.equivalence.table import (
    DIFFERENT,
    MODES,
    NO_OPTIONS,
    OF_ASSISTANTS,
    OF_CONFIG,
    OF_GENERATE,
    Row,
    outcome,
)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "equivalence.md"
TEMPLATE = Path(__file__).with_name("page.md")
ROWS = [*MODES, *OF_CONFIG, *OF_GENERATE, *DIFFERENT]

pytestmark = [
    pytest.mark.mostly_slow(16),
    pytest.mark.filterwarnings("ignore"),  # transformers warns of unusual options
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.option)
def test_the_outcome_of_an_option(row: Row) -> None:
    assert row.verdict == outcome(row).verdict


def test_every_option_of_a_configuration_is_in_the_table() -> None:
    named = {re.sub(r" .*", "", row.option) for row in OF_CONFIG}
    assert named | OF_ASSISTANTS | NO_OPTIONS == set(vars(transformers.GenerationConfig()))


@pytest.mark.slow
def test_the_page_is_generated_from_the_outcomes(request: pytest.FixtureRequest) -> None:
    made = TEMPLATE.read_text()
    for marker, rows in (
        ("modes", MODES),
        ("configuration", OF_CONFIG),
        ("arguments", OF_GENERATE),
    ):
        made = made.replace(f"<!-- {marker} -->", "\n".join(table(rows)))
    made = made.replace("<!-- different -->", "\n".join(differences_table()))
    made = made.replace("<!-- refused -->", refused())
    if request.config.getoption("update_examples"):
        PAGE.write_text(made)
    assert PAGE.read_text() == made


def table(rows: Iterable[Row]) -> list[str]:
    """Options with equal results, and the number of positions that the model processes in each library."""
    lines = ["| option | outcome | positions | remark |", "|---|---|---|---|"]
    for row in rows:
        came = outcome(row)
        if came.verdict == "refused":
            continue
        is_less = came.ours < came.theirs
        lines.append(
            f"| {code(row)} | {'equal, less work' if is_less else 'equal'} "
            f"| {f'{came.theirs} → {came.ours}' if is_less else came.ours} | {row.note} |"
        )
    return lines


def differences_table() -> list[str]:
    """The intended differences, each with its test."""
    lines = ["| case | difference | test |", "|---|---|---|"]
    lines += [f"| {row.option} | {row.note} | `{row.test}` |" for row in DIFFERENT]
    return lines


def refused() -> str:
    """The names of refused options."""
    return ", ".join(code(row) for row in [*MODES, *OF_CONFIG, *OF_GENERATE] if row.verdict == "refused")


def code(row: Row) -> str:
    """The name of an option as code; a description unchanged."""
    return re.sub(r"^(\w+_\w+)", r"`\1`", row.option)
