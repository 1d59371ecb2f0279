"""Export a model for other runtimes: see rmt_mm/commands/export.py."""

from rmt_mm.commands.export import main

if __name__ == '__main__':
    main()
