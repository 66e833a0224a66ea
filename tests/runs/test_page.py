"""`fedjax-rec report`: numbers, escaping, what a page asks for, and how it looks in a browser."""

import html.parser
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.cli.main import main
from fedjax_rec.runs import Settings, run_experiment, save
from fedjax_rec.runs.markup import escape, svg_of
from fedjax_rec.runs.page import NO_NOISE, report_page

EVIL = "<script>alert(\"$x_1$ & 'y'\")"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
VOID = {"meta", "br", "img", "input", "link", "hr"}


class Reader(html.parser.HTMLParser):
    """Reads a page, and refuses tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.numbers: list[float] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.numbers += [float(value or "nan") for name, value in attrs if tag == "data" and name == "value"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few users, some of whose names are no good names."""
    folder = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    events = [(f"{EVIL}{u}", f"i{i}", t) for u in range(30) for t, i in enumerate(rng.permutation(25)[:7])]
    pd.DataFrame(events, columns=["user", "item", "timestamp"]).to_csv(folder / "plays.csv", index=False)
    settings = Settings(dataset=str(folder / "plays.csv"), rounds=4, dim=2, eval_every=2, num_candidates=5)
    return save(run_experiment(settings), folder / "one")


@pytest.fixture(scope="module")
def others(run):
    """The same run under a name that is markup, with a ledger, and once more without anything."""
    private = run.parent / EVIL.replace("/", "")
    bare = run.parent / "bare"
    for folder in (private, bare):
        shutil.copytree(run, folder)
    result = json.loads((run / "result.json").read_text())
    ledger = {"epsilon": 4.25, "delta": 1e-4, "clip": None, "not_covered": ["who takes <part>"]}
    changed = {"privacy": ledger, "command": f"fedjax-rec run --dataset '{EVIL}'"}
    (private / "result.json").write_text(json.dumps(result | changed))
    test = {"full": result["metrics"]["test"]["full"]}
    less = {name: result[name] for name in ("protocol_id", "selected_round")}
    (bare / "result.json").write_text(json.dumps(less | {"metrics": {"test": test}, "command": None}))
    return [private, bare]


@pytest.fixture(scope="module")
def text(run, others):
    """The page of all three."""
    return report_page([run, *others])


def test_numbers_are_those_of_the_folder(run, text):
    """Means, intervals, groups, bytes and the ledger, to the last digit; nothing else is computed."""
    result = json.loads((run / "result.json").read_text())
    page = Reader(text)
    test = result["metrics"]["test"]
    expected = [test["full"]["ndcg@10"], test["full"]["hr@10"], *test["intervals"]["full"]["ndcg@10"]]
    expected += [result["baselines"]["popularity"]["full"]["ndcg@10"], result["bytes_up_per_client"]]
    expected += [group["ndcg@10"] for kind in test["groups"].values() for group in kind.values()]
    expected += [*test["distribution"].values(), *test["beyond_accuracy@10"].values(), 4.25]
    history = pd.read_csv(run / "history.csv")
    expected.append(
        history["clients"].sum() * (result["bytes_up_per_client"] + result["bytes_down_per_client"])
    )
    for value in expected:
        assert np.isclose(page.numbers, value, rtol=1e-6, atol=0 if value else 1e-12).any(), value
    assert str(result["command"]) in page.text.replace("\xa0", " ")
    assert NO_NOISE in page.text
    assert "who takes <part>" in page.text
    for heading in (
        "Scores on test",
        "Clients and items",
        "Communication and time",
        "Privacy",
        "What was run",
    ):
        assert heading in page.words


def test_pages_ask_for_nothing_and_run_nothing(text):
    """Names are escaped, also in figures; no script, no address, and no id twice."""
    page = Reader(text)
    assert not {"script", "link", "iframe", "object", "image", "img"} & set(page.tags)
    assert page.tags.count("svg") == 6
    assert "Not drawn" in text  # what `bare` lacks costs a figure of all runs, and not the page
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert [
        value for name, value in page.attributes if name in ("src", "href") and f"{value}"[:1] != "#"
    ] == []
    assert not re.search(r"url\((?!#)|@import|https?://", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids)) > 50
    targets = {value[1:] for name, value in page.attributes if name == "href" and value}
    assert targets <= set(ids)
    assert '&lt;script&gt;alert("$x' in text or "&lt;script&gt;alert(&quot;$x" in text
    assert "<script" not in text


