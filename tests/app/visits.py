"""A visit to the dashboard without a browser: a page of it, what it says, and the results it shows changed."""

import base64
import json
from pathlib import Path

import h5py
import numpy as np
from streamlit.testing.v1 import AppTest

from app import contents, results

PATIENCE = 120  # seconds for a page on a busy machine
MAIN = Path(results.__file__).with_name("navigation.py")
VIEWS = [page.view for page in contents.PAGES]
OF_PROBE = {page.view: page.needs[0] for page in contents.PAGES if page.needs and page.needs[0].holds}
OF_MODEL = [page.view for page in contents.PAGES if contents.CHECKPOINT in page.needs]


def turned_to(app: AppTest, view: str) -> AppTest:
    return app.switch_page(f"views/{view}.py").run()


def words(app: AppTest) -> str:
    """All text of a page and its sidebar."""
    kinds = (
        app.title,
        app.header,
        app.subheader,
        app.markdown,
        app.caption,
        app.info,
        app.warning,
        app.error,
        app.code,
    )
    return "\n".join(str(element.value) for kind in kinds for element in kind)


def is_whole(app: AppTest) -> bool:
    return not (app.exception or app.error)


def complaint(app: AppTest) -> str:
    """The only error on the page: one line, and no traceback."""
    assert not app.exception
    assert len(app.error) == 1
    assert "\n" not in app.error[0].value
    return app.error[0].value


def changed(path: Path, **attributes: object) -> None:
    """Other attributes put into a result where it lies."""
    with h5py.File(path, "r+") as result:
        result.attrs.update(attributes)


def without_words(app: AppTest) -> list[dict]:
    """Of the charts, what plotly would speak for by itself under the mouse: as ``trace 0``, with all digits."""
    figures = [json.loads(chart.proto.spec) for chart in app.get("plotly_chart")]
    assert all(figure["layout"]["hoverlabel"]["font"]["color"] for figure in figures)
    traces = [trace for figure in figures for trace in figure["data"]]
    own = [trace for trace in traces if trace.get("hoverinfo") != "skip"]
    return [trace for trace in own if not (trace.get("hovertemplate") or "").endswith("<extra></extra>")]


def curve(app: AppTest, said: str) -> list[float]:
    """The first line of the chart that says this."""
    chart = json.loads(next(chart.proto.spec for chart in app.get("plotly_chart") if said in chart.proto.spec))
    lines = [trace["y"] for trace in chart["data"] if trace.get("fill") != "toself"]
    return numbers(lines[0])


def numbers(values: object) -> list[float]:
    """A list as plotly stores it: plain or packed in base64."""
    if isinstance(values, list):
        return values
    return np.frombuffer(base64.b64decode(values["bdata"]), values["dtype"]).tolist()
