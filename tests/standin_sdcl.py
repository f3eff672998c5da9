"""A small repository with the layout of SDCL's; ``standins.write`` writes it.

Two networks, each with its optimizer and its own loss, and two training loops: the second one
starts from the stored weights and optimizers of the first.
"""

SCRIPT = """
import argparse

import numpy as np
import torch
import torch.nn.functional as F
from skimage.measure import label
from torch import optim
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataloaders.LADataset import LAHeart
from networks.ResNet34 import Resnet34
from networks.vnet import VNet

patch_size = (112, 112, 80)


def loaders(split):
    data = [LAHeart("../data", split=split), LAHeart("../data", split=split, reverse=True)]
    return [DataLoader(items, batch_size=2, drop_last=True) for items in data]


def box(img):
    sizes = [int(edge * 2 / 3) for edge in img.shape[2:]]
    w = np.random.randint(0, 112 - sizes[0])
    h = np.random.randint(0, 112 - sizes[1])
    z = np.random.randint(0, 80 - sizes[2])
    mask = torch.ones(img.shape[2:]).cuda()
    mask[w : w + sizes[0], h : h + sizes[1], z : z + sizes[2]] = 0
    return mask.long()


def components(logits):
    masks = (F.softmax(logits, 1) >= 0.5).type(torch.int64)[:, 1]
    kept = []
    for mask in masks.numpy():
        labels = label(mask)
        largest = np.argmax(np.bincount(labels.flat)[1:]) + 1 if labels.max() else 1
        kept.append(labels == largest if labels.max() else mask)
    return torch.from_numpy(np.stack(kept)).long()


def half(logits, labels, mask):
    p = F.softmax(logits, 1)
    losses = []
    for k in range(2):
        y = (labels == k).float()
        overlap = (p[:, k] * y * mask).flatten(1).sum(1)
        total = (p[:, k] * mask).flatten(1).sum(1) + (y * mask).flatten(1).sum(1)
        losses.append(1 - ((2 * overlap + 1e-5) / (total + 1e-5)).mean())
    entropy = F.cross_entropy(logits, labels, reduction="none")
    entropy = (entropy * mask).sum() / (mask.expand_as(entropy).sum() + 1e-16)
    return (sum(losses) / 2 + entropy) / 2


def mixed(logits, outer, inner, mask, weights):
    return weights[0] * half(logits, outer, mask) + weights[1] * half(logits, inner, 1 - mask)


def corrections(logits, outer, inner, mask, weights, different):
    labels = outer * mask + inner * (1 - mask)
    weight = weights[0] * mask + weights[1] * (1 - mask)
    p = F.softmax(logits, 1)
    distance = ((p - F.one_hot(labels, 2).movedim(-1, 1)) ** 2).mean(1)
    review = (distance * weight * different).sum() / (different.sum() + 1e-16)
    wrong = different * (p.argmax(1) != labels)
    surprise = -F.log_softmax(logits, 1).mean(1)
    return review, (surprise * weight * wrong).sum() / (wrong.sum() + 1e-16)


def load(network, optimizer, path):
    state = torch.load(path)
    network.load_state_dict(state["net"])
    optimizer.load_state_dict(state["opt"])


def pre_train():
    model, model2 = VNet(1, 2).cuda(), Resnet34(n_classes=2).cuda()
    lab_loader_a, lab_loader_b = loaders("train_lab")
    optimizer = optim.Adam(model.parameters(), lr=1e-3)
    optimizer2 = optim.Adam(model2.parameters(), lr=1e-3)
    for epoch in tqdm(range(1, 81)):
        for (img_a, lab_a), (img_b, lab_b) in zip(lab_loader_a, lab_loader_b):
            mask = box(img_a)
            image = img_a * mask + img_b * (1 - mask)
            labels = lab_a * mask + lab_b * (1 - mask)
            loss = half(model(image), labels, torch.ones_like(mask))
            loss2 = half(model2(image), labels, torch.ones_like(mask))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer2.zero_grad()
            loss2.backward()
            optimizer2.step()


def self_train():
    model1, model2 = VNet(1, 2).cuda(), Resnet34(n_classes=2).cuda()
    ema_model1 = VNet(1, 2).cuda()
    lab_loader_a, lab_loader_b = loaders("train_lab")
    unlab_loader_a, unlab_loader_b = loaders("train_unlab")
    optimizer = optim.Adam(model1.parameters(), lr=1e-3)
    optimizer2 = optim.Adam(model2.parameters(), lr=1e-3)
    load(model1, optimizer, "best_model.pth")
    load(model2, optimizer2, "best_model_resnet.pth")
    load(ema_model1, optimizer, "best_model.pth")
    for epoch in tqdm(range(1, 276)):
        all_loaders = zip(lab_loader_a, lab_loader_b, unlab_loader_a, unlab_loader_b)
        for (img_a, lab_a), (img_b, lab_b), (unimg_a, _), (unimg_b, _) in all_loaders:
            with torch.no_grad():
                plab_a, plab_b = components(ema_model1(unimg_a)), components(ema_model1(unimg_b))
            mask = box(img_a)
            mixl = unimg_a * mask + img_b * (1 - mask)
            mixu = img_a * mask + unimg_b * (1 - mask)
            l1, u1, l2, u2 = model1(mixl), model1(mixu), model2(mixl), model2(mixu)
            different_l = l1.argmax(1) != l2.argmax(1)
            different_u = u1.argmax(1) != u2.argmax(1)
            found = []
            for l, u in ((l1, u1), (l2, u2)):
                of_l = mixed(l, plab_a, lab_b, mask, (0.5, 1))
                of_u = mixed(u, lab_a, plab_b, mask, (1, 0.5))
                review_l, rectify_l = corrections(l, plab_a, lab_b, mask, (0.5, 1), different_l)
                review_u, rectify_u = corrections(u, lab_a, plab_b, mask, (1, 0.5), different_u)
                found.append((of_l, of_u, review_l, review_u, rectify_l, rectify_u))
            loss_l, loss_u, net1_mse_loss_lab, net1_mse_loss_unlab, *rest = found[0]
            net1_kl_loss_lab, net1_kl_loss_unlab = rest
            loss_l_2, loss_u_2, net2_mse_loss_lab, net2_mse_loss_unlab, *rest = found[1]
            net2_kl_loss_lab, net2_kl_loss_unlab = rest
            loss = loss_l + loss_u + 0.5 * (net1_mse_loss_lab + net1_mse_loss_unlab)
            loss = loss + 0.05 * (net1_kl_loss_lab + net1_kl_loss_unlab)
            loss_2 = loss_l_2 + loss_u_2 + 0.5 * (net2_mse_loss_lab + net2_mse_loss_unlab)
            loss_2 = loss_2 + 0.05 * (net2_kl_loss_lab + net2_kl_loss_unlab)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer2.zero_grad()
            loss_2.backward()
            optimizer2.step()
            for teacher, student in zip(ema_model1.parameters(), model1.parameters()):
                teacher.data.mul_(0.99).add_(student.data, alpha=0.01)


if __name__ == "__main__":
    pre_train()
    self_train()
"""

WINDOW_NAME = ("def test_single_case(net, image", "def test_single_case_mean(net, other, image")


def files(vnet: str, resnet: str, loader: str, window: str, testing: str) -> dict[str, str]:
    """Return the files by name.

    Args:
        vnet: text of a V-Net.
        resnet: text of the second network, as for MCF.
        loader: text of the loaders for LA.
        window: text of the sliding window, for the mean of two networks.
        testing: text of the script that calls it.
    """
    vnet = vnet.replace("BatchNorm3d", "InstanceNorm3d").replace("n_filters=2", "n_filters=4")
    resnet = resnet.replace("BatchNorm3d", "InstanceNorm3d").replace("width=2", "width=4")
    return {
        "LA_train.py": SCRIPT,
        "networks/vnet.py": vnet,
        "networks/ResNet34.py": resnet,
        "dataloaders/LADataset.py": loader,
        "utils/test_3d_patch.py": window.replace(*WINDOW_NAME),
        "test_LA.py": testing,
    }
