"""What users are told: every field of a manifest is explained, every relative link leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hilum_inference.manifest import Manifest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])


def test_every_field_of_a_manifest_is_documented() -> None:
    page = re.sub(r"```.*?```", "", (ROOT / "docs" / "models.md").read_text(), flags=re.DOTALL)
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`]+)`", page))))
    assert set(Manifest.model_fields) - words == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert missing == []
