"""Damaged, forged and odd files for every reader of the package, each read in a process of its own.

:mod:`isolated` judges how a reading ended, :mod:`values` changes bytes and nested values, and the other modules have
one kind of file each. ``tests/fuzz.py`` runs them.
"""
