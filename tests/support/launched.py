"""What a launcher starts in tests: joins, adds the ranks up, and says in one JSON line what it saw."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from mnmt_scale import dist
from mnmt_scale.__main__ import drop_local_rank


def main() -> None:
    world = dist.join()
    total = dist.all_sum(torch.tensor([world.rank + 1.0]))
    seen = {
        "rank": world.rank,
        "size": world.size,
        "local_rank": world.local_rank,
        "device": str(world.device),
        "sum": float(total),
        "any": dist.any_rank(world.rank == 1),
        "from_zero": dist.broadcast_object(f"rank {world.rank}"),
        "gathered": dist.gather_objects(world.rank),
        "arguments": drop_local_rank(sys.argv[1:]),
    }
    dist.barrier()
    dist.leave()
    print("SAW " + json.dumps(seen), flush=True)


if __name__ == "__main__":
    main()
