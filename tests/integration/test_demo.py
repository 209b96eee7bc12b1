"""``mnmt demo`` as a newcomer runs it, cut to seconds: everything is there at the end, whatever the BLEU."""

import json

from mnmt_scale import settings
from mnmt_scale.train.config import RunConfig
from tests.support.toy import mnmt


def test_demo_on_constructed_languages_ends_with_scores_and_report(tmp_path):
    done = mnmt("demo", "--minutes", "0.5", "--out", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["scores"]["directions"]) == 11
    assert result["steps"] > 0
    assert result["tokens_per_second"] > 0
    page = (tmp_path / "demo" / "report.html").read_text()
    assert all(name in page for name in result["scores"]["directions"])


def test_demo_on_a_directory_of_text_can_be_repeated_from_its_settings(real_text, tmp_path):
    (tmp_path / "text").mkdir()
    for pair in ("en-tsn", "en-twi", "en-zul"):
        (tmp_path / "text" / pair).symlink_to(real_text / "lafand" / "supervised" / pair)
    done = mnmt("demo", "--data", tmp_path / "text", "--minutes", "0.4", "--out", tmp_path / "demo", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["scores"]["directions"]) == 3
    config = settings.load(RunConfig, tmp_path / "demo" / "demo.toml")
    assert config.train.max_minutes < 0.4
    assert config.model.preset == "bilingual"


def test_demo_on_too_little_text_says_so_in_one_line(toy, tmp_path):
    done = mnmt("demo", "--data", toy / "text", "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("MNMT-E301")


def test_demo_on_a_missing_directory_says_so_in_one_line(tmp_path):
    done = mnmt("demo", "--data", tmp_path / "nowhere", "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("MNMT-E201")
