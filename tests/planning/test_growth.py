"""How ZeRO-3 grows, on paper: sums by hand, and what two GPUs were measured to do."""

from dataclasses import replace

import pytest

from llm_qa.planning import growth
from llm_qa.planning.growth import Work, hidden_from, pass_seconds, tokens_per_second, transfer_seconds

N = 12_893_603_840  # weights of polyglot-ko-12.8b, gathered in 16 bits
# Two H200, micro-batches of 16 packs of 512 (7,966 real tokens), 2026-11-26; the rate is that of one process under
# ZeRO-3 (8,185 tokens/s of 75.93 GFLOP), the update that of bitsandbytes' 8-bit Adam with what DeepSpeed does beside.
TOKENS, RATE = 7966, 8185 * 75.93e9
LORA = Work(forward=25.5e9, backward=50.4e9, flops_a_second=RATE, weights=2 * N)
FULL = Work(forward=25.5e9, backward=75.7e9, flops_a_second=RATE, weights=2 * N, gradients=2 * N, update=0.56)


@pytest.mark.parametrize(("work", "measured"), [(LORA, 14_142 / 2), (FULL, 8_678 / 2)])
def test_two_measured_gpus(work, measured):
    assert tokens_per_second(work, TOKENS, gpus=2) == pytest.approx(measured, rel=0.05)


# Two and four H100, 2026-11-26, 7,921 real tokens a pass; one process under ZeRO-3: 7,714 tokens/s.
H100_TOKENS, H100_RATE = 7921, 7714 * 75.93e9


@pytest.mark.parametrize(
    ("work", "gpus", "measured"), [(LORA, 2, 13_200), (LORA, 4, 23_360), (FULL, 2, 8_561), (FULL, 4, 17_500)]
)
def test_two_and_four_measured_h100(work, gpus, measured):
    work = replace(work, flops_a_second=H100_RATE)
    assert gpus * tokens_per_second(work, H100_TOKENS, gpus) == pytest.approx(measured, rel=0.06)


def test_one_gpu_gathers_nothing():
    assert transfer_seconds(1e9, 1) == 0
    assert tokens_per_second(LORA, TOKENS, gpus=1) == pytest.approx(8185, rel=0.001)


def test_a_node_receives_once_what_it_does_not_have():
    assert transfer_seconds(8e9, 8) == pytest.approx(7e9 / growth.NVLINK)
    assert transfer_seconds(8e9, 64) == pytest.approx(7e9 / growth.NETWORK)


def test_from_how_many_tokens_on_the_products_take_longer_than_the_transfers():
    for work in (LORA, FULL):
        for gpus in (2, 8, 64):
            least = hidden_from(work, gpus)
            seconds = least * (work.forward + work.backward) / work.flops_a_second
            beside = growth.SLOWED * growth.nvlink_seconds(2 * work.weights + work.gradients, gpus)
            assert pass_seconds(work, least, gpus) == pytest.approx(seconds + beside, rel=1e-3)
            assert pass_seconds(work, least // 2, gpus) > seconds / 2 + beside


def test_more_passes_an_update_share_one_optimizer_step():
    assert tokens_per_second(FULL, TOKENS, 2, passes=4) > tokens_per_second(FULL, TOKENS, 2)
