"""Parts of an evaluation: bad images are named first, damaged parts are scored again, workers say how far they are."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster import evaluate as cluster_evaluate
from cluster.evaluate import Contender, Evaluator, evaluate, list_parts
from cluster.progress import Progress
from cluster.session import SessionConfig
from helpers.chain import SMOKE, summary
from helpers.paths import REPO
from helpers.scored import IMAGES, Inline, assert_equal, cut
from owseg import InputError
from owseg.encoders import architecture
from owseg.evaluation.protocols import EvaluateConfig
from pipelines.app.cli import main
from pipelines.evaluate import run as evaluate_verb


def test_all_bad_files_are_counted_and_the_first_named(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    Inline(monkeypatch)
    for number, fault in ((1, cut), (2, lambda path: path.write_bytes(b"")), (3, cut), (4, cut), (5, cut)):
        fault(Path(voc.root) / IMAGES / f"2007_00000{number}.jpg")
    with pytest.raises(InputError, match=r"^5 of 7 images of voc21 cannot be scored: .*000001\.jpg: not a rea") as stopped:
        evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    assert "2007_000002.jpg: not a readable image (the file is empty); " in str(stopped.value)
    assert str(stopped.value).endswith(
        "; and 2 more files like these; mend them, or leave out what cannot be read with evaluate.unreadable=skip"
    )


def test_the_same_clip_is_the_same_row_whichever_file_describes_it(tmp_path: Path, contenders: list[Contender]) -> None:
    (row,) = [contender for contender in contenders if contender.method.uses_clip]
    described = {"method": {}, "encoder": {"architecture": architecture(row.encoder)}}
    (tmp_path / "recorded.json").write_text(json.dumps(described), encoding="utf-8")
    same = replace(row.encoder, model=str(tmp_path / "recorded.json"))
    assert replace(row, encoder=same).fingerprint() == row.fingerprint()
    described["encoder"]["architecture"]["embed_dim"] += 1
    (tmp_path / "recorded.json").write_text(json.dumps(described), encoding="utf-8")
    assert replace(row, encoder=same).fingerprint() != row.fingerprint()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: b"",
        lambda whole: whole[:-300] + bytes(200) + whole[-100:],
        lambda whole: b'{"counts": []}',
        lambda whole: whole.replace(b"counts", b"kounts"),
    ],
    ids=["cut", "empty", "altered", "JSON", "other names"],
)
def test_a_damaged_part_is_scored_again_and_a_line_says_so(
    tmp_path: Path,
    voc: EvaluateConfig,
    contenders: list[Contender],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[bytes], bytes],
) -> None:
    inline = Inline(monkeypatch)
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 4)
    first = evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    part = list_parts(contenders, voc, tmp_path / "out")[1].file
    part.write_bytes(damage(part.read_bytes()))
    inline.scored.clear()
    capsys.readouterr()
    assert_equal(first, evaluate(contenders, voc, SessionConfig(), tmp_path / "out"))
    assert inline.scored == [part]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "damaged" in line]
    assert line.startswith(f"evaluate: {part}: damaged (")
    assert line.endswith("; it is scored again")


def test_a_part_of_other_images_or_classes_is_none(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    Inline(monkeypatch)
    monkeypatch.setattr(cluster_evaluate, "ITEMS_PER_PART", 4)
    evaluate(contenders, voc, SessionConfig(), tmp_path / "out")
    one, two, *_ = list_parts(contenders, voc, tmp_path / "out")
    (of_20,) = [part for part in list_parts(contenders, voc, tmp_path / "out")[2:3] if part.dataset == "voc20"]
    assert one.usable(voc)
    one.file.write_bytes(two.file.read_bytes())
    assert not one.usable(voc)
    one.file.write_bytes(of_20.file.read_bytes())
    assert not one.usable(voc)


def test_progress_counts_the_first_images_of_parts_in_work(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender]
) -> None:
    """Long before a first part of 20 images is done, lines say what is waited for."""
    part, other, *_ = list_parts(contenders, voc, tmp_path / "out")
    told: list[tuple[int, str]] = []

    class Told(Progress):
        def update(self, done: int, note: str = "") -> None:
            super().update(done, note)
            told.append((done, note))

    progress = Told("evaluate", total=14, unit="images")
    part.live.parent.mkdir(parents=True)
    part.live.write_text("5 of a run that was killed")
    under_way = cluster_evaluate._UnderWay([part, other], progress)
    under_way.look()
    for said in ("0 : loading the method", "3 ", "", "x"):  # half written, and nonsense
        part.live.write_text(said)
        under_way.look()
    under_way.finished(part)
    assert told == [
        (0, "starting workers ... 0 s"),
        (0, "chance voc21: loading the method"),
        (3, "chance voc21"),
        (3, ""),
        (3, ""),
        (7, "chance voc21"),
    ]


def test_a_worker_says_what_it_does(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    write = Path.write_text

    def note(path: Path, text: str, *rest: Any, **options: Any) -> int:
        said.extend([text] if path.suffix == ".live" else [])
        return write(path, text, *rest, **options)

    monkeypatch.setattr(Path, "write_text", note)
    part = list_parts(contenders[1:], voc, tmp_path / "out")[0]
    Evaluator(voc, False).score(part)
    assert said[:3] == ["0 : loading the method", "0 : embedding the names of 21 classes", "0 : reading the first image"]
    assert said[3:] == [f"{done} " for done in range(1, 8)]
    assert not part.live.exists()


def test_a_finished_evaluation_whose_files_are_damaged_is_made_again(
    tmp_path: Path, voc: EvaluateConfig, contenders: list[Contender], monkeypatch: pytest.MonkeyPatch
) -> None:
    Inline(monkeypatch)
    arguments = [
        *("--config", str(REPO / SMOKE), f"run_dir={tmp_path / 'run'}", "tracking.enabled=false", "methods=[chance]"),
        f"evaluate={{root: {voc.root}, datasets: [voc21], short_side: 32, window: 32, stride: 16, pictures: false}}",
    ]
    files = [tmp_path / "run" / "evaluate" / "chance" / f"voc21{suffix}" for suffix in (".json", ".npz")]
    assert main(evaluate_verb, doc="", argv=arguments) == 0
    whole = [file.read_bytes() for file in files]
    for number, content in ((0, b"[]"), (1, whole[1][:100]), (0, None)):
        files[number].write_bytes(content) if content is not None else files[number].unlink()
        assert main(evaluate_verb, doc="", argv=arguments) == 0
        assert [file.read_bytes() for file in files] == whole
    (tmp_path / "run" / "summary.json").write_text("[1]")
    (tmp_path / "run" / "evaluate.done.json").write_text('{"fingerprint": "x", "digest": "y", "seconds": 1, "result": 3}')
    assert main(evaluate_verb, doc="", argv=arguments) == 0
    assert summary(tmp_path / "run")["stages"]["evaluate"]["status"] == "done"
