"""Write the report of a training: see rmt_mm/commands/report.py."""

from rmt_mm.commands.report import main

if __name__ == '__main__':
    main()
