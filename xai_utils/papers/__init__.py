"""Each paper's tables, figures and claims, held against a run of our own."""

CITED = {  # name here -> title, authors and year, where it is to be had ("": it never appeared)
    "AKD": (
        "Explaining Neural Networks Using Attentive Knowledge Distillation",
        "Lee & Kim 2021",
        "https://doi.org/10.3390/s21041280",
    ),
    "FastCAM": (
        "Efficient Saliency Maps for Explainable AI",
        "Mundhenk, Chen & Friedland 2019",
        "https://arxiv.org/abs/1911.11293",
    ),
    "DGLE": ("Distribution-Guided Local Explanation for Black-Box Classifiers", "anonymous, submitted to ICLR", ""),
    "AMG": (
        "Attention Map-Guided Visual Explanations for Deep Neural Networks",
        "An & Joe 2022",
        "https://doi.org/10.3390/app12083846",
    ),
}
