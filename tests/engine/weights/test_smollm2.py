"""A real model end to end: SmolLM2-135M-Instruct from a GGUF file, against transformers on the same file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.generation_events import GenerationFinished
from engine.model.generate import GenerationOptions, generate
from engine.weights.checkpoint import LoadedModel, load_checkpoint
from tests.engine.smollm2 import model_file

pytestmark = pytest.mark.slow

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in 1842, there was a",
    "Water boils at 100 degrees Celsius. It freezes at",
    "Naïve café: 日本語 — “quotes”, it's 3.14159\n\n\tTabbed",
)
N_NEW = 32


@pytest.fixture(scope="module")
def file() -> Path:
    return model_file()


@pytest.fixture(scope="module")
def ours(file: Path) -> LoadedModel:
    return load_checkpoint(file, dtype="float32")  # as transformers widens it


@pytest.fixture(scope="module")
def theirs(file: Path) -> Any:
    pytest.importorskip("accelerate")  # transformers loads GGUF files with it
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    ).eval()


def finished(model: LoadedModel, ids: list[int], n_tokens: int) -> GenerationFinished:
    options = GenerationOptions(max_new_tokens=n_tokens, stop_at_eos=True)
    *_, last = generate(model.decoder, ids, options, tokenizer=model.tokenizer)
    assert isinstance(last, GenerationFinished)
    return last


def test_the_config_is_that_of_the_model(ours: LoadedModel) -> None:
    c = ours.config
    assert (c.n_layers, c.n_heads, c.n_kv_heads, c.head_dim) == (30, 9, 3, 64)
    assert (c.hidden_size, c.intermediate_size, c.vocab_size) == (576, 1536, 49152)
    assert (c.rope_theta, c.tied, c.max_positions) == (100_000.0, True, 8192)
    assert c.eos_ids == (2, 0, 4)  # the last is <reponame>: llama.cpp ends there too
    assert ours.decoder.n_parameters == 134_515_008


def test_text_is_split_as_transformers_splits_it(file: Path, ours: LoadedModel) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    assert ours.tokenizer is not None
    for text in (*PROMPTS, "<|im_start|>user\nHi<|im_end|>", "  two  spaces\r\n", "12345 67", "🏳️‍🌈 don't WE'LL"):
        ids = ours.tokenizer.encode(text)
        assert ids == tokenizer(text)["input_ids"], text
        if "<|" not in text:
            assert ours.tokenizer.decode(ids) == text


def test_greedy_tokens_equal_those_of_transformers(ours: LoadedModel, theirs: Any) -> None:
    assert ours.tokenizer is not None
    for prompt in PROMPTS:
        ids = ours.tokenizer.encode(prompt)
        done = finished(ours, ids, N_NEW)
        made = list(done.ids)
        assert len(made) == N_NEW or done.reason == "eos"
        row = torch.tensor([ids + made[:-1]])
        with torch.inference_mode():
            logits = theirs(row).logits
        # Greedy decoding in one pass: each token is the likeliest after those before it.
        assert made == logits[0, len(ids) - 1 :].argmax(-1).tolist(), prompt
        torch.testing.assert_close(ours.decoder.forward(row), logits, rtol=0, atol=1e-3)


def test_it_answers_through_its_template(ours: LoadedModel) -> None:
    assert ours.chat is not None
    assert ours.tokenizer is not None
    prompt = ours.chat.render([{"role": "user", "content": "What is the capital of France?"}])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert prompt.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    answer = finished(ours, ours.tokenizer.encode(prompt, add_special=False), 40)
    assert (answer.text, answer.reason) == ("The capital of France is Paris.", "eos")


def test_the_command_line_runs_it(file: Path) -> None:
    command = [sys.executable, "-m", "engine", "--mode", "generate", "--weights", str(file)]
    command += ["--prompt", PROMPTS[0], "--max-new-tokens", "8", "--no-stream"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
