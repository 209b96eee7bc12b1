"""The CUDA kernels: on a device against float64 truth (marked gpu), and without one that they are built and load.

The kernels' logic is also tested without a device: csrc/tests/test_cuda_*.cpp run them on emulated threads.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mnmt_scale.kernels import native, native_cuda

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
RAGGED = [0, 1, 7, 63, 65537, 0, 300_001]


# ------------------------------------------------------------------------------------------------------ without a device


def has_cuda() -> bool:
    return native.problem is None and native.module().cuda


needs_cuda_build = pytest.mark.skipif(not has_cuda(), reason="mnmt_scale._C was built without CUDA")


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.skipif(os.environ.get("MNMT_BUILD_CUDA") == "0", reason="MNMT_BUILD_CUDA=0")
def test_built_with_cuda_where_nvcc_is():
    assert native.problem is None
    assert native.module().cuda is True
    assert native.problem_on("cuda") is None


@needs_cuda_build
def test_loads_without_the_driver_or_the_runtime_library():
    code = "import mnmt_scale._C as c; print(c.cuda, 'libcuda' in open('/proc/self/maps').read())"
    root = Path(native_cuda.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "False"]


def cuobjdump() -> str | None:
    bundled = find_spec("triton")
    if bundled is not None and bundled.origin:
        path = Path(bundled.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        if path.is_file():
            return str(path)
    return shutil.which("cuobjdump")


@needs_cuda_build
@pytest.mark.skipif(cuobjdump() is None, reason="no cuobjdump")
def test_machine_code_for_both_generations_and_ptx():
    def listed(what: str) -> str:
        command = [cuobjdump(), what, native.module().__file__]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    cubins = listed("--list-elf")
    assert "sm_80.cubin" in cubins
    assert "sm_90.cubin" in cubins
    assert "sm_90.ptx" in listed("--list-ptx")


@needs_cuda_build
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_without_a_device_a_launch_says_what_is_wrong():
    with pytest.raises(RuntimeError, match=r"^cudaGetDevice\w*: .+|^radix_histogram: .+"):
        native.module().cuda_radix_histogram(16, 1, 100, 16, 0, 16, 0)


# ---------------------------------------------------------------------------------------------------------- on a device


def make_gradients(tasks: int, dtype: torch.dtype, layout: str, seed: int = 0) -> list[list[torch.Tensor]]:
    """Per task one list of fragments: own tensors, or views of a flat tensor (at odd offsets, alike or not)."""
    generator = torch.Generator(device="cuda").manual_seed(seed)
    lists = []
    for k in range(tasks):
        flat = (torch.randn(sum(RAGGED) + 16, generator=generator, device="cuda") + 0.1).to(dtype)
        offset = {"own": 0, "alike": 3, "mixed": k % 5}[layout]
        views = list(flat[offset : offset + sum(RAGGED)].split(RAGGED))
        lists.append([v.clone() for v in views] if layout == "own" else views)
    return lists


def flatten(lists: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [fragment for fragments in lists for fragment in fragments]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["own", "alike", "mixed"])
@pytest.mark.parametrize("tasks", [1, 2, 3, 5, 8, 16, 17, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_task_gram_and_combination(tasks, weighted, layout, dtype):
    lists = make_gradients(tasks, dtype, layout)
    diagonal = [torch.rand(n, device="cuda") for n in RAGGED] if weighted else []
    coefficients = torch.linspace(-1, 2, tasks, dtype=torch.float64)
    combination = [torch.full_like(fragment, torch.nan) for fragment in lists[0]]
    gram = native_cuda.task_gram(flatten(lists), tasks, diagonal, coefficients.tolist(), combination)
    rows = torch.stack([torch.cat(fragments).double() for fragments in lists])
    truth = (rows * torch.cat(diagonal).double() if weighted else rows) @ rows.T
    norms = truth.diagonal().sqrt()
    assert ((gram - truth).abs() <= 2e-6 * norms[:, None] * norms).all()
    assert torch.equal(gram, gram.T)
    combined, size = coefficients.cuda() @ rows, coefficients.abs().cuda() @ rows.abs()
    error = (torch.cat(combination).double() - combined).abs()
    assert (error <= torch.finfo(dtype).eps * combined.abs() + 1e-6 * size).all()
    alone = native_cuda.task_gram(flatten(lists), tasks, diagonal, [], [])
    assert ((alone - truth).abs() <= 2e-6 * norms[:, None] * norms).all()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tasks", [4, 8, 16, 24])
def test_task_gram_repeats_bitwise(tasks, dtype):
    fragments = flatten(make_gradients(tasks, dtype, "alike"))
    first = native_cuda.task_gram(fragments, tasks, [], [], [])
    assert all(torch.equal(first, native_cuda.task_gram(fragments, tasks, [], [], [])) for _ in range(20))


@pytest.mark.gpu
@pytest.mark.parametrize("tasks", [2, 9])
def test_task_gram_without_elements_is_zero(tasks):
    empty = [torch.empty(0, device="cuda") for _ in range(2 * tasks)]
    assert torch.equal(native_cuda.task_gram(empty, tasks, [], [], []), torch.zeros(tasks, tasks).double().cuda())


@pytest.mark.gpu
def test_task_gram_beyond_two_to_the_31_elements():
    d = 2**31 + 72
    free = torch.cuda.mem_get_info()[0]
    if free < 5 * d:
        pytest.skip(f"needs {5 * d / 1e9:.0f} GB of device memory, {free / 1e9:.0f} are free")
    gradients = torch.zeros(2, d, dtype=torch.bfloat16, device="cuda")
    gradients[0, -3:] = torch.tensor([1.0, 2.0, 3.0])
    gradients[1, -2:] = 4.0
    gradients[:, 5] = 1.0
    gram = native_cuda.task_gram(list(gradients), 2, [], [], [])
    assert gram.tolist() == [[15.0, 21.0], [21.0, 33.0]]


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["own", "alike"])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_fisher_accumulate(offset, layout, dtype):
    gradients = make_gradients(1, dtype, layout)[0]
    fisher = list(torch.rand(sum(RAGGED) + 16, device="cuda")[offset : offset + sum(RAGGED)].split(RAGGED))
    before = torch.cat(fisher).double()
    native_cuda.fisher_accumulate(fisher, gradients, 0.25)
    truth = before + 0.25 * torch.cat(gradients).double() ** 2
    torch.testing.assert_close(torch.cat(fisher).double(), truth, rtol=3e-7, atol=0)


def make_values(kind: str, rows: int, n: int) -> torch.Tensor:
    x = torch.randn(rows, n, device="cuda", generator=torch.Generator(device="cuda").manual_seed(1))
    return {"normal": x, "lognormal": (3 * x).exp(), "constant": (x > 2).float()}[kind]


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["normal", "lognormal", "constant"])
@pytest.mark.parametrize("n", [1, 7, 63, 65537, 1_000_003])
def test_radix_histogram(n, kind):
    rows = 3
    values = make_values(kind, rows, n)
    bits = values.view(torch.int32).long() & 0xFFFFFFFF
    keys = torch.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits ^ 0x80000000)
    middle = keys[:, n // 2]
    for level, (prefix, shift, size) in enumerate([(middle * 0, 21, 11), (middle >> 21, 10, 11), (middle >> 10, 0, 10)]):
        histogram = torch.full((rows, 2048), 7, device="cuda")
        native_cuda.radix_histogram(values, prefix, level, histogram)
        for row in range(rows):
            under = keys[row][keys[row] >> (shift + size) == prefix[row]]
            digits = (under >> shift) & (2**size - 1)
            assert torch.equal(histogram[row], torch.bincount(digits, minlength=2048) + 7)


@pytest.mark.gpu
@pytest.mark.parametrize("n", [1, 63, 64, 65, 65537])
def test_pack_masks(n):
    values = make_values("normal", 4, n)
    thresholds = torch.tensor([0.0, 1e9, -1e9, values[3, n // 2].item()], device="cuda")
    masks = torch.full((4, (n + 63) // 64), -1, device="cuda")
    native_cuda.pack_masks(values, thresholds, masks)
    bits = (masks[:, :, None] >> torch.arange(64, device="cuda")) & 1
    expected = torch.zeros_like(bits.flatten(1))
    expected[:, :n] = values >= thresholds[:, None]
    assert torch.equal(bits.flatten(1), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 40, 200])
@pytest.mark.parametrize("words", [1, 7, 5001])
def test_mask_overlap(rows, words):
    masks = torch.randint(-(2**63), 2**63 - 1, (rows, words), device="cuda")
    counts = torch.full((rows, rows), 5, device="cuda")
    native_cuda.mask_overlap(masks, counts)
    bits = ((masks[:, :, None] >> torch.arange(64, device="cuda")) & 1).flatten(1)
    assert torch.equal(counts, (bits.double() @ bits.double().T).long() + 5)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [2, 5, 40])
@pytest.mark.parametrize("n", [1, 63, 65537])
def test_pair_sums(rows, n):
    eps = 1e-8
    values = make_values("normal", rows, n) ** 2 * 1e-4
    values[1, : n // 2] = values[0, : n // 2]  # nearly alike
    first, second = ([torch.full((rows, rows), 0.5, dtype=torch.float64, device="cuda") for _ in "ab"] for _ in "ab")
    native_cuda.pair_sums(values, *first, eps, values.max().item())
    native_cuda.pair_sums(values, *second, eps, values.max().item())
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    f, log = values.double(), (values.double() + eps).log()  # theirs: hardware, off by two units in the last place
    for i in range(rows):
        mse = ((f[i] - f) ** 2).sum(1)
        terms = f * (log - log[i])
        assert ((first[0][i] - 0.5 - mse).abs() <= 1e-6 * mse + 1e-15).all()
        assert ((first[1][i] - 0.5 - terms.sum(1)).abs() <= 6e-6 * (terms.abs() + f).sum(1) + 1e-15).all()
