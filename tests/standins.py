"""Small repositories with the layout of the authors', written for these tests.

The network is a narrow V-Net with the names of the published weights.
"""

from __future__ import annotations

from pathlib import Path

import standin_mcf
import standin_sdcl
import standin_urpc

VNET = """
import torch
from torch import nn

ENCODER = ("one", "two", "three", "four", "five")
UP = ("eight", "seven", "six", "five")
DECODER = ("nine", "eight", "seven", "six")
CONVS = (1, 2, 3, 3, 3)


class Block(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        steps = []
        for layer, width in layers:
            steps += [layer, nn.BatchNorm3d(width), nn.ReLU()]
        self.conv = nn.Sequential(*steps)

    def forward(self, x):
        return self.conv(x)


def convs(count, inputs, width):
    layers = []
    for _ in range(count):
        layers.append((nn.Conv3d(inputs, width, 3, padding=1), width))
        inputs = width
    return Block(*layers)


class VNet(nn.Module):
    def __init__(self, n_channels, n_classes, n_filters=2, heads=1):
        super().__init__()
        widths = [n_filters * 2**level for level in range(5)]
        inputs = n_channels
        for level, width in enumerate(widths):
            self.add_module(f"block_{ENCODER[level]}", convs(CONVS[level], inputs, width))
            inputs = 2 * width
            if level < 4:
                down = (nn.Conv3d(width, inputs, 2, stride=2), inputs)
                self.add_module(f"block_{ENCODER[level]}_dw", Block(down))
        for level in (3, 2, 1, 0):
            width = widths[level]
            up = (nn.ConvTranspose3d(2 * width, width, 2, stride=2), width)
            self.add_module(f"block_{UP[level]}_up", Block(up))
            self.add_module(f"block_{DECODER[level]}", convs(CONVS[level], width, width))
        self.out_conv = nn.Conv3d(n_filters, n_classes, 1)
        if heads == 2:
            self.out_conv2 = nn.Conv3d(n_filters, n_classes, 1)
        self.heads = heads
        self.dropout = nn.Dropout3d(0.5)

    def forward(self, x):
        maps = []
        for level in range(5):
            x = getattr(self, f"block_{ENCODER[level]}")(x)
            maps.append(x)
            if level < 4:
                x = getattr(self, f"block_{ENCODER[level]}_dw")(x)
        x = self.dropout(x)
        for level in (3, 2, 1, 0):
            x = getattr(self, f"block_{UP[level]}_up")(x) + maps[level]
            x = getattr(self, f"block_{DECODER[level]}")(x)
        x = self.dropout(x)
        if self.heads == 2:
            return torch.tanh(self.out_conv(x)), self.out_conv2(x)
        return self.out_conv(x)
"""

LOADER = """
import h5py
import numpy as np
import torch
from skimage import transform
from torch.utils.data import Dataset
from torch.utils.data.sampler import Sampler


class LAHeart(Dataset):
    def __init__(self, base_dir, split, transform):
        open(base_dir + "/train.list")


class RandomRotFlip:
    def __call__(self, sample):
        turns = np.random.randint(0, 4)
        axis = np.random.randint(0, 2)
        turn = lambda volume: np.flip(np.rot90(volume, turns), axis).copy()
        return {name: turn(volume) for name, volume in sample.items()}


class RandomCrop:
    def __init__(self, output_size):
        self.size = output_size

    def __call__(self, sample):
        shape = sample["label"].shape
        if any(n <= edge for n, edge in zip(shape, self.size)):
            pads = [max((edge - n) // 2 + 3, 0) for n, edge in zip(shape, self.size)]
            widths = [(pad, pad) for pad in pads]
            sample = {name: np.pad(volume, widths) for name, volume in sample.items()}
        shape = sample["label"].shape
        starts = [np.random.randint(0, n - edge) for n, edge in zip(shape, self.size)]
        box = tuple(slice(start, start + edge) for start, edge in zip(starts, self.size))
        return {name: volume[box] for name, volume in sample.items()}


class ToTensor:
    def __call__(self, sample):
        image = torch.from_numpy(sample["image"].astype(np.float32))[None]
        return {"image": image, "label": torch.from_numpy(sample["label"]).long()}


class TwoStreamBatchSampler(Sampler):
    def __init__(self, primary_indices, secondary_indices, batch_size, secondary_batch_size):
        self.primary_indices = primary_indices
        self.secondary_indices = secondary_indices
        self.sizes = (batch_size - secondary_batch_size, secondary_batch_size)

    def __iter__(self):
        first, second = self.sizes
        labeled = np.random.permutation(self.primary_indices)
        unlabeled = np.random.permutation(self.secondary_indices)
        for group in range(len(labeled) // first):
            start = group * second
            yield [
                *labeled[group * first : (group + 1) * first],
                *unlabeled[start : start + second],
            ]
"""

