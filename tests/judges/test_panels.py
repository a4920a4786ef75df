"""Panels: plurality and latent classes against crowd-kit, with raters that guess, abstain and err together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from mechsafety.core.errors import MechsafetyError
from mechsafety.core.verdict import Label, Response, Verdict
from mechsafety.judges.kinds.dawid_skene import DawidSkeneJudge
from mechsafety.judges.kinds.majority import MajorityJudge
from mechsafety.judges.latent_classes import MISSING, fit_latent_classes
from mechsafety.judges.outcomes import labels_of
from mechsafety.judges.panel import VOTES, require_keys
from mechsafety.judges.registry import judge_responses, load_judge

SHORT: dict[str, Label] = {"r": "refusal", "c": "compliance", "d": "degenerate", "-": "unparsed"}


class Scripted:
    """Answers with the labels it is given, in reverse order: verdicts are matched by id."""

    def __init__(self, name: str, labels: Sequence[Label]) -> None:
        self.name = name
        self.labels = list(labels)

    def __call__(self, responses: Sequence[Response]) -> list[Verdict]:
        given = [
            Verdict(id=r.id, judge=self.name, label=label)
            for r, label in zip(responses, self.labels, strict=True)
        ]
        return given[::-1]


def panel(*votes: str) -> list[Scripted]:
    return [Scripted(f"m{i}", [SHORT[v] for v in row]) for i, row in enumerate(votes)]


def responses(n: int) -> list[Response]:
    return [Response(id=f"id-{i}", prompt="p", text=f"text {i}") for i in range(n)]


def simulated(
    confusions: Sequence[np.ndarray], *, n: int, prior: Sequence[float], seed: int, missing: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """True classes and votes drawn from the model itself."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(len(prior), size=n, p=prior)
    votes = np.stack([[rng.choice(len(prior), p=c[t]) for t in truth] for c in confusions], axis=1)
    votes[rng.random(votes.shape) < missing] = MISSING
    return truth, votes


def rater(accuracy: float, n_classes: int = 3) -> np.ndarray:
    off = (1 - accuracy) / (n_classes - 1)
    return np.full((n_classes, n_classes), off) + np.eye(n_classes) * (accuracy - off)


def as_frame(votes: np.ndarray) -> pd.DataFrame:
    rows = [{"task": i, "worker": w, "label": int(v)} for (i, w), v in np.ndenumerate(votes) if v != MISSING]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.filterwarnings("ignore")  # crowd-kit calls pandas by old names
