"""Which papers a model rests on, from its name, and how to cite them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..models.registry import variant_of

CITATIONS = {
    'asr': """@inproceedings{huang2024stripe,
  title     = {Stripe Observation Guided Inference Cost-free Attention Mechanism},
  author    = {Huang, Zhongzhan and Zhong, Shanshan and Wen, Wushao and Qin, Jinghui and Lin, Liang},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2024}
}""",
    'dia': """@article{huang2022layerwise,
  title   = {Layer-wise Shared Attention Network on Dynamical System Perspective},
  author  = {Huang, Zhongzhan and Liang, Senwei and Liang, Mingfu and He, Weiling and Lin, Liang},
  journal = {arXiv preprint arXiv:2210.16101},
  year    = {2022}
}""",
    'spe': """@article{zhong2022mixpooling,
  title   = {Mix-Pooling Strategy for Attention Mechanism},
  author  = {Zhong, Shanshan and Wen, Wushao and Qin, Jinghui},
  journal = {arXiv preprint arXiv:2208.10322},
  year    = {2022}
}""",
    'ras': """@article{zhong2022deepening,
  title   = {Deepening Neural Networks Implicitly and Locally via Recurrent Attention Strategy},
  author  = {Zhong, Shanshan and Wen, Wushao and Qin, Jinghui and Huang, Zhongzhan},
  journal = {arXiv preprint arXiv:2210.15676},
  year    = {2022}
}""",
    'se': """@inproceedings{hu2018squeeze,
  title     = {Squeeze-and-Excitation Networks},
  author    = {Hu, Jie and Shen, Li and Sun, Gang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2018}
}""",
    'eca': """@inproceedings{wang2020eca,
  title     = {{ECA-Net}: Efficient Channel Attention for Deep Convolutional Neural Networks},
  author    = {Wang, Qilong and Wu, Banggu and Zhu, Pengfei and Li, Peihua and Zuo, Wangmeng and Hu, Qinghua},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2020}
}""",
    'ie': """@inproceedings{liang2020instance,
  title     = {Instance Enhancement Batch Normalization: An Adaptive Regulator of Batch Noise},
  author    = {Liang, Senwei and Huang, Zhongzhan and Liang, Mingfu and Yang, Haizhao},
  booktitle = {AAAI Conference on Artificial Intelligence},
  year      = {2020}
}""",
    'srm': """@inproceedings{lee2019srm,
  title     = {{SRM}: A Style-based Recalibration Module for Convolutional Neural Networks},
  author    = {Lee, HyunJae and Kim, Hyo-Eun and Nam, Hyeonseob},
  booktitle = {IEEE/CVF International Conference on Computer Vision (ICCV)},
  year      = {2019}
}""",
    'spa': """@inproceedings{guo2020spanet,
  title     = {{SPANet}: Spatial Pyramid Attention Network for Enhanced Image Recognition},
  author    = {Guo, Jingda and Ma, Xu and Sansom, Andrew and McGuire, Mara and Kalaani, Andrew and Chen, Qi
               and Tang, Sihai and Yang, Qing and Fu, Song},
  booktitle = {IEEE International Conference on Multimedia and Expo (ICME)},
  year      = {2020}
}""",
    'cbam': """@inproceedings{woo2018cbam,
  title     = {{CBAM}: Convolutional Block Attention Module},
  author    = {Woo, Sanghyun and Park, Jongchan and Lee, Joon-Young and Kweon, In So},
  booktitle = {European Conference on Computer Vision (ECCV)},
  year      = {2018}
}""",
    'sge': """@article{li2019sge,
  title   = {Spatial Group-wise Enhance: Improving Semantic Feature Learning in Convolutional Networks},
  author  = {Li, Xiang and Hu, Xiaolin and Yang, Jian},
  journal = {arXiv preprint arXiv:1905.09646},
  year    = {2019}
}""",
}


@dataclass(frozen=True)
class Attention:
    """A model's backbone, gate of its ASR, gate in its blocks, and unit that its stages share; '' for none."""

    backbone: str
    asr: str = ''
    gate: str = ''
    dia: str = ''

    @property
    def papers(self) -> list[str]:
        """Keys of :data:`CITATIONS`, the method before its gates."""
        gates = [part for part in (self.asr, self.gate, self.dia) if part]
        keys = (['asr'] if self.asr else []) + (['dia'] if self.dia else [])
        for gate in gates:
            keys += gate.split('_')  # a recurrent SE is RAS and SE
        return [key for key in dict.fromkeys(keys) if key in CITATIONS]


def attention_of(model: str, asr: Mapping[str, Any] | None = None) -> Attention:
    """What attention a model has, by its registered name.

    Args:
        model: The unfused name, ``resnet20_se_asr_se``.
        asr: How ASR was attached to a model whose name does not say it; ``gate`` or ``asr`` in it names its gate.
    """
    attached = str((asr or {}).get('gate') or (asr or {}).get('asr') or '')
    variant = variant_of(model)
    if variant is None:
        return Attention(model.partition('.')[0], asr=attached)
    return Attention(variant.backbone.name, attached or variant.asr, variant.gate, variant.dia)
