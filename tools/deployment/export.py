"""Export a model for other runtimes: see rmt_mm/tools/commands/export.py."""

from rmt_mm.tools.commands.export import main

if __name__ == '__main__':
    main()
