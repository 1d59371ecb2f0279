"""Draw what MaSA attends to, and the features that it gives: see rmt_mm/tools/commands/vis_masa.py."""

from rmt_mm.tools.commands.vis_masa import main

if __name__ == '__main__':
    main()
