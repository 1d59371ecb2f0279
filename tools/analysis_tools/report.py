"""Write the report of a training: see rmt_mm/tools/commands/report.py."""

from rmt_mm.tools.commands.report import main

if __name__ == '__main__':
    main()
