"""The page's server: what it refuses, that it calls nobody, and the whole page in a browser (slow)."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

pytest.importorskip('gradio', reason='the page needs gradio')

import httpx  # noqa: E402  # of gradio's requirements

from rmt_mm.errors import UsageError  # noqa: E402
from rmt_mm.tools.cli.predictor import build_predictor  # noqa: E402
from rmt_mm.tools.commands import webui as command  # noqa: E402
from rmt_mm.tools.webui.page import Page  # noqa: E402
from rmt_mm.tools.webui.server import check_address, private_folder, start  # noqa: E402
from rmt_mm.tools.webui.trial import Trial  # noqa: E402

from support import ROOT  # noqa: E402
from support.browser import open_browser  # noqa: E402
from support.pictures import write_png  # noqa: E402

CONFIG = ROOT / 'configs/detection/mask-rcnn_rmt-mini_fpn_4e_digits.py'


def free_port():
    with socket.create_server(('127.0.0.1', 0)) as server:
        return server.getsockname()[1]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with a checkpoint and two pictures."""
    folder = tmp_path_factory.mktemp('server')
    pytest.importorskip('mmdet.utils').register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        model = MODELS.build(Config.fromfile(CONFIG).model)
    classes = tuple('0123456789')
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), folder / 'a.pth')
    for name, size in (('wide.png', (160, 120)), ('high.png', (90, 150))):
        small = np.random.RandomState(len(name)).randint(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize(size).save(folder / name)
    return folder


@pytest.fixture(scope='module')
def calls():
    """Return a list of the addresses to which this process connects."""
    made = []
    sys.addaudithook(lambda event, args: made.append(args[1]) if event == 'socket.connect' else None)
    return made


@pytest.fixture(scope='module')
def address(folder, calls):
    """Serve a page, and return its address."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        predictor = build_predictor(Config.fromfile(CONFIG), str(folder / 'a.pth'), 'cpu')
    variables = dict(os.environ)
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'
    with private_folder():
        blocks = Page(Trial(predictor, 1_000_000), [folder / 'wide.png', folder / 'high.png']).build('title', 'facts')
        yield start(blocks, '127.0.0.1', free_port(), 1)
        blocks.close(verbose=False)
    os.environ.clear()
    os.environ.update(variables)


def test_no_file_of_the_machine_is_served(address, folder):
    own = os.environ['GRADIO_TEMP_DIR']
    paths = ['/etc/passwd', folder / 'a.pth', ROOT / 'setup.cfg', 'setup.cfg', f'{own}/../../etc/passwd', '~/.bashrc']
    for path in paths:
        for route in ('file=', 'file/'):
            answer = httpx.get(f'{address}gradio_api/{route}{path}')
            assert answer.status_code in (403, 404), path
    assert httpx.get(f'{address}static/../../../../../../etc/passwd').status_code in (403, 404)
    for url in ('http://example.com/a.png', 'https://example.com/a.png'):
        for route in ('file=', 'file/', 'proxy='):
            assert httpx.get(f'{address}gradio_api/{route}{url}').status_code == 403


def send(address, name, data, trigger, session=None):
    """Send an event as the page does, and return the answer's messages."""
    config = httpx.get(f'{address}config', timeout=600).json()
    [fn] = [d for d in config['dependencies'] if [name, trigger] in targets(config, d)]
    session = session or f'test{time.time()}'
    body = dict(data=data, fn_index=fn['id'], session_hash=session)
    assert httpx.post(f'{address}gradio_api/queue/join', json=body, timeout=600).status_code == 200
    with httpx.stream('GET', f'{address}gradio_api/queue/data?session_hash={session}', timeout=600) as got:
        for line in got.iter_lines():
            message = json.loads(line[5:]) if line.startswith('data:') else {}
            if message.get('msg') == 'process_completed':
                return message


def n(config, number):
    return next(c['props'].get('elem_id') for c in config['components'] if c['id'] == number)


def targets(config, dependency):
    return [[n(config, target[0]), target[1]] for target in dependency['targets']]


def test_a_request_cannot_name_a_file_of_the_machine_as_an_upload(address, folder):
    for path in (folder / 'wide.png', ROOT / 'docs/demo.jpg'):
        file = dict(path=str(path), orig_name='a.png', meta=dict(_type='gradio.FileData'))
        answer = send(address, 'picture', [file, 0.5], 'upload')
        assert not answer['success'] and 'data' not in answer['output']
    with (folder / 'wide.png').open('rb') as opened:
        [path] = httpx.post(f'{address}gradio_api/upload', files=dict(files=opened)).json()
    file = dict(path=path, orig_name='a.png', meta=dict(_type='gradio.FileData'))
    answer = send(address, 'picture', [file, 0.5], 'upload')
    assert answer['success'] and 'a.png, 160 x 120 pixels' in answer['output']['data'][1]


def resident():
    """Return the memory of this process in bytes."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def put(address, path, name):
    """Upload a file under a name, and return what the page's event takes."""
    with path.open('rb') as opened:
        [stored] = httpx.post(f'{address}gradio_api/upload', files=dict(files=(name, opened)), timeout=600).json()
    return [dict(path=stored, orig_name=name, meta=dict(_type='gradio.FileData')), 0.9]


@pytest.mark.parametrize('number', [12, pytest.param(50, marks=pytest.mark.slow)])
def test_many_requests_at_once(number, address, folder, tmp_path):
    """Among them damaged files, decompression bombs and hostile names: each is answered, in bounded memory."""
    hostile = ['<img src=x onerror=alert(1)>.png', '\x1b[2J\u202e.png', '..%2f..%2fetc%2fpasswd', 'a' * 200 + '.png']
    write_png(tmp_path / 'bomb.png', 20000, 20000)
    (tmp_path / 'text.png').write_text('no picture')
    files = [folder / 'wide.png', tmp_path / 'bomb.png', tmp_path / 'text.png', folder / 'high.png']
    visits = [(files[i % 4], hostile[i % 7] if i % 7 < 4 else f'{i}.png') for i in range(number)]
    before = resident()

    def visit(i):
        path, name = visits[i]
        return send(address, 'picture', put(address, path, name), 'upload', f'visit{i} of {number}')

    with ThreadPoolExecutor(number) as pool:
        answers = list(pool.map(visit, range(number)))
    for (path, name), answer in zip(visits, answers):
        assert answer['success'], (path, name)
        status = answer['output']['data'][1]
        assert '<img' not in status and '\x1b' not in status
        expected = {'wide.png': '160 x 120 pixels', 'high.png': '90 x 150 pixels', 'bomb.png': 'pixels'}
        assert expected.get(path.name, 'cannot be read as a picture') in status
        assert ('class="error"' in status) == (path.name in ('bomb.png', 'text.png'))
    assert resident() - before < 2**30


def test_a_visitor_that_leaves(address, folder):
    """The answer to a visitor that has gone is computed for nobody, and the next one is served."""
    for number in range(3):
        config = httpx.get(f'{address}config').json()
        [fn] = [d for d in config['dependencies'] if ['picture', 'upload'] in targets(config, d)]
        body = dict(data=put(address, folder / 'wide.png', 'a.png'), fn_index=fn['id'], session_hash=f'gone{number}')
        assert httpx.post(f'{address}gradio_api/queue/join', json=body).status_code == 200
        with httpx.stream('GET', f'{address}gradio_api/queue/data?session_hash=gone{number}', timeout=600) as got:
            next(got.iter_lines())  # and goes
    answer = send(address, 'picture', put(address, folder / 'high.png', 'b.png'), 'upload')
    assert 'b.png, 90 x 150 pixels' in answer['output']['data'][1]


@pytest.mark.parametrize('up', ['../', '..%2f', '%2e%2e/', '..%5c', '....//', '%252e%252e%252f', '/./../', '..%00/'])
def test_paths_that_climb_out(up, address):
    for route in ('gradio_api/file=', 'gradio_api/file/', 'static/', 'assets/', 'custom_component/'):
        answer = httpx.get(f'{address}{route}{up * 12}etc/passwd', timeout=600)
        assert answer.status_code >= 400 or 'root:' not in answer.text, route


def test_large_uploads_and_other_names_of_this_machine_are_refused(address):
    answer = httpx.post(f'{address}gradio_api/upload', files=dict(files=('a.png', b'0' * 1_100_000)))
    assert answer.status_code == 413
    assert httpx.get(address, headers=dict(host='attacker.example')).status_code == 400
    assert httpx.get(address).status_code == 200
    functions = httpx.get(f'{address}gradio_api/info').json()
    assert not functions['named_endpoints'] and not functions['unnamed_endpoints']


def test_the_page_calls_nobody(address, calls):
    assert httpx.get(address).status_code == 200
    hosts = {to[0] for to in calls if isinstance(to, tuple)}
    assert hosts <= {'127.0.0.1', '::1'}
    for name in ('', 'theme.css'):
        text = httpx.get(address + name).text
        for word in ('googleapis', 'cdnjs', 'jsdelivr', 'unpkg', 'google-analytics', '<script src="http'):
            assert word not in text


@pytest.mark.parametrize(
    'options, words',
    [
        (['--port', '0'], '--port 0: ports are from 1 to 65535'),
        (['--port', 'TAKEN'], r'cannot be used: Address already in use'),
        (['--host', '203.0.113.9'], r'--host 203.0.113.9 --port \d+ cannot be used'),
        (['--max-megabytes', '-1'], '--max-megabytes -1.0: it must be above 0'),
        (['--max-pixels', '0'], '--max-pixels 0: it must be above 0'),
        (['--device', 'toaster'], '--device toaster cannot be used'),
        (['CONFIG', 'nowhere'], 'config nowhere does not exist'),
        (['CHECKPOINT', 'nowhere.pth'], 'nowhere.pth'),
        (['GRADIO'], r'the page needs gradio, which is not installed: pip install "rmt-mm\[webui\]"'),
    ],
)
def test_mistakes_are_one_sentence(options, words, folder, monkeypatch):
    names = dict(CONFIG=str(CONFIG), CHECKPOINT=str(folder / 'a.pth'))
    if options[0] in names:
        names[options[0]], options = options[1], []
    if options == ['GRADIO']:
        monkeypatch.setattr(command, 'find_spec', lambda name: None)
        options = []
    with socket.create_server(('127.0.0.1', 0)) as taken:
        options = [option.replace('TAKEN', str(taken.getsockname()[1])) for option in options]
        if '--port' not in options:
            options += ['--port', str(free_port())]
        monkeypatch.setattr(sys, 'argv', ['tools/webui.py', *names.values(), *options])
        monkeypatch.setenv('GRADIO_ANALYTICS_ENABLED', 'False')
        with pytest.raises(SystemExit) as stop:
            command.main()
    text = str(stop.value.code)
    assert re.search(words, text) and text.startswith('error: ') and '\n' not in text


def test_the_port_is_asked_for_on_the_host_itself():
    with socket.create_server(('127.0.0.2', 0)) as taken:
        port = taken.getsockname()[1]
        check_address('127.0.0.1', port)
        with pytest.raises(UsageError, match='127.0.0.2'):
            check_address('127.0.0.2', port)


# A browser.


@pytest.fixture(scope='module')
def browser():
    with open_browser() as chromium:
        yield chromium


def open_page(browser, address):
    """Return a page of a new visitor, and the lists of its requests and problems."""
    page = browser.new_context(viewport=dict(width=1200, height=1400), accept_downloads=True).new_page()
    requests, problems = [], []
    page.on('request', lambda request: requests.append(request.url))
    page.on('pageerror', lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector('#threshold input[type=range]')
    return page, requests, problems


def choose(page, path):
    page.set_input_files('#picture input[type=file]', str(path))


def wait_for(page, selector, text):
    page.wait_for_function('([s, t]) => document.querySelector(s)?.innerText.includes(t)', arg=[selector, text])


@pytest.mark.slow
def test_a_visit(address, browser, folder, tmp_path):
    page, requests, problems = open_page(browser, address)
    choose(page, folder / 'wide.png')
    wait_for(page, '#status', 'wide.png, 160 x 120 pixels')
    page.wait_for_selector('#predictions img')

    page.fill('#threshold input[type=number]', '0.06')
    page.press('#threshold input[type=number]', 'Enter')
    wait_for(page, '#listing', 'score of 0.06 or more')
    found = page.locator('#listing li').count()
    page.wait_for_timeout(500)
    with page.expect_download() as download:
        page.click('#download')
    download.value.save_as(tmp_path / 'a.json')
    entries = json.loads((tmp_path / 'a.json').read_text())
    assert len(entries) == found > 0 and entries[0]['file_name'] == 'wide.png'
    assert download.value.suggested_filename == 'predictions.json'

    page.locator('#threshold input[type=range]').focus()
    for hundredth in range(7, 100):
        page.keyboard.press('ArrowRight')
        wait_for(page, '#listing', f'score of {hundredth / 100:.2f} or more')
        if page.locator('#listing li').count() < found:
            break
    assert page.locator('#listing li').count() < found

    box = page.locator('#picture img').bounding_box()
    # The picture has the shape 4:3, and touches the sides of its frame or its top and bottom.
    scale = min(box['width'] / 160, box['height'] / 120)
    middle_x, middle_y = box['x'] + box['width'] / 2, box['y'] + box['height'] / 2
    page.mouse.click(middle_x + (100.5 - 80) * scale, middle_y + (30.5 - 60) * scale)
    page.wait_for_selector('#map-2 img')
    told = page.locator('#token').inner_text()
    x, y = map(int, told.split('(')[1].split(')')[0].split(','))
    assert abs(x - 100) <= 1 and abs(y - 30) <= 1
    page.locator('#stage input').first.check()
    wait_for(page, '#token', '32 x 40 tokens')
    # Stage 3 has more heads than the stage that the page began with.
    page.locator('#stage input').last.check()
    wait_for(page, '#token', '4 x 5 tokens')
    label = page.locator('#map-2 label').inner_text()
    page.locator('#head input').click()
    page.get_by_role('option').last.click()
    page.wait_for_function('old => document.querySelector("#map-2 label").innerText != old', arg=label)

    (tmp_path / 'text.png').write_text('no picture')
    page.get_by_label('Remove Image').click()
    wait_for(page, '#status', 'Drop a picture')
    assert page.locator('#map-2 img').count() == 0
    choose(page, tmp_path / 'text.png')
    wait_for(page, '#status', 'text.png cannot be read as a picture')
    assert not problems
    assert {url.split('/')[2] for url in requests if url.startswith('http')} == {address.split('/')[2]}


@pytest.mark.slow
def test_two_visitors_at_once(address, browser, folder):
    pages = [open_page(browser, address)[0] for _ in range(2)]
    names = ('wide.png', 'high.png')
    for turn in range(3):
        visits = list(zip(pages, names if turn % 2 else names[::-1]))
        for page, name in visits:
            choose(page, folder / name)
        for page, name in visits:
            wait_for(page, '#status', name)
            page.wait_for_selector('#predictions img')
            width, height = page.locator('#predictions img').evaluate('e => [e.naturalWidth, e.naturalHeight]')
            assert (width > height) == (name == 'wide.png')
        for page in pages:
            page.get_by_label('Remove Image').click()
            wait_for(page, '#status', 'Drop a picture')


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_tool_with_a_page_open_and_deletes_uploads(number, browser, folder, tmp_path):
    port = free_port()
    command = [sys.executable, 'tools/webui.py', CONFIG, folder / 'a.pth', '--port', port]
    environment = {k: v for k, v in os.environ.items() if not k.startswith('GRADIO')}
    environment['TMPDIR'] = str(tmp_path)
    tool = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        for line in tool.stdout:
            if 'http://' in line:
                break
        page, _, _ = open_page(browser, f'http://127.0.0.1:{port}/')
        choose(page, folder / 'wide.png')
        wait_for(page, '#status', 'wide.png')
        assert list(tmp_path.glob('rmt-webui-*/*'))
        tool.send_signal(number)
        out, err = tool.communicate(timeout=30)
    finally:
        tool.kill()
    assert not list(tmp_path.glob('rmt-webui-*'))
    assert tool.returncode == 0 and 'Traceback' not in out + err and 'Error' not in err
