"""Public questions of people who size or run inference, answered by kvscope commands and compared with the truth.

    python bench/questions.py [--write FOLDER] [Q01 …]

questions.json has them in our words: where they were asked, the commands, and the right values in each command's JSON.
A number must agree to the given digits, be between `right` and `to`, or within 5 % if the source says `about`. A name
in braces is a config.json of `configs`, which --write writes to FOLDER; `cause` says why an answer is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.answers import answer  # noqa: E402

TABLE = Path(__file__).with_suffix(".json")
UNITS = {"GiB": 2**30, "GB": 1e9, "MB": 1e6, "s": 1, "ms": 1e-3, "": 1}
STEP = re.compile(r"([^.\[\]]+)(?:\[([^\]]*)\])?")
ABOUT, CLOSE = 0.05, 0.01


class Verdict(IntEnum):
    """How an answer stands to what is right, worse downwards."""

    EXACT = 0
    CLOSE = 1
    IN_BAND = 2
    WRONG = 3
    REFUSED = 4

    @property
    def words(self) -> str:
        """As the page says it."""
        return ("exact", "within 1 %", "in its band", "wrong", "refused")[self]


@dataclass(frozen=True, slots=True)
class Checked:
    """One value: what is right, what kvscope says, and how the two stand."""

    what: str
    right: str
    ours: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its checked values; `commands` repeat them."""

    id: str
    text: str
    source: str
    note: str
    cause: str
    commands: tuple[str, ...]
    checked: tuple[Checked, ...]

    @property
    def verdict(self) -> Verdict:
        """Its worst value's."""
        return max(one.verdict for one in self.checked)


def configs() -> dict[str, dict[str, Any]]:
    """Published config.json files that the catalog has no record of, by the name that stands in {} in a command."""
    llama: dict[str, Any] = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 16_384,
        "intermediate_size": 53_248,
        "num_hidden_layers": 126, "num_attention_heads": 128, "num_key_value_heads": 16, "vocab_size": 128_256,
        "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    }  # fmt: skip
    kept = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(126) for name in "qkvo"]
    kept += [f"model.layers.{i}.mlp.{name}_proj" for i in (0, 125) for name in ("gate", "up", "down")]
    llama["quantization_config"] = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head", *kept]}
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3456, "num_heads": 16, "out_hidden_size": 8192,
        "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "hidden_act": "silu",
    }  # fmt: skip
    qwen = {
        "model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "hidden_size": 8192,
        "intermediate_size": 29_568, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 152_064, "max_position_embeddings": 128_000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "vision_config": vision,
    }  # fmt: skip
    gptq = {
        **qwen, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "intermediate_size": 29_696,
        "max_position_embeddings": 32_768, "torch_dtype": "float16",
        "quantization_config": {"quant_method": "gptq", "bits": 8, "group_size": 128, "desc_act": False, "sym": True},
    }  # fmt: skip
    gptq.pop("vision_config")
    long = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14_336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128_256,
        "max_position_embeddings": 1_048_576, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    return {"llama-3-8b-1048k": long, "llama-3.1-405b-fp8": llama, "qwen2.5-vl-72b": qwen, "qwen2-72b-gptq-int8": gptq}


def value_at(document: Any, path: str) -> Any:
    """What stands at `a.b[key=value].c`; `a[].b` adds up the list. None where nothing does."""
    for i, (name, chosen) in enumerate(steps := STEP.findall(path)):
        document = document.get(name) if isinstance(document, dict) else None
        if document is None:
            return None
        if f"{name}[]" in path and not chosen:
            rest = ".".join(step for step, _ in steps[i + 1 :])
            return sum(value_at(one, rest) for one in document)
        if chosen:
            wanted = dict(pair.split("=") for pair in chosen.split(","))
            document = next((one for one in document if all(str(one[k]) == v for k, v in wanted.items())), None)
    return document


def check(rule: dict[str, Any], document: Any) -> Checked:
    """A value of a command's JSON against its rule."""
    paths = [rule["at"]] if isinstance(rule["at"], str) else rule["at"]
    found = [value_at(document, path) for path in paths]
    if document is None or None in found:
        return Checked(rule["what"], _right(rule), "–", Verdict.REFUSED)
    if "says" in rule or isinstance(rule.get("right"), bool):
        return _check_words(rule, found[0])
    number = sum(found)
    unit = rule.get("unit", "")
    number = 1 / number if unit == "tokens/s" else number / UNITS[unit]
    if "below" in rule:
        verdict = Verdict.EXACT if number < float(rule["below"]) else Verdict.WRONG
        return Checked(rule["what"], "no", f"no, at most {number:.1f}" if not verdict else "yes", verdict)
    return Checked(rule["what"], _right(rule), _shown(number, rule), _verdict(number, rule, _band(rule, document)))


