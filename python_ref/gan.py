"""The discriminator of DBLRGAN (Table II)."""

from torch import nn


class Discriminator(nn.Module):
    """14 3x3 convolutions with batch norm and ReLU, then FC 4096, FC 2 and a two-way softmax (Table II).

    Groups of 2x64, 3x128, 4x256 and 5x512 channels. The table gives neither stride nor pooling; as in VGG,
    each group is followed by 2x2 max pooling, and adaptive average pooling to `pool` x `pool` precedes the
    first FC so that any picture of at least 16x16 pixels fits. ReLU follows FC 4096, as in VGG.

    forward: (N, 1, H, W) -> logits (N, 2); class 1 is "a real sharp frame". The softmax is part of the losses.
    """

    GROUPS = ((2, 64), (3, 128), (4, 256), (5, 512))

    def __init__(self, in_channels=1, hidden=4096, pool=4, groups=GROUPS):
        super().__init__()
        layers, channels = [], in_channels
        for count, width in groups:
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(pool), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(channels * pool * pool, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def forward(self, x):
        return self.classifier(self.features(x))
