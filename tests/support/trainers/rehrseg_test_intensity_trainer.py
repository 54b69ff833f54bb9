"""A network whose answer is known, in a folder for nnUNet_extTrainer."""

import torch
from torch import nn

from rehrseg_nnunet.config.rehrseg import load_config
from rehrseg_nnunet.config.segmentation import HRHeadConfig
from rehrseg_nnunet.segmentation.hr_head import add_hr_head
from rehrseg_nnunet.trainers.rehrseg_trainer import REHRSegTrainer

GAIN = 200.0  # the sums of nnU-Net's sliding window are float16: see RESOLUTION in known_answers.py


class _Encoder(nn.Module):
    strides = ((1, 1, 1), (1, 2, 2))
    output_channels = (1, 1)

    def forward(self, x):
        return [x, x[..., ::2, ::2]]


class _Decoder(nn.Module):
    deep_supervision = False

    def __init__(self):
        super().__init__()
        self.seg_layers = nn.ModuleList([nn.Conv3d(1, 2, 1)])

    def forward(self, skips):
        return self.seg_layers[-1](skips[0])


class _IntensityNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = _Encoder()
        self.decoder = _Decoder()

    def forward(self, x):
        return self.decoder(self.encoder(x))


class IntensityTrainer(REHRSegTrainer):
    """Label 1 where the preprocessed image is positive; in HR, where its linear interpolation along z is."""

    @staticmethod
    def build_network_architecture(
        plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        factor = load_config(configuration_manager.configuration, purpose="prediction").factor
        config = HRHeadConfig(label_mode="direct", upsampling="interpolate", hidden_features=2)
        network = add_hr_head(_IntensityNetwork(), factor=factor, teacher_channels=1, config=config)
        layer = network.decoder.seg_layers[-1]
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
            layer.weight[1] = GAIN
            # relu(x) - relu(-x) = x lets the interpolated image pass
            layer.hr_head.first.weight[:, 0, 1, 1, 1] = torch.tensor([1.0, -1.0])
            layer.hr_head.second.weight[1, :, 2, 2, 2] = torch.tensor([GAIN, -GAIN])
        return network
