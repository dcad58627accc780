"""The PPO doctor: each sign is found where it is and only there, said in a sentence, and met with the configured remedy."""

import json
import math
import re

import pytest

from megagpt.config.schema import DoctorConfig
from megagpt.rlhf.doctor import CHECKS, Doctor, correlation
from megagpt.rlhf.evaluate import reward_gain, win_rate

HEALTHY = {
    "policy_first_ratio_error": 1e-7, "sampler_gap": 1e-5, "kl": 0.4, "outside_response": 0.0, "stopped": 0.9, "reward_length_correlation": 0.2,
    "explained_variance": 0.5, "policy_clip_fraction": 0.1, "logprob": -2.0, "reward": 0.3,
}  # fmt: skip
ILL = {
    "finite": ({"value_loss": math.nan}, "value_loss not finite"),
    "ratio": ({"policy_first_ratio_error": 0.02}, "off by 0.02 before the first update"),
    "sampler_gap": ({"sampler_gap": 0.3}, "log-probability by 0.3"),
    "negative_kl": ({"kl": -0.5}, r"below -0.1 nats for 5 steps \(now -0.5\)"),
    "padding": ({"outside_response": 0.25}, "0.25 stand on tokens outside"),
    "endless": ({"stopped": 0.2}, "80% of the answers were cut"),
    "length": ({"reward_length_correlation": -0.9}, "-0.90: the policy learns that shorter is better"),
    "value": ({"explained_variance": -0.1}, "less than 0 of the returns' variance for 5 steps"),
    "clip": ({"policy_clip_fraction": 0.45}, "45% of the tokens are clipped"),
    "entropy": ({"logprob": -0.4}, r"fell to 20% of what it was \(2.00 to 0.40 nats"),
}


def run(doctor: Doctor, *steps: dict) -> list:
    return [finding for number, metrics in enumerate(steps, 1) for finding in doctor.examine(number, metrics)]


def test_doctor_finds_nothing_in_a_healthy_run():
    steps = [HEALTHY | {"kl": -0.05 if step % 2 else 0.1} for step in range(50)]  # an estimate near 0 takes both signs
    assert run(Doctor(DoctorConfig()), *steps) == []


@pytest.mark.parametrize("name", ILL)
def test_doctor_finds_each_sign_alone(name):
    wrong, sentence = ILL[name]
    found = run(Doctor(DoctorConfig(repeat=1)), *[HEALTHY] * 10, *[HEALTHY | wrong] * 10)
    assert {finding.check for finding in found} == {name}
    assert re.search(sentence, found[-1].text), found[-1].text
    assert found[0].step > 10 and all(len(finding.text) < 400 and "\n" not in finding.text for finding in found)


@pytest.mark.parametrize("name", ["negative_kl", "value", "entropy"])
def test_doctor_waits_where_one_step_says_little(name):
    wrong, _ = ILL[name]
    assert run(Doctor(DoctorConfig(patience=4)), *[HEALTHY] * 6, *[HEALTHY | wrong] * 3, *[HEALTHY] * 6) == []


def test_doctor_sees_a_reward_that_is_hacked():
    course = [(0.0, 0.1), (0.5, 0.3), (1.0, -0.2)]
    doctor = Doctor(DoctorConfig(hacking="pause"))
    found = run(doctor, *({"eval_reward": trained, "eval_held_out_reward": other} for trained, other in course))
    assert [(finding.step, finding.action) for finding in found] == [(3, "pause")]
    assert "rose from +0.00 to +1.00 while" in found[0].text and "fell from +0.10 to -0.20" in found[0].text
    assert run(Doctor(DoctorConfig()), *({"eval_reward": reward} for reward, _ in course)) == []  # nobody to ask


def test_doctor_repeats_a_warning_rarely_and_other_remedies_always():
    steps = [HEALTHY | {"policy_clip_fraction": 0.9, "stopped": 0.0}] * 7
    found = run(Doctor(DoctorConfig(repeat=3, endless="rollback")), *steps)
    assert [finding.step for finding in found if finding.check == "clip"] == [1, 4, 7]
    assert [finding.step for finding in found if finding.check == "endless"] == list(range(1, 8))
    assert found[0].check == "endless"  # the gravest first


def test_doctor_can_be_told_to_look_away():
    steps = [HEALTHY | wrong for wrong, _ in ILL.values()] * 8
    assert run(Doctor(DoctorConfig(**dict.fromkeys(CHECKS, "off"))), *steps) == []


def test_doctor_resumes_where_it_was():
    steps = [HEALTHY | {"logprob": -2.0 + 0.1 * step, "kl": 0.2 - 0.1 * step} for step in range(18)]
    whole, first = Doctor(DoctorConfig(patience=3, repeat=2)), Doctor(DoctorConfig(patience=3, repeat=2))
    expected = [whole.examine(number, metrics) for number, metrics in enumerate(steps)]
    found = [first.examine(number, metrics) for number, metrics in enumerate(steps[:9])]
    second = Doctor(DoctorConfig(patience=3, repeat=2))
    second.load(json.loads(json.dumps(first.state())))
    assert found + [second.examine(number, metrics) for number, metrics in enumerate(steps[9:], 9)] == expected
    assert any(expected[9:])


def test_doctor_goes_back_a_limited_number_of_times():
    doctor = Doctor(DoctorConfig(max_rollbacks=2))
    for allowed in (True, True, False):
        assert doctor.may_roll_back() is allowed
        doctor.went_back()


def test_win_rate():
    assert win_rate([1.0, 2.0, 3.0, 0.0], [0.0, 2.0, 4.0, -1.0]) == (1 + 0.5 + 0 + 1) / 4


def test_doctor_that_went_back_forgets_the_collapse_and_remembers_the_start():
    doctor, collapsed = Doctor(DoctorConfig(entropy="rollback")), HEALTHY | {"logprob": -0.01}
    assert run(doctor, *[HEALTHY] * 10, *[collapsed] * 10)
    doctor.went_back()
    assert run(doctor, *[HEALTHY] * 10) == []  # the weights are healthy again
    assert run(doctor, *[collapsed] * 10)


def test_reward_gain_is_in_deviations_of_the_start_or_in_scores_where_those_are_equal():
    assert reward_gain({"reward": 1.0, "reward_std": 0.5}, {"reward": 2.0}) == pytest.approx(2.0)
    assert reward_gain({"reward": 0.0, "reward_std": 0.0}, {"reward": 0.25}) == 0.25  # no answer of the start satisfied the rule


def test_correlation():
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [1, 0, 1]) == pytest.approx(0)
    assert correlation([1, 2, 4], [3, 1, 2]) == pytest.approx(-0.3273268, abs=1e-6)
    assert correlation([1, 1, 1], [1, 2, 3]) == 0
