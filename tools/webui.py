"""Try a model in the browser: see rmt_mm/tools/commands/webui.py."""

from rmt_mm.tools.commands.webui import main

if __name__ == '__main__':
    main()
