"""An estimate in sentences: the answer, where its limit changes, what it takes for granted, how exact it is."""

from __future__ import annotations

from calc.model.study import Study
from calc.speed.accuracy import accuracy_of
from calc.speed.asked import Asked, Load
from calc.speed.crossings import cache_over_weights, compute_bound_batch, speculation_pays_to
from calc.speed.estimate import FEW, Estimate
from calc.speed.room import by_server, room_of
from calc.speed.steps import Steps, has_experts
from calc.units import format_duration_s, format_number


def sentence(study: Study, answer: Estimate) -> str:
    """The answer in one sentence."""
    asked, devices = answer.asked, "one" if answer.asked.devices == 1 else f"{answer.asked.devices:,} x"
    where = f"{study.model.title} on {devices} {study.device.name}"
    if answer.ttft is None or answer.user_rate is None:
        return f"{where}: {answer.problem}."
    users = "1 user" if answer.batch == 1 else f"{int(answer.batch):,} users"
    sees = "sees" if answer.batch == 1 else "see"
    ttft, rate = answer.ttft, f"{format_number(answer.user_rate.low)} to {format_number(answer.user_rate.high)}"
    each = "" if answer.batch == 1 else " each"
    return (
        f"{where}: {users} with {asked.prompt_tokens:,} tokens in and {asked.new_tokens:,} out {sees} the first token "
        f"after {format_duration_s(ttft.low)} to {format_duration_s(ttft.high)} and {rate} "
        f"tokens per second{each}. {answer.limited_by.capitalize()} limits decoding."
    )


def crossings(study: Study, answer: Estimate) -> list[str]:
    """Where the limit changes."""
    steps = Steps(study=study, asked=answer.asked)
    batch, context = compute_bound_batch(steps), cache_over_weights(steps, max(1, int(answer.batch)))
    return [
        f"Arithmetic limits decoding from a batch of {batch:,} on."
        if batch is not None
        else "At no batch does arithmetic limit decoding: every sequence reads a cache of its own.",
        *([f"From a context of {context:,} tokens on a step reads more cache than weights."] if context else []),
    ]


def assumptions(study: Study, answer: Estimate) -> list[str]:
    """What the estimate takes for granted."""
    asked, device = answer.asked, Steps(study=study, asked=answer.asked).device
    family = device.constants
    said = [f"{answer.problem}."] if answer.problem else []
    if family.known:
        said.append(f"Operators reach what was measured on the family {family.family} ({family.source}).")
    else:
        said.append(f"No operator of {study.device.name} was measured: default constants and a wide band.")
    if asked.engine == "transformers":
        said.append("transformers launches each operator from Python; its overhead is recalled, not measured.")
    if not by_server(asked):
        said.append("Requests that fit: 90 % of the memory less 2 GB, the weights and the caches.")
    if asked.engine == "llamacpp" and asked.tp > 1:
        said.append("llama.cpp divides layers among devices: a token passes through them one after the other.")
    if answer.fits and asked.count is not None and answer.batch < asked.count:
        said.append(f"{answer.batch:,} of {asked.count:,} clients fit at once. What the others wait is not in TTFT.")
    if asked.load is not Load.STATIC and answer.batch > 1:
        said.append("TTFT under load depends on how requests arrive and wait: only its band is promised.")
    if answer.fits and answer.batch < FEW and asked.load is Load.MAX:
        said.append(f"Fewer than {FEW} requests fit: a GB of reserve more or less decides the batch.")
    if asked.drafted:
        said.append(_drafting(study, answer))
    if has_experts(study.model):
        said.append("Experts: each token takes its own evenly at random; the bound counts those of one token.")
    return [*said, _accuracy_sentence(study, asked)]


def _drafting(study: Study, answer: Estimate) -> str:
    """What is counted of drafting, and up to which batch it pays."""
    asked, steps = answer.asked, Steps(study=study, asked=answer.asked)
    counted = "the draft model's own time is not counted (--draft NAME)"
    if asked.draft is not None:
        took = f"{format_duration_s(steps.drafting(max(1, int(answer.batch)))[0])} of drafting by {asked.draft.title}"
        counted = f"{took} per step; its weights are in memory, its cache is not counted"
    pays = speculation_pays_to(steps, room_of(study, asked))
    until = "It pays at no batch." if pays is None else f"It pays up to a batch of {pays:,}."
    return f"Speculation: {asked.step_tokens:.3g} tokens per step; {counted}. {until}"


def _accuracy_sentence(study: Study, asked: Asked) -> str:
    known = accuracy_of(study, asked)
    if known is None:
        return "No public run of this kind was compared: treat the band as a guess (docs/estimates.md)."
    return (
        f"On {known.rows:,} public measurements of this kind the middle was off by {known.median_error:.0%} in the "
        f"median; a band made from other models and devices held {known.band_covers:.0%} of them (docs/estimates.md)."
    )
