"""Write assets/class_defaults.json: the defaults of transformers' config classes for keys that a config leaves out.

    python bench/make_defaults.py

transformers writes the inner config of a multimodal model without the keys that have their default value, so that
these keys are part of what a published config means. The file has the numbers, flags and names of the decoder
classes, for the keys that calc.hf reads.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from calc.hf.architectures import BY_MODEL_TYPE  # noqa: E402

READERS = ROOT / "calc" / "hf"
FILE = ROOT / "assets" / "class_defaults.json"
LEFT_OUT = frozenset(
    """
    model_type dtype is_encoder_decoder tie_word_embeddings rms_norm_eps sliding_window use_sliding_window
    max_window_layers sliding_window_pattern query_pre_attn_scalar num_nextn_predict_layers mtp_num_hidden_layers
    num_mtp_layers num_mtp_modules n_positions global_attn_every_n_layers keep_window_size window_size block_size
    index_block_size index_local_blocks index_topk_blocks hidden_act post_norm_eps
    """.split()
)
"""Not taken from here: what adds nothing, and what the reader decides itself."""


def keys_read() -> frozenset[str]:
    """Every name that occurs as a text in the readers."""
    texts: set[str] = set()
    for file in {*READERS.rglob("*.py")} - {READERS / "unread.py"}:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.update(node.value.split())
    return frozenset(texts) - LEFT_OUT


def text_classes() -> Iterator[tuple[str, type]]:
    """(model_type, config class) of the decoders, alone or inside a multimodal config."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield name, CONFIG_MAPPING[name]
    for cls in CONFIG_MAPPING.values():
        inner = getattr(cls, "sub_configs", {}).get("text_config")
        if inner is not None and getattr(inner, "model_type", ""):
            yield inner.model_type, inner


def defaults_of(cls: type, keys: frozenset[str]) -> dict[str, Any]:
    """The class's own default values, as written in it (nothing derived from other fields)."""
    if not dataclasses.is_dataclass(cls):
        return {}
    found = {f.name: f.default for f in dataclasses.fields(cls) if f.name in keys}
    return {
        name: v for name, v in sorted(found.items()) if isinstance(v, bool | str) or (isinstance(v, int | float) and v)
    }


def main() -> None:
    """One class a line."""
    import transformers

    keys = keys_read()
    table = {
        name: values for name, cls in text_classes() if name in BY_MODEL_TYPE and (values := defaults_of(cls, keys))
    }
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(table[name])}" for name in sorted(table))
    about = f"Defaults of transformers {transformers.__version__}'s config classes; made by bench/make_defaults.py"
    text = f'{{"about": {json.dumps(about)},\n "classes": {{\n{lines}\n}}}}\n'
    json.loads(text)
    FILE.write_text(text, encoding="utf-8")
    print(f"{FILE.name}: {len(table)} classes, {len(text):,} characters")


if __name__ == "__main__":
    main()
