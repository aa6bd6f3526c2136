"""The shadow's arithmetic without the logits: what a model's head says about tokens, and how two heads differ.

    score, score_logits            per token: logprob, rank, argmax, its logprob, logsumexp, entropy
    divergence, divergence_logits  per token: KL both ways, entropies, logprobs, top-1 and agreement, Hellinger

Neither writes [num_tokens, vocab_size] anywhere. Importing this needs torch and nothing else; Triton is imported when
a CUDA tensor comes, and CPU tensors take the plain PyTorch of reference/.
"""

from understudy_kernels.divergence import divergence, divergence_logits
from understudy_kernels.results import Divergences, Scores
from understudy_kernels.score import score, score_logits

__all__ = ["Divergences", "Scores", "divergence", "divergence_logits", "score", "score_logits"]
