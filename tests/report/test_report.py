"""The report: it shows the numbers of the runs, runs no injected code and fetches nothing."""

import csv
import html
import html.parser
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from segbench.config import resolve
from segbench.identity.run_id import run_id
from segbench.report import figures, overlay
from segbench.report.commands import _labeled, command
from segbench.report.content import gather
from segbench.report.cost import RowCost, cost_of
from segbench.report.page import _scatter
from segbench.report.write import report
from segbench.results.rundir import RunDir, all_runs
from segbench.storage import json_bytes
from segbench.training.run import execute
from segbench.training.setup import prepare

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "$\\frac{1}$",
    "a\nb\x1b[31m",
    "{{ 7 * 7 }}",
]


@pytest.fixture
def finished(lab, tmp_path_factory):
    """Return runs of two methods, one with three seeds; trained once, copied for each test."""
    place = tmp_path_factory.getbasetemp() / "runs-of-the-report"
    if not place.exists():
        first = type(lab)(place)
        for method, seed in (
            ("supervised", 0),
            ("supervised", 1),
            ("supervised", 2),
            ("mean_teacher", 0),
        ):
            execute(first.prepared(method, seed=seed, steps=2), first.machine())
    shutil.copytree(place, lab.folder, dirs_exist_ok=True)
    return lab


def restore(lab):
    from segbench.training.stored import restore

    return lambda run: restore(run, lab.machine())


def runs(lab):
    return list(all_runs(lab.folder / "out"))


