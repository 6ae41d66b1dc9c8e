"""docs/extending.md, followed to the letter in a copy of the package: its example becomes a rule like any other."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from helpers.recipes import command, copied, recipe, run

BUILD = """
import json, sys
from pathlib import Path
from filtering.captions.corpus import build_corpus, find_leakage
from filtering.reports.corpus import write
from pipelines.app.cli import DEFAULT_CONFIG
from pipelines.app.config import load
from pipelines.app.settings import Config

out = Path(sys.argv[1])
config = load(Config, DEFAULT_CONFIG, sys.argv[2:]).filter
print(json.dumps(write(out, build_corpus(config, out), find_leakage(config, out, {}), source=config.source.paths)))
"""
TAGGED = ["#dog #puppy on a lawn", "#dog #puppy #cute a dog on a lawn"]
PLAIN = ["a dog on a lawn", "dog number # 7 and its #1 fan", "the red dog is asleep"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the recipe applied: the class above the union, the line at its end."""
    folder = copied(tmp_path_factory.mktemp("copy"), "filtering")
    rule, line = recipe("A caption rule")
    path = folder / "filtering" / "captions" / "rules.py"
    before, union, after = re.split(r"^(RuleConfig = \(\n(?: .*\n)+)", path.read_text(), maxsplit=1, flags=re.MULTILINE)
    path.write_text(f"{before}{rule}\n\n{union}{line}{after}")
    return folder


def test_help_tells_of_the_rule(copy: Path) -> None:
    text = " ".join(run(copy, "pipelines/filter.py", "--help", "all").split())
    assert "or duplicate_caption or hashtags)]" in text
    assert "filter.rules.0(hashtags).most 2 Most hashtags." in text


def test_the_rule_drops_and_is_reported(copy: Path, tmp_path: Path) -> None:
    lines = [f"http://a.example/{row}.jpg\t{caption}\n" for row, caption in enumerate([*PLAIN, *TAGGED, "dog #a #b"])]
    (tmp_path / "links.tsv").write_text("".join(lines))
    chosen = [setting for setting in command("filter", "hashtags") if not setting.startswith("filter.source")]
    settings = [*chosen, f"filter.source.path={tmp_path / 'links.tsv'}", "filter.min_count=1", "filter.shards=2"]
    told = run(copy, "-c", BUILD, str(tmp_path / "corpus"), *settings)
    dropped = [row for path in (tmp_path / "corpus" / "dropped").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert sorted(row["caption"] for row in dropped if row["drop_reason"] == "hashtags") == sorted([*TAGGED, "dog #a #b"])
    kept = [
        row["caption"] for path in (tmp_path / "corpus" / "kept").glob("*.parquet") for row in pq.read_table(path).to_pylist()
    ]
    assert sorted(kept) == sorted(PLAIN)
    assert json.loads(told)["dropped"] == {"hashtags": 3}
