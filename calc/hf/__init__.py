"""A Hugging Face ``config.json`` of a decoder-only model read as a ModelSpec.

The way through: `build` reads the file, finds the architecture by its model_type (`architectures`, one file for each
lineage; `fallback` for a type that none names), and reads the layers: by the fields (`layers`, from `layer_kinds`,
`attention`, `latent`, `recurrences` and `feed_forward`) or by the architecture's own rules. What a class assumes where
the config is silent (`defaults`) becomes a note. A key that looks like a size, or a flag that adds a part, and that
nothing has read (`unread`) is refused by name.

The class in `architectures` says what a checkpoint has in place of a head over tokens (`heads`), or that it is a draft
head (`drafts`). Encoders beside a text model are counted apart (`projectors`, `encoders`). `params` turns the keys of a
params.json into those of a config.json.
"""

from calc.hf.build import read_hf_config, spec_from_config
from calc.hf.reader import MAX_CONFIG_BYTES

__all__ = ["MAX_CONFIG_BYTES", "read_hf_config", "spec_from_config"]
