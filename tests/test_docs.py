"""The documentation: links, code blocks, command lines and the site itself."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml

import mmemo
from mmemo import read_experiment
from mmemo.cli.app import TRAINER_VERBS, VERBS, app
from mmemo.cli.trainer import check_option_names
from mmemo.data import Manifest
from mmemo.data.corpora.table import table

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
OTHERS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")]
NOT_RUN = "<!-- not run: "  # before a block that is only compiled
NEEDS_DEMO = "<!-- needs: demo -->"
BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)\)|<img[^>]* src=\"(?P<source>[^\"]+)\"")


class Block(NamedTuple):
    page: Path
    line: int  # of the first line of code, from 1
    language: str
    code: str


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_of(page: Path, *languages: str) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text[: match.start("code")].count("\n") + 1, match["language"], textwrap.dedent(match["code"]))
        for match in BLOCK.finditer(text)
        if match["language"] in languages
    ]


def prose_of(page: Path) -> str:
    return BLOCK.sub("", page.read_text())


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+?) *$", prose_of(page), re.MULTILINE)
    slugs = {re.sub(r" ", "-", re.sub(r"[^\w\- ]", "", heading.lower())) for heading in headings}
    return slugs | set(re.findall(r"^::: +(\S+)$", page.read_text(), re.MULTILINE))


def run_python(page: Path) -> None:
    """Runs the Python blocks of a page in order, in one namespace, with the page's line numbers."""
    namespace: dict[str, object] = {"__name__": "__docs__"}
    lines = page.read_text().splitlines()
    for block in blocks_of(page, "python"):
        code = compile("\n" * (block.line - 1) + block.code, name_of(page), "exec")
        if not any(line.startswith(NOT_RUN) for line in lines[max(block.line - 4, 0) : block.line - 1]):
            exec(code, namespace)


def link_repository(folder: Path) -> Path:
    """Gives a folder what the pages read from the repository root; their own runs stay in the folder."""
    (folder / "checkpoints").mkdir()
    for name in ("benchmarks", "checkpoints/mmemo-student", "configs", "demo"):
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


def commands_of(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields the place and the words of each ``mmemo`` command line of a page."""
    for block in blocks_of(page, "bash", "text"):
        lines = block.code.replace("\\\n", " ").splitlines()
        yield from ((f"{name_of(page)}:{block.line}", words) for line in lines for words in commands_in(line))
    for code in re.findall(r"`+(mmemo [^`]+)`", prose_of(page)):
        yield from ((name_of(page), words) for words in commands_in(" ".join(code.split())))


def commands_in(line: str) -> Iterator[list[str]]:
    try:
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        lexer.wordchars += ",@%+"
        words = list(lexer)
    except ValueError:  # prose with an apostrophe
        return
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("|&;<>()"):
            if command and command[0].rpartition("/")[2] == "mmemo" and len(command) > 1:
                yield command[1:]
            command = []
        else:
            command.append(word)


def options_of(verb: str) -> set[str]:
    return {name for argument in app[verb].assemble_argument_collection() for name in argument.names}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    broken = []
    for match in LINK.finditer(prose_of(page)):
        target = match["target"] or match["source"]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors_of(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", [page for page in PAGES if NEEDS_DEMO not in page.read_text()], ids=name_of)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(link_repository(tmp_path))
    run_python(page)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with ``runs/demo`` as `make demo` leaves it, trained for two epochs on made-up transcripts."""
    folder = link_repository(tmp_path_factory.mktemp("docs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        columns = {"path": "file", "emotion": "label", "speaker": "voice", "gender": "sex", "split": "set"}
        frame: pd.DataFrame = table(Path("demo/clips.csv"), columns, {"language": "en"})
        frame["text"] = "I feel " + frame["emotion"]
        Path("runs/demo").mkdir(parents=True)
        Manifest(frame).write("runs/demo/manifest_transcribed.csv")
        changes = {"trainer.max_epochs": 2, "trainer.accelerator": "cpu"}
        experiment = read_experiment("configs/demo.yaml", changes)
        experiment.fit()
        experiment.test()
        experiment.predict()
        yield folder


@pytest.mark.slow
@pytest.mark.weights
def test_python_blocks_run_after_the_demo(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo)  # one test for all of these pages, so that one process trains the demo
    pages = [page for page in PAGES if NEEDS_DEMO in page.read_text()]
    assert len(pages) >= 3
    for page in pages:
        run_python(page)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_command_lines_name_verbs_and_options_that_exist(page: Path) -> None:
    wrong = []
    for place, (verb, *words) in commands_of(page):
        options = [word.partition("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
        if verb in TRAINER_VERBS:
            try:
                check_option_names(verb, [word for word in options if word != "--help_all"])
            except SystemExit:
                wrong.append(f"{place}: mmemo {verb} {' '.join(options)}")
        elif verb in VERBS:
            known = {*options_of(verb), "--help", "-h"}
            wrong += [f"{place}: mmemo {verb} {option}" for option in options if option not in known]
        elif not verb.startswith("--") and not verb.isupper():  # `mmemo VERB --help`
            wrong.append(f"{place}: mmemo {verb}")
    assert wrong == []


def test_a_wrong_command_line_is_found() -> None:
    assert list(commands_in("cat a.wav | mmemo analyze - --format jsonl  # comment")) == [
        ["analyze", "-", "--format", "jsonl"]
    ]
    assert list(commands_in("mmemo corpus table my.csv --columns path=file emotion=label")) == [
        ["corpus", "table", "my.csv", "--columns", "path=file", "emotion=label"]
    ]
    assert "--noise-db" in options_of("robustness")
    assert "--noise_dbs" not in options_of("robustness")


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=name_of)
def test_yaml_blocks_parse(page: Path) -> None:
    for block in blocks_of(page, "yaml"):
        assert isinstance(yaml.safe_load(block.code), dict), f"{name_of(page)}:{block.line}"


def test_the_page_of_the_package_lists_its_public_names() -> None:
    names = re.findall(r"^::: mmemo\.(\w+)$", (ROOT / "docs/api/mmemo.md").read_text(), re.MULTILINE)
    assert sorted(names) == sorted(mmemo.__all__)


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs mmemo[docs]")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    benchmarks = (tmp_path / "site" / "benchmarks" / "index.html").read_text()
    assert "uar_ravdess" in benchmarks  # rendered from benchmarks/results
