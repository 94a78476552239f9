"""Composable, batched decoding algorithms for language models."""

import lazy_loader

# The public names stand in __init__.pyi, one a line; each is imported at its first use.
_lookup, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """A public name. For an unknown one, raises an `AttributeError` that suggests a similar name."""
    try:
        return _lookup(name)
    except AttributeError:
        if name.startswith("_") or name in __all__:
            raise
    from decodekit.engine.advice import missing_name  # noqa: PLC0415 - for the error only

    raise AttributeError(missing_name(name, __all__))
