"""docs/extending.md, followed to the letter in a copy of the package: its example becomes a benchmark like any other."""

from pathlib import Path

import pytest

from helpers.camvid import CAMVID, LISTED, write_camvid
from helpers.recipes import copied, recipe, run

SCORE = """
import sys
from pathlib import Path
from owseg.evaluation.datasets import list_items
from owseg.evaluation.protocols import EvaluateConfig, protocol_of
from owseg.evaluation.scoring import score_items
from owseg.methods import METHODS
from owseg.normalisation import Normalisation

for preset in ("tcl", "sclip"):
    config = EvaluateConfig(root=sys.argv[1], datasets=("camvid",), preset=preset)
    protocol = protocol_of(config, "camvid")
    items = list_items(protocol.benchmark, config.folder)
    score = score_items(METHODS["chance"].build(None).eval(), protocol, items, config, Normalisation())
    print(preset, len(protocol.queries), *(item.id for item in items), int(score.counts.sum()))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with the recipe applied: the row at the end of `ON_REQUEST`, and the file of names."""
    folder = copied(tmp_path_factory.mktemp("copy"), "owseg")
    (row,) = recipe("A benchmark")
    path = folder / "owseg" / "evaluation" / "datasets.py"
    before, opening, rest = path.read_text().partition("ON_REQUEST: dict[str, EvalDataset] = {")
    rows, end, after = rest.partition("\n    )\n}\n")
    path.write_text(f"{before}{opening}{rows}\n{row.rstrip()},{end}{after}")
    (folder / "owseg" / "evaluation" / "names" / "camvid.txt").write_text("\n".join(CAMVID) + "\n")
    return folder


def test_it_is_scored_where_it_is_asked_for(copy: Path, tmp_path: Path) -> None:
    write_camvid(tmp_path / "camvid", suffix=".png")
    (tmp_path / "camvid" / "val.txt").write_text("\n".join(name.partition("/")[2] for name in LISTED) + "\n")
    for kind in ("images", "labels"):  # as the recipe's row has them, in one folder each
        for path in sorted((tmp_path / "camvid" / kind).rglob("*.png")):
            path.rename(tmp_path / "camvid" / kind / path.name)
    lines = run(copy, "-c", SCORE, str(tmp_path)).splitlines()
    assert [line.split()[:5] for line in lines] == [[preset, "11", "0003", "0000", "0001"] for preset in ("tcl", "sclip")]
    assert all(0 < int(line.split()[5]) < 3 * 48 for line in lines), "void does not count"
    checked = run(copy, "pipelines/evaluate.py", "--check", f"evaluate.root={tmp_path}", "evaluate.datasets=[camvid]")
    assert "camvid" in checked


def test_the_eight_and_the_average_stay(copy: Path) -> None:
    code = "from owseg.evaluation.datasets import averaged; from owseg.evaluation.protocols import EvaluateConfig as C\n"
    code += "print(len(C().datasets), averaged(['voc21', 'camvid']))"
    assert run(copy, "-c", code) == "8 ['voc21']\n"