def test_command(run, capsys):
    """A file, a default place that is replaced, and errors of one line."""
    (run / "report.html").write_text("old")
    assert main(["report", str(run), "--metric", "mrr", "--ranking", "sampled5"]) == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert "mrr" in Reader((run / "report.html").read_text()).text
    assert sorted(path.name for path in run.iterdir() if "report" in path.name) == ["report.html"]
    for arguments, words in (
        ([], "a report needs the folder of a federated run"),
        ([str(run), "--out", str(run / "report.html")], "exists; name a new file"),
        ([str(run), "--metric", "ndgc@10"], "did you mean"),
        ([str(run), str(run)], "is given twice"),
        (["no/such"], "no such directory"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["report", *arguments])
        lines = capsys.readouterr().err.splitlines()
        assert (end.value.code, len(lines), words in lines[0]) == (2, 1, True), lines


def test_seeds_share_a_row(run, tmp_path):
    """Runs that differ in their seed are one row with its deviation, one column of means, and one curve."""
    folders = [tmp_path / "one", tmp_path / "two", tmp_path / "wide"]
    for seed, folder in enumerate(folders):
        shutil.copytree(run, folder)
        config = json.loads((run / "config.json").read_text())
        changed = {"seed": seed} if seed < 2 else {"seed": 0, "dim": 4}
        (folder / "config.json").write_text(json.dumps(config | changed))
        result = json.loads((run / "result.json").read_text())
        up = result["bytes_up_per_client"] + 10 * seed
        (folder / "result.json").write_text(json.dumps(result | {"seed": seed, "bytes_up_per_client": up}))
    text = report_page(folders, group_seeds=True)
    page = Reader(text)
    assert text.count("one (fedmf), 2 seeds") > 3
    assert page.words.count("deviation over seeds") == 2
    assert np.isclose(page.numbers, result["bytes_up_per_client"] + 5).any()
    assert page.tags.count("svg") == 7
    assert "0, 1" in re.sub(r"\s+", " ", page.text).replace(" ,", ",")
    assert page.words.count("Settings, rules and versions") == 3


def test_text_of_any_kind():
    """What no page may hold is a question mark, and a lone byte costs nothing."""
    assert escape("a\x00\x1b[2J\udcff<b>'") == "a??[2J?&lt;b&gt;&#x27;"


def test_ids_of_figures_are_their_own():
    """Two figures of one page share no id, and refer to their own."""
    from fedjax_rec.runs.plots.canvas import INK, picture, sheet

    with sheet():
        figure = picture(2, 1)
        figure.subplots().plot([1, 2], [1, 2])
    one, two = (Reader(svg_of(figure, name, INK)) for name in ("a b", "c"))
    ids = [{value for name, value in page.attributes if name == "id"} for page in (one, two)]
    assert not ids[0] & ids[1]
    assert all(f"{value}".startswith("a-b-") for value in ids[0])


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(text, tmp_path, width):
    """The page is as wide as its window, phone or desk, and every figure is drawn; tables scroll in their box."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    measured = (
        "<script>const root = document.documentElement;"
        "const small = [...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width < 200);"
        "document.title = [root.scrollWidth, window.innerWidth, small.length,"
        "document.querySelectorAll('svg').length].join(' ');</script>"
    )
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)  # which forbids this script, too
    (tmp_path / "page.html").write_text(text.replace("</body>", f"{measured}</body>"), encoding="utf-8")
    # a window of Chromium is never narrower than 500 pixels: a phone is a frame in one
    frame = f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe>'
    (tmp_path / "frame.html").write_text(frame)
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width + 100},900"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files", "--dump-dom"]
    show = (
        "<script>onload = () => { const d = document.querySelector('iframe').contentDocument;"
        "document.title = d.title; }</script>"
    )
    (tmp_path / "frame.html").write_text(frame + show)
    done = subprocess.run(  # noqa: S603 - the browser that was found
        [*command, f"file://{tmp_path / 'frame.html'}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
    assert found, done.stderr[-500:]
    page_width, window, small, figures = map(int, found.groups())
    assert window == width
    assert page_width <= width
    assert (small, figures) == (0, 6)
