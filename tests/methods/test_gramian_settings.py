"""Settings of gramian: names as people write them, what is refused before training, packages that are missing."""

from __future__ import annotations

import sys

import pytest

from mnmt_scale.errors import MnmtError
from mnmt_scale.methods.gramian.config import GramianConfig, label
from mnmt_scale.methods.gramian.method import Gramian
from mnmt_scale.methods.gramian.table import REFUSED
from mnmt_scale.settings import dump, validate
from tests.support.grams import facts

A = pytest.importorskip("torchjd.aggregation", reason="the extra 'gramian' is not installed")


def method_of(**settings) -> Gramian:
    return Gramian(validate(GramianConfig, settings, "test"), facts(4))


def test_labels():
    assert label(GramianConfig()) == "UPGrad"
    assert label(GramianConfig(weighting="imtl-g", weights="lagged", every=10)) == "IMTLG (lagged)"
    assert label(GramianConfig(weighting="CR-MOGM", arguments={"weighting": "upgrad"})) == "CRMOGM(UPGrad)"


@pytest.mark.parametrize(
    ("written", "name"),
    [("upgrad", "UPGrad"), ("Nash-MTL", "NashMTL"), ("aligned_mtl", "AlignedMTL"), ("IMTL-G", "IMTLG"), ("config", "ConFIG")]
    + [("MGDAWeighting", "MGDA"), ("CR-MOGM", "CRMOGM"), ("Fair Grad", "FairGrad")],
)
def test_names_are_taken_as_people_write_them(written, name):
    assert GramianConfig(weighting=written).weighting == name


@pytest.mark.parametrize(
    ("settings", "code", "says"),
    [
        ({"weighting": "UPGard"}, "E102", "did you mean 'UPGrad'?"),
        ({"weighting": "nashmtll"}, "E102", "did you mean 'NashMTL'?"),
        ({"weighting": "zzz"}, "E102", "one of UPGrad, DualProj"),
        ({"weighting": "CAGrad", "arguments": {"C": 0.4}}, "E102", "'c'"),
        ({"weighting": "CAGrad", "arguments": {"radius": 0.4}}, "E102", "takes c, norm_eps"),
        ({"weighting": "MGDA", "arguments": {"max_iters": 1.5}}, "E102", "max_iters = 1.5 is not a count"),
        ({"weighting": "MGDA", "arguments": {"epsilon": "small"}}, "E102", "is not a number"),
        ({"weighting": "NashMTL", "arguments": {"update_weights_every": 5}}, "E102", "no argument 'update_weights_every'"),
        ({"weighting": "IMTL-G", "arguments": {"c": 1}}, "E102", "takes none"),
        ({"weighting": "Constant"}, "E102", "no weights"),
        ({"weighting": "CRMOGM", "arguments": {"weighting": "GradVac"}}, "E102", "cannot smooth GradVac"),
        ({"weighting": "CRMOGM", "arguments": {"weighting_arguments": {"c": 1.0}}}, "E102", "MGDA has no argument 'c'"),
        ({"every": 0, "weights": "lagged"}, "E102", "every = 0"),
        ({"every": 5}, "E104", "weights = 'lagged'"),
        ({"weights": "stale"}, "E102", "weights"),
    ],
)
def test_bad_settings(settings, code, says):
    with pytest.raises(MnmtError) as error:
        validate(GramianConfig, settings, "test")
    assert error.value.code == code
    assert says in str(error.value)


@pytest.mark.parametrize("name", list(REFUSED))
def test_weightings_that_do_not_fit_are_refused_with_the_reason(name):
    with pytest.raises(MnmtError, match=r"E102.*cannot run here") as error:
        validate(GramianConfig, {"weighting": name}, "test")
    assert REFUSED[name] in str(error.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weighting": "CAGrad", "arguments": {"c": -1.0}}, "c must be non-negative"),
        ({"weighting": "Krum", "arguments": {"n_byzantine": 3}}, "at least 6 rows"),
        ({"weighting": "UPGrad", "arguments": {"pref_vector": [1.0, 2.0]}}, "2 numbers for 4 tasks"),
        ({"weighting": "AlignedMTL", "arguments": {"scale_mode": "max"}}, "scale_mode"),
        (
            {"weighting": "CRMOGM", "arguments": {"weighting": "Constant", "weighting_arguments": {"weights": [1]}}},
            "for 4 tasks",
        ),
    ],
)
def test_what_only_torchjd_can_refuse_is_refused_at_the_start(settings, says):
    with pytest.raises(MnmtError, match="E102") as error:
        method_of(**settings)
    assert says in str(error.value)


def test_without_torchjd_settings_are_read_and_training_is_refused(monkeypatch):
    for name in [n for n in sys.modules if n == "torchjd" or n.startswith("torchjd.")]:
        monkeypatch.setitem(sys.modules, name, None)  # what Python takes for a module that cannot be imported
    assert validate(GramianConfig, {"weighting": "Nash-MTL"}, "test").weighting == "NashMTL"
    with pytest.raises(MnmtError, match=r"E801.*torchjd.*pip install 'mnmt_scale\[gramian\]'"):
        method_of()


@pytest.mark.parametrize(("name", "package"), [("UPGrad", "quadprog"), ("CAGrad", "clarabel"), ("NashMTL", "ecos")])
def test_a_missing_solver_is_named(monkeypatch, name, package):
    import torchjd._mixins

    found = torchjd._mixins.find_spec
    monkeypatch.setattr(torchjd._mixins, "find_spec", lambda wanted: None if wanted == package else found(wanted))
    with pytest.raises(MnmtError, match=rf"E801.*{name}.*{package}.*pip install 'mnmt_scale\[gramian\]'"):
        method_of(weighting=name)
    method_of(weighting="MGDA")


def test_a_state_that_another_torchjd_keeps_elsewhere_is_not_lost_in_silence(monkeypatch):
    original = A.GradVacWeighting.__init__

    def renamed(self, *arguments, **named):
        original(self, *arguments, **named)
        del self._phi_t

    monkeypatch.setattr(A.GradVacWeighting, "__init__", renamed)
    with pytest.raises(MnmtError, match=r"E102.*_phi_t"):
        method_of(weighting="GradVac")


def test_settings_survive_being_written_down():
    import tomllib

    settings = validate(
        GramianConfig, {"weighting": "ca-grad", "arguments": {"c": 0.25}, "weights": "lagged", "every": 7}, "test"
    )
    assert validate(GramianConfig, tomllib.loads(dump(settings)), "test") == settings
