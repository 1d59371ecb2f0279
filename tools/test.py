"""Evaluate a checkpoint: see rmt_mm/commands/test.py."""

from rmt_mm.commands.test import main

if __name__ == '__main__':
    main()
