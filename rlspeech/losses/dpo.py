"""Preference learning from pairs of replies: DPO and its kin, by settings."""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

from torch import Tensor
from torch.nn.functional import logsigmoid

from rlspeech.maths.logprobs import token_logprobs
from rlspeech.maths.packing import required
from rlspeech.types import Policy, TokenBatch

Kind = Literal["sigmoid", "robust", "ipo", "sigmoid_norm"]
AVERAGED = ("ipo", "sigmoid_norm")  # over the tokens of a reply


@dataclass(frozen=True)
class Loss:
    """Of a pair, with r = log q(y) - log ref(y) of the preferred (w) and the rejected (l) reply, d = r_w - r_l:

    sigmoid       -(1 - e) log sigmoid(beta d) - e log sigmoid(-beta d); DPO (arXiv 2305.18290), with e =
                  label_smoothing of pairs that may be the wrong way round
    robust        (-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)) / (1 - 2 e); 2403.00409
    ipo           (d - 1 / (2 beta))^2, r averaged over the tokens of a reply; 2310.12036, eq. 17, averaged as TRL does
    sigmoid_norm  sigmoid, r averaged over the tokens of a reply (LN-DPO, 2411.15124)
    plus nll_weight times the mean over its tokens of -log q of the preferred reply, which keeps it from becoming less
    likely (RPO, 2404.19733: it divides by the reply's length, too).

    The names are those of TRL's `loss_type`. Its sigmoid and sigmoid_norm ignore label_smoothing: with it, ours are
    cDPO (Mitchell 2023, "A note on DPO with noisy preferences"), TRL's `aot` where there is one pair. nll_weight is the
    weight of `sft` as a second loss_type, whose mean is over the preferred tokens of all pairs of a micro-batch: that
    is ours where these replies are equally long.

    The loss of a pair stands at each of its tokens; their weights (engines.pair_batches) add up to 1, so that the
    learner's weighted mean is the mean over pairs. Tokens of no pair have the loss 0.
    """

    kind: Kind = "sigmoid"
    beta: float = 0.1  # > 0
    label_smoothing: float = 0.0  # 0..0.5
    nll_weight: float = 0.0  # >= 0

    learns_from_pairs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be at least 0 and below 0.5, got {self.label_smoothing}")
        if self.label_smoothing and self.kind == "ipo":
            raise ValueError("label_smoothing: ipo has none")
        if not self.nll_weight >= 0:
            raise ValueError(f"nll_weight must not be below 0, got {self.nll_weight}")

    def __call__(self, policy: Policy, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Metrics, each at all tokens of its pair: `rewards_chosen`, `rewards_rejected` (beta r), `margin` of the two,
        `accuracy` 1 where it is above 0, `logps_chosen`, `logps_rejected` (sums in nats), `nll_chosen` (a token).

        Raises ValueError naming what the batch lacks, and where a pair has one reply only.
        """
        pair_N, preferred_N = required(batch, "pair"), required(batch, "preferred")
        logprobs_N = token_logprobs(policy.hidden, policy.head, batch.targets, temperature=policy.temperature)
        gap_N = logprobs_N - required(batch, "reference_logprobs")
        pairs, index_N = pair_N.unique(return_inverse=True)
        own = _by_pair(logprobs_N, index_N, preferred_N, len(pairs))
        gap = _by_pair(gap_N, index_N, preferred_N, len(pairs))
        if not bool(((own.chosen_tokens > 0) & (own.rejected_tokens > 0))[pairs >= 0].all()):
            raise ValueError("a pair has one reply only: both must be in the same micro-batch")
        nll_P = -own.chosen / own.chosen_tokens.clamp(min=1)
        loss_P = (self._preference(gap) + self.nll_weight * nll_P) * (pairs >= 0)
        rewards = {"rewards_chosen": self.beta * gap.chosen, "rewards_rejected": self.beta * gap.rejected}
        margin_P = rewards["rewards_chosen"] - rewards["rewards_rejected"]
        told = {
            **rewards,
            "margin": margin_P,
            "accuracy": (margin_P > 0).to(margin_P.dtype),
            "logps_chosen": own.chosen,
            "logps_rejected": own.rejected,
            "nll_chosen": nll_P,
        }
        return loss_P[index_N], {name: value.detach()[index_N] for name, value in told.items()}

    def _preference(self, gap: "_Pairs") -> Tensor:
        """[P]"""
        chosen_P, rejected_P = gap.chosen, gap.rejected
        if self.kind in AVERAGED:
            chosen_P = chosen_P / gap.chosen_tokens.clamp(min=1)
            rejected_P = rejected_P / gap.rejected_tokens.clamp(min=1)
        delta_P, e = chosen_P - rejected_P, self.label_smoothing
        if self.kind == "ipo":
            return (delta_P - 1 / (2 * self.beta)) ** 2
        right_P, wrong_P = -logsigmoid(self.beta * delta_P), -logsigmoid(-self.beta * delta_P)
        if self.kind == "robust":
            return ((1 - e) * right_P - e * wrong_P) / (1 - 2 * e)
        return (1 - e) * right_P + e * wrong_P


class _Pairs(NamedTuple):
    """[P] each: sums over the tokens of the two replies, and how many they are."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor


def _by_pair(values_N: Tensor, index_N: Tensor, preferred_N: Tensor, pairs: int) -> _Pairs:
    def total(values: Tensor) -> Tensor:
        return values.new_zeros(pairs).index_add(0, index_N, values)

    is_chosen_N = preferred_N.to(values_N.dtype)
    is_rejected_N = 1 - is_chosen_N
    return _Pairs(
        total(values_N * is_chosen_N), total(values_N * is_rejected_N), total(is_chosen_N), total(is_rejected_N)
    )
