"""Compiles Triton's row kernels for GPUs that need not be there; prints a JSON line per variant: what it takes of them.

python -m tests.kernels.triton_compile 80 90
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mnmt_scale.kernels.triton import vocabulary_rows as kernels

V = 65536
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
SCALARS = {"V": "i32", "label_smoothing": "fp32", "temperature": "fp32", "targets": "*i64"}
ABSENT = {"mixture": None, "mixture_weights": None}

VARIANTS = {
    "student fp32 in place": (kernels._student, "fp32", {"out": "*fp32"}, ABSENT | {"TEMPERED": False}),
    "student bf16 in place": (kernels._student, "bf16", {"out": "*bf16"}, ABSENT | {"TEMPERED": False}),
    "student fp32 losses": (kernels._student, "fp32", {}, ABSENT | {"out": None, "weights": None, "TEMPERED": False}),
    "student fp32 to bf16, mixture": (kernels._student, "fp32", {"out": "*bf16"}, {"TEMPERED": False}),
    "student fp32 in place, mixture, tempered": (kernels._student, "fp32", {"out": "*fp32"}, {"TEMPERED": True}),
    "student bf16 in place, mixture, tempered": (kernels._student, "bf16", {"out": "*bf16"}, {"TEMPERED": True}),
    "student fp16 in place, mixture, tempered": (kernels._student, "fp16", {"out": "*fp16"}, {"TEMPERED": True}),
    "teacher fp32": (kernels._teacher, "fp32", {}, {"TEMPERED": False, "ACCUMULATE": False}),
    "teacher bf16, tempered": (kernels._teacher, "bf16", {}, {"TEMPERED": True, "ACCUMULATE": True}),
}
"""name -> (kernel, dtype of the logits, types of arguments that are not ``*fp32``, constants)."""


def compiled(kernel, dtype: str, types: dict[str, str], constants: dict, capability: int):
    loads, lanes, warps = kernels.tiling(V, BYTES[dtype])
    constants = constants | {"LOADS": loads, "LANES": lanes}
    types = {"logits": f"*{dtype}"} | SCALARS | types
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*") or name == "V"]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = {"num_warps": warps, "maxnreg": kernels.MAX_REGISTERS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread and bytes of its stack, where registers are spilled to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def main() -> None:
    for capability in map(int, sys.argv[1:]):
        for name, variant in VARIANTS.items():
            code = compiled(*variant, capability).asm
            loads = re.findall(r"ld\.global\.L1\S*?(?:\.v(\d))?\.b(\d+)", code["ptx"])
            narrowest = min(int(elements or 1) * int(bits) // 8 for elements, bits in loads)
            print(json.dumps({"sm": capability, "variant": name, "load_bytes": narrowest} | resources(code["cubin"])))


if __name__ == "__main__":
    main()
