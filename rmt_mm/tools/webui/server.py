"""Serve the page on one port, to this machine unless told otherwise, and keep everything else out."""

import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse

from ...errors import UsageError

LOOPBACK = ('127.0.0.1', 'localhost')
# Results of more browsers are forgotten, the oldest first.
SESSIONS = 20
FONTS = ['Inter', 'Helvetica', 'Arial', 'sans-serif']  # of the reader's machine


class NoAddresses:
    """Refuse the requests by which gradio would fetch another machine's file for a browser."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        path = scope.get('path', '')
        if '/proxy=' in path or ('/file' in path and ':/' in path):
            await PlainTextResponse('Addresses are not read.', 403)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def check_address(host: str, port: int) -> None:
    """Raise UsageError if the port is taken, or the host is none of this machine."""
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        socket.create_server((host, port), family=family).close()
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f'--host {host} --port {port} cannot be used: {reason}; name another.') from error


def start(blocks: gr.Blocks, host: str, port: int, max_megabytes: float) -> str:
    """Start to serve a page in threads of this process, and return its address.

    ``blocks.close()`` ends it.

    Args:
        blocks (gr.Blocks): the page.
        host (str): name or number of the interface. On the loopback interface, requests to other names are refused: a
            site whose name points here (DNS rebinding) could otherwise use the page through a visitor's browser.
        port (int): 1 to 65535.
        max_megabytes (float): largest upload.

    Raises:
        UsageError: the port is taken, or the host is none of this machine.
    """
    check_address(host, port)
    # gradio asks its own server whether it is up: not through a proxy.
    for name in ('no_proxy', 'NO_PROXY'):
        os.environ[name] = ','.join(filter(None, [os.environ.get(name), *LOOPBACK, host]))
    middleware = [Middleware(NoAddresses)]
    if host in LOOPBACK:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        run_history=False,
        footer_links=[],
        max_file_size=int(max_megabytes * 1e6),
        state_session_capacity=SESSIONS,
        theme=gr.themes.Default(primary_hue='blue', neutral_hue='slate', font=FONTS, font_mono=['monospace']),
        css_paths=Path(__file__).with_name('page.css'),
        app_kwargs=dict(middleware=middleware),
    )
    return address


def serve(blocks: gr.Blocks, host: str, port: int, max_megabytes: float, name: str) -> None:
    """Serve a page until Ctrl-C or SIGTERM, which raise KeyboardInterrupt."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its default would leave the uploads behind
    address = start(blocks, host, port, max_megabytes)
    print(f'{name}: {address} (Ctrl-C ends)', flush=True)
    try:
        threading.Event().wait()
    finally:
        blocks.close(verbose=False)


def private_folder() -> 'tempfile.TemporaryDirectory[str]':
    """Make a folder for uploads and results, which no other gradio page of this machine serves, and name it to gradio.

    Pages serve what lies in gradio's folder, by default /tmp/gradio for all of them.
    """
    folder = tempfile.TemporaryDirectory(prefix='rmt-webui-')
    os.environ['GRADIO_TEMP_DIR'] = os.environ['GRADIO_EXAMPLES_CACHE'] = folder.name
    return folder
