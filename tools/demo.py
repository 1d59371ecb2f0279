"""Predict images or a video: see rmt_mm/tools/commands/demo.py."""

from rmt_mm.tools.commands.demo import main

if __name__ == '__main__':
    main()
