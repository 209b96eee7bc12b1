"""The DeepSpeed JSON: what is always written out, what passes through, what is refused."""

from __future__ import annotations

import pytest

from mnmt_scale.engine.config import EngineConfig
from mnmt_scale.engine.ds_config import OPTIMIZER_CLASS, OWNED, check_optimizer, deepspeed_config
from mnmt_scale.errors import MnmtError


def made(dtype="fp32", **settings):
    return deepspeed_config(EngineConfig(**settings), dtype, num_parameters=1000, accumulation=3, world_size=4)


def test_defaults_that_deepspeed_has_changed_are_explicit():
    table = made()
    assert table["gradient_clipping"] == 0.0
    assert table["data_types"] == {"grad_accum_dtype": "fp32"}
    assert table["communication_data_type"] == "fp32"
    assert (table["train_batch_size"], table["gradient_accumulation_steps"]) == (12, 3)
    assert table["zero_optimization"]["reduce_bucket_size"] == 1000, "no 5e8 elements for a small model"
    assert made(clip_norm=0.5)["gradient_clipping"] == 0.5
    bf16 = made("bf16", zero_stage=2)
    assert bf16["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert bf16["zero_optimization"]["stage"] == 2


def test_anything_else_passes_through():
    extra = {
        "zero_optimization": {"overlap_comm": True, "offload_optimizer": {"device": "cpu"}},
        "comms_logger": {"enabled": True},
    }
    table = made(zero_stage=2, deepspeed=extra)
    assert table["zero_optimization"]["overlap_comm"] is True
    assert table["zero_optimization"]["stage"] == 2
    assert table["comms_logger"] == {"enabled": True}


@pytest.mark.parametrize("name", OWNED)
def test_keys_that_are_decided_elsewhere_are_refused(name):
    table = 1
    for key in reversed(name.split(".")):
        table = {key: table}
    with pytest.raises(MnmtError) as caught:
        made(deepspeed=table)
    assert caught.value.code == "E104"
    assert f"'{name}'" in str(caught.value)


def test_the_owner_is_named():
    with pytest.raises(MnmtError, match=r"engine\.clip_norm"):
        made(deepspeed={"gradient_clipping": 1.0})
    with pytest.raises(MnmtError, match=r"engine\.dtype"):
        made(deepspeed={"bf16": {"enabled": True}})


def test_nvme_offload_cannot_be_checkpointed():
    with pytest.raises(MnmtError, match="E104.*nvme"):
        made(deepspeed={"zero_optimization": {"offload_optimizer": {"device": "nvme"}}})


def test_an_unexpected_optimizer_class_is_an_error():
    class BF16_Optimizer:
        pass

    check_optimizer(BF16_Optimizer(), 1, "bf16")
    with pytest.raises(MnmtError) as caught:
        check_optimizer(BF16_Optimizer(), 2, "bf16")
    assert caught.value.code == "E503"
    assert OPTIMIZER_CLASS[2, "bf16", "fp32"] in str(caught.value)
