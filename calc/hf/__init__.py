"""A Hugging Face ``config.json`` of a decoder-only model read as a ModelSpec.

The steps: `build` reads the file, finds the architecture by its model_type (`architectures`, one file per lineage;
`fallback` for an unknown type), and reads the layers by the fields (`layers`, from `layer_kinds`, `attention`,
`latent`, `recurrences` and `feed_forward`) or by the architecture's own rules. A value that the class assumes because
the config lacks it (`defaults`) becomes a note. A key that looks like a size, or a flag that adds a part, is refused by
name if nothing has read it (`unread`).

The class in `architectures` says what a checkpoint has instead of a language-model head (`heads`), or that it is a
draft head (`drafts`). Encoders beside a text model are counted separately (`projectors`, `encoders`). `params` turns
the keys of a params.json into those of a config.json.
"""

from calc.hf.build import read_hf_config, spec_from_config
from calc.hf.reader import MAX_CONFIG_BYTES

__all__ = ["MAX_CONFIG_BYTES", "read_hf_config", "spec_from_config"]
