"""calc.fit.server_costs: what a server admits, tried out with its own report; the command line beside memory's."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calc import __main__ as calc_main
from calc.fit.rules import costs_of
from calc.fit.server_costs import CACHE_FORMATS, WEIGHT_FORMATS
from calc.fit.solve import advice, devices_that_fit, fewest_devices, formats_that_fit, largest_batch, largest_context
from calc.model.storage import FORMATS
from calc.model.study import Policy, Study
from calc.servers.names import ENGINES
from calc.servers.records import ServerOptions
from calc.servers.refusals import runs_on
from calc.servers.report import server_report
from calc.sources.catalog import devices, find_device, find_model
from tests.calc.strategies import device
from tests.examples import examples

GB, GIB = 10**9, 2**30
ON_H100 = Study(model=find_model("llama-3-8b"), device=find_device("h100-sxm"), policy=Policy.REPLICATED, tps=(1,))
FEW = examples(12)
engines = st.sampled_from(ENGINES)
studies = st.builds(
    lambda name, gb, context: replace(
        ON_H100, model=find_model(name), device=device(gb * GB), context=context, weight_format=FORMATS["bf16"]
    ),
    st.sampled_from(["llama-3-8b", "mistral-7b-v0.1", "qwen3-14b", "gpt2"]),
    st.integers(2, 200),
    st.integers(1, 40_000),
)


def server(study, options):
    """The costs of `study` on the server of `options`."""
    return costs_of(study, options.tp, options)


@pytest.mark.parametrize(("batch", "tokens"), [(1, 81_920), (4, 20_480), (5120, 16)])
def test_a_given_pool_by_hand(batch, tokens):
    """10 GiB in blocks of 16 tokens of 131,072 B are 5120 blocks."""
    options = ServerOptions(kv_pool_bytes=10 * GIB)
    answer = largest_context(server(ON_H100, options), batch=batch)
    assert (answer.context, answer.free_bytes) == (tokens, 0)
    assert largest_context(server(ON_H100, options), batch=5121).context is None
    assert largest_batch(server(replace(ON_H100, context=81_920), options)).batch == 1
    assert largest_batch(server(replace(ON_H100, context=81_921), options)).batch == 0


@FEW
@given(studies, engines, st.integers(1, 8))
def test_the_context_is_admitted_and_one_token_more_is_not(study, engine, batch):
    options = ServerOptions(engine=engine)
    answer = largest_context(server(study, options), batch=batch)
    if answer.context is None:
        assert server_report(replace(study, context=1), options).max_concurrency < batch
        return
    assert server_report(replace(study, context=answer.context), options).max_concurrency >= batch
    if not answer.unbounded:
        assert server_report(replace(study, context=answer.context + 1), options).max_concurrency < batch


@pytest.mark.slow
@FEW
@given(studies, engines, st.integers(1, 8))
def test_missing_and_advice_go_together(study, engine, batch):
    options = ServerOptions(engine=engine)
    at = server(study, options).admission(batch=batch)
    assert (at.missing_bytes > 0) is (at.batch < batch)
    assert (server(study, options).shortage(batch) == "") is (at.batch >= batch)
    found = advice(server(study, options), batch=batch)
    if at.batch >= batch:
        assert found == ()
    for step in found:
        value = step.options[1]
        if step.change == "context":
            assert server(replace(study, context=int(value)), options).admission().batch >= batch
        elif step.change in ("weight-format", "kv-format"):
            stored = replace(study, **{step.change.replace("-", "_"): FORMATS[value]})
            assert server(stored, options).admission().batch >= batch
        elif step.change == "device":
            assert server(replace(study, device=find_device(value)), options).admission().batch >= batch


def test_fewest_devices_as_the_server_counts():
    small = replace(ON_H100, device=device(20 * GB))
    options = ServerOptions()
    answer = fewest_devices(server(small, options), batch=4)
    assert answer.devices == 2
    for plan in answer.plans:
        report = server_report(small, replace(options, tp=plan.tp, pp=plan.pp))
        assert int(report.max_concurrency) == plan.max_batch >= 4
        if plan.pp > 1:
            fewer = server_report(small, replace(options, tp=plan.tp, pp=plan.pp - 1))
            assert fewer.max_concurrency < 4
    none = fewest_devices(server(replace(ON_H100, device=device(GB)), options), most=2)
    assert (none.devices, none.plans) == (None, ())
    assert none.missing_bytes > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_devices_of_the_catalog(engine):
    options = ServerOptions(engine=engine)
    answers = devices_that_fit(server(ON_H100, options), batch=4)
    assert {a.id for a in answers} == {e.id for e in devices().values() if runs_on(engine, e.spec)}
    assert [a.fits for a in answers] == sorted((a.fits for a in answers), reverse=True)
    for answer in answers[::9]:
        report = server_report(replace(ON_H100, device=find_device(answer.id)), options)
        assert answer.max_batch == int(report.max_concurrency + 1e-9)
        assert answer.reason


@pytest.mark.parametrize("engine", ENGINES)
def test_formats_the_server_knows(engine):
    answers = formats_that_fit(server(ON_H100, ServerOptions(engine=engine)), batch=4)
    assert {a.weight_format for a in answers} == {*WEIGHT_FORMATS[engine], "bf16"}
    assert {a.kv_format for a in answers} == {*CACHE_FORMATS[engine], "bf16"}
    assert answers[0].weight_format == answers[0].kv_format == "bf16"


def test_where_a_server_runs():
    left_out = {engine: {e.id for e in devices().values() if not runs_on(engine, e.spec)} for engine in ENGINES}
    assert all({"tpu-v5e", "trainium2", "gaudi-3"} <= left for left in left_out.values())
    assert "apple-m2-max" in left_out["vllm"] & left_out["sglang"]
    assert "apple-m2-max" not in left_out["llamacpp"] | left_out["transformers"]
    assert {"p40", "p100-pcie-16gb", "mi50-16gb"} <= left_out["vllm"]
    assert not left_out["llamacpp"] & {"p40", "mi50-16gb", "rtx-3090"}
    assert "v100-sxm2-32gb" in left_out["sglang"] - left_out["vllm"]
    report = server_report(replace(ON_H100, device=find_device("tpu-v5e")), ServerOptions(engine="llamacpp"))
    assert (report.fits, report.refusal) == (False, "it does not run on Google TPU v5e")


def test_devices_of_llama_cpp_share_layers():
    """Any number of them, and no pipeline besides."""
    answer = fewest_devices(server(replace(ON_H100, device=device(8 * GB)), ServerOptions(engine="llamacpp")))
    assert answer.devices == 3
    assert [(p.tp, p.pp) for p in answer.plans] == [(n, 1) for n in range(3, 11)]


def test_what_the_server_refuses_is_an_answer():
    options = ServerOptions(tp=3)
    at = server(replace(ON_H100, tps=(3,)), options).admission()
    assert at.problem
    assert largest_context(server(ON_H100, options)).problem == at.problem
    assert server(ON_H100, options).shortage(1).endswith(".")
    (step,) = [step for step in advice(server(ON_H100, options)) if step.change == "tp"]
    assert step.text.startswith("Use one such device (tensor parallelism 1): ")


# Command line


def answer(words, capsys):
    assert calc_main.main([*words, "--json"]) == 0
    out = capsys.readouterr()
    assert out.err == ""
    return json.loads(out.out)


@pytest.mark.parametrize("engine", ENGINES)
def test_solve_says_what_memory_says(engine, capsys):
    words = ["--policy", engine, "--device", "h100-sxm", "--context", "4k"]
    solved = answer(["solve", "--find", "batch", *words], capsys)
    memory = answer(["memory", "--tp", "1", *words], capsys)
    assert solved["policy"] == engine
    assert solved["answers"]["batch"]["batch"] == memory["max_batch"]
    assert solved["fits"] is memory["fits"]


def test_options_of_the_server_count(capsys):
    words = ["solve", "--find", "context", "--policy", "vllm", "--kv-pool", "10GiB", "--batch", "4"]
    assert answer(words, capsys)["answers"]["context"]["context"] == 20_480


def test_a_servers_option_without_its_policy_is_refused(capsys):
    assert calc_main.main(["solve", "--max-num-seqs", "8"]) == 2
    assert "add --policy" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("form", ["text", "csv", "md"])
def test_every_answer_of_a_server_in_every_format(form, capsys):
    assert calc_main.main(["solve", "--policy", "vllm", "--gpu-memory", "20GB", "--batch", "4", "--format", form]) == 0
    out = capsys.readouterr().out
    assert "rtx-4090" in out
    if form != "csv":
        assert "as vllm counts" in out
