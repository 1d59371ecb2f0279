"""Train a config: see rmt_mm/tools/commands/train.py."""

from rmt_mm.tools.commands.train import main

if __name__ == '__main__':
    main()
