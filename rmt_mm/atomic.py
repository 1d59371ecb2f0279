"""Write files whole or not at all."""

import contextlib
import os
import os.path as osp
import shutil
import tempfile
from typing import Iterator


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Yield a path to write to; at the end of the block, move what was written there to ``path``.

    The yielded path has the name of ``path`` and lies in a new, private folder beside it. Every file that the block
    leaves in that folder is moved, ``path`` last: a writer may add files (the tensors of a large ONNX model), and a
    block may rename its file. The files get the usual permissions, and are on the disk before they are moved.

    After an error or an interruption the folder is deleted, and an earlier file at ``path`` is as it was.

    Args:
        path (str): the file to create or replace. Its folder must exist.

    Raises:
        OSError: the folder does not exist or cannot be written to, or the disk is full.
    """
    folder, target = osp.split(path)
    temporary = tempfile.mkdtemp(dir=folder or '.', prefix='.writing-')
    try:
        yield osp.join(temporary, target)
        for name in sorted(os.listdir(temporary), key=lambda name: name == target):
            with open(osp.join(temporary, name), 'rb') as file:
                os.fsync(file.fileno())
            os.replace(osp.join(temporary, name), osp.join(folder, name))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
