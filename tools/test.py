"""Evaluate a checkpoint: see rmt_mm/tools/commands/test.py."""

from rmt_mm.tools.commands.test import main

if __name__ == '__main__':
    main()
