"""Two processes of one thread each, which train a backbone or a whole model on the halves of a batch.

    python tests/two_processes.py FOLDER SETTINGS...   compare a backbone's gradients with the mean of the halves
    python tests/two_processes.py FOLDER MODEL...      the same of a detector, segmentor or classifier; of FCOS, with
                                                       those of the joint batch
    python tests/two_processes.py FOLDER death         the second process is killed

Exit status 0 if both ended as they should. It forks, which a process that has computed gradients cannot.
"""

import os
import signal
import sys
import traceback

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rmt_mm import RMT, get_config_path
from rmt_mm.training.faults import explaining_faults

from support.archs import LEAST_ARCH

SETTINGS = dict(
    plain={},
    frozen=dict(frozen_stages=2),
    recomputed=dict(with_cp=True, drop_path_rate=0.3),
    unused=dict(out_indices=(0, 3)),
)
MODEL_CONFIGS = dict(
    detector='mask-rcnn_rmt-mini_fpn_digits',
    fcos='fcos_rmt-t_fpn_gn-head_amp-1x_coco',
    segmentor='rmt-mini_fpn_digits',
    classifier='rmt-digits',
)
SIZE = (64, 96)


class LossOfBackbone(nn.Module):
    def __init__(self, settings):
        super().__init__()
        self.backbone = RMT(LEAST_ARCH, **settings)

    def forward(self, inputs):
        return self.backbone(inputs)[-1].square().mean()

    def batch(self, half):
        """The images of one half are black."""
        return dict(inputs=torch.zeros(2, 3, *SIZE) if half else torch.rand(2, 3, *SIZE))


class LossOfModel(nn.Module):
    """The sum of the losses of a model of ours, with a small backbone."""

    def __init__(self, name):
        super().__init__()
        cfg = Config.fromfile(get_config_path(MODEL_CONFIGS[name])).model
        # Drop path and the statistics of a BatchNorm differ between halves and the joint batch.
        joint = name == 'fcos'
        cfg.backbone.update(arch=LEAST_ARCH, init_cfg=None, drop_path_rate=0.0 if joint else 0.1, norm_eval=joint)
        for part in ('neck', 'head'):
            channels = cfg.get(part, {}).get('in_channels')
            if channels:
                widths = list(LEAST_ARCH['embed_dims'])
                cfg[part].in_channels = widths[-len(channels) :] if isinstance(channels, list) else widths[-1]
        if name == 'segmentor':
            cfg.decode_head.loss_decode.class_weight = None  # mmseg's loss takes no ignored pixels beside it
        self.model = revert_sync_batchnorm(MODELS.build(cfg))  # as the tools do without a GPU
        self.make_samples = dict(segmentor=self.label_maps, classifier=self.labels).get(name, self.objects)

    def forward(self, **batch):
        return self.model.parse_losses(self.model(**batch, mode='loss'))[0]

    def batch(self, half):
        batch = dict(inputs=list(torch.randint(256, (2, 3, *SIZE))), data_samples=self.make_samples(half))
        return self.model.data_preprocessor(batch, training=True)

    @staticmethod
    def objects(half):
        """One image of two has no object."""
        from mmdet.testing import demo_mm_inputs

        items = [3, 0 if half else 2]
        return demo_mm_inputs(2, [[3, *SIZE]] * 2, num_items=items, num_classes=10, with_mask=True)['data_samples']

    @staticmethod
    def label_maps(half):
        """Half of the pixels of one half are to be ignored."""
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        maps = torch.randint(11, (2, 1, *SIZE))
        if half:
            maps[..., : SIZE[1] // 2] = 255
        samples = [SegDataSample(gt_sem_seg=PixelData(data=labels)) for labels in maps]
        for sample in samples:
            sample.set_metainfo(dict(img_shape=SIZE))
        return samples

    @staticmethod
    def labels(half):
        from mmpretrain.structures import DataSample

        return [DataSample().set_gt_label(label) for label in torch.randint(10, (2,))]


def gradients(model, loss_of):
    """Return the gradients of ``model`` for the loss that ``loss_of()`` computes; zeros, where it uses no parameter."""
    model.zero_grad()
    loss_of().backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad
    }


def loss_of_half(model, half, batch):
    """Seed what samples regions and drops paths, as the process of this half does."""
    torch.manual_seed(half)
    return model(**batch)


def assert_equal(got, wanted, **tolerance):
    assert any(gradient.any() for gradient in wanted.values())
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, wanted[name], msg=lambda text, name=name: f'{name}: {text}', **tolerance)


def in_two_processes(work):
    """Call ``work(rank)`` in two forks of one thread each; return their exit statuses, -N for a signal."""
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                work(rank)
                status = 0
            finally:  # os._exit: threads of gloo can abort an interpreter that ends
                if status:
                    traceback.print_exc()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def join(rank, folder):
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)


def compare(folder, build, joint=False):
    """Compare two processes with the mean of the halves, to the bit, or with the joint batch, to rounding."""

    def work(rank):
        torch.manual_seed(7)
        model = build().train()
        batches = [model.batch(half) for half in range(2)]
        join(rank, folder)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        got = gradients(model, lambda: loss_of_half(wrapped, rank, batches[rank]))
        other = [None, None]
        dist.all_gather_object(other, got)
        assert_equal(got, other[1 - rank], rtol=0, atol=0)
        # Alone: heads that take means over the processes find none.
        dist.destroy_process_group()
        if joint:
            assert_equal(got, gradients(model, lambda: model(**join_batches(*batches))), rtol=1e-3, atol=1e-6)
            return
        halves = [gradients(model, lambda half=half: loss_of_half(model, half, batches[half])) for half in range(2)]
        mean = {name: (first + halves[1][name]) / 2 for name, first in halves[0].items()}
        assert_equal(got, mean, rtol=0, atol=0)

    return in_two_processes(work) == [0, 0]


def join_batches(first, second):
    samples = first['data_samples'] + second['data_samples']
    return dict(inputs=torch.cat([first['inputs'], second['inputs']]), data_samples=samples)


def kill_one(folder):
    def work(rank):
        join(rank, folder)
        model = LossOfBackbone({})
        loss_of = DistributedDataParallel(model)
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)
        with explaining_faults('WORK'):
            loss_of(**model.batch(0)).backward()

    return in_two_processes(work) == [1, -signal.SIGKILL]


def main(folder, *cases):
    for case in cases:
        print(case, file=sys.stderr)
        place = os.path.abspath(os.path.join(folder, case))
        os.mkdir(place)
        if case == 'death':
            ended_well = kill_one(place)
        elif case in SETTINGS:
            ended_well = compare(place, lambda case=case: LossOfBackbone(SETTINGS[case]))
        else:
            init_default_scope(Config.fromfile(get_config_path(MODEL_CONFIGS[case])).default_scope)
            ended_well = compare(place, lambda case=case: LossOfModel(case), joint=case == 'fcos')
        if not ended_well:
            return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(*sys.argv[1:]))
