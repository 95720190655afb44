"""The complete report for the assignment, for the state's model and device."""

from __future__ import annotations

from tui.form.state import AppState, analyse
from tui.report.attention_part import part_d
from tui.report.estimate_part import estimate_part
from tui.report.formulas_part import part_c
from tui.report.measured_part import Measurements, measured_part
from tui.report.memory_part import inputs_part, part_a, part_b
from tui.report.model import Block, Heading, Report, plain_items

SOURCES = (
    "A. Vaswani et al. Attention Is All You Need. NeurIPS 2017, arXiv:1706.03762. Defines the attention used in (c).",
    "M. Shoeybi et al. Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism. 2019, "
    "arXiv:1909.08053. How matrices and heads are divided among GPUs, in (b).",
    "J. Ainslie et al. GQA: Training Generalized Multi-Query Transformer Models from Multi-Head Checkpoints. EMNLP "
    "2023, arXiv:2305.13245. Query heads that share K and V.",
    "R. Pope et al. Efficiently Scaling Transformer Inference. 2022, arXiv:2211.05102. The KV cache and what batching "
    "shares, in (a) and (d).",
    "T. Dao, D. Y. Fu, S. Ermon, A. Rudra, C. Ré. FlashAttention: Fast and Memory-Efficient Exact Attention with "
    "IO-Awareness. NeurIPS 2022, arXiv:2205.14135. Algorithm 0 (standard attention, section 2.2) and Algorithm 1.",
    "S. Williams, A. Waterman, D. Patterson. Roofline: An Insightful Visual Performance Model for Multicore "
    "Architectures. Communications of the ACM 52(4), 2009. Arithmetic intensity and the ridge, in (d).",
)


def build_report(state: AppState, measurements: Measurements | None) -> Report:
    """The document for `state`: problem 1 (a) to (d) calculated, problem 2 from `measurements` (None: left out).

    The times of a load come between them if the device's times are known.
    """
    analysis = analyse(state)
    study = state.study
    blocks: list[Block] = [
        *inputs_part(analysis),
        *part_a(analysis.memory),
        *part_b(analysis.memory),
        *part_c(analysis.intensity),
        *part_d(analysis.intensity),
        *estimate_part(analysis),
        *measured_part(measurements),
        Heading(1, "Sources of the formulas"),
        plain_items(SOURCES),
    ]
    return Report(
        title=f"{study.model.title} on {study.device.name}",
        subtitle="Parameters, KV cache, batch size and arithmetic intensity of transformer inference",
        blocks=tuple(blocks),
        passed=measurements.passed if measurements is not None else None,
    )
