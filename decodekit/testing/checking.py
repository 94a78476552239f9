"""What the checks share."""

from hypothesis import HealthCheck, settings


def repeatable(max_examples: int) -> settings:
    """The same random cases every time, as many as asked for."""
    return settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


def check(holds: object, law: str) -> None:
    """Raises an `AssertionError` that states the law unless it holds."""
    if not holds:
        raise AssertionError(f"{law}.")
