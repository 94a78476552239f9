from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings


@pytest.fixture
def first_failure() -> Iterator[None]:
    """No search for the simplest failing case: where one is expected it only takes time."""
    before = settings.get_current_profile_name()
    settings.register_profile("first failure", phases=[Phase.generate])
    settings.load_profile("first failure")
    yield
    settings.load_profile(before)
