"""How shapes are checked while tests/shapes.py runs."""

from beartype import BeartypeConf, beartype

# Python's numeric tower: an integer is welcome where a float is asked for.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
