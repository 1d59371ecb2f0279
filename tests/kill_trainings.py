"""Kill trainings of a toy model, resume them, and compare every logged loss with a training that was not interrupted.

    python tests/kill_trainings.py [--kills 100] [--iterations] [--workers N] [--seed N]

Every second kill comes at a random time. The others come at a random event of a file below the work dir: before a file
is opened to be written, moved or removed, or when a part of it is written. Each training is killed until it has ended.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import mmengine.runner

from rmt_mm.tools.commands import train

import support.toy  # noqa: F401  # before the forks
from support.quick import speed_up_runners
from support.toy_training import EPOCHS, LENGTH, write_config


def die_at(event_number, work_dir):
    """Make this process kill itself at an event of a file below ``work_dir``, counted from 0."""
    count = [0]

    def watch(event, args):
        writes = event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wa+')
        if not (writes or event in ('os.rename', 'os.remove')) or work_dir not in str(args[0]):
            return
        count[0] += 1
        if count[0] == event_number + 1:
            if writes and 'w' in args[1] and random.random() < 0.7:  # leave a file that is cut off, or empty
                descriptor = os.open(args[0], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.write(descriptor, os.urandom(random.choice([0, 0, 7, 5000])))
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def start(path, work_dir, log, *args, event=None):
    """Train in a process of its own, which has the libraries imported; return its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        os.setpgid(0, 0)
        with open(log, 'a') as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.argv = ['train.py', str(path), '--work-dir', str(work_dir), *args]
        if event is not None:
            random.seed(event)
            die_at(event, str(work_dir))
        train.main()
        status = 0
    except SystemExit as exit:
        print(exit.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def losses(work_dir):
    """Return the logged losses by iteration; those of later runs count. A line may be cut off by a kill."""
    found = {}
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if 'loss' in entry:
                found.setdefault(entry['step'], set()).add(entry['loss'])
    return found


def run(folder, kills, workers=0, iterations=False, seed=0):
    """Return a line on ``kills`` killed trainings; raise AssertionError for one that differs or cannot be resumed."""
    generator = random.Random(seed)
    mmengine.runner.runner.collect_env()  # kept for the forks
    path = Path(folder, 'config.py')
    write_config(path, workers, iterations)
    whole = Path(folder, 'whole')
    began = time.monotonic()
    assert os.waitpid(start(path, whole, whole.with_suffix('.log')), 0)[1] == 0, whole.with_suffix('.log').read_text()
    seconds, expected = time.monotonic() - began, losses(whole)
    assert len(expected) == EPOCHS * LENGTH and all(len(values) == 1 for values in expected.values())
    done, trainings, passed, left = 0, 0, 0, 0
    while done < kills:
        trainings += 1
        work_dir = Path(folder, f'killed{trainings}')
        log = work_dir.with_suffix('.log')
        while True:
            event = generator.randrange(40) if done % 2 and done < kills else None
            process = start(path, work_dir, log, '--resume', event=event)
            if event is None and done < kills:
                time.sleep(generator.uniform(0.3, 1) * seconds)
                os.kill(process, signal.SIGKILL)
            status = os.waitpid(process, 0)[1]
            if workers:  # whose parent is dead
                time.sleep(0.2)
            if os.WIFSIGNALED(status):
                done += 1
                continue
            assert status == 0, log.read_text()[-3000:]
            break
        text = log.read_text()
        passed += text.count('Passed over')
        found = losses(work_dir)
        assert found == expected, f'training {trainings}: {found} is not {expected}'
        # A kill between the writing of a checkpoint and the removal of the one before it leaves both.
        left += sum(1 for _ in work_dir.glob('[ei]*.pth')) - 1
    kind = 'iterations' if iterations else 'epochs'
    return (
        f'seed {seed}: {done} kills in {trainings} trainings ({kind}, {workers} workers): all ended, all '
        f'{len(expected)} losses of each are those of the uninterrupted training; {passed} files passed over, {left} '
        'older ones left'
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=100)
    parser.add_argument('--iterations', action='store_true', help='a loop that counts iterations')
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('--seed', type=int, default=0)
    arguments = parser.parse_args()
    speed_up_runners()
    with tempfile.TemporaryDirectory() as folder:
        print(run(folder, arguments.kills, arguments.workers, arguments.iterations, arguments.seed))
