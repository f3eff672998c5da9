"""A small repository with the layout of SSL4MIS, for URPC; ``standins.write`` writes it.

The network is a narrow 3-D U-Net with the names of the published weights.
"""

UNET = """
import torch
from torch import nn


class Pair(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = self.layer(inputs, outputs)
        self.conv2 = self.layer(outputs, outputs)

    def layer(self, inputs, outputs):
        conv = nn.Conv3d(inputs, outputs, 3, padding=1)
        return nn.Sequential(conv, nn.InstanceNorm3d(outputs), nn.ReLU())

    def forward(self, x):
        return self.conv2(self.conv1(x))


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = Pair(3 * width, width)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear")

    def forward(self, skip, x):
        return self.conv(torch.cat([skip, self.up(x)], 1))


class Side(nn.Module):
    def __init__(self, width, classes, factor):
        super().__init__()
        up = nn.Upsample(scale_factor=factor, mode="trilinear")
        self.dsv = nn.Sequential(nn.Conv3d(width, classes, 1), up)

    def forward(self, x):
        return self.dsv(x)


class unet_3D_dv_semi(nn.Module):
    def __init__(self, n_classes, in_channels, width=2):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        for level, (inputs, outputs) in enumerate(zip([in_channels, *widths], widths), start=1):
            self.add_module(f"conv{level}" if level < 5 else "center", Pair(inputs, outputs))
        for level in (4, 3, 2, 1):
            self.add_module(f"up_concat{level}", Up(widths[level - 1]))
        for level in (4, 3, 2):
            side = Side(widths[level - 1], n_classes, 2 ** (level - 1))
            self.add_module(f"dsv{level}", side)
        self.dsv1 = nn.Conv3d(width, n_classes, 1)
        self.drops = [nn.Dropout3d(p) for p in (0.1, 0.2, 0.3, 0.5)]

    def forward(self, x):
        maps = []
        for level in (1, 2, 3, 4):
            maps.append(getattr(self, f"conv{level}")(x))
            x = nn.functional.max_pool3d(maps[-1], 2)
        x = self.center(x)
        outputs = []
        for level in (4, 3, 2, 1):
            x = getattr(self, f"up_concat{level}")(maps[level - 1], x)
            if self.training:
                x = self.drops[level - 1](x)
            outputs.append(getattr(self, f"dsv{level}")(x))
        return outputs[::-1]
"""

SCRIPT = """
import argparse

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from dataloaders.brats2019 import (
    BraTS2019,
    RandomCrop,
    RandomRotFlip,
    ToTensor,
    TwoStreamBatchSampler,
)
from networks.unet_3D_dv_semi import unet_3D_dv_semi
from utils.helpers import dice_loss, sigmoid_rampup

parser = argparse.ArgumentParser()
parser.add_argument("--max_iterations", type=int, default=60000)
parser.add_argument("--base_lr", type=float, default=0.1)
parser.add_argument("--patch_size", type=list, default=[96, 96, 96])
parser.add_argument("--labeled_num", type=int, default=18)
parser.add_argument("--total_labeled_num", type=int, default=180)
args = parser.parse_args()

model = unet_3D_dv_semi(n_classes=3, in_channels=1).cuda()
steps = [RandomRotFlip(), RandomCrop(args.patch_size), ToTensor()]
data = BraTS2019("../data", split="train", transform=transforms.Compose(steps))
labeled = list(range(args.labeled_num))
unlabeled = list(range(args.labeled_num, args.total_labeled_num))
sampler = TwoStreamBatchSampler(labeled, unlabeled, 4, 2)
trainloader = DataLoader(data, batch_sampler=sampler)
optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
max_iterations = args.max_iterations
kl_distance = nn.KLDivLoss(reduction="none")
iter_num = 0
for epoch_num in tqdm(range(10)):
    for sampled_batch in trainloader:
        volumes, labels = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
        outputs = model(volumes)
        softs = [F.softmax(output, dim=1) for output in outputs]
        mean = sum(softs) / 4
        supervised_loss = 0
        consistency_loss = 0
        for output, soft in zip(outputs, softs):
            entropy = F.cross_entropy(output[:2], labels[:2])
            overlaps = [dice_loss(soft[:2, k], labels[:2] == k) for k in range(3)]
            supervised_loss += (entropy + sum(overlaps) / 3) / 8
            variance = kl_distance(torch.log(soft[2:]), mean[2:]).sum(1, keepdim=True)
            certainty = torch.exp(-variance)
            rectified = ((mean[2:] - soft[2:]) ** 2 * certainty).mean()
            rectified = rectified / (certainty.mean() + 1e-8)
            consistency_loss += (rectified + variance.mean()) / 4
        consistency_weight = 0.1 * sigmoid_rampup(iter_num // 150, 400.0)
        loss = supervised_loss + consistency_weight * consistency_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lr_ = args.base_lr * (1.0 - iter_num / max_iterations) ** 0.9
        for param_group in optimizer.param_groups:
            param_group["lr"] = lr_
        iter_num = iter_num + 1
"""

TESTING = """
from test_urpc_util import test_all_case


def run(net):
    return test_all_case(net, [], patch_size=(96, 96, 96), stride_xy=64, stride_z=64)
"""


def files(loader: str, window: str) -> dict[str, str]:
    """Return the files by name, with the text of the loaders for LA and of a sliding window."""
    return {
        "train_uncertainty_rectified_pyramid_consistency_3D.py": SCRIPT,
        "networks/unet_3D_dv_semi.py": UNET,
        "dataloaders/brats2019.py": loader.replace("LAHeart", "BraTS2019"),
        "test_urpc.py": TESTING,
        # Its window returns labels only.
        "test_urpc_util.py": window.replace("return LABELS, score", "return score.argmax(0)"),
    }
