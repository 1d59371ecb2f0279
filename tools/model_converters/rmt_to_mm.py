"""Convert the authors' checkpoints: see rmt_mm/tools/commands/rmt_to_mm.py."""

from rmt_mm.tools.commands.rmt_to_mm import main

if __name__ == '__main__':
    main()