HELPERS = """
import numpy as np
import torch


def sigmoid_rampup(current, length):
    position = 1 - min(max(current, 0), length) / length
    return float(np.exp(-5 * position**2))


def dice_loss(score, target):
    target = target.float()
    both = (score * target).sum()
    return 1 - (2 * both + 1e-5) / ((score**2).sum() + (target**2).sum() + 1e-5)
"""

WINDOW = """
import math

import numpy as np
import torch
from medpy import metric
from tqdm import tqdm


def test_single_case(net, image, stride_xy, stride_z, patch_size, num_classes=1):
    shape = image.shape
    missing = [max(edge - n, 0) for n, edge in zip(shape, patch_size)]
    front = [n // 2 for n in missing]
    image = np.pad(image, [(a, n - a) for a, n in zip(front, missing)])
    steps = (stride_xy, stride_xy, stride_z)
    last = [n - edge for n, edge in zip(image.shape, patch_size)]
    counts = [math.ceil(end / step) + 1 for end, step in zip(last, steps)]
    score = np.zeros((num_classes, *image.shape), np.float32)
    visits = np.zeros(image.shape, np.float32)
    for place in np.ndindex(*counts):
        starts = [min(i * step, end) for i, step, end in zip(place, steps, last)]
        box = tuple(slice(start, start + edge) for start, edge in zip(starts, patch_size))
        window = torch.from_numpy(image[box][None, None].astype(np.float32)).cuda()
        score[(slice(None), *box)] += PROBABILITIES[0].numpy()
        visits[box] += 1
    score /= visits
    inside = tuple(slice(a, a + n) for a, n in zip(front, shape))
    score = score[(slice(None), *inside)]
    return LABELS, score
"""

TESTING = """
from test_util import test_all_case


def run(net):
    return test_all_case(net, [], patch_size=(112, 112, 80), stride_xy=18, stride_z=4)
"""

HEADER = """
import argparse
import logging
import os
import shutil
import sys

import numpy as np
import torch
import torch.nn.functional as F
from tensorboardX import SummaryWriter
from torch import optim
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

from dataloaders.la_heart import (
    LAHeart,
    RandomCrop,
    RandomRotFlip,
    ToTensor,
    TwoStreamBatchSampler,
)
from networks.vnet import VNet
from utils.helpers import dice_loss, sigmoid_rampup

parser = argparse.ArgumentParser()
parser.add_argument("--max_iterations", type=int, default=6000)
parser.add_argument("--base_lr", type=float, default=0.01)
parser.add_argument("--consistency", type=float, default=0.1)
parser.add_argument("--beta", type=float, default=0.3)
args = parser.parse_args()
os.environ["CUDA_VISIBLE_DEVICES"] = "0"
patch_size = (112, 112, 80)
max_iterations = args.max_iterations


def get_weight(epoch):
    return args.consistency * sigmoid_rampup(epoch, 40.0)


def loader(labeled, size):
    steps = [RandomRotFlip(), RandomCrop(patch_size), ToTensor()]
    data = LAHeart("../data", split="train", transform=transforms.Compose(steps))
    sampler = TwoStreamBatchSampler(
        list(range(16)), list(range(16, 80)), size, size - labeled
    )
    return DataLoader(data, batch_sampler=sampler, num_workers=4, pin_memory=True)

"""

