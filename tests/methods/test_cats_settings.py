"""Settings of CATS: what is refused, and the defaults that the documents state."""

from __future__ import annotations

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.cats.config import CatsConfig
from mnmt_scale.methods.spec import MethodConfig
from mnmt_scale.settings import validate

from ..support.cats_cases import cats


@pytest.mark.parametrize(
    ("table", "code", "words"),
    [
        ({"schedule": [{"from_step": 0, "every": 0}]}, "E102", "cats.schedule.0.every = 0"),
        ({"schedule": [{"from_step": 0, "every": -10}]}, "E102", "greater than 0"),
        ({"schedule": [{"from_step": 0, "every": 2.5}]}, "E102", "cats.schedule.0.every = 2.5"),
        ({"schedule": []}, "E102", "cats.schedule"),
        ({"schedule": [{"from_step": 100, "every": 10}]}, "E104", "begin with from_step = 0, not 100"),
        ({"schedule": [{"from_step": 0, "every": 10}, {"from_step": 0, "every": 100}]}, "E104", "must rise, but 0 follows 0"),
        ({"schedule": [{"from_step": 0, "every": 1}, {"from_step": -5, "every": 1}]}, "E102", "from_step = -5"),
        ({"alpha_update": "project"}, "E102", "projected"),
        ({"initial_alpha": "2"}, "E102", "initial_alpha"),
        ({"learning_rate": 0.0}, "E102", "learning_rate"),
        ({"learning_rate": 1.5}, "E102", "learning_rate"),
        ({"eps_alpha": -0.1}, "E102", "eps_alpha"),
        ({"eps_alpha": 1.0}, "E102", "eps_alpha"),
        ({"eps_curvature": float("nan")}, "E102", "eps_curvature"),
        ({"lambda_cap": 0.0}, "E102", "lambda_cap"),
        ({"lambda_cap": float("inf")}, "E102", "lambda_cap"),
        ({"lamda_cap": 1.0}, "E101", "lambda_cap"),
    ],
)
def test_bad_settings_are_refused(table, code, words):
    with pytest.raises(MnmtError) as caught:
        validate(MethodConfig, {"name": "cats", "cats": table}, "x.toml")
    assert caught.value.code == code
    assert words in str(caught.value)


def test_bounds_that_leave_no_room_are_refused():
    with pytest.raises(MnmtError) as caught:
        cats(8, 4, eps_alpha=0.25)
    assert caught.value.code == "E104"
    assert "0.25" in caught.value.remedy
    cats(8, 4, eps_alpha=0.249)
    cats(100)


def test_documented_defaults():
    assert [(i.from_step, i.every) for i in CatsConfig().schedule] == [(0, 10), (8000, 100), (16000, 1000)]
    assert all(field.description for field in CatsConfig.model_fields.values())