def _check_words(rule: dict[str, Any], found: Any) -> Checked:
    if "says" in rule:
        right = rule["says"] in found
        return Checked(rule["what"], rule["says"], found if len(found) < 80 else rule["says"] * right, _yes(right))
    words = {True: "yes", False: "no"}
    return Checked(rule["what"], words[rule["right"]], words[bool(found)], _yes(found is rule["right"]))


def _yes(right: bool) -> Verdict:
    return Verdict.EXACT if right else Verdict.WRONG


def _right(rule: dict[str, Any]) -> str:
    if "right" not in rule:
        return str(rule.get("says") or "no")
    if isinstance(rule["right"], bool):
        return "yes" if rule["right"] else "no"
    ends = [f"{float(rule[key]):,.{_digits(rule[key])}f}" for key in ("right", "to") if key in rule]
    return ("about " if rule.get("about") else "") + " to ".join(ends) + _unit(rule)


def _shown(number: float, rule: dict[str, Any]) -> str:
    more = 1 if "to" in rule and abs(number) < 100 else 0
    digits = max(_digits(rule["right"]) + more, 1 if rule.get("unit") else 0)
    return f"{number:,.{digits}f}{_unit(rule)}"


def _unit(rule: dict[str, Any]) -> str:
    return f" {rule['unit']}" if rule.get("unit") else ""


def _digits(text: str) -> int:
    return len(text.partition(".")[2])


def _band(rule: dict[str, Any], document: Any) -> tuple[float, float] | None:
    if "band" not in rule:
        return None
    band = value_at(document, rule["band"])
    low, high = (band["low"], band["high"]) if isinstance(band, dict) else band
    scale = value_at(document, rule["band_per"]) if "band_per" in rule else UNITS.get(rule.get("unit", ""), 1)
    return low / scale, high / scale


def _verdict(number: float, rule: dict[str, Any], band: tuple[float, float] | None) -> Verdict:
    low, high = float(rule["right"]), float(rule.get("to", rule["right"]))
    slack = 0.5000001 * 10.0 ** -_digits(rule["right"]) if "to" not in rule else 0.0
    slack = max(slack, ABOUT * abs(high) if rule.get("about") else 0.0)
    for allowed, verdict in ((slack, Verdict.EXACT), (CLOSE * abs(high), Verdict.CLOSE)):
        if low - allowed <= number <= high + allowed:
            return verdict
    if band is not None and band[0] <= high and low <= band[1]:
        return Verdict.IN_BAND
    return Verdict.WRONG


def ask(question: dict[str, Any], folder: Path) -> Question:
    """Run a question's commands and check what they say."""
    checked = []
    for one in question["asks"]:
        words = [str(folder / f"{word[1:-1]}.json") if word[0] == "{" else word for word in one["command"].split()]
        done = answer([*words, "--json"], folder)
        document = done["answer"] if done["code"] == 0 else None
        checked += [check(rule, document) for rule in one["checks"]]
    commands = tuple(re.sub(r"\{(.*?)\}", r"\1.json", one["command"]) for one in question["asks"])
    about = question.get("note", ""), question.get("cause", "")
    return Question(question["id"], question["question"], question["source"], *about, commands, tuple(checked))


def write_configs(folder: Path) -> None:
    """The files of `configs`."""
    for name, content in configs().items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def answered(only: list[str] | None = None) -> list[Question]:
    """All questions, or those of these ids, asked."""
    listed = json.loads(TABLE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(folder)
        return [ask(question, folder) for question in listed if not only or question["id"] in only]


def main() -> int:
    """Print the questions with what is right and what kvscope says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="the config.json files that commands name")
    args = parser.parse_args()
    if args.write is not None:
        write_configs(args.write)
    for question in answered(args.questions):
        print(f"{question.id} {question.verdict.words}: {question.text}")
        for one in question.checked:
            print(f"    {one.verdict.words:12} {one.what}: {one.ours}; right: {one.right}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
