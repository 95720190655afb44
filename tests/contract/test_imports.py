"""Who may import what, seen in ``sys.modules`` of processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import calc

ROOT = Path(__file__).parents[2]
HEAVY = {
    "torch",
    "textual",
    "rich",
    "plotext",
    "numpy",
    "sympy",
    "msgspec",
    "safetensors",
    "tokenizers",
    "tui",
    "engine",
}
MAY_USE_NUMPY = {"calc.fit.sweep", "calc.fit.server_sweep", "calc.speed.sweep"}
REPORT = "import json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"


def modules_of(code: str, *, config: Path | None = None) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `code`."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("COVERAGE", "PYTHON"))}
    if config is not None:
        env["KVSCOPE_CONFIG_DIR"] = str(config)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{REPORT}"],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def calc_modules() -> list[str]:
    """Every module of calc that there is a file for, but those that start a program."""
    folder = Path(calc.__file__).parent
    dotted = (file.relative_to(folder.parent).with_suffix("").parts for file in folder.rglob("*.py"))
    names = {".".join(parts).removesuffix(".__init__") for parts in dotted}
    return sorted(name for name in names if not name.endswith("__main__"))


def test_calc_reaches_nothing_heavy() -> None:
    names = [name for name in calc_modules() if name not in MAY_USE_NUMPY]
    assert len(names) > 20
    held = modules_of("import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in names))
    assert held & HEAVY == set()


def test_the_sweep_alone_uses_numpy() -> None:
    if "calc.fit.sweep" not in calc_modules():
        pytest.skip("no sweep")
    held = modules_of("import calc.fit.sweep")
    assert held & HEAVY == {"numpy"}


@pytest.mark.parametrize(
    "words",
    [
        ["memory", "--json"],
        ["memory", "--json", "--model", "qwen3-8b"],
        ["memory"],
        ["memory", "--format", "csv"],
        ["intensity", "--json"],
        ["models"],
        ["devices", "--json"],
    ],
)
def test_headless_calculation_loads_no_screen_and_no_engine(words: list[str]) -> None:
    held = modules_of(f"from tui.headless import cli\nassert cli.main({['--no-tui', *words]!r}) == 0")
    assert held & (HEAVY - {"tui"}) == set()


def test_a_cold_memory_of_a_plain_model_loads_none_of_the_rest() -> None:
    held = "import tui.headless.cli\nassert tui.headless.cli.main(['--no-tui', 'memory', '--json']) == 0\n"
    unwanted = ("calc.model.layers", "calc.model.latent", "calc.model.recurrent", "calc.fit.parallel",
                "calc.fit.solve", "calc.fit.sweep",
                "calc.intensity.attention", "csv")  # fmt: skip
    modules_of(f"{held}assert not [name for name in {unwanted} if name in sys.modules]")


def test_what_the_app_takes_from_the_engine_is_light() -> None:
    held = modules_of("import engine.process.events, engine.process.client, engine.errors, engine.measure.timing")
    assert held & (HEAVY - {"engine", "msgspec"}) == set()


FIRST_SCREEN = """
import asyncio
from tui.app.app import KvscopeApp
from tui.app.settings import Settings
async def first_screen():
    app = KvscopeApp(settings=Settings(), start_engine=False)
    async with app.run_test(size=(120, 40)):
        while not app.is_whole:
            await asyncio.sleep(0.01)
asyncio.run(first_screen())
"""


def test_the_first_screen_imports_no_torch(tmp_path: Path) -> None:
    held = modules_of(FIRST_SCREEN, config=tmp_path)
    assert "textual" in held
    assert held & {"torch", "numpy", "sympy", "safetensors", "tokenizers", "transformers"} == set()


def test_the_engine_never_reaches_calc_or_the_app() -> None:
    held = modules_of("import engine.process.worker, engine.commands.cli, engine.measure.runners.benchmark")
    assert held & {"calc", "tui", "textual"} == set()
    assert "torch" in held
