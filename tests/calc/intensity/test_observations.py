"""Sentences of calc.observations and calc.notes: their numbers are the report's, and they change with them."""

import re
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from calc.commands.notes import memory_notes, smallest_fitting_tp
from calc.fit.memory import memory_report
from calc.intensity.attention import Attention, Phase, attention_work
from calc.intensity.observations import critical_batch, intensity_observations, knee
from calc.intensity.study import IntensityQuery, intensity_report
from calc.model.edit import edit
from calc.model.storage import FORMATS, StorageFormat
from calc.model.study import Policy, Study
from calc.sources.catalog import find_model
from tests.calc.intensity.points import decode_point
from tests.calc.intensity.test_study import queries
from tests.calc.strategies import H100, LLAMA, QUICK, device, models, studies

GB = 10**9
QUERY = IntensityQuery(model=LLAMA, device=H100)
POINT, SATURATION, FLASH, ATTENTION, LINEAR, STEP, RIDGE = range(7)


def said(query, which):
    return intensity_observations(intensity_report(query))[which]


def numbers(sentence):
    """Every number in a sentence."""
    return {float(text.replace(",", "")) for text in re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", sentence)}


# Every number comes from the report


def test_the_point():
    report = intensity_report(QUERY)
    sentence = intensity_observations(report)[POINT]
    assert numbers(sentence) == {1024, 128, 542.1, 9.44, 57.4, 529.4, 532.99, 0.993, 57.8}
    assert report.prefill.intensity / report.decode.intensity == pytest.approx(57.8, abs=0.05)
    assert sentence.endswith("prefill is 57.8 times decode.")


def test_a_point_of_one_token_is_the_same_in_both_phases():
    assert said(replace(QUERY, context=1), POINT).endswith(": the same in both phases.")


def test_the_point_names_its_grouping():
    assert "for 4 query heads per KV head" in said(replace(QUERY, group_size=4), POINT)


@pytest.mark.parametrize("head_dim", [50, 64, 128, 256])
def test_the_knee_is_exact(head_dim):
    """95 % of the limit: N / (N + d) = 0.95, so N = 19 d (one KV head for each query head)."""
    report = intensity_report(replace(QUERY, head_dim=head_dim))
    assert knee(report) in (19 * head_dim, 19 * head_dim + 1)
    for n, above in ((knee(report), True), (knee(report) - 1, False)):
        flops, moved = attention_work(
            Attention.STANDARD,
            Phase.PREFILL,
            n_keys=n,
            head_dim=head_dim,
            group_size=1,
            softmax_flops=5,
            element_bytes=2,
        )
        assert (flops / moved >= 0.95 * report.prefill.limit) is above


def test_saturation():
    sentence = said(QUERY, SATURATION)
    assert sentence.startswith("Prefill intensity saturates, from 21.5 FLOP/B at N = 64 to 64.1 at 16,384")
    assert "(4 · d + 5) / (4 · b) = 64.62 FLOP/B" in sentence
    assert "It reaches 95 % of that at N = 2,432" in sentence
    assert sentence.endswith("N = 1,024 reaches 89 %.")


def test_saturation_above_the_knee():
    assert said(replace(QUERY, context=8192), SATURATION).endswith("N = 8,192 is past that.")


def test_saturation_is_not_claimed_below_the_knee():
    sentence = said(replace(QUERY, contexts=(64, 1024)), SATURATION)
    assert sentence.startswith("Prefill intensity rises towards a limit, from 21.5 FLOP/B at N = 64 to 57.4 at 1,024")


def test_saturation_follows_the_element_size():
    assert "128" in said(replace(QUERY, element_bytes=1, softmax_flops=0), SATURATION)
    assert "d / b = 128.00 FLOP/B" in said(replace(QUERY, element_bytes=1, softmax_flops=0), SATURATION)


def test_flash_has_no_limit():
    report = intensity_report(replace(QUERY, attention=Attention.FLASH))
    sentence = intensity_observations(report)[SATURATION]
    assert "without a limit" in sentence
    assert f"{report.prefill_by_context[-1].intensity:,.0f}" in sentence
    assert knee(report) is None


def test_the_order_of_the_contexts_does_not_matter():
    forth, back = (replace(QUERY, contexts=c) for c in ((64, 1024, 16384), (16384, 64, 1024)))
    assert said(forth, SATURATION) == said(back, SATURATION)


def test_a_single_context():
    assert said(replace(QUERY, contexts=(512,)), SATURATION).startswith(
        "Prefill intensity rises towards a limit, 51.7 FLOP/B at N = 512:"
    )


def test_flash_against_standard_is_told_the_same_from_both_sides():
    sentence = said(QUERY, FLASH)
    assert sentence == said(replace(QUERY, attention=Attention.FLASH), FLASH)
    assert "1/9.00 of the bytes in prefill (517 FLOP/B instead of 57.4)" in sentence
    assert "1.5 % fewer bytes in decode, where most of the traffic is the cache" in sentence


def test_flash_helps_decode_where_many_heads_share_a_small_cache():
    sentence = said(replace(QUERY, group_size=64, head_dim=64), FLASH)
    assert "of the bytes in decode, where S and P are large compared with the cache" in sentence


def test_attention_is_flat():
    sentence = said(QUERY, ATTENTION)
    assert "does not depend on the batch size (0.993 FLOP/B at B = 1, 0.993 at 256)" in sentence
    assert "With 4 query heads per KV head, as in llama-3-8b, it is 3.79 FLOP/B" in sentence


def test_attention_of_a_model_without_groups():
    sentence = said(replace(QUERY, model=edit(LLAMA, n_kv_heads=32)), ATTENTION)
    assert "query heads per KV head" not in sentence
    grouped = said(replace(QUERY, model=edit(LLAMA, n_kv_heads=32), group_size=8), ATTENTION)
    assert "With one KV head per query head, as in llama-3-8b (edited), it is 0.993 FLOP/B." in grouped


def test_linear_layers():
    sentence = said(QUERY, LINEAR)
    report = intensity_report(QUERY)
    assert "rises 237 times when the batch grows 256 times, from 1.00 FLOP/B at B = 1 to 237 at 256" in sentence
    assert round(report.decode_by_batch[-1].linear_intensity) == 237
    assert "activations" not in sentence


def test_linear_layers_held_by_their_activations():
    """A model with huge activations: a vocabulary of a million on a width of 8."""
    model = edit(LLAMA, hidden_size=8, n_heads=1, n_kv_heads=1, head_dim=8, intermediate_size=8, vocab_size=10**6)
    sentence = said(replace(QUERY, model=model), LINEAR)
    assert sentence.endswith(
        "but activations are moved for each sequence: 11 % of the bytes at the smallest batch, 97 % at the largest."
    )
    assert "the linear layers never reach the ridge" in said(replace(QUERY, model=model), RIDGE)


def test_experts_are_what_holds_deepseek_back_and_activations_are_not():
    """Shares by hand at B = 256: all experts are read, 17.8 times what one token reads; activations are 2 % of all."""
    model = find_model("deepseek-v3")
    query = IntensityQuery(model=model, device=H100, attention=Attention.FLASH, stored=True)
    report = intensity_report(query)
    first, last = report.decode_by_batch[0], report.decode_by_batch[-1]
    sentence = next(s for s in intensity_observations(report) if s.startswith("The intensity of the linear layers"))
    times = last.weight_bytes / first.weight_bytes
    assert "but more tokens use more experts" in sentence
    assert f"{times:.1f} times as many weights are read" in sentence
    share = (last.weight_bytes - first.weight_bytes) / (last.linear_bytes - first.linear_bytes)
    assert f"{100 * share:.0f} % of the additional bytes" in sentence
    assert f"activations are {100 * last.activation_bytes / last.linear_bytes:.0f} % of all" in sentence
    assert "256 of 256 experts per layer are used at B = 256" in sentence
    assert "activations are moved for each sequence" not in sentence


def test_latent_attention_is_said_with_its_form_and_its_limit():
    model = find_model("deepseek-v3")
    report = intensity_report(IntensityQuery(model=model, device=H100, attention=Attention.FLASH))
    text = " ".join(intensity_observations(report))
    assert "Counted in decode: 61 x latent attention, absorbed. In prefill: 61 x latent attention, expanded." in text
    assert "128 heads read one row of 576 elements per token" in text
    assert "As N grows, decode tends to 242 FLOP/B." in text
    assert "0.995" not in text
    h200 = replace(H100, name="H200", bandwidth_bytes_per_s=4.8e12)
    crossing = intensity_observations(intensity_report(replace(report.query, device=h200)))[-1]
    assert "1/1.05 of the ridge at N = 1,024, and above it as N grows" in crossing


def test_attention_above_the_linear_layers_raises_the_step():
    model = find_model("deepseek-v3")
    report = intensity_report(IntensityQuery(model=model, device=H100, attention=Attention.FLASH, batches=(1,)))
    point = report.decode_by_batch[0]
    sentence = next(s for s in intensity_observations(report) if s.startswith("The whole decode step"))
    assert f"raises it to {point.step_intensity / point.linear_intensity:.2f} times the linear layers'" in sentence


@pytest.mark.parametrize("name", ["gpt-oss-120b", "qwen3.5-35b-a3b", "deepseek-v3.2", "llama-4-scout", "gemma-3-27b"])
def test_shares_of_a_decode_step_are_the_reports(name):
    report = intensity_report(IntensityQuery(model=find_model(name), device=H100, attention=Attention.FLASH))
    decode = report.layers.decode
    sentence = next(s for s in intensity_observations(report) if s.startswith("Of the bytes that decode moves"))
    most = max(decode.operators, key=lambda o: o.bytes)
    assert f"{most.count:,} x {most.name} moves {100 * most.bytes / decode.bytes:.0f} % of them" in sentence
    states = sum(o.bytes for o in decode.operators if o.kind == "recurrence")
    assert ("states (read and written)" in sentence) == (states > 0)


def test_step():
    sentence = said(QUERY, STEP)
    last = intensity_report(QUERY).decode_by_batch[-1]
    assert "from 0.999 FLOP/B at B = 1 to 25.5 at 256 (75.3 with 4 query heads per KV head)" in sentence
    assert (
        f"limits it to {100 * last.step_intensity / last.linear_intensity:.0f} % of the linear layers' 237" in sentence
    )


def test_step_over_a_tiny_context():
    assert "hardly changes the linear layers'" in said(replace(QUERY, context=1), STEP)


def test_a_single_batch():
    sentences = intensity_observations(intensity_report(replace(QUERY, batches=(8,))))
    assert "at B = 8 and at any other batch size" in sentences[ATTENTION]
    assert sentences[LINEAR].startswith("The linear layers have 7.98 FLOP/B at B = 8")
    assert sentences[STEP].startswith("The whole decode step has 6.41 FLOP/B at B = 8")


def test_the_order_of_the_batches_does_not_matter():
    forth, back = (replace(QUERY, batches=b) for b in ((1, 16, 256), (256, 1, 16)))
    assert intensity_observations(intensity_report(forth)) == intensity_observations(intensity_report(back))


def test_ridge():
    sentence = said(QUERY, RIDGE)
    assert "The ridge of H100 is 295 FLOP/B" in sentence
    assert "Prefill attention (57.4) is memory bound, 1/5.14 of the ridge" in sentence
    assert "decode attention (0.993) is memory bound, 1/297 of the ridge" in sentence
    assert sentence.endswith("at a batch of 326.")


def test_ridge_from_the_other_side():
    sentence = said(replace(QUERY, attention=Attention.FLASH), RIDGE)
    assert "Prefill attention (517) is compute bound, 1.75 times the ridge" in sentence


def test_without_a_ridge_common_devices_stand_in_and_are_marked_so():
    """A100 80 GB: 312 TFLOP/s over 2.039 TB/s; H100 SXM: 989.4 over 3.35."""
    sentence = said(replace(QUERY, device=device()), RIDGE)
    assert sentence.startswith("Ridges of common devices, FLOP/B (bf16): A100 80 GB 153, H100 80 GB 295 (")
    assert "the bandwidth or peak of test device is not known" in sentence
    assert "On A100: prefill attention (57.4) is memory bound, 1/2.66 of the ridge; decode" in sentence
    assert "On H100: prefill attention (57.4) is memory bound, 1/5.14 of the ridge; decode" in sentence


@QUICK
@given(models(), st.floats(1, 1000), st.sampled_from([2, Fraction(9, 16)]))
def test_the_critical_batch_is_the_first(model, ridge, each):
    report = intensity_report(replace(QUERY, model=model, weight_element_bytes=each, batches=(1,), contexts=(1,)))
    batch = critical_batch(report, ridge)

    def linear(b):
        point = decode_point(
            model, b, context=1, group_size=1, weight_element_bytes=each, element_bytes=report.query.element_bytes
        )
        return point.linear_intensity

    if batch is None:
        assert linear(10**12) <= ridge * (1 + 1e-9)
    else:
        assert linear(batch) >= ridge * (1 - 1e-9)
        assert batch == 1 or linear(batch - 1) < ridge * (1 + 1e-9)


def test_sentences_change_with_the_numbers():
    """No sentence is canned: another d, N, b and device change all seven."""
    other = replace(
        QUERY,
        context=333,
        head_dim=80,
        element_bytes=1,
        device=replace(H100, bandwidth_bytes_per_s=1e12),
        contexts=(10, 100),
        batches=(3, 30),
    )
    here, there = (intensity_observations(intensity_report(q)) for q in (QUERY, other))
    assert len(here) == len(there) == 7
    assert all(a != b for a, b in zip(here, there, strict=True))


@QUICK
@given(queries, st.sampled_from([device(), H100]))
def test_observations_never_fail(query, where):
    sentences = intensity_observations(intensity_report(replace(query, device=where)))
    assert len(sentences) >= 7
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z].*\.", sentence)
        assert not re.search(r"nan|inf\b|None|Fraction|e[+-]\d|  ", sentence)


