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

LINKS = {  # what the records of methods and metrics name as their paper -> where it is to be had
    "Lee & Kim 2021 (AKD)": CITED["AKD"][2],
    "Mundhenk et al. 2019 (FastCAM)": CITED["FastCAM"][2],
    "DGLE": CITED["DGLE"][2],
    "An & Joe 2022 (AMG)": CITED["AMG"][2],
    "Abnar & Zuidema 2020": "https://arxiv.org/abs/2005.00928",
    "Arras et al. 2022": "https://arxiv.org/abs/2003.07258",
    "Chattopadhay et al. 2018": "https://arxiv.org/abs/1710.11063",
    "Chefer et al. 2021": "https://arxiv.org/abs/2103.15679",
    "Dabkowski & Gal 2017": "https://arxiv.org/abs/1705.07857",
    "Erion et al. 2021": "https://arxiv.org/abs/1906.10670",
    "Fong & Vedaldi 2017": "https://arxiv.org/abs/1704.03296",
    "Fu et al. 2020": "https://arxiv.org/abs/2008.02312",
    "Hooker et al. 2019": "https://arxiv.org/abs/1806.10758",
    "Jethani et al. 2022": "https://arxiv.org/abs/2107.07436",
    "Omeiza et al. 2019": "https://arxiv.org/abs/1908.01224",
    "Petsiuk et al. 2018": "https://arxiv.org/abs/1806.07421",
    "Rao et al. 2022": "https://arxiv.org/abs/2205.10435",
    "Ribeiro et al. 2016": "https://arxiv.org/abs/1602.04938",
    "Rong et al. 2022": "https://arxiv.org/abs/2202.00449",
    "Selvaraju et al. 2017": "https://arxiv.org/abs/1610.02391",
    "Simonyan et al. 2014": "https://arxiv.org/abs/1312.6034",
    "Smilkov et al. 2017": "https://arxiv.org/abs/1706.03825",
    "Springenberg et al. 2015": "https://arxiv.org/abs/1412.6806",
    "Sundararajan et al. 2017": "https://arxiv.org/abs/1703.01365",
    "Yeh et al. 2019": "https://arxiv.org/abs/1901.09392",
    "this repository": "",
    "Zhang et al. 2016": "https://arxiv.org/abs/1608.00507",
}
