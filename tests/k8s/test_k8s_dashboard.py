"""The Grafana dashboard and the metrics that a job exports: each names what the other has."""

import json
import re
from pathlib import Path

from dira_dist.metrics import CATALOGUE

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "k8s" / "monitoring" / "dira.json"


def test_the_dashboard_shows_every_figure_and_no_other() -> None:
    exported = {f"ray_{each.prometheus}{'_total' if each.counted else ''}" for each in CATALOGUE if each.prometheus}
    assert set(re.findall(r"ray_dira_\w+", DASHBOARD.read_text())) == exported


def test_panels_are_told_apart_and_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert all(0 <= x < 24 for x, _ in cells)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)\}?", json.dumps(dashboard["panels"]))) <= variables
