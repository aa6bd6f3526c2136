"""The kernels compile for an H100 or H200, which needs no GPU: what the compiler says of them in the plans they run in.

Here the sweeps, at the sizes of real models; every launch of whole calls, at small sizes: test_launches.py.

Not a proof that they are fast, or right there (that is what the tests marked gpu are for), but registers that spill, a
tile too large for shared memory, or a product that misses the tensor cores show here.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from understudy_kernels.plan import Device, Plan, Shape, plan

POINTERS = {"targets": "*i64", "argmaxes": "*i32"}
MAX_SPILLED_BYTES = 256
"""divergence at 128 x 128 spills 120 to 208 bytes of its sums, once for each block of the vocabulary and outside the
matrix product. A narrower block would read the hidden states twice as often; a spilled accumulator is kilobytes."""
MAX_SPILLED_BYTES_TIED_FLOAT32 = 768
"""Two products of float32, which are multiplied and added in registers, no tensor cores: 744 bytes."""
MAX_SPILLED_BYTES_SECOND_SWEEP = 1024
"""Both blocks of probabilities and their mean at once: 964 bytes. Clamping before the difference saved 20 of them."""
TYPES = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
INPUTS = ("hidden", "weight", "bias", "p", "q", "weight_p", "weight_q", "bias_p", "bias_q")
FLOATS = ("scale", "softcap", "scale_p", "softcap_p", "scale_q", "softcap_q")
POINTERS_TO_FLOATS = ("target_logits", "sums", "logsumexps", "shares")


@dataclass(frozen=True)
class Built:
    plan: Plan
    shared_bytes: int
    registers: int
    spilled_bytes: int
    num_wgmma: int


def build(kernel: Any, chosen: Plan, dtype: torch.dtype, flags: dict[str, Any], folder: Path) -> Built:
    """Down to machine code for sm_90a, with pointers and sizes that are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = flags | {
        "BLOCK_TOKENS": chosen.block_tokens,
        "BLOCK_VOCAB": chosen.block_vocab,
        "BLOCK_HIDDEN": chosen.block_hidden,
    }
    signature, aligned = {}, {}
    for number, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = POINTERS.get(name) or (
            TYPES[dtype]
            if name in INPUTS
            else "*fp32" if name in POINTERS_TO_FLOATS else "fp32" if name in FLOATS else "i32"
        )  # fmt: skip
        if signature[name] != "fp32" and name != "blocks_per_split":
            aligned[number,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs=constants, attrs=aligned)
    options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    said = assemble(compiled.asm["ptx"], folder)
    return Built(
        chosen,
        compiled.metadata.shared,
        int(re.findall(r"Used (\d+) registers", said)[0]),
        int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        compiled.asm["ptx"].count("wgmma.mma_async"),
    )


def assemble(ptx: str, folder: Path) -> str:
    """What NVIDIA's assembler, which comes with Triton, says."""
    import triton.backends.nvidia

    assembler = Path(triton.backends.nvidia.__path__[0]) / "bin" / "ptxas"
    (folder / "kernel.ptx").write_text(ptx)
    command = [assembler, "-v", "--gpu-name", "sm_90a", folder / "kernel.ptx", "-o", folder / "kernel.cubin"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def score_flags(head: bool) -> dict[str, Any]:
    return {"IS_HEAD": head, "HAS_BIAS": False, "HAS_SOFTCAP": False, "ROUNDED": False, "EVEN": head, "WIDEN": False}


def divergence_flags(head: bool, tied: bool) -> dict[str, Any]:
    sides = {f"{name}_{side}": value for side in "PQ" for name, value in score_flags(head).items() if name != "WIDEN"}
    return sides | {"TIED": tied, "WIDEN": False}


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [1, 8192])
def test_score(num_tokens: int, tmp_path: Path) -> None:
    from understudy_kernels.device.score import sweep_kernel

    chosen = plan(Shape(num_tokens, 128256, (4096,)), torch.bfloat16, Device())
    check(build(sweep_kernel, chosen, torch.bfloat16, score_flags(True), tmp_path), num_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True], ids=["two heads", "one head"])
@pytest.mark.parametrize("num_tokens", [1, 8192])
def test_divergence(num_tokens: int, tied: bool, tmp_path: Path) -> None:
    from understudy_kernels.device.divergence import sweep_kernel

    chosen = plan(Shape(num_tokens, 128256, (4096, 4096), tied), torch.bfloat16, Device(), 2)
    check(build(sweep_kernel, chosen, torch.bfloat16, divergence_flags(True, tied), tmp_path), num_tokens)


@pytest.mark.slow
def test_the_second_sweep(tmp_path: Path) -> None:
    from understudy_kernels.device.divergence import distance_kernel

    chosen = plan(Shape(8192, 128256, (4096, 4096)), torch.bfloat16, Device(), 2)
    built = build(distance_kernel, chosen, torch.bfloat16, divergence_flags(True, False), tmp_path)
    check(built, 8192, MAX_SPILLED_BYTES_SECOND_SWEEP)


@pytest.mark.slow
def test_logits(tmp_path: Path) -> None:
    from understudy_kernels.device import divergence, score

    chosen = plan(Shape(8192, 128256), torch.float32, Device())
    built = build(score.sweep_kernel, chosen, torch.bfloat16, score_flags(False), tmp_path)
    assert built.spilled_bytes == 0, built
    chosen = plan(Shape(8192, 128256), torch.float32, Device(), 2)
    built = build(divergence.sweep_kernel, chosen, torch.bfloat16, divergence_flags(False, False), tmp_path)
    assert built.spilled_bytes == 0, built


@pytest.mark.slow
def test_float32(tmp_path: Path) -> None:
    """8192 positions; the tensor cores have no exact product of float32."""
    from understudy_kernels.device import divergence, score

    dtype = torch.float32
    chosen = plan(Shape(8192, 128256, (4096,)), dtype, Device())
    built = build(score.sweep_kernel, chosen, dtype, score_flags(True), tmp_path)
    assert built.spilled_bytes == 0, built
    assert built.shared_bytes <= Device().shared_bytes, built
    for tied, spilled_bytes in ((False, MAX_SPILLED_BYTES), (True, MAX_SPILLED_BYTES_TIED_FLOAT32)):
        chosen = plan(Shape(8192, 128256, (4096, 4096), tied), dtype, Device(), 2)
        built = build(divergence.sweep_kernel, chosen, dtype, divergence_flags(True, tied), tmp_path)
        assert built.spilled_bytes <= spilled_bytes, built
        assert built.shared_bytes <= Device().shared_bytes, built


def check(built: Built, num_tokens: int, max_spilled_bytes: int = MAX_SPILLED_BYTES) -> None:
    print(built)
    assert built.spilled_bytes <= max_spilled_bytes, built
    assert built.shared_bytes <= Device().shared_bytes, built
    if num_tokens >= 64:
        assert built.num_wgmma > 0, f"no Hopper matrix instruction: {built}"
