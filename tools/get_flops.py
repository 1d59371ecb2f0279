"""Count a model's parameters and multiply-adds: see rmt_mm/tools/commands/get_flops.py."""

from rmt_mm.tools.commands.get_flops import main

if __name__ == '__main__':
    main()
