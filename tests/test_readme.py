"""Every command and code block of the README and of docs/ runs; docs/agents.md has tests of its own."""

import ast
import functools
import importlib
import re
import shlex

import pytest
from script import ROOT, run, run_folder

TEXTS = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
BLOCKS = [(name, *block) for name, text in TEXTS.items() for block in re.findall(r"```(\w+)\n(.*?)```", text, re.S)]
SHELL = [block.replace("\\\n", "").splitlines() for _, language, block in BLOCKS if language == "bash"]
LINES = [line for block in SHELL for line in block]
FIRST = {line: block[0] for block in SHELL for line in block if "runs/NAME" in line}
SCRIPT = r"(ppo_action_mask|dqn_action_mask|ppo_attention_mask|ppo_gridwise|ppo_recurrent_mask)\.py"
COMMANDS = list(dict.fromkeys(line for line in LINES if re.match(rf"(python|torchrun .*) {SCRIPT}", line)))
PYTHON = [(name, block) for name, language, block in BLOCKS if language == "python" and name != "agents.md"]


def test_ci_runs_exactly_the_readmes_test_command():
    install = [line for line in LINES if line.startswith("pip install")]
    assert len(install) == 2 and install[0].endswith("&& python ppo_action_mask.py")
    assert install[1] in (ROOT / ".ci/run").read_text().splitlines()


def test_every_line_is_a_command_that_is_tested():
    known = {"tensorboard --logdir runs", *COMMANDS, *(line for line in LINES if line.startswith("pip install"))}
    assert set(LINES) == known


def execute(folder, command):
    """The command, with few steps, in a folder."""
    words = shlex.split(command, comments=True)
    ranks = int(words[words.index("--nproc-per-node") + 1]) if words[0] == "torchrun" else 1
    script = re.search(SCRIPT, command)[1]
    flags = words[words.index(f"{script}.py") + 1 :] + ["--eval-episodes", "4"]
    if not {"--resume", "--eval-only"} & set(flags):
        flags += ["--total-timesteps", "2048"]
        flags += ["--learning-starts", "1024"] if script == "dqn_action_mask" else []
    done = run(folder, script, *flags, ranks=ranks)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run that a command leaves, made once."""

    @functools.cache
    def of(command):
        folder = tmp_path_factory.mktemp("first")
        execute(folder, command)
        return run_folder(folder)

    return of


@pytest.mark.parametrize("command", COMMANDS)
def test_commands(trained, tmp_path, command):
    """NAME stands for the run of its block's first command."""
    if "MicroRTS" in command and importlib.util.find_spec("gym_microrts") is None:
        pytest.skip("MicroRTS is optional, see the README")
    if command in FIRST:
        command = command.replace("runs/NAME", str(trained(FIRST[command])))
    execute(tmp_path, command)


@pytest.mark.parametrize("name, block", PYTHON)
def test_python_blocks(name, block, capsys):
    """They run, where the packages of others that they use are installed, and print what their comments say."""
    for package in re.findall(r"^(?:import|from) (\w+)", block, re.M):
        pytest.importorskip(package)
    exec(compile(block, name, "exec"), {})
    printed = re.sub(r"\s+", " ", capsys.readouterr().out.replace("tensor", ""))
    for said in re.findall(r"print\(.*?\)  # (\[[^:\n]*\])", block):
        expected = [float(x) for x in re.findall(r"\d+\.?\d*", said)]
        found = [float(x) for x in re.findall(r"\d+\.\d*(?:e-?\d+)?|\d+", printed)]
        assert any(found[i : i + len(expected)] == pytest.approx(expected, abs=5e-5) for i in range(len(found))), (
            said,
            printed,
        )


def test_pitfalls_name_tests_that_exist():
    named = set(re.findall(r"`(test_\w+)`", "".join(TEXTS.values())))
    defined = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        defined |= {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    assert named and named <= defined


def test_links_lead_somewhere():
    for name, text in TEXTS.items():
        folder = ROOT / ("" if name == "README.md" else "docs")
        for target in re.findall(r"\]\((?!http)([^)]+)\)", text):
            assert (folder / target).exists(), (name, target)


def test_the_readme_is_read_in_one_go():
    assert len(TEXTS["README.md"].splitlines()) <= 220


def test_tables_are_those_of_the_recorded_runs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmark")
    tables = importlib.import_module("tables")
    assert "MaskablePPO" in tables.speed("ppo") and "Maze" in tables.results("dqn_action_mask")
    for path, text in tables.filled().items():
        assert text == path.read_text(), path.name
