"""A student's and a teacher's random states of documents that the two cut into different tokens, as terms see them; float64."""

import copy
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from trainer.batches.batch import Batch, Chunks, TeacherTokens
from trainer.maths.ragged import pointers
from trainer.models.embeddings import Embeddings
from trainer.models.head import Head
from trainer.objectives.base import Beginning, LogitObjective, Matrices, RowObjective, Setting
from trainer.student.output_head import LogitWork, OutputHead

STUDENT, TEACHER = 5, 7
STUDENT_VOCABULARY, TEACHER_VOCABULARY = 23, 31
TOP = 6  # of the teacher's likeliest tokens
#: Tokens before what is learnt, and learnt ones; of the student, of the teacher. In some a side has nothing to learn.
DOCUMENTS = (((2, 4), (1, 6)), ((1, 1), (2, 1)), ((3, 5), (1, 2)))
#: The student's id and the teacher's of tokens that both have; the likeliest ones of the teacher are not all among them.
SHARED = torch.stack([torch.arange(1, 21), torch.arange(24, 4, -1)], 1)


class TwoTokenizers:
    """`documents` as `DOCUMENTS` has them; `options` of the student's head."""

    def __init__(self, documents=DOCUMENTS, seed=0, dtype=torch.float64, **options):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

        linear = nn.Linear(STUDENT, STUDENT_VOCABULARY, dtype=dtype)
        linear.weight, linear.bias = nn.Parameter(normal(STUDENT_VOCABULARY, STUDENT)), nn.Parameter(normal(23))
        self.head = OutputHead.around(linear, options.get("soft_cap"), options.get("scale"))
        self.embedding = nn.Embedding(STUDENT_VOCABULARY, STUDENT, dtype=dtype)
        self.embedding.weight = nn.Parameter(normal(STUDENT_VOCABULARY, STUDENT))
        self.teacher_head = Head(normal(TEACHER_VOCABULARY, TEACHER), normal(TEACHER_VOCABULARY), 4.0, 0.5)
        self.teacher_embeddings = Embeddings(normal(TEACHER_VOCABULARY, TEACHER))
        self.batch = self._batch(documents, generator, normal)
        self.hidden = normal(len(self.batch.ids), STUDENT).requires_grad_()
        self.documents = documents

    def _batch(self, documents, generator, normal):
        sides = []
        for side, vocabulary in enumerate((STUDENT_VOCABULARY, TEACHER_VOCABULARY)):
            counts = [document[side] for document in documents]
            rows = pointers([sum(of_document) for of_document in counts])
            ids = torch.randint(vocabulary, (int(rows[-1]),), generator=generator)
            starts = [int(row) + before for row, (before, _) in zip(rows, counts, strict=False)]
            positions = torch.tensor(
                [
                    start + token - 1
                    for start, (_, learnt) in zip(starts, counts, strict=True)
                    for token in range(learnt)
                ],
                dtype=torch.int64,
            )
            position_rows = pointers([learnt for _, learnt in counts])
            sides.append((ids, rows, positions, position_rows, ids[positions + 1]))
        teacher = TeacherTokens(*sides[1], final=normal(len(sides[1][2]), TEACHER))
        logits = self.teacher_head.logits(teacher.final)
        logprobs = logits.log_softmax(1)
        teacher = TeacherTokens(
            *sides[1],
            final=teacher.final,
            argmax=logits.argmax(1),
            entropy=-(logprobs.exp() * logprobs).sum(1).float(),
            sorted=logprobs.topk(TOP).values.exp().float(),
            likeliest=logprobs.topk(TOP).indices,
            likeliest_logprobs=logprobs.topk(TOP).values.float(),
        )
        return Batch(torch.arange(len(documents)), *sides[0], teacher=teacher)

    def on(self, device):
        """The same, with its values on a device."""
        moved, device = copy.deepcopy(self), torch.device(device)
        moved.head, moved.embedding = moved.head.to(device), moved.embedding.to(device)
        moved.teacher_head = moved.teacher_head.to(device)
        moved.teacher_embeddings = moved.teacher_embeddings.to(device)
        moved.batch, moved.hidden = moved.batch.to(device), moved.hidden.detach().to(device)
        return moved

    def setting(self, **values):
        return Setting((), STUDENT, TEACHER, student_embedding=STUDENT, **values)

    def begun(self, term):
        """A term, ready to be computed, in the problem's precision."""
        term.to(self.hidden.dtype)
        student = Head(self.head.weight, self.head.bias, self.head.soft_cap, self.head.scale)
        term.begin(
            Beginning(
                lambda _: iter([self.batch]),
                student,
                self.teacher_head,
                self.teacher_embeddings,
                "cache-teacher --recipe {}".format,
            )
        )
        self.give_matrices(term)
        return term

    def give_matrices(self, term):
        term.matrices = Matrices(
            self.embedding,
            self.head.product,
            self._sums,
            self.teacher_head,
            self.teacher_embeddings,
            lambda tokens: self.teacher_head.of(tokens.to(self.teacher_head.weight.device)),
        )

    def _sums(self, work):
        with torch.no_grad():
            return self.head(work.rows, None, [work])[1]

    def value(self, term, batch=None, hidden=None, divided_by=None):
        """The term, divided by what it counts, or what the whole step counts; differentiable."""
        batch = self.batch if batch is None else batch
        states = {4: self.hidden if hidden is None else hidden}
        term.divided_by = term.denominators(batch) if divided_by is None else divided_by
        factor = 1 / float(term.divided_by[0])
        if isinstance(term, RowObjective):
            return self.head(states[4], None, [term.work(states, batch, factor)])[0]
        if not isinstance(term, LogitObjective):
            return factor * term(states, batch)[0]
        aside = term.aside(states, batch)
        work = LogitWork.of(batch, states, [term], [factor], None, {term: aside})
        loss, _ = self.head(states[4][batch.positions], work)
        return loss if aside.numerator is None else loss + factor * aside.numerator

    def alone(self, document, batch=None):
        """A batch of one of its documents, and the hidden states of that."""
        batch = self.batch if batch is None else batch

        def of(side):
            tokens = slice(*side.rows[document : document + 2].tolist())
            learnt = slice(*side.position_rows[document : document + 2].tolist())
            rows, position_rows = (pointers([part.stop - part.start]) for part in (tokens, learnt))
            parts = side.ids[tokens], rows, side.positions[learnt] - tokens.start, position_rows, side.targets[learnt]
            return parts, tokens, learnt

        mine, tokens, here = of(batch)
        theirs, _, there = of(batch.teacher)
        of_positions = {
            name: None if values is None else values[there]
            for name in ("final", "argmax", "entropy", "logprob", "sorted", "likeliest", "likeliest_logprobs")
            for values in [getattr(batch.teacher, name)]
        }
        places = {}
        for name in ("pairs", "mined"):
            if (whole := getattr(batch, name)) is not None:
                inside = (whole[:, 0] >= here.start) & (whole[:, 0] < here.stop)
                places[name] = whole[inside] - torch.tensor([here.start, there.start])
        chunks = batch.chunks
        if chunks is not None:
            own = slice(*chunks.rows[document : document + 2].tolist())
            chunks = Chunks(
                chunks.student[own] - here.start, chunks.teacher[own] - there.start, pointers([own.stop - own.start])
            )
        teacher = TeacherTokens(*theirs, **of_positions)
        one = batch.documents[document : document + 1]
        return Batch(one, *mine, teacher=teacher, chunks=chunks, **places), self.hidden[tokens]

    def leaves(self, term):
        """What may learn, by name."""
        return {
            "hidden": self.hidden,
            "head": self.head.weight,
            "bias": self.head.bias,
            "embedding": self.embedding.weight,
            **dict(term.named_parameters()),
        }

    def gradients(self, loss, term):
        """By name; None: none at all."""
        leaves = self.leaves(term)
        return dict(
            zip(
                leaves, torch.autograd.grad(loss, [*leaves.values()], allow_unused=True, retain_graph=True), strict=True
            )
        )

    def assert_same_gradients(self, loss, expected, term, **tolerance):
        """Of all that may learn; none at all, and one of zeros, are the same."""
        mine = self.gradients(loss, term)
        for leaf, gradient in self.gradients(expected, term).items():
            if gradient is None or not gradient.any():
                assert mine[leaf] is None or not mine[leaf].any(), leaf
            else:
                torch.testing.assert_close(mine[leaf], gradient, **tolerance, msg=leaf)