UA_MT = (
    HEADER
    + """
if __name__ == "__main__":
    os.makedirs("../model/log")
    shutil.copytree(".", "../model/code")
    model = VNet(n_channels=1, n_classes=2).cuda()
    ema_model = VNet(n_channels=1, n_classes=2).cuda()
    for param in ema_model.parameters():
        param.detach_()
    trainloader = loader(2, 4)
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    writer = SummaryWriter("../model/log")
    iter_num = 0
    for epoch_num in tqdm(range(max_iterations // len(trainloader) + 1), ncols=70):
        for i_batch, sampled_batch in enumerate(trainloader):
            volumes, labels = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            unlabeled = volumes[2:]
            noisy = unlabeled + torch.clamp(torch.randn_like(unlabeled) * 0.1, -0.2, 0.2)
            outputs = model(volumes)
            with torch.no_grad():
                target = ema_model(noisy)
            preds = torch.zeros([16, 2, 112, 112, 80]).cuda()
            pair = unlabeled.repeat(2, 1, 1, 1, 1)
            for i in range(4):
                noisy = pair + torch.clamp(torch.randn_like(pair) * 0.1, -0.2, 0.2)
                with torch.no_grad():
                    preds[4 * i : 4 * i + 4] = ema_model(noisy)
            preds = F.softmax(preds, dim=1).reshape(8, 2, 2, 112, 112, 80).mean(0)
            uncertainty = -(preds * torch.log(preds + 1e-6)).sum(1, keepdim=True)
            soft = F.softmax(outputs, dim=1)
            loss_dice = dice_loss(soft[:2, 1], labels[:2] == 1)
            supervised_loss = 0.5 * (F.cross_entropy(outputs[:2], labels[:2]) + loss_dice)
            consistency_weight = get_weight(iter_num // 150)
            dist = (soft[2:] - F.softmax(target, dim=1)) ** 2
            threshold = (0.75 + 0.25 * sigmoid_rampup(iter_num, max_iterations)) * np.log(2)
            mask = (uncertainty < threshold).float()
            dist = (mask * dist).sum() / (2 * mask.sum() + 1e-16)
            consistency_loss = consistency_weight * dist
            loss = supervised_loss + consistency_loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            alpha = min(1 - 1 / (iter_num + 1), 0.99)
            for ema_param, param in zip(ema_model.parameters(), model.parameters()):
                ema_param.data.mul_(alpha).add_(param.data, alpha=1 - alpha)
            iter_num = iter_num + 1
            writer.add_scalar("loss/loss", loss, iter_num)
            if iter_num % 2500 == 0:
                lr_ = args.base_lr * 0.1 ** (iter_num // 2500)
                for param_group in optimizer.param_groups:
                    param_group["lr"] = lr_
            if iter_num >= max_iterations:
                break
    torch.save(model.state_dict(), "../model/last.pth")
    writer.close()
"""
)

SASSNET = (
    HEADER.replace("default=0.1", "default=0.01")
    + """
from networks.discriminator import Critic
from skimage import segmentation
from scipy.ndimage import distance_transform_edt


def compute_sdf(labels):
    maps = np.zeros(labels.shape)
    for item, mask in zip(maps, labels.astype(np.bool)):
        outside, inside = distance_transform_edt(~mask), distance_transform_edt(mask)
        item[:] = outside / outside.max() - inside / inside.max()
        item[segmentation.find_boundaries(mask, mode="inner")] = 0
    return torch.from_numpy(maps).float().cuda()


if __name__ == "__main__":
    model = VNet(n_channels=1, n_classes=1, heads=2).cuda()
    D = Critic().cuda()
    trainloader = loader(2, 4)
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    Dopt = optim.Adam(D.parameters(), lr=1e-4, betas=(0.9, 0.99))
    iter_num = 0
    for epoch_num in tqdm(range(10)):
        for sampled_batch in trainloader:
            volumes, labels = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
            model.train()
            D.eval()
            kinds = torch.tensor([1, 1, 0, 0]).cuda()
            tanh, outputs = model(volumes)
            soft = torch.sigmoid(outputs)
            with torch.no_grad():
                target = compute_sdf(labels[:2].cpu().numpy())
            loss_sdf = F.mse_loss(tanh[:2, 0], target)
            loss_seg_dice = dice_loss(soft[:2, 0], labels[:2] == 1)
            consistency_weight = get_weight(iter_num // 150)
            loss_adv = F.cross_entropy(D(tanh[2:], volumes[2:]), kinds[:2])
            loss = loss_seg_dice + args.beta * loss_sdf + consistency_weight * loss_adv
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            model.eval()
            D.train()
            with torch.no_grad():
                tanh, _ = model(volumes)
            D_loss = F.cross_entropy(D(tanh, volumes), kinds)
            Dopt.zero_grad()
            D_loss.backward()
            Dopt.step()
            iter_num = iter_num + 1
            if iter_num % 2500 == 0:
                for param_group in optimizer.param_groups:
                    param_group["lr"] = args.base_lr * 0.1 ** (iter_num // 2500)
"""
)

