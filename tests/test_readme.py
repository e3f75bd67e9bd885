"""The README is short, its example runs, and what it names exists."""

import itertools
import re
import subprocess
import sys

import pytest

from resnext_det.config import config_names
from resnext_det.engine import argument_parser
from tests.helpers import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def test_it_is_short():
    assert len(README.splitlines()) < 200


def test_its_python_example_runs(tmp_path):
    (example,) = [text for language, text in BLOCKS if language == "python"]
    check = "\nassert type(model.backbone).__name__ == 'ResNeXt'\n"
    command = [sys.executable, "-W", "ignore", "-c", example + check]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_its_train_net_commands_parse(page):
    blocks = re.findall(r"```sh\n(.*?)```", (REPO / page).read_text(), flags=re.DOTALL)
    shell = "\n".join(blocks).replace("\\\n", " ")
    commands = re.findall(r"tools/train_net\.py (.*)", shell)
    assert len(commands) >= 3
    for command in commands:
        args = argument_parser().parse_args(command.split("#")[0].split())
        made = args.config_file.startswith("output/")  # by the command before it
        assert made or (REPO / args.config_file).is_file()


def documented_flags():
    """{tool: flags} of all commands in the README and the pages."""
    flags = {}
    for page in (REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))):
        blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            for tool, words in re.findall(r"python (tools/\w+\.py)([^#|&]*)", line):
                own = words.split(" -- ")[0]  # what follows is another command's
                flags.setdefault(tool, set()).update(re.findall(r"(?<=\s)--[a-z][\w-]*", own))
    return flags


@pytest.mark.slow
@pytest.mark.parametrize(("tool", "flags"), sorted(documented_flags().items()))
def test_documented_commands_have_their_flags(tool, flags):
    assert (REPO / tool).is_file()
    done = subprocess.run(
        [sys.executable, REPO / tool, "--help"], capture_output=True, text=True, check=True
    )
    assert flags <= set(re.findall(r"--[a-z][\w-]*", done.stdout))


def test_its_make_targets_exist():
    makefile = (REPO / "Makefile").read_text()
    for target in re.findall(r"make (demo|test|setup)\b", README):
        assert f"\n{target}: setup" in makefile or f"\n{target}:\n" in makefile


def listed_names():
    """The names of the README's code spans, with {a,b} written out."""
    for span in re.findall(r"`([^`\s]+\.yaml)`", README):
        parts = re.split(r"\{([^}]*)\}", span)
        choices = [part.split(",") if i % 2 else [part] for i, part in enumerate(parts)]
        for combination in itertools.product(*choices):
            yield "".join(combination).removesuffix(".yaml")


def test_the_table_lists_the_shipped_configs_and_no_others():
    elsewhere = ("paper/", "quick/table8/")  # docs/two_step.md
    shipped = {name for name in config_names() if not name.startswith(elsewhere)}
    assert set(listed_names()) - {"Base-RCNN-C4", "config"} == shipped


@pytest.mark.parametrize(
    ("name", "ap50", "ap"),
    [  # Table 8
        ("R50", "47.6", "26.5"),
        ("X50_32x4d", "49.7", "27.5"),
        ("R101", "51.1", "29.8"),
        ("X101_32x4d", "51.9", "30.0"),
    ],
)
def test_published_figures_are_the_papers(name, ap50, ap):
    (row,) = [line for line in README.split("\n") if f"`faster_rcnn_{name}.yaml`" in line]
    assert [cell.strip() for cell in row.split("|")[-3:-1]] == [ap50, ap]


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (REPO / target).is_file(), target
