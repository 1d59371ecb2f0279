"""Checks end at their first error, which is raised where their findings are reported."""

import logging

import pytest

from rmt_mm.errors import DataError, UsageError
from rmt_mm.training import findings
from rmt_mm.training.findings import Finding, collect, report

NOTE, ERROR = Finding('one box is small', logging.WARNING), Finding('no box is inside its image')


def check():
    yield NOTE
    yield ERROR
    raise AssertionError('a check relies on what it found wrong')


def test_nothing_is_looked_at_behind_an_error():
    assert collect(check()) == [NOTE, ERROR]
    assert collect(iter([NOTE, NOTE])) == [NOTE, NOTE]


@pytest.mark.parametrize('kind', [DataError, UsageError])
def test_notes_are_told_and_the_error_is_raised(kind):
    told = []
    with pytest.raises(kind, match='^no box is inside its image$'):
        report(check(), kind, told.append)
    assert told == [NOTE]


def test_notes_are_logged_at_their_level(monkeypatch):
    logged = []
    monkeypatch.setattr(findings, 'print_log', lambda *args: logged.append(args))
    report([NOTE, NOTE._replace(level=logging.INFO)])
    assert logged == [(NOTE.text, 'current', logging.WARNING), (NOTE.text, 'current', logging.INFO)]
