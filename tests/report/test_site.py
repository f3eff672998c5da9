"""A board as static pages: links, numbers, copies of runs, rebuilding, and a browser's view."""

import html.parser
import json
import re
import shutil

import pytest
from conftest import PLUGINS
from studies import Study

from segbench.report.site import collect, pages


@pytest.fixture
def study(lab):
    """Return two methods on two data sets."""
    found = Study(lab.folder / "ours", PLUGINS)
    for dataset in ("tiny", "tiny_bare"):
        for method, dice in (("supervised", 0.7), ("mean_teacher", 0.8)):
            found.add(method, 0, [dice, dice - 0.05, dice + 0.05], dataset=dataset)
    return found


def call(lab, *roots, out="site", options=()):
    return lab.call("site", "build", out, *roots, *options, "--json")


def imported(run, verified, why=""):
    origin = {"verified": verified, "why": why, "bundle": "theirs.zip", "sha256": "ab" * 32}
    run.write_json("import.json", origin)


class Links(html.parser.HTMLParser):
    """Addresses and ids of a page; fails if a tag is not closed in its place."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self, text):
        super().__init__()
        self.addresses, self.ids, self.open = [], set(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.addresses += [values[name] for name in ("href", "src") if name in values]
        self.ids.add(values.get("id"))
        assert not [name for name in values if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()


def test_every_link_leads_to_a_page_and_nothing_is_fetched(lab, study):
    done = call(lab, study.root)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["runs"] == 4 and document["datasets"] == ["tiny", "tiny_bare"]
    folder = lab.folder / "site"
    parsed = {}
    for file in folder.rglob("*.html"):
        text = file.read_text()
        assert not re.search(r"https?:|//www|url\((?!#)", text)
        parsed[file] = Links(text)
    assert len(parsed) == 1 + 2 + 4
    reached = {folder / "index.html"}
    for file, page in parsed.items():
        for address in page.addresses:
            path, _, anchor = address.partition("#")
            target = (file.parent / path).resolve() if path else file
            assert target.is_file() and target.is_relative_to(folder.resolve()), address
            assert not anchor or path.endswith(".json") or anchor in parsed[target].ids, address
            reached.add(target)
    assert reached >= set(parsed), "every page can be reached"


def test_the_index_compares_methods_and_the_badge_counts(lab, study):
    assert call(lab, study.root).returncode == 0
    index = (lab.folder / "site/index.html").read_text()
    assert "mean_teacher has the best mean rank" in index
    row = index[index.index('<td class="name" title="mean_teacher">') :].split("</tr>")[0]
    assert re.findall(r'data-label="([^"]*)" data-v="([^"]*)"', row)[:2] == [
        ("mean rank", "1.0"),
        ("wins", "2"),
    ]
    assert index.count(">own</td>") == 4
    badge = json.loads((lab.folder / "site/badge.json").read_text())
    assert badge["message"] == "2 methods, 2 data sets" and badge["schemaVersion"] == 1
    boards = json.loads((lab.folder / "site/board.json").read_text())["boards"]
    assert [board["dataset"] for board in boards] == ["tiny", "tiny_bare"]


def test_a_run_page_shows_scores_settings_and_where_the_numbers_come_from(study, lab):
    run = study.add("supervised", 5, [0.25, 0.75])
    imported(run, False, "no predictions in the bundle")
    (run.path / "log.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.4}\n')
    texts = dict(pages(collect([study.root], "Board")))
    page = texts[f"runs/{run.run_id}.html"]
    assert "not verified and not ranked: no predictions in the bundle" in page
    assert ">50.0</td>" in page and "case1" in page
    assert "segbench run supervised --dataset tiny" in page and "--seeds 5" in page
    assert "Learning curves" in page and "@misc{tiny," in page
    assert ">reported</td>" in texts["index.html"]


def test_of_two_copies_the_own_run_is_shown(study, lab):
    theirs = lab.folder / "theirs"
    shutil.copytree(study.root, theirs)
    for folder in theirs.glob("runs/*/*/*"):
        (folder / "import.json").write_text('{"verified": true, "why": ""}')
    other = Study(theirs, PLUGINS).add("mean_teacher", 9, [0.9, 0.9, 0.9])
    imported(other, True)
    site = collect([theirs, study.root], "Board")
    assert sorted(shown.status for shown in site.runs) == ["own"] * 4 + ["verified"]
    verified = next(shown for shown in site.runs if shown.status == "verified")
    text = dict(pages(site))[verified.page]
    assert "the scores were computed again from the predictions of theirs.zip" in text


def test_hostile_names_are_text_and_stay_in_the_folder(study):
    name = '../<img src=x onerror="alert(1)">'

    def change(result):
        result["method"] = result["science"]["method"] = name

    study.add("supervised", 7, [0.5], change=change)
    for path, text in pages(collect([study.root], name)):
        assert ".." not in path and "<img" not in path
        if path.endswith(".html"):
            assert "<img" not in text
            Links(text)


def test_a_second_build_replaces_the_first_and_other_folders_are_left_alone(study, lab):
    assert call(lab, study.root).returncode == 0
    before = set((lab.folder / "site/runs").iterdir())
    gone = next((study.root / "runs/tiny/supervised").iterdir())
    shutil.rmtree(gone)
    (lab.folder / "site/CNAME").write_text("example")
    assert call(lab, study.root).returncode == 0
    after = set((lab.folder / "site/runs").iterdir())
    assert {file.stem for file in before - after} == {gone.name[-8:]}
    assert (lab.folder / "site/CNAME").is_file()

    (lab.folder / "mine").mkdir()
    (lab.folder / "mine/thesis.txt").write_text("all of it")
    refused = call(lab, study.root, out="mine")
    assert refused.returncode == 2 and "holds other files" in refused.stderr
    assert call(lab, study.root, out="mine", options=["--yes"]).returncode == 0
    assert (lab.folder / "mine/thesis.txt").is_file()


def test_what_is_no_result_folder_is_refused(lab):
    refused = call(lab, lab.folder)
    assert refused.returncode == 2 and "not a folder of results" in refused.stderr
    (lab.folder / "runs").mkdir()
    refused = call(lab, lab.folder)
    assert refused.returncode == 2 and "no finished run" in refused.stderr
    assert not (lab.folder / "site").exists()


def test_in_a_browser_the_search_filters_and_nothing_scrolls_sideways(study, lab, browser):
    assert call(lab, study.root).returncode == 0
    folder = lab.folder / "site"
    visible = "[...document.querySelectorAll('.searchable tbody tr')].filter(r => !r.hidden).length"
    for width, dark in ((1280, False), (390, True)):
        browser.problems.clear()
        browser.requests.clear()
        browser.open(folder / "index.html", width, dark=dark)
        assert browser.run(visible) == 2 + 4
        browser.run(
            "(() => { const f = document.querySelector('input'); f.value = 'Mean_Teacher bare';"
            " f.dispatchEvent(new Event('input', {bubbles: true})); })()"
        )
        assert browser.run(visible) == 1 + 1
        assert browser.run("document.querySelector('[role=status]').textContent") == "2 of 6 lines"
        assert browser.run("document.documentElement.scrollWidth") <= width
        assert browser.problems == []
        assert browser.requests == [(folder / "index.html").resolve().as_uri()]
        for file in (next((folder / "runs").iterdir()), folder / "datasets/tiny.html"):
            browser.open(file, width, dark=dark)
            assert browser.run("document.documentElement.scrollWidth") <= width
