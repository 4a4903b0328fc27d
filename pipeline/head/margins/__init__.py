"""Margins, a family a file: how the logit of the target class differs from those of the non-target classes.

Every loss but the last two is softmax cross-entropy over one logit a class; θ is the angle between the embedding x and
a class's row. ψ_m(θ) = (-1)^k cos(mθ) - 2k on [kπ/m, (k+1)π/m] is the monotone extension of cos(mθ); ẑ is where ‖x‖
stands among the norms of late; N(t, c) is c, or c (t + c) if that class is nearer than the target with its margin;
E(m, σ) is drawn for each sample. The last two classify each class by itself, with a bias b that is learned.
docs/losses.md says what each needs.

| name                 | non-target logits | target logit                     | source                                 |
| ---                  | ---               | ---                              | ---                                    |
| softmax              | x·w_j             | x·w_y                            | no bias, as every deep FR head         |
| modified_softmax     | ‖x‖ cos θ_j       | ‖x‖ cos θ                        | Liu et al., CVPR 2017, eq. 4           |
| a_softmax            | ‖x‖ cos θ_j       | ‖x‖ (λ cos θ + ψ_m(θ)) / (1 + λ) | Liu et al., CVPR 2017, eq. 7, λ: Caffe |
| a_softmax_normalised | s cos θ_j         | s (λ cos θ + ψ_m(θ)) / (1 + λ)   | the same with ‖x‖ = s (opensphere)     |
| sphereface_r_v1      | s cos θ_j         | s cos(min(mθ, π))                | Liu et al., "SphereFace Revived", 2022 |
| sphereface_r_v2      | s cos(θ_j/m)      | s cos θ                          | the same                               |
| cosface              | s cos θ_j         | s (cos θ - b)                    | Wang et al., CVPR 2018, eq. 4          |
| arcface              | s cos θ_j         | s cos(θ + a)                     | Deng et al., CVPR 2019, eq. 3          |
| combined             | s cos θ_j         | s (cos(mθ + a) - b)              | Deng et al., CVPR 2019, eq. 4          |
| adaface              | s cos θ_j         | s (cos(θ - mẑ) - m (1 + ẑ))      | Kim et al., CVPR 2022                  |
| curricularface       | s N(t, cos θ_j)   | s cos(θ + m)                     | Huang et al., CVPR 2020                |
| elasticface_arc      | s cos θ_j         | s cos(θ + E(m, σ))               | Boutros et al., CVPR Workshops 2022    |
| elasticface_cos      | s cos θ_j         | s (cos θ - E(m, σ))              | the same                               |
| magface              | s cos θ_j         | s cos(θ + m(‖x‖)), and a penalty | Meng et al., CVPR 2021, eq. 2          |
| sphereface2          | s (g_j + m) + b   | s (g(cos θ) - m) + b             | Wen et al., ICLR 2022                  |
| uniface              | s cos θ_j + b     | s (cos θ - m) + b                | Zhou et al., ICCV 2023                 |

If mθ + a passes π, cos is extended as ψ is, so that every target logit falls as its angle grows. Gradients are the true
derivatives; with ``detached`` they are those of the logit without margin ("characteristic gradient detachment",
SphereFace Revived, section 3.5): the margin moves the value, the gradient is that of cos θ.

A new family is one file here: a section that `MARGINS` knows by name, whose fields are its keys in the recipe and whose
methods are those of `Margin`.
"""

from pipeline.head.margins.margin import MARGINS, Margin, Observed, State, Target, Warp
from pipeline.section import import_modules

__all__ = ["MARGINS", "Margin", "Observed", "State", "Target", "Warp"]

import_modules(__name__, __path__)
