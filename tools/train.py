"""Train a config: see rmt_mm/commands/train.py."""

from rmt_mm.commands.train import main

if __name__ == '__main__':
    main()
