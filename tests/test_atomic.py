import os

import pytest

from rmt_mm.atomic import replacing


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


def test_the_file_appears_at_the_end_of_the_block(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('old')
    with replacing(str(path)) as temporary:
        write(temporary, 'new')
        assert path.read_text() == 'old'
        assert os.path.basename(temporary) == 'a.json'  # writers choose a format by the suffix
    assert path.read_text() == 'new'
    assert os.listdir(tmp_path) == ['a.json']


def test_a_path_without_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with replacing('a.json') as temporary:
        write(temporary, 'new')
    assert os.listdir() == ['a.json']


@pytest.mark.parametrize('error', [OSError, KeyboardInterrupt])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, error):
    path = tmp_path / 'a.json'
    path.write_text('old')
    with pytest.raises(error), replacing(str(path)) as temporary:
        write(temporary, 'half')
        raise error
    assert path.read_text() == 'old'
    assert os.listdir(tmp_path) == ['a.json']


def test_files_beside_it_move_first(tmp_path, monkeypatch):
    moved = []
    replace = os.replace
    monkeypatch.setattr(os, 'replace', lambda old, new: (moved.append(os.path.basename(new)), replace(old, new)))
    with replacing(str(tmp_path / 'a.onnx')) as temporary:
        write(temporary, 'names the other')
        write(f'{temporary}.data', 'numbers')
    assert moved == ['a.onnx.data', 'a.onnx']
    assert sorted(os.listdir(tmp_path)) == ['a.onnx', 'a.onnx.data']


def test_others_may_read_the_file_as_the_umask_allows(tmp_path):
    umask = os.umask(0o027)
    try:
        with replacing(str(tmp_path / 'a.json')) as temporary:
            write(temporary, 'new')
    finally:
        os.umask(umask)
    assert (tmp_path / 'a.json').stat().st_mode & 0o777 == 0o640


def test_contents_are_on_the_disk_before_the_file_is_moved(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda descriptor: (calls.append('fsync'), fsync(descriptor)))
    monkeypatch.setattr(os, 'replace', lambda old, new: (calls.append('replace'), replace(old, new)))
    with replacing(str(tmp_path / 'a.json')) as temporary:
        write(temporary, 'new')
    assert calls == ['fsync', 'replace']


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(str(tmp_path / 'missing' / 'a.json')):
        pass
