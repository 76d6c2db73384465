"""What the pages say: tables follow from the records, prose is short, quoted messages and commands exist."""

from __future__ import annotations

import ast
import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import pages
from tests.support.environments import output_of

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [*pages.pages()]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Pages of measured results, whose numbers are all in tables; the others also tell of sizes, versions and promises.
OF_RESULTS = [README, ROOT / "docs" / "findings.md", *sorted((ROOT / "docs" / "questions").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.-])[-+]?\d[\d,]*(?:\.\d+)?%?(?![\w-])")
MEASURED = re.compile(r"\d\.\d|\d%")


def paragraphs(text: str) -> Iterator[str]:
    """The prose of a page: paragraphs and items of lists, without code, tables, headings and the targets of links."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    for part in re.split(r"\n\s*\n|\n(?=[-*] |\d+\. )", text):
        lines = [line for line in part.strip().splitlines() if not line.startswith(("|", "#"))]
        if lines:
            yield re.sub(r"^\d+\. ", "", " ".join(lines))


def test_paragraphs_are_found_among_everything_else() -> None:
    text = "# 1 head\n\nOne `1` two\n[three](4).\n- item 5\n- item 6\n\n| 7 | 8 |\n\n```\n9\n```\n\n1. ten 10\n"
    assert [*paragraphs(text)] == ["One CODE two [three].", "- item 5", "- item 6", "ten 10"]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_tables_of_a_page_are_those_that_the_records_give(page: Path) -> None:
    text = page.read_text()
    assert text.count("<!-- table:") == text.count("<!-- end of table -->") == len(pages.BLOCK.findall(text))
    assert pages.written(text) == text, "python -m benchmarks.pages writes it anew"


def test_every_table_has_a_page() -> None:
    used = {name for page in PAGES for name in pages.BLOCK.findall(page.read_text())}
    assert used == pages.TABLES.keys()


def test_a_table_is_printed_by_the_command_that_stands_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    text = README.read_text()
    for name in pages.BLOCK.findall(text):
        (command,) = re.findall(rf"^Printed by `python -m (benchmarks.pages {name})`.$", text, re.MULTILINE)
        assert pages.main(command.split()[1:]) == 0
        assert capsys.readouterr().out in text
    assert pages.main(["no-such-table"]) == 2
    assert "no table is called no-such-table; known: which-method, " in capsys.readouterr().err


def test_another_number_in_a_record_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pages.TABLES, "cost", lambda: pages.cost().replace("2.", "3."))
    assert pages.written(README.read_text()) != README.read_text()


@pytest.mark.parametrize("page", OF_RESULTS, ids=lambda page: page.stem)
def test_what_was_measured_stands_in_tables_alone(page: Path) -> None:
    intervals = re.compile(r"\b95%|\b3\.10 or newer|\btorch 2\.\d+ or newer|arXiv 2312\.04032")  # no results
    found = [each for each in paragraphs(page.read_text()) if MEASURED.search(intervals.sub("", each))]
    assert found == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_paragraph_has_more_than_three_numbers(page: Path) -> None:
    assert [each for each in paragraphs(page.read_text()) if len(NUMBER.findall(each)) > 3] == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_page_has_words_that_cost_readers_of_another_language(page: Path) -> None:
    for each in paragraphs(page.read_text()):
        assert not re.search(r"\blest\b|\b(is|are) to be\b", each), each


def test_the_readme_is_one_page_and_begins_without_a_measurement() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    first = text.partition("\n## ")[0]
    assert len(first.splitlines()) <= 30
    assert "docs/pictures/flow.svg" in first
    assert "+optimizer = RoastAdamW(model" in first
    assert not any(MEASURED.search(each) for each in paragraphs(first))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def test_the_quick_start_has_fifteen_lines() -> None:
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) == 15


@pytest.mark.slow
def test_the_programs_of_the_readme_run_as_they_stand(tmp_path: Path) -> None:
    code = (
        "\n".join(blocks("python"))
        + "\nprint(sorted(path.name for path in __import__('pathlib').Path('my-model').iterdir()))"
    )
    (tmp_path / "pasted.py").write_text(code)
    printed = output_of([sys.executable, "-W", "error:RoastAdamW", "pasted.py"], tmp_path, PYTHONPATH=str(ROOT))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert name in printed.splitlines()[-1]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text()
    for module in set(re.findall(r"python -m ((?:benchmarks|roast_optim)[\w.]*)", text)):
        assert importlib.util.find_spec(module.rstrip(".")) is not None, module
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
    for file in set(re.findall(r"python (docs/[\w/]+\.py)", text)):
        assert (ROOT / file).is_file(), file


def test_the_options_of_commands_exist() -> None:
    for module in ("roast_optim.evaluation", "benchmarks.robustness"):
        known = set(re.findall(r"--[a-z][a-z-]+", help_of(module)))
        for page in PAGES:
            for command in re.findall(
                rf"python -m {re.escape(module)} (-[^`]*)", page.read_text().replace("\\\n", " ")
            ):
                assert set(re.findall(r"--[a-z][a-z-]+", command.splitlines()[0])) <= known, (page, command)


def help_of(module: str) -> str:
    command = [sys.executable, "-m", module, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300).stdout


def strings_of_the_source() -> list[str]:
    """Every text in the code, with three dots for what is filled in."""
    found = []
    for folder in ("roast_optim", "kernels", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def quoted_messages() -> list[str]:
    return re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)


def test_every_message_that_the_page_of_errors_quotes_is_one_of_the_code() -> None:
    source = strings_of_the_source()
    quoted = quoted_messages()
    assert len(quoted) > 30
    assert [message for message in quoted if not any(message in each for each in source)] == []


def test_the_diagrams_are_those_that_the_script_draws() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "draw.py"))
    for name in ("flow", "step"):
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text() == drawn[name]()


def test_the_pictures_of_the_pages_can_be_drawn_anew(tmp_path: Path) -> None:
    pages.draw(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in pages.PICTURES.glob("*.png")}