def test_observations_of_absurd_sizes():
    most = 10**12
    fields = ("n_heads", "n_kv_heads", "head_dim", "hidden_size", "intermediate_size", "vocab_size")
    query = IntensityQuery(
        model=edit(LLAMA, n_layers=10_000, **dict.fromkeys(fields, most)),
        device=H100,
        context=most,
        head_dim=most,
        group_size=most,
        contexts=(1, most),
        batches=(1, most),
    )
    assert len(intensity_observations(intensity_report(query))) == 7


# Notes of the memory table


def notes(model=LLAMA, memory_bytes=80 * GB, **changes):
    return memory_notes(memory_report(Study(model=model, device=device(memory_bytes), **changes)))


def test_notes_of_the_default():
    assert notes() == (
        "Device memory: 80,000,000,000 B.",
        "Grouped-query attention: 4 query heads share each KV head, so the cache is 4 times smaller than with 32 "
        "KV heads.",
        "59 requests fit in the memory that the weights leave; 588.71 MB remains free.",
        "Every parameter is counted at 2 bytes; activations, runtime and graphs are not counted.",
    )
    assert 80 * GB - 16_060_522_496 - 59 * 2**30 == 588_709_888


@pytest.mark.parametrize(
    ("heads", "kv_heads", "says"),
    [
        (32, 32, "Multi-head attention: each of the 32 query heads has its own K and V."),
        (32, 1, "Multi-query attention: 32 query heads share the one KV head, so the cache is 32 times smaller"),
        (1, 1, "Single-head attention: one query head with its own K and V."),
    ],
)
def test_grouping_is_named(heads, kv_heads, says):
    assert notes(edit(LLAMA, n_heads=heads, n_kv_heads=kv_heads))[1].startswith(says)