CRITIC = """
import torch.nn.functional as F
from torch import nn


class Critic(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.conv0 = nn.Conv3d(1, width, 4, 2, 1)
        self.conv1 = nn.Conv3d(1, width, 4, 2, 1)
        for i in (2, 3, 4):
            layer = nn.Conv3d(width, 2 * width, 4, 2, 1)
            self.add_module(f"conv{i}", layer)
            width *= 2
        self.pool = nn.AvgPool3d((7, 7, 5))
        self.classifier = nn.Linear(width, 2)
        self.dropout = nn.Dropout3d(0.5)

    def forward(self, distance, image):
        x = self.conv0(distance) + self.conv1(image)
        for layer in (self.conv2, self.conv3, self.conv4):
            x = layer(self.dropout(F.leaky_relu(x, 0.2)))
        return self.classifier(self.pool(F.leaky_relu(x, 0.2)).flatten(1))
"""

BCP = (
    HEADER.replace("dataloaders.la_heart", "dataloaders.dataset")
    + """
import asyncore
from skimage.measure import label
from turtle import pd


class Net(VNet):
    def forward(self, x):
        return super().forward(x), None


def components(logits):
    masks = (F.softmax(logits, 1)[:, 1] >= 0.5).long().numpy()
    for mask in masks:
        numbers = label(mask)
        if numbers.max():
            mask[:] = numbers == 1 + np.argmax(np.bincount(numbers.flat)[1:])
    return torch.from_numpy(masks).cuda()


def box(ratio=2 / 3):
    mask = torch.ones(112, 112, 80).cuda()
    x, y, z = (int(edge * ratio) for edge in mask.shape)
    w = np.random.randint(0, 112 - x)
    h = np.random.randint(0, 112 - y)
    d = np.random.randint(0, 80 - z)
    mask[w : w + x, h : h + y, d : d + z] = 0
    return mask.long()


def dice_and_entropy(logits, labels, mask):
    soft = F.softmax(logits, 1)
    hot = F.one_hot(labels, 2).movedim(-1, 1)
    axes = (2, 3, 4)
    both = 2 * (soft * hot * mask).sum(axes) + 1e-5
    dice = 1 - (both / (((soft + hot) * mask).sum(axes) + 1e-5)).mean()
    entropy = F.cross_entropy(logits, labels, reduction="none") * mask
    return (dice + entropy.sum() / (mask.sum() * len(labels))) / 2


def pre_train():
    model = Net(n_channels=1, n_classes=2).cuda()
    trainloader = loader(4, 8)
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    pre_max_iterations = 2000
    for epoch_num in tqdm(range(10)):
        for _, batch in enumerate(trainloader):
            image, labels = batch["image"][:4].cuda(), batch["label"][:4].cuda()
            mask = box()
            mixed = image[:2] * mask + image[2:] * (1 - mask)
            labels = labels[:2] * mask + labels[2:] * (1 - mask)
            outputs, _ = model(mixed)
            loss = dice_and_entropy(outputs, labels, torch.ones_like(mask))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def self_train():
    model = Net(n_channels=1, n_classes=2).cuda()
    ema_model = Net(n_channels=1, n_classes=2).cuda()
    model.load_state_dict(torch.load("../model/best.pth")["net"])
    ema_model.load_state_dict(torch.load("../model/best.pth")["net"])
    trainloader = loader(4, 8)
    optimizer = optim.SGD(model.parameters(), lr=args.base_lr, momentum=0.9, weight_decay=0.0001)
    self_max_iterations = 15000
    iter_num = 0
    for epoch_num in tqdm(range(10)):
        for _, batch in enumerate(trainloader):
            image, labels = batch["image"].cuda(), batch["label"].cuda()
            with torch.no_grad():
                first = components(ema_model(image[4:6])[0])
                second = components(ema_model(image[6:])[0])
            mask = box()
            inner = 1 - mask
            outputs_l, _ = model(image[:2] * mask + image[4:6] * inner)
            outputs_u, _ = model(image[6:] * mask + image[2:4] * inner)
            loss_l = dice_and_entropy(outputs_l, labels[:2], mask)
            loss_l = loss_l + 0.5 * dice_and_entropy(outputs_l, first, inner)
            loss_u = 0.5 * dice_and_entropy(outputs_u, second, mask)
            loss_u = loss_u + dice_and_entropy(outputs_u, labels[2:4], inner)
            loss = loss_l + loss_u
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for ema_param, param in zip(ema_model.parameters(), model.parameters()):
                    ema_param.data.mul_(0.99).add_(0.01 * param.data)
            iter_num += 1
            if iter_num % 2500 == 0:
                lr_ = args.base_lr * 0.1 ** (iter_num // 2500)
                for param_group in optimizer.param_groups:
                    param_group["lr"] = lr_


if __name__ == "__main__":
    pre_train()
    self_train()
"""
)


