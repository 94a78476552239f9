from decodekit.cli.run import trace_document
from tests.inspect.test_table import fabricated_trace


def test_a_trace_leaves_out_rows_that_have_ended() -> None:
    entries = trace_document(fabricated_trace())
    assert [(entry["step"], entry["row"]) for entry in entries] == [(0, 0), (0, 1), (1, 1)]