def aligned(problem, shared=SHARED):
    """The problem with pairs of positions: the last ones of each document on both sides, in order; MinED's are every other."""
    batch = problem.batch
    pairs = []
    for (a, b), (c, d) in zip(
        pairwise(batch.position_rows.tolist()), pairwise(batch.teacher.position_rows.tolist()), strict=True
    ):
        pairs += [(b - 1 - back, d - 1 - back) for back in reversed(range(min(b - a, d - c)))]
    # a likeliest token that the student lacks, and one that it has, are sure to be there
    argmax = batch.teacher.argmax.clone()
    argmax[pairs[0][1]], argmax[pairs[1][1]] = 0, 7
    teacher = replace(batch.teacher, argmax=argmax)
    problem.batch = replace(batch, pairs=torch.tensor(pairs), mined=torch.tensor(pairs[::2]), teacher=teacher)
    problem.shared = shared
    return problem


def chunked(problem, seed=0):
    """The problem with chunks: each document's positions cut into as many parts on both sides, their ends left over."""
    generator = torch.Generator().manual_seed(seed)
    batch, sides, counts = problem.batch, ([], []), []
    for rows in zip(
        pairwise(batch.position_rows.tolist()), pairwise(batch.teacher.position_rows.tolist()), strict=True
    ):
        lengths = [end - first for first, end in rows]
        count = min(3, *lengths)
        counts.append(count)
        for (first, _), length, side in zip(rows, lengths, sides, strict=True):
            cuts = (torch.randperm(length, generator=generator)[:count] + 1).sort().values.tolist()
            side += [[first + a, first + b] for a, b in pairwise([0, *cuts])]
    student, teacher = (torch.tensor(side, dtype=torch.int64).reshape(-1, 2) for side in sides)
    problem.batch = replace(batch, chunks=Chunks(student, teacher, pointers(counts)))
    return problem


