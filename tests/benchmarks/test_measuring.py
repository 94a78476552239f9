import itertools

from tests.benchmarks.scripts import script

MEASURING = script("measuring")


def test_contenders_run_in_turns() -> None:
    ran: list[str] = []
    found = MEASURING.in_turns(
        {name: lambda name=name: ran.append(name) for name in "ab"}, 3, clock=itertools.count().__next__
    )
    assert ran == list("ababab")
    assert found == {"a": [1, 1, 1], "b": [1, 1, 1]}
