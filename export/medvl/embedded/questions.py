"""Questions about a phantom, with their answers."""

from __future__ import annotations

import numpy as np

from medvl.embedded.ask_findings import ask_findings
from medvl.embedded.ask_organs import ask_organs
from medvl.embedded.ask_sizes import ask_sizes
from medvl.embedded.asked import Asked, QuestionAnswer, Topic, choose, score_answer
from medvl.embedded.facts import as_seen
from medvl.embedded.truth import Truth

__all__ = ["Asked", "QuestionAnswer", "Topic", "all_questions", "choose", "question_pool", "questions", "score_answer"]


def questions(truth: Truth, rng: np.random.Generator, count: int = 8) -> list[QuestionAnswer]:
    """Return at most ``count`` different questions, balanced over topics and over the answers to closed ones.

    Who asks of one truth again and again keeps its :func:`question_pool` and calls :func:`choose` on it.
    """
    return [asked.phrased(rng) for asked in choose(question_pool(truth), rng, count)]


def question_pool(truth: Truth) -> tuple[Asked, ...]:
    """Return everything that can be asked about a truth, each thing once; the same for the same truth."""
    truth = as_seen(truth)
    return (*ask_findings(truth), *ask_sizes(truth), *ask_organs(truth))


def all_questions(truth: Truth) -> tuple[QuestionAnswer, ...]:
    """Return every question about a truth in each of its phrasings; the same for the same truth."""
    return tuple(question for asked in question_pool(truth) for question in asked.phrasings())