def test_one_request():
    assert "1 request fits in the memory that the weights leave; 0.00 B" not in notes(memory_bytes=18 * GB)[2]
    assert (
        notes(memory_bytes=18 * GB)[2] == "1 request fits in the memory that the weights leave; 865.74 MB remains free."
    )


def test_weights_too_large_say_by_how_much_and_what_would_fit():
    assert notes(memory_bytes=10 * GB)[2] == (
        "Does not fit: the weights alone exceed the memory by 6.06 GB (5.64 GiB), and with one request by 7.13 GB "
        "(6.64 GiB). It would fit with tensor parallelism over 2 such devices, or weights of at most 1.11 bytes each."
    )


def test_request_too_large_says_by_how_much_and_what_would_fit():
    sentence = notes(memory_bytes=16_100_000_000)[2]
    assert sentence.startswith("Does not fit: the weights fit, but one request needs 1.03 GB (986.35 MiB) more.")
    assert "a context of 301 tokens" in sentence


def test_nothing_helps():
    assert "No shorter context, smaller weight format or tensor parallelism" in notes(memory_bytes=1)[2]


@QUICK
@given(studies())
def test_every_remedy_works(study):
    """Each change that is offered makes one request fit; one token more, or a whole byte more, does not."""
    report = memory_report(study)
    assume(not report.fits)
    sentence = memory_notes(report)[2]
    if found := re.search(r"a context of ([\d,]+) token", sentence):
        context = int(found[1].replace(",", ""))
        assert memory_report(replace(study, context=context)).fits
        assert not memory_report(replace(study, context=context + 1)).fits
    if found := re.search(r"tensor parallelism over (\d+) such", sentence):
        trial = memory_report(replace(study, tps=(int(found[1]),)))
        assert trial.tp_tables[Policy.REPLICATED][0].fits
    if found := re.search(r"weights of at most (\d+\.\d\d) bytes", sentence):
        hundredths = int(found[1].replace(".", ""))
        assert memory_report(replace(study, weight_format=StorageFormat("trial", 100, hundredths))).fits
        assert not memory_report(replace(study, weight_format=StorageFormat("trial", 100, hundredths + 1))).fits