UNET = """
import torch
from torch import nn

UPSAMPLING = ("bilinear", "transposed", "nearest")


def block(inputs, outputs, dropout):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(),
        nn.Dropout(dropout),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.LeakyReLU(),
    )


class ConvBlock(nn.Module):
    def __init__(self, inputs, outputs, dropout):
        super().__init__()
        self.conv_conv = block(inputs, outputs, dropout)

    def forward(self, x):
        return self.conv_conv(x)


class Down(nn.Module):
    def __init__(self, inputs, outputs, dropout):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), ConvBlock(inputs, outputs, dropout))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, inputs, outputs, kind):
        super().__init__()
        self.kind = kind
        if kind == "transposed":
            self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        else:
            self.conv1x1 = nn.Conv2d(inputs, outputs, 1)
        self.conv = ConvBlock(2 * outputs, outputs, 0.0)

    def forward(self, x, skip):
        if self.kind == "transposed":
            x = self.up(x)
        elif self.kind == "nearest":
            x = nn.functional.interpolate(self.conv1x1(x), scale_factor=2)
        else:
            x = nn.functional.interpolate(
                self.conv1x1(x), scale_factor=2, mode="bilinear", align_corners=True
            )
        return self.conv(torch.cat([skip, x], 1))


class Encoder(nn.Module):
    def __init__(self, widths):
        super().__init__()
        self.in_conv = ConvBlock(1, widths[0], 0.05)
        for level, dropout in enumerate((0.1, 0.2, 0.3, 0.5), start=1):
            self.add_module(f"down{level}", Down(widths[level - 1], widths[level], dropout))

    def forward(self, x):
        maps = [self.in_conv(x)]
        for level in range(1, 5):
            maps.append(getattr(self, f"down{level}")(maps[-1]))
        return maps


class Decoder(nn.Module):
    def __init__(self, widths, classes, kind):
        super().__init__()
        for stage in range(1, 5):
            self.add_module(f"up{stage}", Up(widths[5 - stage], widths[4 - stage], kind))
        self.out_conv = nn.Conv2d(widths[0], classes, 3, padding=1)

    def forward(self, maps):
        x = maps[-1]
        for stage in range(1, 5):
            x = getattr(self, f"up{stage}")(x, maps[4 - stage])
        return self.out_conv(x)


class Three(nn.Module):
    def __init__(self, classes, width=2):
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.encoder = Encoder(widths)
        for number, kind in enumerate(UPSAMPLING, start=1):
            self.add_module(f"decoder{number}", Decoder(widths, classes, kind))

    def forward(self, x):
        maps = self.encoder(x)
        return [getattr(self, f"decoder{number}")(maps) for number in (1, 2, 3)]
"""

SLICES = """
from torch.utils.data import Dataset


class BaseDataSets(Dataset):
    def __init__(self, base_dir, split, transform):
        open(base_dir + "/train_slices.list")
"""

