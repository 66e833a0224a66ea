"""The documentation site builds without a warning, asks no other server, and has a page for everything."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import names

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    pytest.importorskip("material", reason="mkdocs-material is not installed: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(  # noqa: S603 - our own arguments
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_everything_has_its_page(site):
    """README, guide, notebooks, algorithms, wings and experiments; what a wing offers is on its page."""
    wanted = ["index.html", *(f"algorithms/{name}/index.html" for name in names())]
    wanted += [f"docs/{path.stem}/index.html" for path in (ROOT / "docs").glob("*.md")]
    wanted += [f"notebooks/{path.stem}/index.html" for path in (ROOT / "notebooks").glob("*.ipynb")]
    wanted += [f"{path.parent.relative_to(ROOT)}/index.html" for path in ROOT.glob("experiments/*/README.md")]
    assert [name for name in wanted if not (site / name).is_file()] == []
    for wing in ("client", "server", "training", "evaluation"):
        page = (site / f"api/{wing}/index.html").read_text(encoding="utf-8")
        assert [name for name in getattr(fr, wing).__all__ if f'.{name}"' not in page] == []
    for name in names():
        page = (site / f"algorithms/{name}/index.html").read_text(encoding="utf-8")
        assert all(
            f'id="{part}"' in page for part in ("one-round", "settings", "as-it-is-written", "in-full")
        ), name
    page = (site / "algorithms/fedmf/index.html").read_text(encoding="utf-8")
    assert "0.0735" in page.partition('id="numbers"')[2]  # as the honest benchmark has it
    page = (site / "api/client/index.html").read_text(encoding="utf-8")
    assert "highlight" in page.partition('flax_training"')[2]  # its Example is code, and not a paragraph


def test_pages_ask_nobody(site):
    """No script, style or picture of another server."""
    asked = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*\"")
    for path in site.rglob("*.html"):
        found = [
            tag for tag in asked.findall(path.read_text(encoding="utf-8")) if 'rel="canonical"' not in tag
        ]
        assert found == [], path