@QUICK
@given(studies())
def test_the_fewest_devices_by_trying(study):
    report = memory_report(study)
    assume(not report.fits)
    tried = (
        tp
        for tp in range(2, study.model.n_heads + 1)
        if memory_report(replace(study, tps=(tp,))).tp_tables[Policy.REPLICATED][0].fits
    )
    assert smallest_fitting_tp(report) == next(tried, None)


def test_windows_are_noted():
    sliding = edit(LLAMA, n_sliding_layers=16, window=4096)
    says = "16 of 32 layers keep a window of 4,096 tokens, less than the context; the cache is 805.31 MB "
    assert f"{says}instead of 1.07 GB." in notes(sliding)
    assert any("at least the context" in note for note in notes(sliding, context=1000))


def test_degrees_that_no_server_runs_are_noted():
    assert "TP 3 cannot be served: 32 query heads are not divisible by 3." in notes(tps=(1, 3))


def test_replication_is_noted():
    assert any(
        note.startswith("Beyond 8 GPUs (TP 16, 32) whole KV heads are repeated") for note in notes(tps=(8, 16, 32))
    )
    single = edit(LLAMA, n_kv_heads=1)
    assert any(note.startswith("Beyond 1 GPU (TP 2)") for note in notes(single, tps=(1, 2)))
    assert not any("repeat" in note for note in notes())


def test_formats_are_noted():
    assert "Every parameter is counted at 1 byte;" in notes(weight_format=FORMATS["fp8"])[-1]
    assert "Every parameter is counted at 0.5625 bytes;" in notes(weight_format=FORMATS["q4_k"])[-1]


def test_the_models_own_notes_come_last():
    assert notes(replace(LLAMA, notes=("read with care",)))[-1] == "Read with care."


@QUICK
@given(studies())
def test_notes_never_fail(study):
    for note in memory_notes(memory_report(study)):
        assert re.fullmatch(r"[A-Z0-9].*\.", note)
        assert not re.search(r"nan|inf\b|None|Fraction|  ", note)