MC_NET_ACDC = """
import argparse

import torch
import torch.nn.functional as F
from torch import optim
from torch.utils.data import DataLoader

from dataloaders.dataset import BaseDataSets
from networks.unet import Three
from utils.helpers import sigmoid_rampup

parser = argparse.ArgumentParser()
parser.add_argument("--model", default="mcnet2d_v1")
parser.add_argument("--max_iterations", type=int, default=30000)
parser.add_argument("--patch_size", type=list, default=[256, 256])
parser.add_argument("--labelnum", type=int, default=14)
parser.add_argument("--consistency", type=float, default=0.1)
parser.add_argument("--lamda", type=float, default=1)
args = parser.parse_args()
assert (args.model, args.labelnum) == ("mcnet2d_v2", 7)


def sharpening(p):
    return p**10 / (p**10 + (1 - p) ** 10)


def dice_loss(p, labels):
    losses = []
    for k in range(4):
        q = (labels == k).float()
        overlap = (p[:, k] * q).sum()
        losses.append(1 - overlap / ((p[:, k] ** 2).sum() + (q**2).sum() + 1e-10))
    return sum(losses) / 4


model = Three(classes=4).cuda()
trainloader = DataLoader(BaseDataSets("../data", split="train", transform=None))
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0001)
max_iterations = args.max_iterations
iter_num = 0
for epoch in range(1):
    for sampled_batch in trainloader:
        volumes, labels = sampled_batch["image"].cuda(), sampled_batch["label"].cuda()
        assert list(volumes.shape[2:]) == args.patch_size
        p = [F.softmax(y, dim=1) for y in model(volumes)]
        loss_seg_dice = sum(dice_loss(q[:12], labels[:12]) for q in p)
        loss_consist = 0
        for i in range(3):
            for j in range(3):
                if i != j:
                    loss_consist += ((p[i] - sharpening(p[j])) ** 2).mean()
        iter_num = iter_num + 1
        consistency_weight = args.consistency * sigmoid_rampup(iter_num // 150, 200.0)
        loss = args.lamda * loss_seg_dice + consistency_weight * loss_consist
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""


def window(probabilities: str, labels: str) -> str:
    """Return the sliding window for a network's output."""
    return WINDOW.replace("PROBABILITIES", probabilities).replace("LABELS", labels)


MEAN_OF_TWO = window(
    "(torch.softmax(net(window), 1) + torch.softmax(other(window), 1)).div(2)", "score.argmax(0)"
)
COMMON = {
    "networks/vnet.py": VNET,
    "dataloaders/la_heart.py": LOADER,
    "utils/helpers.py": HELPERS,
    "test_util.py": window("torch.softmax(net(window), 1)", "score.argmax(0)"),
    "test_LA.py": TESTING,
}
REPOSITORIES = {
    "ua_mt": {"train_LA_meanteacher_certainty_unlabel.py": UA_MT},
    "sassnet": {
        "train_gan_sdfloss.py": SASSNET,
        "networks/discriminator.py": CRITIC,
        "test_util.py": window("torch.sigmoid(net(window)[1])", "(score[0] > 0.5).astype(np.int)"),
    },
    "bcp": {
        "LA_BCP_train.py": BCP,
        "dataloaders/dataset.py": LOADER,
        "utils/test_3d_patch.py": window("torch.softmax(net(window)[0], 1)", "score.argmax(0)"),
    },
    "mcf": standin_mcf.files(HEADER, MEAN_OF_TWO, TESTING),
    "sdcl": standin_sdcl.files(VNET, standin_mcf.RESNET, LOADER, MEAN_OF_TWO, TESTING),
    "urpc": standin_urpc.files(
        LOADER, WINDOW.replace("PROBABILITIES", "torch.softmax(net(window)[0], 1)")
    ),
    "mc_net_acdc": {
        "train_mcnet_2d.py": MC_NET_ACDC,
        "networks/unet.py": UNET,
        "dataloaders/dataset.py": SLICES,
    },
}


def write(folder: Path, method: str, changes: dict[str, tuple[str, str]]) -> Path:
    """Write the repository of a method; ``changes`` replace a text that a file contains once."""
    files = {**COMMON, **REPOSITORIES[method]}
    left = dict(changes)
    for name, content in files.items():
        for key, (old, new) in list(left.items()):
            if content.count(old) == 1:
                content = content.replace(old, new)
                del left[key]
        file = folder / "code" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
    assert not left, f"no file contains {left}"
    return folder