def test_posteriors_are_those_of_crowdkit(seed: int, missing: float) -> None:
    from crowdkit.aggregation import DawidSkene

    _, votes = simulated(
        [rater(0.9), rater(0.75), rater(0.7), rater(0.6)],
        n=300,
        prior=[0.5, 0.3, 0.2],
        seed=seed,
        missing=missing,
    )
    # Step for step: crowd-kit's rule for stopping counts the prior once a vote, and may stop too early.
    theirs = DawidSkene(n_iter=40, tol=-np.inf)
    theirs.fit(as_frame(votes))
    ours = fit_latent_classes(votes, n_classes=3, max_steps=40, tolerance=-1.0)
    assert len(ours.log_likelihoods) == 40
    assert theirs.probas_ is not None
    assert theirs.errors_ is not None
    voted = theirs.probas_.index.to_numpy()
    assert np.abs(theirs.probas_[[0, 1, 2]].to_numpy() - ours.posterior[voted]).max() < 1e-6
    for (worker, said), row in theirs.errors_.iterrows():  # type: ignore[misc]
        assert row[[0, 1, 2]].to_numpy() == pytest.approx(ours.confusion[worker, :, said], abs=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_majority_is_crowdkits_where_there_is_no_draw() -> None:
    from crowdkit.aggregation import MajorityVote

    _, votes = simulated([rater(0.8)] * 4, n=200, prior=[0.4, 0.4, 0.2], seed=3, missing=0.2)
    members = [
        Scripted(f"m{i}", ["unparsed" if v == MISSING else VOTES[v] for v in column])
        for i, column in enumerate(votes.T)
    ]
    ours = {v.id: v for v in MajorityJudge(members)(responses(len(votes)))}
    theirs = MajorityVote().fit_predict(as_frame(votes))
    decided = [i for i in range(len(votes)) if not {"tie", "quorum"} & {*ours[f"id-{i}"].tags}]
    assert 120 < len(decided) < 200
    assert [ours[f"id-{i}"].label for i in decided] == [VOTES[theirs[i]] for i in decided]


def test_em_never_lowers_the_likelihood_and_recovers_the_raters() -> None:
    confusions = [rater(0.9), rater(0.75), rater(0.65), rater(1 / 3)]
    _, votes = simulated(confusions, n=4000, prior=[0.5, 0.3, 0.2], seed=5)
    fit = fit_latent_classes(votes, n_classes=3)
    steps = np.diff(fit.log_likelihoods)
    assert len(steps) > 3
    assert (steps > -1e-6).all()
    assert fit.confusion == pytest.approx(np.stack(confusions), abs=0.06)
    assert fit.prior == pytest.approx([0.5, 0.3, 0.2], abs=0.04)
    assert fit.posterior.sum(1) == pytest.approx(1.0)
    # The one who guesses says nothing, and is told from those who know.
    assert fit.information[3] < 0.01 < 0.1 < fit.information[2] < fit.information[0]
    assert fit.identified


def test_one_good_rater_among_poor_ones_beats_the_majority() -> None:
    truth, votes = simulated(
        [rater(0.95, 2), rater(0.9, 2), *[rater(0.56, 2)] * 5], n=2000, prior=[0.5, 0.5], seed=7
    )
    fit = fit_latent_classes(votes, n_classes=2)
    majority = votes.mean(1) > 0.5  # seven raters: no draws
    latent = fit.posterior.argmax(1)
    assert (latent == truth).mean() > (majority == truth).mean() + 0.1
    # Control: with raters of one quality there is nothing to gain.
    truth, votes = simulated([rater(0.8, 2)] * 7, n=2000, prior=[0.5, 0.5], seed=8)
    gain = (fit_latent_classes(votes, n_classes=2).posterior.argmax(1) == truth).mean()
    assert gain == pytest.approx(((votes.mean(1) > 0.5) == truth).mean(), abs=0.01)


def test_missing_votes_are_left_out_and_not_errors() -> None:
    _, votes = simulated([rater(0.9), rater(0.8), rater(0.7)], n=400, prior=[0.4, 0.4, 0.2], seed=9)
    silent = np.full((400, 1), MISSING)
    alone = fit_latent_classes(votes, n_classes=3)
    joined = fit_latent_classes(np.hstack([votes, silent]), n_classes=3)
    assert joined.posterior == pytest.approx(alone.posterior, abs=1e-9)
    assert joined.information[3] == pytest.approx(0.0)
    # Control: a rater whose silence were an answer would change what is believed.
    spoken = fit_latent_classes(np.hstack([votes, np.zeros((400, 1), dtype=np.int64)]), n_classes=3)
    assert np.abs(spoken.confusion[3] - joined.confusion[3]).max() > 0.1
    empty = np.vstack([votes, np.full((5, 3), MISSING)])
    fit = fit_latent_classes(empty, n_classes=3)
    assert fit.posterior[:400] == pytest.approx(alone.posterior, abs=1e-9)
    assert fit.posterior[400] == pytest.approx(fit.prior)


def test_renamed_classes_are_noticed() -> None:
    wrong = rater(0.1, 2)
    _, votes = simulated([wrong, wrong, rater(0.55, 2)], n=1500, prior=[0.5, 0.5], seed=11)
    # Two raters agree on the contrary; the start takes them at their word, and so must the reader.
    assert fit_latent_classes(votes, n_classes=2).identified
    fit = fit_latent_classes(votes, n_classes=2)
    swapped = type(fit)(
        posterior=fit.posterior[:, ::-1].copy(),
        prior=fit.prior[::-1].copy(),
        confusion=fit.confusion[:, ::-1].copy(),
        log_likelihoods=fit.log_likelihoods,
        converged=True,
    )
    assert not swapped.identified


@pytest.mark.parametrize(
    ("votes", "n_classes", "message"),
    [
        (np.array([[0, 3, 1]]), 3, "classes are 0 to 2"),
        (np.array([[0, -2, 1]]), 3, "between -2 and 1"),
        (np.full((4, 3), MISSING), 3, "no rater voted"),
        (np.zeros((0, 3), dtype=np.int64), 3, "no rater voted"),
        (np.array([[0, 0, 0]]), 1, "at least 2"),
    ],
)
def test_votes_that_cannot_be_fitted(votes: np.ndarray, n_classes: int, message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        fit_latent_classes(votes, n_classes=n_classes)


def test_plurality_ties_and_silence() -> None:
    judge = MajorityJudge(panel("rrrc--", "rcd-c-", "cddd--"))
    found = judge(responses(6))
    assert [v.id for v in found] == [r.id for r in responses(6)]
    assert [v.label for v in found] == [
        "refusal",
        "unparsed",
        "degenerate",
        "unparsed",
        "unparsed",
        "unparsed",
    ]
    assert [v.tags for v in found] == [
        (),
        ("tie",),
        (),
        ("tie", "missing_member"),
        ("quorum", "missing_member"),
        ("tie", "no_votes", "quorum", "missing_member"),
    ]
    assert found[4].detail["missing"] == {"m0": "", "m2": ""}
    assert found[0].detail["members"] == {"m0": "refusal", "m1": "refusal", "m2": "compliance"}
    assert found[0].detail["votes"] == {"refusal": 2, "compliance": 1, "degenerate": 0}


def test_dawid_skene_judges_each_id_once_and_reports_how_members_err() -> None:
    truth, votes = simulated(
        [rater(0.95), rater(0.85), rater(0.8), rater(1 / 3)],
        n=250,
        prior=[0.5, 0.3, 0.2],
        seed=13,
        missing=0.1,
    )
    votes[7] = MISSING
    members = [
        Scripted(f"m{i}", ["unparsed" if v == MISSING else VOTES[v] for v in column])
        for i, column in enumerate(votes.T)
    ]
    found = judge_responses(responses(250), [DawidSkeneJudge(members)])
    assert [v.id for v in found] == [f"id-{i}" for i in range(250)]
    right = [v.label == VOTES[t] for v, t in zip(found, truth, strict=True)]
    assert sum(right) > 225
    assert (found[7].label, found[7].tags[:2]) == ("unparsed", ("tie", "no_votes"))
    detail = found[0].detail
    information: dict[str, float] = detail["information"]  # type: ignore[assignment]
    assert information["m3"] < 0.1 < information["m2"] < information["m0"]
    confusion: dict[str, dict[str, dict[str, float]]] = detail["confusion"]  # type: ignore[assignment]
    for matrix in confusion.values():
        for row in matrix.values():
            assert sum(row.values()) == pytest.approx(1.0, abs=2e-4)
    assert sum(detail["posterior"].values()) == pytest.approx(1.0, abs=2e-4)  # type: ignore[attr-defined]


def test_one_answer_cannot_be_fitted() -> None:
    with pytest.raises(MechsafetyError, match="fitted on many answers and got one"):
        DawidSkeneJudge(panel("r", "c", "r"))(responses(1))
    with pytest.raises(MechsafetyError, match="answers are judged as they come"):
        labels_of([], "dawid_skene:rules,phrases:wei,phrases:arditi")
    assert labels_of([], "majority:rules,phrases:wei,phrases:arditi") == []


def test_symmetric_votes_are_a_draw() -> None:
    found = DawidSkeneJudge(panel("rc-", "cr-", "---"))(responses(3))
    assert [v.tags[:-1] for v in found] == [("tie",), ("tie",), ("tie", "no_votes", "quorum")]
    assert {v.tags[-1] for v in found} == {"missing_member"}
    assert {v.label for v in found} == {"unparsed"}
    assert {v.tags[:2] for v in DawidSkeneJudge(panel("--", "--", "--"))(responses(2))} == {
        ("tie", "no_votes")
    }
    assert DawidSkeneJudge(panel("", "", ""))([]) == []
    assert MajorityJudge(panel("", ""))([]) == []


def test_panels_by_name() -> None:
    texts = ["I'm sorry, but I can't help with that.", "Boil the lentils for twenty minutes.", "A+" * 60]
    asked = [Response(id=str(i), prompt="How do I cook lentils?", text=t) for i, t in enumerate(texts)]
    for spec in (
        "majority:rules,phrases:arditi,degeneracy",
        "dawid_skene:rules,phrases:arditi,phrases:gcg",
        "majority:rules, phrases:arditi",
        "majority:(rules,phrases:arditi)",
    ):
        judge = load_judge(spec)
        assert judge.name == spec
        found = judge_responses(asked, [judge])
        assert [v.id for v in found] == ["0", "1", "2"]
        assert [v.label for v in found[:2]] == ["refusal", "compliance"], spec
        assert set(found[0].detail["members"]) == {m.name for m in judge.members}  # type: ignore[arg-type, attr-defined]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("majority", "needs members"),
        ("majority:rules", "at least 2 members, got 1"),
        ("dawid_skene:rules,degeneracy", "at least 3 members, got 2"),
        ("majority:rules,,degeneracy", "between commas"),
        ("majority:()", "needs members"),
        ("majority:(rules)", r"at least 2 members, got 1; write majority:\(rules,phrases:arditi\)"),
        ("majority:rules,rules", "'rules' more than once"),
        ("dawid_skene:rules,majority:rules,degeneracy", "panels do not nest"),
        ("majority:rules,dawid_skene:a", "panels do not nest"),
        ("majority:rules,nonsense", "no judge is called 'nonsense'"),
    ],
)
def test_panels_that_are_refused(spec: str, message: str) -> None:
    with pytest.raises(MechsafetyError, match=message):
        load_judge(spec)


def test_keys_of_members_are_asked_for_where_something_is_asked() -> None:
    named = "endpoint:m@http://h/v1;api_key_env=NO_SUCH_KEY"
    require_keys(["rules", "endpoint:m@http://h/v1"])
    for spec in (named, f"majority:(rules,{named})"):
        with pytest.raises(MechsafetyError, match="a variable that is not set"):
            require_keys(["rules", spec])


def test_members_of_one_name_are_refused() -> None:
    one, other = panel("r", "c")
    other.name = one.name
    with pytest.raises(MechsafetyError, match="more than once"):
        MajorityJudge([one, other])
    with pytest.raises(MechsafetyError, match="at least 3"):
        DawidSkeneJudge(panel("r", "c"))
