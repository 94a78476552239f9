"""transformers' `generate`, its processors and its configurations, in both directions.

transformers itself is imported only when one of these is called.
"""

from decodekit.compat.custom_generate import custom_generate as custom_generate
from decodekit.compat.from_hf import FromHF as FromHF
from decodekit.compat.generate import generate as generate
from decodekit.compat.recipe import Recipe as Recipe
from decodekit.compat.recipe import from_generation_config as from_generation_config
