"""The page stands alone, says what the runs say, and looks right in a browser."""

import base64
import csv
import html.parser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections import Counter
from math import inf
from pathlib import Path

import pytest

from locallearn.report.ink import DARK
from locallearn.report.material import Material
from locallearn.report.report import write_report
from locallearn.report.summary import groups_of
from locallearn.report.table import rows_below
from locallearn.report.targets import reached, target_of
from locallearn.report.web.costs import against_plan
from locallearn.report.web.results import findings

VOID = {"meta", "br", "hr", "img", "link"}


class Checker(html.parser.HTMLParser):
    """Whether every element is closed in its turn; what there is, and where it points to."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.points, self.ids = [], Counter(), [], Counter()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        self.ids.update(value for key, value in attrs if key == "id")
        self.points += [value for key, value in attrs if key in ("href", "src", "xlink:href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory):
    """Where a report was written."""
    out = tmp_path_factory.mktemp("out")
    write_report(rows_below(made), made, out)
    return out


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


def words(text):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", re.sub(r"<(style|svg).*?</\1>", "", text, flags=re.S)))


def test_it_needs_nothing_but_itself(text, folder):
    page = Checker(text)
    assert not {"script", "link", "iframe", "object", "img"} & page.seen.keys()
    assert page.seen["svg"] == 5  # frontier, two curves, traffic, depth
    assert max(page.ids.values()) == 1
    for point in page.points:
        kind = point.partition(":")[0]
        assert kind == "data" or (point[1:] in page.ids if point[0] == "#" else (folder / point).exists()), point
    assert not re.search(r"url\((?!#)|@import", text)


def test_the_table_is_inside(text, folder):
    (data,) = re.findall(r'href="data:text/csv;base64,([^"]*)"', text)
    assert base64.b64decode(data) == (folder / "results.csv").read_bytes()


def test_every_colour_has_a_dark_one(text):
    """No colour of a drawing is written out: each is a variable, which light and dark screens have."""
    for drawing in re.findall(r"<svg.*?</svg>", text, flags=re.S):
        assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)
    assert text.count("--c0:") == 2
    assert all(contrast(color, "#14171B") > 3 for color in DARK.values() if color not in ("#14171B", "#2B3138"))


def contrast(one, other):
    """The ratio of WCAG 2."""
    shades = [[int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)] for color in (one, other)]
    linear = [[c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shade] for shade in shades]
    high, low = sorted((0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in linear), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_says_where_backprop_wins(text):
    told = words(text)
    assert "Most accurate: backprop baseline, 91.0 ± 2.5 % for 3.81 MiB." in told
    # Seeds differ alike in both, so that the difference has no spread at all.
    assert "Backprop wins on accuracy: the best other rule is mono forward, −5.0 points on the same 3 seeds" in told
    assert "Nothing is within half a point of backprop for fewer bytes: backprop wins here." in told
    assert "Baselines on the Pareto front: backprop int8 from 977 KiB up, backprop from 3.81 MiB up (2 of 3 steps)." in told


def test_where_backprop_does_not_win(made, tmp_path, writer):
    """A cheaper rule within half a point, and a better one."""
    for seed in (0, 1, 2):
        writer(tmp_path, "backprop", "int8", seed)
        writer(tmp_path, "mono_forward", "exact", seed)
    rows = [
        {**row, "codecs": "exact", "test_accuracy": row.get("test_accuracy") and 0.8 + 0.02 * (row["rule"] != "backprop")}
        for row in rows_below(tmp_path)
    ]

    told = words(findings(Material(tmp_path, rows)))
    assert "mono forward, is above backprop: +2.0 points" in told
    assert "Backprop wins" not in told
    assert "Baselines on the Pareto front: backprop from 977 KiB up (1 of 2 steps)." in told


def test_failures_have_their_reason_and_cannot_write_markup(text):
    assert "&lt;script&gt;alert(&#x27;no&#x27;)&lt;/script&gt;" in text
    assert "direct_feedback-exact-00000000/seed-3" in text


def test_sections_and_origin(text):
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == [
        *("What the runs say", "Accuracy against bytes", "To the target", "Learning curves", "Traffic", "By depth", "If the link were …"),
        *("Differences to baselines", "Rules and settings", "Failures", "Provenance", "How to reproduce"),
    ]
    told = words(text)
    assert "train.optimizer.rate 0.003" in told
    assert "git checkout 1a2b3c4d" in told
    assert "15 runs sent what was planned, to the byte." in told


def test_bytes_to_the_target(material):
    target = target_of(material, "strokes1d")
    assert target
    assert target.accuracy == 0.7
    found = {group.name: reached(material, group, target.accuracy) for group in material.panels["strokes1d"]}
    assert found["mono_forward"].bytes == (1_000_000,) * 3
    assert found["backprop"].bytes == (4_000_000,) * 3
    assert found["backprop"].seconds == (10.0,) * 3
    assert found["direct_feedback"].bytes[0] == inf
    assert (found["direct_feedback"].missed, found["direct_feedback"].n) == (3, 3)


def test_a_target_is_of_the_tasks_of_its_own_sweep(tmp_path, writer):
    """Also where two sweeps have a folder of the same name."""
    for name, data, target in (("one/x", "strokes1d", 0.6), ("two/x", "fashion14", 0.7), ("three", "mnist", None)):
        writer(tmp_path / name, "backprop", "exact", 0, data=data)
        told = f"target: {{validation_accuracy: {target}}}" if target else "seeds: [0]"
        (tmp_path / name / "sweep.yaml").write_text(f"sweep:\n  {told}\nruns: []\n")
    material = Material(tmp_path, rows_below(tmp_path))
    assert {panel: target_of(material, panel).accuracy for panel in material.panels} == {
        "strokes1d": 0.6,
        "fashion14": 0.7,
        "mnist": pytest.approx(0.79),  # backprop ends with 0.8
    }
    assert [*material.sweeps] == ["one/x/sweep.yaml", "three/sweep.yaml", "two/x/sweep.yaml"]


def test_runs_and_trials_of_tuning_are_of_the_sweep_above(tmp_path):
    """And of no other file of this name, wherever the folder of results lies."""
    for folder in (tmp_path, tmp_path / "s"):
        folder.mkdir(exist_ok=True)
        (folder / "sweep.yaml").write_text("sweep: {}\n")
    rows = [
        {"run": "s/a-1/trials/study-0-trial-1-x/seed-7", "study": 0, "trial": 1},
        {"run": "s/a-1/study-0-y/seed-0", "study": 0, "trial": None},
        {"run": "s/a-1/seed-0"},
        {"run": "t/a-1/seed-0"},
    ]
    assert Material(tmp_path, rows).sweep_of == dict.fromkeys((row["run"] for row in rows[:3]), "s/sweep.yaml")


def test_what_was_not_planned_is_an_alarm(tmp_path, writer):
    writer(tmp_path, "backprop", "exact", 0, planned=3_999_999)
    told = against_plan(Material(tmp_path, rows_below(tmp_path)))
    assert 'class="alarm"' in told
    assert "4,000,000 bytes sent, 3,999,999 planned" in told


# A hundred messages of 40,000 bytes: on the wire each is in 28 packets, its length before it, and is acknowledged by one packet more.
@pytest.mark.parametrize(("level", "sent"), [("payload", 3_998_000), ("framed", 4_000_000), ("wire", 4_000_000 + 100 * (12 + 66 * 29))])
def test_plan_and_measurement_are_counted_alike(tmp_path, writer, level, sent):
    writer(tmp_path, "backprop", "exact", 0, planned=sent, count=level)
    rows = rows_below(tmp_path)
    assert words(against_plan(Material(tmp_path, rows))) == "1 run sent what was planned, to the byte."
    assert rows[-1]["bytes_activation"] == sent


def test_a_run_that_went_on_without_a_replica_is_not_held_against_the_plan_for_all(tmp_path, writer):
    writer(tmp_path, "backprop", "exact", 0, planned=5_000_000, present=[[0, [0, 1]], [50, [1]]])
    assert not against_plan(Material(tmp_path, rows_below(tmp_path)))


def frontier_rows(folder):
    return list(csv.DictReader((folder / "figures" / "frontier.csv").read_text().splitlines()))


def test_figures_are_files_with_their_numbers(folder):
    names = {"frontier", "curves-examples", "curves-bytes", "traffic", "depth"}
    assert {path.stem for path in (folder / "figures").glob("*.svg")} == names
    for name in names:
        assert (folder / "figures" / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        ET.parse(folder / "figures" / f"{name}.svg")
    rows = frontier_rows(folder)
    first = next(row for row in rows if row["rule"] == "backprop" and row["codecs"] == "exact")
    assert (float(first["mean"]), float(first["bytes"]), first["n"], first["front"]) == (pytest.approx(0.91), 4e6, "3", "True")
    assert (first["baseline"], next(row for row in rows if row["rule"] == "mono_forward")["baseline"]) == ("True", "False")


def test_nothing_sent_has_its_place(folder):
    """A run without any traffic is in the figure although its axis is logarithmic."""
    assert any(float(row["bytes"]) == 0 for row in frontier_rows(folder))


CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
QUIET = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update")


def shot(page, out: Path, *flags):
    """The page as a browser shows it, [height, width, 3]."""
    from PIL import Image

    call = [CHROMIUM, *QUIET, "--disable-sync", "--hide-scrollbars", f"--user-data-dir={out / 'profile'}", f"--screenshot={out / 'x.png'}"]
    subprocess.run([*call, *flags, page.as_uri()], check=True, capture_output=True, timeout=120)
    with Image.open(out / "x.png") as image:
        return image.convert("RGB")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to look at the page with")
def test_a_browser_shows_it_in_light_and_dark_and_on_a_phone(folder, tmp_path):
    page = folder / "report.html"
    light = shot(page, tmp_path, "--window-size=1200,2600")
    dark = shot(page, tmp_path, "--window-size=1200,2600", "--blink-settings=preferredColorScheme=0")
    phone = shot(page, tmp_path, "--window-size=400,2600")
    assert light.getpixel((2, 2)) == (255, 255, 255)
    assert dark.getpixel((2, 2)) == (0x14, 0x17, 0x1B)
    assert phone.size == (400, 2600)
    edge = phone.crop((392, 0, 400, 2600))
    assert edge.getcolors() == [(8 * 2600, (255, 255, 255))]  # nothing is wider than the screen
    for image, which in ((light, 0), (dark, 1), (phone, 0)):
        colors = {color for _, color in image.getcolors(2**24) or ()}
        expected = next(iter(DARK.items()))[which]
        assert tuple(int(expected[k : k + 2], 16) for k in (1, 3, 5)) in colors  # the first rule after backprop


def test_the_time_of_the_virtual_clock_is_no_name(material):
    """Only runs with a schedule have one, and it is another for each rule."""
    rows = [{**row, "simulated_seconds": row["seconds"] / 2} if row["codecs"] == "int8" else row for row in material.rows]
    assert [group.name for group in groups_of(rows)] == [group.name for group in groups_of(material.rows)]
