"""How ASR is asked for: the arguments of ``attach_asr`` are, with a prefix, the keywords of models."""

from typing import Any

#: Keyword of a model -> argument of :func:`timm_asr.attach_asr`. All of them describe the vectors of a site.
VECTOR_KEYWORDS = {f'asr_{name}': name for name in ('depth', 'init', 'learnable', 'constant', 'gain')}

#: All keywords that say what ASR a model has.
ASR_KEYWORDS = frozenset(('asr', 'asr_sites', 'rd_ratio', *VECTOR_KEYWORDS))


def take_vector_options(keywords: dict[str, Any]) -> dict[str, Any]:
    """Take the keywords of ASR's vectors out of a model's keywords, as arguments of ``attach_asr``; None is none."""
    found = {name: keywords.pop(key) for key, name in VECTOR_KEYWORDS.items() if key in keywords}
    return {name: value for name, value in found.items() if value is not None}
