"""An estimate in sentences: the answer, where its limit changes, its assumptions, its accuracy."""

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
        f"{where}: {users} with {asked.prompt_tokens:,} prompt tokens and {asked.new_tokens:,} output tokens {sees} "
        f"the first token after {format_duration_s(ttft.low)} to {format_duration_s(ttft.high)} and {rate} tokens per "
        f"second{each}. {answer.limited_by.capitalize()} limits decoding."
    )


def crossings(study: Study, answer: Estimate) -> list[str]:
    """Where the limiting resource changes."""
    steps = Steps(study=study, asked=answer.asked)
    batch, context = compute_bound_batch(steps), cache_over_weights(steps, max(1, int(answer.batch)))
    return [
        f"Decoding is limited by arithmetic from batch {batch:,} upwards."
        if batch is not None
        else "Arithmetic never limits decoding, at any batch size: every sequence reads its own cache.",
        *([f"Beyond a context of {context:,} tokens, a step reads more cache than weights."] if context else []),
    ]


def assumptions(study: Study, answer: Estimate) -> list[str]:
    """What the estimate assumes."""
    asked, device = answer.asked, Steps(study=study, asked=answer.asked).device
    family = device.constants
    said = [f"{answer.problem}."] if answer.problem else []
    if family.known:
        said.append(f"Operator speeds are those measured on the {family.family} family ({family.source}).")
    else:
        said.append(f"No operator was measured on {study.device.name}: default constants and a wide band are used.")
    if asked.engine == "transformers":
        said.append("transformers launches each operator from Python; its overhead is from memory, not measured.")
    if not by_server(asked):
        said.append("Requests fit in 90 % of the memory minus 2 GB and the weights.")
    if asked.engine == "llamacpp" and asked.tp > 1:
        said.append("llama.cpp divides the layers among the devices: a token passes through one device after another.")
    if answer.fits and asked.count is not None and answer.batch < asked.count:
        said.append(
            f"{answer.batch:,} of {asked.count:,} clients fit at once. TTFT does not include the waiting time of the "
            "others."
        )
    if asked.load is not Load.STATIC and answer.batch > 1:
        said.append("TTFT under load depends on how requests arrive and wait: trust only its band.")
    if answer.fits and answer.batch < FEW and asked.load is Load.MAX:
        said.append(f"Fewer than {FEW} requests fit: one GB more or less of reserve changes the batch size.")
    if asked.drafted:
        said.append(_drafting(study, answer))
    if has_experts(study.model):
        said.append(
            "Experts: each token is assumed to choose its experts uniformly at random; the bound counts the experts "
            "of one token."
        )
    return [*said, _accuracy_sentence(study, asked)]


def _drafting(study: Study, answer: Estimate) -> str:
    """What is counted for drafting, and up to which batch size it is faster."""
    asked, steps = answer.asked, Steps(study=study, asked=answer.asked)
    counted = "the draft model's own time is not counted (--draft NAME)"
    if asked.draft is not None:
        took = f"{format_duration_s(steps.drafting(max(1, int(answer.batch)))[0])} of drafting by {asked.draft.title}"
        counted = f"{took} per step; its weights take memory, its cache is not counted"
    pays = speculation_pays_to(steps, room_of(study, asked))
    until = "It is not faster at any batch size." if pays is None else f"It is faster up to batch {pays:,}."
    return f"Speculation: {asked.step_tokens:.3g} tokens per step; {counted}. {until}"


def _accuracy_sentence(study: Study, asked: Asked) -> str:
    known = accuracy_of(study, asked)
    if known is None:
        return "No public run of this kind was compared: treat the band as a guess (see docs/estimates.md)."
    return (
        f"On {known.rows:,} public measurements of this kind, the median error of the middle value was "
        f"{known.median_error:.0%}; a band made from other models and devices contained {known.band_covers:.0%} of "
        "them (docs/estimates.md)."
    )
