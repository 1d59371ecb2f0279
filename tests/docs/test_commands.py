"""Every command of README and docs runs on small files, or parses and has a reason why it is not run."""

import argparse
import ast
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from configparser import ConfigParser

import pytest

from rmt_mm.config_path import list_configs

from support import ROOT
from support.documented import ELSEWHERE, NOT_RUN, RUN, VALUES
from support.pages import PAGES, inline_code, read_commands, substitute
from support.scripts import run_script

COMMANDS = sorted({command.text for command in read_commands()})
DONE_ELSEWHERE = [text for texts in ELSEWHERE.values() for text in texts]
REASONED = [text for texts in NOT_RUN.values() for text in texts]
SETUP = ConfigParser()
SETUP.read(ROOT / 'setup.cfg')
SCRIPTS = dict(line.split(' = ') for line in SETUP['options.entry_points']['console_scripts'].split('\n') if line)
# What a command may be told by a variable stands in one of these files.
TOLD = ''.join(
    (ROOT / name).read_text() for name in ('Makefile', 'tools/setup_env.sh', 'tools/mmcv_wheel.py', 'tools/launch.sh')
)
TARGETS = re.search(r'^\.PHONY: ((?:.*\\\n)*.*)$', (ROOT / 'Makefile').read_text(), re.MULTILINE)[1].split()
OF_OTHERS = {'CUDA_VISIBLE_DEVICES', 'PYTHONPATH', 'FORCE_CUDA', 'TORCH_CUDA_ARCH_LIST', 'OMP_NUM_THREADS'}
OPTIONS_OF_OTHERS = {'--build-arg', '--target-layers'}
LAUNCHERS = {'dist_train.sh': (0, 2, 'train'), 'dist_test.sh': (0, 3, 'test'), 'slurm_train.sh': (2, 3, 'train')}


def words_of(text, values=VALUES):
    """Return the variables and the words of a command, without the brackets of what may be left out."""
    text = re.sub(r'\[(.*?)( \.\.\.)?\](?= |$)', r'\1', text) if ' [' in text else text
    words = shlex.split(substitute(text, values))
    variables = {}
    while re.match(r'[A-Z_]+=', words[0]):
        name, _, variables[name] = words.pop(0).partition('=')
    return variables, words


# Every command is in one table.


def test_every_command_has_a_row():
    """Add a new command of a page to a table of support/documented.py."""
    rows = [*RUN, *DONE_ELSEWHERE, *REASONED]
    assert [text for text in COMMANDS if text not in rows] == []
    assert [text for text in rows if text not in COMMANDS or rows.count(text) > 1] == []


@pytest.mark.parametrize('test', ELSEWHERE)
def test_tests_that_run_commands_exist(test):
    path, name = test.split('::')
    assert name in {node.name for node in ast.parse((ROOT / path).read_text()).body if hasattr(node, 'name')}


# Those that are run.


@pytest.mark.parametrize(
    'text', [pytest.param(text, marks=pytest.mark.slow) if row.slow else text for text, row in RUN.items()]
)
def test_runs(text, place, request, monkeypatch, capsys):
    row = RUN[text]
    if row.slow:
        request.getfixturevalue('demo')
    for name in row.leaves:
        if (place / name).is_file():
            (place / name).unlink()
    monkeypatch.chdir(place)
    text = re.sub(r'\$\(cat (\S+)\)', lambda match: (place / match[1]).read_text(), text)
    variables, words = words_of(text, {**VALUES, **row.values})
    words += row.add.split()
    env = {**os.environ, 'PYTHONPATH': str(ROOT), **variables}
    if words[:2] == ['python', '-c']:
        exec(words[2], {})
        said = capsys.readouterr().out
    else:
        if words[0] == 'bash':
            done = subprocess.run(words, capture_output=True, text=True, env={**env, 'PYTHON': sys.executable})
        else:
            done = run_script(*words[1:], cwd=place, env=env)
        said = done.stdout + done.stderr
        assert done.returncode == 0, said[-3000:]
    assert row.says in said
    assert [name for name in row.leaves if not (place / name).exists()] == []


# What all of them name exists.


class Parsed(Exception):
    """A tool has parsed its arguments; the exception holds its parser."""


@pytest.fixture
def parse(monkeypatch):
    """Return a function by which a script parses its arguments, if any are given, and goes no further."""
    parse_args = argparse.ArgumentParser.parse_args

    def parse(script, arguments=None):
        def stop(self, *args, **kwargs):
            if arguments is not None:
                parse_args(self, *args, **kwargs)
            raise Parsed(self)

        monkeypatch.setattr(sys, 'argv', [script, *(arguments or ())])
        monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
        monkeypatch.syspath_prepend(os.path.dirname(ROOT / script))  # as Python does for a script
        with pytest.raises(Parsed) as stopped:
            runpy.run_path(str(ROOT / script), run_name='__main__')
        return stopped.value.args[0]

    return parse


@pytest.mark.parametrize('text', COMMANDS)
def test_parses(text, parse):
    variables, words = words_of(text)
    assert [name for name in variables if name not in OF_OTHERS and name not in TOLD] == []
    for word in words:
        if re.match(r'(\.ci|configs|docker|docs|requirements|tests|tools)/', word):
            assert (ROOT / word).exists(), word
        if re.fullmatch(r'[\w-]*rmt-\w[\w.-]*_\w[\w-]*', word):
            assert word in list_configs()
    program, *arguments = words
    if program == 'python' and arguments[0] == '-m':
        assert importlib.util.find_spec(arguments[1])
    elif program == 'python' and arguments[0] == '-c':
        compile(arguments[1], text, 'exec')
    elif program == 'python' and len(arguments) > 1:
        # compare_checkouts.py asks whether its folders are checkouts.
        parse(arguments[0], [str(ROOT) if word in ('.', '../before') else word for word in arguments[1:]])
    elif program == 'bash':
        start, end, tool = LAUNCHERS[os.path.basename(arguments[0])]
        given = arguments[1:]
        parse(f'tools/{tool}.py', given[start : end - 1] + given[end:])
    elif program == 'make':
        assert arguments[0] in TARGETS
    elif program == 'docker':
        dockerfile = (ROOT / arguments[arguments.index('-f') + 1]).read_text()
        told = [after.split('=')[0] for word, after in zip(arguments, arguments[1:]) if word == '--build-arg']
        assert all(f'ARG {name}' in dockerfile for name in told)
    elif program == 'pip':
        extras = [extra for word in words for extra in re.findall(r'^rmt-mm\[(\w+)\]$', word)]
        assert all(extra in SETUP['options.extras_require'] for extra in extras)


def test_named_programs_exist():
    """The names `rmt-...` of the pages are those of installed commands or of configs."""
    names = {code for page in PAGES for code in inline_code(page.read_text()) if re.fullmatch(r'rmt-[a-z-]+', code)}
    assert sorted(names - {'rmt-mm'} - set(SCRIPTS) - set(list_configs())) == []


def test_named_options_exist(parse):
    """Each option in the text of a page is one of a tool, but for those of the old libraries and of other programs."""
    pages = [page for page in PAGES if page.name != 'old_configs.md']
    named = {
        code.split()[0].split('=')[0] for page in pages for code in inline_code(page.read_text()) if code[:2] == '--'
    }
    scripts = {script for text in COMMANDS for script in re.findall(r'python (\S+\.py)', text)}
    ours = {option for script in scripts for option in parse(script)._option_string_actions}
    assert sorted(named - ours - OPTIONS_OF_OTHERS) == []
