"""A small repository with the layout of MCF's; ``standins.write`` writes it.

The second network is a narrow ResNet-34 with a decoder, with the names of the published weights.
"""

RESNET = """
import torch
from torch import nn

from networks.vnet import Block, convs


class Basic(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(outputs)
        self.downsample = nn.Sequential()
        if stride == 2:
            short = nn.Conv3d(inputs, outputs, 1, 2, bias=False)
            self.downsample = nn.Sequential(short, nn.BatchNorm3d(outputs))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


class Encoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv3d(1, width, 7, 1, 3, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        for level, count in enumerate((3, 4, 6, 3), start=1):
            blocks = [Basic(width, 2 * width)]
            width = 2 * width
            blocks += [Basic(width, width) for _ in range(count - 1)]
            self.add_module(f"layer{level}", nn.Sequential(*blocks))

    def forward(self, x):
        maps = [torch.relu(self.bn1(self.conv1(x)))]
        for level in (1, 2, 3, 4):
            maps.append(getattr(self, f"layer{level}")(maps[-1]))
        return maps


class Resnet34(nn.Module):
    def __init__(self, n_classes, width=2):
        super().__init__()
        self.resnet_encoder = Encoder(width)
        self.steps = []
        stages = zip(("five", "six", "seven", "eight"), ("six", "seven", "eight", "nine"))
        for level, (up, block) in zip((3, 2, 1, 0), stages):
            channels = width * 2**level
            larger = nn.ConvTranspose3d(2 * channels, channels, 2, stride=2)
            self.add_module(f"block_{up}_up", Block((larger, channels)))
            count = (1, 2, 3, 3)[level]
            self.add_module(f"block_{block}", convs(count, channels, channels))
            self.steps.append((f"block_{up}_up", f"block_{block}", level))
        self.out_conv = nn.Conv3d(width, n_classes, 1)
        self.dropout = nn.Dropout3d(0.5)

    def forward(self, x):
        maps = self.resnet_encoder(x)
        x = maps[-1]
        for up, block, level in self.steps:
            x = getattr(self, block)(getattr(self, up)(x) + maps[level])
        return self.out_conv(self.dropout(x))
"""

TRAINING = """
from networks.ResNet34 import Resnet34

if __name__ == "__main__":
    model_vnet = VNet(n_channels=1, n_classes=2).cuda()
    model_resnet = Resnet34(n_classes=2).cuda()
    trainloader = loader(2, 4)
    v_optimizer = {"lr": args.base_lr, "momentum": 0.9, "weight_decay": 0.0001}
    vnet_optimizer = optim.SGD(model_vnet.parameters(), **v_optimizer)
    resnet_optimizer = optim.SGD(model_resnet.parameters(), **v_optimizer)
    iter_num = 0
    lr_ = args.base_lr
    for epoch_num in tqdm(range(10)):
        for first, second in trainloader:
            labels = first["label"].cuda()
            v = model_vnet(first["image"].cuda())
            r = model_resnet(second["image"].cuda())
            v_soft, r_soft = F.softmax(v, dim=1), F.softmax(r, dim=1)
            v_dice = dice_loss(v_soft[:2, 1], labels[:2] == 1)
            r_dice = dice_loss(r_soft[:2, 1], labels[:2] == 1)
            mask = (v_soft[:2].argmax(1) != r_soft[:2].argmax(1)).float()
            v_mse = (mask * (v_soft[:2, 1] - labels[:2]) ** 2).sum() / (mask.sum() + 1e-16)
            r_mse = (mask * (r_soft[:2, 1] - labels[:2]) ** 2).sum() / (mask.sum() + 1e-16)
            v_loss = F.cross_entropy(v[:2], labels[:2]) + v_dice + 0.5 * v_mse
            r_loss = F.cross_entropy(r[:2], labels[:2]) + r_dice + 0.5 * r_mse
            consistency_weight = get_weight(iter_num // 150)
            better, worse = (v_soft, r_soft) if v_dice < r_dice else (r_soft, v_soft)
            sharp = better[2:].detach() ** 10
            sharp = sharp / sharp.sum(1, keepdim=True)
            consistency = consistency_weight * ((worse[2:] - sharp) ** 2).mean()
            if v_dice < r_dice:
                r_loss = r_loss + consistency
            else:
                v_loss = v_loss + consistency
            vnet_optimizer.zero_grad()
            resnet_optimizer.zero_grad()
            v_loss.backward()
            r_loss.backward()
            vnet_optimizer.step()
            resnet_optimizer.step()
            if iter_num % 2500 == 0 and iter_num != 0:
                lr_ = lr_ * 0.1
                for param_group in vnet_optimizer.param_groups:
                    param_group["lr"] = lr_
                for param_group in resnet_optimizer.param_groups:
                    param_group["lr"] = lr_
            iter_num = iter_num + 1
"""


def files(header: str, window: str, testing: str) -> dict[str, str]:
    """Return the files by name.

    Args:
        header: the start of a script for LA.
        window: text of the sliding window, for the mean of two networks.
        testing: text of the script that calls it.
    """
    return {
        "train_MCF.py": header.replace("RandomRotFlip(), ", "") + TRAINING,
        "networks/ResNet34.py": RESNET,
        "test_util.py": window.replace("(net, image", "(net, other, image"),
        "test_LA_MCF.py": testing,
    }
