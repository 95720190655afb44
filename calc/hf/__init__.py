"""A Hugging Face ``config.json`` of a decoder-only model read as a ModelSpec.

The layers follow from the config's own fields (`attention`, `experts`, `latent`, `recurrent`); what fields do not
say, which projections have a bias and how many norms a layer has, is in a table of families (`families`). What
neither determines is refused by name; what a class assumes where the config is silent becomes a note.
"""

from calc.hf.build import read_hf_config, spec_from_config
from calc.hf.reader import MAX_CONFIG_BYTES, read_bounded

__all__ = ["MAX_CONFIG_BYTES", "read_bounded", "read_hf_config", "spec_from_config"]