def chunk_distributions(problem, merge="bayesian"):
    """Of every document the distributions of its chunks on both sides, of the student's differentiable."""
    batch, teacher = problem.batch, problem.batch.teacher
    places = batch.positions.tolist()
    student = [
        after(problem.hidden[place] @ problem.head.weight.t() + problem.head.bias, problem.head).softmax(0)
        for place in places
    ]
    other = [problem.teacher_head.logits(row[None])[0].softmax(0) for row in teacher.final]
    sides = ((student, batch, batch.chunks.student), (other, teacher, batch.chunks.teacher))
    for first, end in pairwise(batch.chunks.rows.tolist()):
        yield [
            tuple(merged(p, side.targets.tolist(), *spans[chunk].tolist(), merge) for p, side, spans in sides)
            for chunk in range(first, end)
        ]


def merged(p, tokens, first, end, merge):
    """P of a chunk of positions first … end − 1, by their distributions and the tokens that follow."""
    chosen = first if merge == "observed" else end - 1
    product = p[chosen]
    for place in range(first, end):
        if place != chosen:
            product = product * p[place][tokens[place]]
    return product


def after(logits, head):
    """What a model does to its raw logits."""
    logits = logits * (head.scale or 1)
    return head.soft_cap * torch.tanh(logits / head.soft_cap) if head.soft_cap else logits


def divergence(name, p, q):
    """Of two rows of logits, differentiable in the second."""
    p, q = p.detach().softmax(0), q.softmax(0)
    if name == "tvd":
        return (p - q).abs().sum() / 2
    if name == "js":
        return (_kl(p, (p + q) / 2) + _kl(q, (p + q) / 2)) / 2
    if name == "akl":
        rising = p.argsort()
        tail = rising[p[rising].cumsum(0) <= 0.5]
        gaps = (p - q).abs().detach()
        share = gaps[tail].sum() / gaps.sum()
        return (1 - share) * _kl(p, q) + share * _kl(q, p)
    mixed = {"sfkl": 0.1 * p + 0.9 * q, "srkl": 0.9 * p + 0.1 * q}.get(name)
    return _kl(*{"fkl": (p, q), "rkl": (q, p), "sfkl": (p, mixed), "srkl": (q, mixed)}[name])


def _kl(first, second):
    return (first * (first.log() - second.log())).sum()