def rewrite(run, change):
    """Change the case table and the result of a run, and make the digests fit."""
    import hashlib

    with (run.path / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    result = json.loads((run.path / "result.json").read_text())
    change(rows, result)
    if isinstance(result.get("science"), dict):
        result["run_id"] = run_id(result["science"])
    with (run.path / "cases.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    result["cases_sha256"] = hashlib.sha256((run.path / "cases.csv").read_bytes()).hexdigest()
    (run.path / "result.json").write_bytes(json_bytes(result))


class Page(html.parser.HTMLParser):
    """Tags and their attributes, in order; fails if a tag is not closed in its place."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.wrong = [], [], []
        self.feed(text)
        assert not self.open and not self.wrong, (self.open, self.wrong)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append((tag, self.getpos()))


def test_page_is_well_formed_and_fetches_nothing(finished):
    text, content = report(runs(finished), "A title", restore(finished))
    page = Page(text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert [t for t, _ in page.tags].count("script") == 1
    assert not re.search(r"https?:|//www|url\((?!#)", text)
    for tag, attributes in page.tags:
        assert not [k for k in attributes if k.startswith("on")], tag
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), attributes
    assert all(a.get("alt") for t, a in page.tags if t == "img")
    assert all(a.get("aria-label") or a.get("aria-hidden") for t, a in page.tags if t == "svg")
    policy = next(
        a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy.replace(
        "style-src 'unsafe-inline'", ""
    )
    assert content.warnings == [] and len(content.boards) == 1


def test_numbers_are_those_of_the_runs(finished):
    text, content = report(runs(finished), "A title", None)
    (board,) = content.boards
    assert [row.method for row in board.rows] == ["supervised", "mean_teacher"]
    for row in board.rows:
        dice = [100 * m.result["metrics"][0]["columns"]["dice"]["mean"] for m in row.runs]
        assert f"{np.mean(dice):.1f}</td>" in text
        for case in board.case_ids:
            own = [100 * line["dice"] for m in row.runs for line in m.cases if line["case"] == case]
            assert f"{np.mean(own):.1f}</td>" in text
    assert "1 seed: not ranked" in text and "data:image/png" not in text


def test_pictures_are_of_the_prediction_that_was_scored(finished):
    run = next(r for r in runs(finished) if "/supervised/" in str(r.path))
    member = gather([run]).boards[0].rows[0].runs[0]
    cases = overlay.choose([member], "tiny")
    assert [chosen.why for chosen in cases] == ["best case", "worst case"]

    def pictures():
        names = [chosen.case for chosen in cases]
        return list(overlay.pictures(member, restore(finished)(run), "tiny", "cpu", names))

    found = pictures()
    assert found[0].dice >= found[1].dice and all(p.exact for p in found)
    assert found[0].slices > 1 and 0 <= found[0].first < found[0].slices
    member.cases[0]["prediction"] = "another"
    assert not all(p.exact for p in pictures())


def fake_run(**dice):
    records = [{"case": case, "dice": value} for case, value in dice.items()]
    return SimpleNamespace(cases_of=lambda dataset: records)


def test_the_cases_on_which_methods_differ_most_come_first():
    first = fake_run(a=0.9, b=0.9, c=0.5, d=0.7, e=0.6, f=None)
    second = fake_run(a=0.8, b=0.2, c=0.5, d=0.7, e=0.65, f=0.5)
    chosen = overlay.choose([first, second], "any")
    assert [one.case for one in chosen[:3]] == ["b", "a", "e"]
    assert chosen[0].why == "the methods differ: Dice 20 to 90 %"
    assert "f" not in [one.case for one in chosen], "its Dice is not defined for all methods"


def test_without_weights_the_page_says_so(finished):
    for file in finished.folder.glob("out/runs/*/*/*/ckpt/*"):
        file.unlink()
    text, _ = report(runs(finished), "A title", restore(finished))
    assert "no pictures: the run has no weights" in text


def test_slices_go_through_the_target_and_differences_are_tinted():
    truth, label = np.zeros((2, 6, 8, 10), np.uint8)
    truth[2, 3:6, 4:9], truth[3, 4, 5], label[2, 4:7, 4:9] = 1, 1, 1
    planes, first = overlay.cut(truth, (2.0, 1.0, 1.0))
    assert [(p.axis, p.index) for p in planes] == [(0, 2), (0, 3)] and first == 0
    assert planes[0].of(truth).shape == (10, 8) and (planes[0].width, planes[0].height) == (8, 10)
    planes, first = overlay.cut(truth, (1.0, 1.0, 1.0))
    assert [p.index for p in planes] == [4, 5, 6, 7, 8] and {p.axis for p in planes} == {2}
    assert planes[first].index == 5, "the largest cross-section"
    empty, middle = overlay.cut(np.zeros_like(truth), (1.0, 1.0, 1.0))
    assert empty[middle].index == 5 and len(empty) <= overlay.SLICES
    rgba = overlay.tint(truth[2], label[2])
    assert (rgba[3, 4, :3] != rgba[6, 4, :3]).any() and rgba[3, 4, 3] == rgba[6, 4, 3] > 0 == rgba[
        4, 5, 3
    ]
    (flat,), _ = overlay.cut(truth[2], (1.0, 2.0))
    assert flat.axis is None and flat.of(truth[2]).shape == (10, 8)


@pytest.mark.parametrize("shape", [(16, 16, 1), (1, 12, 16), (16, 16)])
def test_a_volume_of_one_slice_has_a_picture(shape):
    label = np.zeros(shape, np.uint8)
    label[tuple(slice(0, -(-n // 2)) for n in shape)] = 1
    store = SimpleNamespace(
        image=lambda case: np.random.default_rng(0).random((1, *shape)),
        label=lambda case: label,
        cases={"a": SimpleNamespace(spacing=None, labels=(0, 1))},
    )
    picture = overlay.picture(store, "a", label[::-1], 50.0, True)
    assert picture.source.startswith("data:image/png") and picture.slices == 1


def test_missing_pictures_never_fail_a_report(finished):
    def broken(run):
        raise ZeroDivisionError("a plug-in's")

    assert "no pictures: ZeroDivisionError: a plug-in" in html.unescape(
        report(runs(finished), "A title", broken)[0]
    )


def test_a_reported_run_does_not_replace_an_own_run(finished):
    own = next(r for r in runs(finished) if "/supervised/" in str(r.path))
    shutil.copytree(own.path, own.path.with_name(f"imported-{own.path.name}"))
    RunDir(own.path.with_name(f"imported-{own.path.name}")).write_json(
        "import.json", {"verified": False}
    )
    found = {
        row.method: [m.folder.reported for m in row.runs]
        for row in gather(runs(finished)).boards[0].rows
    }
    assert found["supervised"] == [False] * 3 and found["supervised (reported)"] == [True]
    assert (
        "5 runs" in finished.call("report", "--root", finished.folder / "out", "--no-images").stdout
    )


def test_doubtful_published_rows_are_marked(finished, monkeypatch):
    from segbench.results.published import published

    monkeypatch.setattr("segbench.results.leaderboard._is_standard", lambda *_: True)
    monkeypatch.setattr(
        "segbench.report.page.published", lambda dataset, labeled: published("la", 8)
    )
    text, _ = report(runs(finished), "A title", None)
    assert (
        '<td class="name">CVRL !</td>' in text and "! CVRL (fbanet_readme): Jaccard 78.53" in text
    )
    assert (
        text.count(" !</td>") == text.count(">! ") == 4
        and "HD95 pooled over both directions" in text
    )


def test_cost_is_that_of_one_kind_of_device():
    def cost(*manifests):
        return cost_of([SimpleNamespace(manifest=m) for m in manifests])

    gpu = {"gpu_seconds": 3600.0, "cpu_seconds": 9000.0, "seconds_per_step": 0.1}
    cpu = {"gpu_seconds": 0.0, "cpu_seconds": 7200.0, "seconds_per_step": 9.0}
    mixed, alone, strange = (
        cost(gpu, cpu, gpu),
        cost(cpu),
        cost({"cpu_seconds": None, "train_seconds": 3600}),
    )
    assert (mixed.kind, mixed.hours, mixed.seconds_per_step) == ("GPU", 1.0, pytest.approx(0.1))
    assert (alone.kind, alone.hours) == ("CPU", 2.0)
    assert np.isnan(strange.hours), "what the clock showed is no time of a processor"
    huge = cost({"cpu_seconds": 10**400})
    assert np.isnan(huge.hours)


def test_a_time_that_was_not_measured_has_no_unit(finished):
    for run in runs(finished):
        manifest = run.manifest()
        run.write_json("manifest.json", {**manifest, "cpu_seconds": None, "gpu_seconds": 0.0})
    text, _ = report(runs(finished), "A title", None)
    assert "</td>" in text and "– CPU" not in text and " CPU</td>" not in text


def test_minutes_of_processors_and_of_gpus_are_two_plots(finished):
    board = gather(runs(finished)).boards[0]
    first, second = (row.method for row in board.rows)
    one = RowCost(1, 1, 2.0, "GPU", 1, 1, 1, 1)
    plots = _scatter(board.rows, {first: one, second: replace(one, kind="CPU")})
    assert (
        plots.count("<svg") == 2
        and "GPU minutes" in plots
        and "CPU minutes" in plots
        and "GPU/" not in plots
    )
    assert _scatter(board.rows, {first: one, second: one}).count("<svg") == 1


def test_flat_images_and_several_classes(lab):
    for dataset in ("tiny_flat", "tiny_classes"):
        execute(lab.prepared("supervised", dataset=dataset, steps=2), lab.machine())
    text, content = report(runs(lab), "A title", restore(lab))
    assert len(content.boards) == 2 and text.count("data:image/png") == 4
    assert "smallest: one dot per test case" in text and "never ranked together" in text


def test_tables_of_one_title_keep_their_own_pictures(lab):
    for steps in (1, 2):
        execute(lab.prepared("supervised", steps=steps), lab.machine())
    text, content = report(runs(lab), "A title", restore(lab))
    first, second = content.boards
    assert first.title == second.title and len(set(re.findall(r'src="(data:[^"]+)"', text))) == 4
    assert "modified: steps = 1<" in text and "modified: steps = 2<" in text


def test_commands_repeat_the_same_runs(finished, monkeypatch):
    changed = {
        "method": "mean_teacher",
        "overrides": ["decay=0.5", "patch=8x8x8", "inference.stride=8,8,8"],
        "labeled": 3,
    }
    execute(finished.prepared(**changed, steps=2), finished.machine())
    monkeypatch.setattr("segbench.config.experiment.read_protocol", _by_file)
    for board in gather(runs(finished)).boards:
        for row in board.rows:
            words = shlex.split(command(row.runs))
            assert "tiny.yaml" in words  # a file, which is not known by its bare name
            assert words[:2] == ["segbench", "run"]
            options = dict(zip(words[3::2], words[4::2], strict=True))
            values = [v for k, v in zip(words[3::2], words[4::2], strict=True) if k == "-o"]
            ids = set()
            for seed in options["--seeds"].split(","):
                (experiment,) = resolve(
                    words[2],
                    dataset=options["--dataset"],
                    labeled=options["--labeled"],
                    seed=int(seed),
                    backbone=options["--backbone"],
                    protocol=options["--protocol"],
                    overrides=values,
                ).experiments
                ids.add(prepare(experiment, finished.machine()).run_id[:8])
            assert ids == set(row.run_ids)


def _by_file(name):
    from segbench.config.protocol import read_protocol

    return read_protocol(
        Path(__file__).parents[1] / "plugins" / name if name == "tiny.yaml" else name
    )


def test_hostile_names_are_text(finished):
    name = " ".join(HOSTILE)

    def change(rows, result):
        rows[0]["case"] = rows[0]["class"] = rows[1]["class"] = result["metrics"][0]["class"] = name
        result["method"] = result["science"]["method"] = name[:190]

    run = next(r for r in runs(finished) if "/mean_teacher/" in str(r.path))
    rewrite(run, change)
    (run.path / "log.jsonl").write_text(json.dumps({"step": 0, name: 0.5}) + "\n[1]\n{torn")
    (run.path / "manifest.json").write_text(
        json.dumps({"warnings": [name], "device": name, "seconds_per_step": name, "phases": name})
    )
    text, content = report(runs(finished), name, None)
    page = Page(text)
    assert [t for t, _ in page.tags].count("script") == 1 and not [
        t for t, a in page.tags if t == "img" or "onload" in a
    ]
    assert "\x1b" not in text and "49" not in re.findall(r"(?s)<h1>.*?</h1>", text)[0]
    assert content.warnings == [] and name[:190] in {
        row.method for board in content.boards for row in board.rows
    }


@pytest.mark.parametrize(
    "forge",
    [
        lambda rows, result: result.pop("metrics"),
        lambda rows, result: result.update(seed="zero"),
        lambda rows, result: result.update(metrics=[{"dataset": 1}]),
        lambda rows, result: rows[0].update(dice="1e9"),
        lambda rows, result: rows[0].update(dice="much"),
        lambda rows, result: result.update(science=[]),
        lambda rows, result: result["science"].pop("params"),
        lambda rows, result: result.pop("weights_sha256"),
        lambda rows, result: result["metrics"][0]["columns"].pop("dice"),
        lambda rows, result: result.update(datasets=["x"]),
        lambda rows, result: result["metrics"][0]["columns"]["dice"].update(mean=0.99),
        lambda rows, result: result.update(schema="segbench.run/0"),
    ],
)
def test_forged_results_are_left_out_and_named(finished, forge):
    run = next(r for r in runs(finished) if "/mean_teacher/" in str(r.path))
    rewrite(run, forge)
    content = gather(runs(finished))
    assert len(content.warnings) == 1 and run.path.name in content.warnings[0]
    assert [row.method for board in content.boards for row in board.rows] == ["supervised"]


def test_failed_runs_are_counted(finished):
    run = finished.prepared("versemi", steps=2)
    run.folder.write_config(run.run_id, run.experiment, run.science, [])
    run.folder.fail(RuntimeError("<b>no</b>"), "training")
    (runs(finished)[0].path / "result.json").write_text("{}")
    text, content = report(runs(finished), "A title", None)
    assert len(content.warnings) == 1 and content.warnings[0].replace("'", "&#39;") in text
    assert (
        len(content.failures) == 1
        and "1 failed run:" in text
        and "&lt;b&gt;no&lt;/b&gt; (training)" in text
    )


def test_a_page_of_several_tables_begins_with_their_overview(finished):
    one, _ = report(runs(finished), "", None)
    assert "mean rank" not in one and "<h1>2 methods compared on tiny</h1>" in one
    assert "± SD" in one and "kWh" not in one, "no column without a value"
    for method in ("supervised", "mean_teacher"):
        execute(finished.prepared(method, labeled=3, steps=2), finished.machine())
    text, _ = report(runs(finished), "", None)
    Page(text)
    assert "has the best mean rank" in text and "Mean rank of each method" in text
    assert text.count("CI over cases") == 1, "what all tables share is said once"
    assert "3 of 6 training cases labeled</h2>" in text


def test_nothing_to_show():
    text, content = report([], "Empty", None)
    Page(text)
    assert content.boards == [] and "No finished runs." in text


def test_command_writes_the_page_and_curves(finished):
    where = ("--root", finished.folder / "out", "--data-root", finished.folder / "data")
    done = finished.call("report", *where, "--no-images", "--title", "Mine", "--json")
    document = json.loads(done.stdout)
    assert (document["runs"], document["tables"], document["status"]) == (4, 1, "ok")
    assert "<h1>Mine</h1>" in Path(document["file"]).read_text()
    one = runs(finished)[0]
    done = finished.call("report", *where, one.run_id, "-o", finished.folder / "one.html", "-q")
    assert done.returncode == 0 and "1 run in 1 table" in done.stdout, done.stderr
    text = (finished.folder / "one.html").read_text()
    assert one.run_id in text and "data:image/png" in text
    assert finished.call("report", *where, "zzzz").returncode == 2


def test_a_suite_names_missing_runs_and_needs_no_data(finished):
    plugins = Path(__file__).resolve().parents[1] / "plugins"
    (finished.folder / "mine.yaml").write_text(
        f"schema: 1\nname: mine\nprotocol: {plugins / 'tiny.yaml'}\nmatrix:\n"
        "  method: [supervised, mean_teacher]\n"
        "  dataset: [tiny]\n  labeled: [2]\n  seed: [0, 1]\n"
    )
    for seed in (0, 1):
        execute(finished.prepared("supervised", seed=seed), finished.machine())

    def check():
        where = ("--root", finished.folder / "out", "--data-root", finished.folder / "data")
        done = finished.call("report", *where, "mine.yaml", "--no-images", "--json")
        document = json.loads(done.stdout)
        assert document["runs"] == 2 and document["unfinished"] == [
            f"mean_teacher on tiny, 2 labeled, seed {s}: to do, not in this report" for s in (0, 1)
        ], done.stderr
        assert document["unfinished"][0] in Path(document["file"]).read_text()

    check()
    shutil.rmtree(finished.folder / "data")
    check()


def test_curves_for_tensorboard(finished):
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    target = finished.folder / "tb"
    run = next(r for r in runs(finished) if "/mean_teacher/" in str(r.path))
    with (run.path / "log.jsonl").open("a") as file:
        file.write(
            '{"step": 9, "seconds": "x", "supervised": 0.5}\n{"step": 10, "supervised": 1e999}\n'
        )
    for _ in range(2):  # a second export replaces the first
        done = finished.call("report", "--root", finished.folder / "out", "--tensorboard", target)
        assert done.returncode == 0, done.stderr
    events = EventAccumulator(str(target.joinpath(*run.path.parts[-3:])))
    events.Reload()
    log = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()][:-1]
    assert [(e.step, e.value) for e in events.Scalars("loss/supervised")] == [
        (line["step"], pytest.approx(line["supervised"])) for line in log
    ]
    assert set(events.Tags()["scalars"]) == {"lr", "loss/supervised", "loss/consistency"}


def test_figures_carry_no_address_and_take_the_page_s_colors(finished):
    board = gather(runs(finished)).boards[0]
    for svg in (
        figures.strip(board, "ball"),
        figures.curves(board.rows[0].method, [run.log for run in board.rows[0].runs]),
        figures.scatter(
            [("a", 1.0, 50.0), ("b", 100.0, 60.0), ("c", float("nan"), 1.0)], "minutes"
        ),
    ):
        assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
        assert (
            "http" not in svg and "#0102" not in svg and "#000000" not in svg and "var(--s1)" in svg
        )


def test_names_move_only_where_they_would_meet():
    from segbench.report.figures import name_places

    shifts = {
        name: (shift, right)
        for name, _, _, shift, right in name_places(
            [("cheap", 1.0, 80.0), ("dear", 100.0, 80.0), ("near", 1.1, 80.1), ("low", 1.0, 50.0)],
            np.log,
        )
    }
    assert (
        shifts["cheap"] == (0, False)
        and shifts["dear"] == (0, True)
        and shifts["low"] == (0, False)
    )
    assert 9 < shifts["near"][0] <= 11 and not shifts["near"][1]


# -- in a browser ---------------------------------------------------------------------


def column(browser, table, number):
    rows = f"[...document.querySelectorAll('{table} tbody tr')]"
    return browser.run(f"{rows}.map(r => r.cells[{number}].textContent.trim())")


def press(browser, table, number):
    browser.run(
        f"document.querySelectorAll('{table} thead th')[{number}].querySelector('button').click()"
    )
    return browser.run(
        f"document.querySelectorAll('{table} thead th')[{number}].getAttribute('aria-sort')"
    )


def test_in_a_browser_sorting_works_and_nothing_is_fetched(finished, browser):
    file = finished.folder / "page.html"
    file.write_text(report(runs(finished), "A title", restore(finished))[0], encoding="utf-8")
    for width, dark in ((1280, False), (390, True)):
        browser.problems.clear()
        browser.requests.clear()
        browser.open(file, width, dark=dark)
        assert browser.run("document.documentElement.scrollWidth") <= width, (
            "the page itself never scrolls sideways"
        )
        assert browser.run("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        shade = browser.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", shade))) < 200) == dark
        assert press(browser, ".cases", 1) == "descending"
        values = [float(v) for v in column(browser, ".cases", 1)]
        assert values == sorted(values, reverse=True)
        assert press(browser, ".cases", 1) == "ascending"
        assert [float(v) for v in column(browser, ".cases", 1)] == sorted(values)
        assert press(browser, ".leaderboard", 1) == "ascending"
        assert column(browser, ".leaderboard", 1) == ["mean_teacher", "supervised"]
        assert press(browser, ".leaderboard", 3) == "descending"
        assert column(browser, ".leaderboard", 3)[-1] == "–", "what is not known stays last"
        assert browser.problems == []
        assert [r for r in browser.requests if not r.startswith("data:")] == [
            file.resolve().as_uri()
        ]


def test_in_a_browser_slices_are_stepped_through_together(finished, browser):
    file = finished.folder / "page.html"
    file.write_text(report(runs(finished), "A title", restore(finished))[0], encoding="utf-8")
    browser.open(file)
    margins = "[...document.querySelectorAll('.case')].map(c => [...c.querySelectorAll('img')]"
    margins += ".map(i => i.style.marginLeft))"
    before = browser.run(margins)
    assert len(before[0]) == 2, "both methods"
    browser.run(
        "(() => { const s = document.querySelector('.case input'); s.value = 1;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    after = browser.run(margins)
    assert after[0] == ["-100%", "-100%"] and after[1:] == before[1:], "of this case alone"


def test_in_a_browser_a_phone_shows_cards(finished, browser):
    file = finished.folder / "page.html"
    file.write_text(report(runs(finished), "A title", None)[0], encoding="utf-8")
    display = "getComputedStyle(document.querySelector('.leaderboard tbody tr')).display"
    browser.open(file, 390)
    assert browser.run(display) == "grid"
    labels = browser.run(
        "[...document.querySelectorAll('.leaderboard tbody tr td[data-label]')]"
        ".map(c => getComputedStyle(c, '::before').content)"
    )
    assert '"Dice %"' in labels
    browser.open(file, 1280)
    assert browser.run(display) == "table-row"


def test_in_a_browser_hostile_names_do_nothing(finished, browser):
    def change(rows, result):
        rows[0]["case"], rows[1]["case"] = HOSTILE[:2]
        rows[0]["class"] = rows[1]["class"] = result["metrics"][0]["class"] = HOSTILE[2]
        result["method"] = result["science"]["method"] = "".join(HOSTILE[:2])

    for run in runs(finished):
        rewrite(run, change)
    file = finished.folder / "page.html"
    file.write_text(report(runs(finished), HOSTILE[0], None)[0], encoding="utf-8")
    browser.problems.clear()
    browser.requests.clear()
    browser.open(file)
    assert (
        browser.run("document.title") == HOSTILE[0] and column(browser, ".cases", 0) == HOSTILE[:2]
    )
    assert browser.problems == [] and len(browser.requests) == 1


def test_in_a_browser_on_paper_all_is_unfolded(finished, browser):
    file = finished.folder / "page.html"
    file.write_text(report(runs(finished), "A title", None)[0], encoding="utf-8")
    browser.open(file, dark=True, media="print")
    assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("[...document.querySelectorAll('details')].every(d => d.open)")


def test_a_strange_file_in_the_place_of_a_run(tmp_path):
    (tmp_path / "runs/a/b/c-1").mkdir(parents=True)
    (tmp_path / "runs/a/b/c-1/result.json").write_bytes(b"\xff\x00")
    content = gather([RunDir(tmp_path / "runs/a/b/c-1")])
    assert len(content.warnings) == 1 and content.boards == []


@pytest.mark.parametrize(
    "counts, train, says",
    [
        ({"la": 8, "acdc": 8}, {"la": 80, "acdc": 70}, "8"),
        ({"la": 16, "acdc": 14}, {"la": 80, "acdc": 70}, "20%"),
        ({"la": 4, "acdc": 3}, {"la": 80, "acdc": 70}, "5%"),
        ({"la": 8, "acdc": 3}, {"la": 80, "acdc": 70}, ""),
    ],
)
def test_the_command_names_a_share_where_the_counts_differ(counts, train, says):
    assert _labeled(counts, train) == says


def test_names_do_not_break_the_comments_of_a_command():
    experiment = {
        "method": "m",
        "datasets": ["a\nb", "c"],
        "labeled": {"a\nb": 8, "c": 3},
        "backbone": "v",
        "modified": [],
        "protocol": {"name": "p"},
        "without": ["x\nrm y"],
    }
    run = SimpleNamespace(config=lambda: {"experiment": experiment, "plugins": []})
    line = command(
        [
            SimpleNamespace(
                folder=run,
                seed=0,
                fold=None,
                result={"train": {"a\nb": 80, "c": 70}, "changed_params": {}},
            )
        ]
    )
    assert line.count("  # ") == 2 and "\n" not in line.split("  # ", 1)[1]
