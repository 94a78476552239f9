"""Composable, batched decoding algorithms for language models."""

import lazy_loader

# The public names stand in __init__.pyi, one a line; each is imported when it is first asked for.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
