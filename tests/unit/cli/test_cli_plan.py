"""megagpt plan: what it prints, how fast, and what it says when something does not fit."""

import json
import sys

import pytest

from megagpt.cli.main import main
from megagpt.config.schema import ModelConfig, RunConfig
from megagpt.plan.speed import LINK_EFFICIENCY
from tests.helpers.tiny_checkpoint import make_checkpoint
from tests.helpers.tiny_run import ROOT, command, demonstrations, finished, toy_tokenizer, write_rows

PRETRAIN, SMOKE = ROOT / "configs/pretrain", ROOT / "configs/smoke"
PLANNED = [*sorted(PRETRAIN.glob("*.yaml")), *(SMOKE / f"quickstart_{stage}.yaml" for stage in ("pretrain", "sft", "reward", "dpo", "rlhf"))]
GPT3 = PRETRAIN / "gpt3_6b7_128gpu_tp4.yaml"


@pytest.fixture
def plan(capsys, monkeypatch, tmp_path):
    """The verb's JSON object; in an empty folder, so that no checkpoint is found."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> dict:
        assert main(["plan", "--json", *map(str, words)]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def error_of(capsys, *words: object) -> str:
    assert main(["plan", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("config", PLANNED, ids=lambda path: path.stem)
def test_cli_plan_of_every_shipped_training_stage(config, plan, capsys):
    facts = plan("--config", config)
    assert facts["num_parameters"] > 1e6 and facts["seconds_per_step"] > 0
    assert facts["fits"] and 0 < facts["memory_bytes_per_rank"] == max(sum(parts.values()) for parts in facts["memory"].values())
    known_length = config.parent == PRETRAIN or config.stem.endswith(("pretrain", "rlhf"))
    assert (facts["petaflop_s_days"] is not None) == known_length
    if known_length:
        assert facts["petaflop_s_days_with_attention"] > facts["petaflop_s_days"] > 0
    assert main(["plan", "--config", str(config), "--price", "2"]) == 0
    text = capsys.readouterr().out
    assert "fits into 80 GB" in text and ("cost" in text) == known_length


def test_cli_plan_takes_under_a_second_and_no_torch():
    report = "print(time.process_time(), 'torch' in sys.modules, 'numpy' in sys.modules)"
    code = f"import sys, time; from megagpt.cli.main import main; main(sys.argv[1:]); {report}"
    for config in (PRETRAIN / "gpt3_175b_1024gpu_tp8_pp16.yaml", SMOKE / "quickstart_rlhf.yaml", "no_such_file.yaml"):
        result = finished(command(sys.executable, "-c", code, "plan", "--json", "--config", config))
        seconds, *heavy = result.stdout.splitlines()[-1].split()
        assert float(seconds) < 1 and heavy == ["False", "False"]


def test_cli_plan_counts_the_records_that_are_there(plan, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", demonstrations())
    words = ("--config", SMOKE / "quickstart_sft.yaml", "--set", f"data={{train: [{rows}], max_length: 256}}", "--set", "batch.global_batch_size=32")
    facts = plan(*words)  # two passes over 48 rows: three steps, one of which has rows of both
    assert facts["steps"] == 3 and facts["tokens"] == 3 * 32 * 256
    # How many rows are packed from them, only their tokens would tell.
    assert plan(*words, "--set", "packing=true")["steps"] is None
    # Without files to hold out, a part of the records is: 36 are left.
    assert plan(*words, "--set", "data.valid=null", "--set", "data.valid_fraction=0.25", "--set", "batch.global_batch_size=16")["steps"] == 5


def test_cli_plan_takes_the_parent_from_its_checkpoint(plan, tmp_path):
    tokenizer = toy_tokenizer(tmp_path / "tokenizer")
    model = ModelConfig(num_layers=2, hidden_size=32, num_attention_heads=4, max_sequence_length=256, vocab_size=tokenizer.vocab_size)
    make_checkpoint(RunConfig(name="quickstart", root=str(tmp_path / "runs")), "sft", model, tokenizer, seed=1)
    words = ("--config", SMOKE / "quickstart_reward.yaml")
    # Of the configuration beside it that will make one: that of pre-training and of the tokenizer; a scalar head.
    assert plan(*words, "--set", "run.root=elsewhere")["num_parameters"] == parameters(4, 128, 2048) + 128 + 1
    assert plan(*words)["num_parameters"] == parameters(2, 32, tokenizer.vocab_size) + 32 + 1


def parameters(layers: int, hidden: int, vocabulary: int) -> int:
    """Of the gpt family with tied embeddings and 256 positions."""
    return hidden * (vocabulary + 256) + layers * (12 * hidden**2 + 13 * hidden) + 2 * hidden


def test_cli_plan_ppo_adds_what_shares_a_rank(plan):
    """Reward and value on one rank hold more than the policy's halves; moved apart, less is needed, and the round is shorter."""
    shared = plan("--config", SMOKE / "quickstart_rlhf.yaml", "--hardware", "cpu")
    apart = plan("--config", SMOKE / "quickstart_rlhf.yaml", "--hardware", "cpu", "--set", "placement.value.ranks=[4]")
    assert set(shared["memory"]) == {"rollout", "score", "update policy", "update value"}
    weights = 4 * shared["num_parameters_of_roles"]["value"]
    assert shared["memory"]["update value"]["weights"] == pytest.approx(2 * weights, rel=0.001)
    assert apart["memory"]["update value"]["weights"] == pytest.approx(weights, rel=0.001)
    # Keys and values of a quarter of a rollout's rows (the others are scored, or wait) and all their tokens, in float32, on two tensor-parallel ranks.
    assert apart["memory"]["rollout"]["kv_cache"] == 2 * 4 * (64 / 4) * (128 + 48) * 128 * 4 / 2
    assert all(apart["seconds_of_a_step"][phase] <= seconds for phase, seconds in shared["seconds_of_a_step"].items())
    assert apart["seconds_of_a_step"]["score"] < shared["seconds_of_a_step"]["score"]


def test_cli_plan_ppo_answers_the_evaluations_prompts_at_once_too(plan):
    words = ("--config", SMOKE / "quickstart_rlhf.yaml", "--set")
    usual, longer = plan(*words, "prompts.eval_prompts=64"), plan(*words, "prompts.eval_prompts=256")
    assert longer["memory"]["rollout"]["kv_cache"] == 4 * usual["memory"]["rollout"]["kv_cache"]
    assert longer["seconds_of_a_step"] == usual["seconds_of_a_step"], "a round has as many responses as before"


def test_cli_plan_ppo_knows_how_many_rows_are_sampled_at_once_and_who_scores_them(plan):
    words = ("--config", SMOKE / "quickstart_rlhf.yaml", "--hardware", "cpu")
    usual, fewer, again = plan(*words), plan(*words, "--set", "ppo.generation_batch_size=4"), plan(*words, "--set", "ppo.logprobs=trainer")
    assert fewer["memory"]["rollout"]["kv_cache"] == usual["memory"]["rollout"]["kv_cache"] / 4
    assert fewer["seconds_of_a_step"]["rollout"] > usual["seconds_of_a_step"]["rollout"]
    assert again["petaflop_s_days"] > usual["petaflop_s_days"]
    assert again["seconds_of_a_step"]["score"] >= usual["seconds_of_a_step"]["score"]


def test_cli_plan_ppo_counts_a_view_of_the_policy_that_writes(plan):
    words = ("--config", SMOKE / "quickstart_rlhf.yaml", "--hardware", "cpu", "--set", "placement.policy={ranks: [0, 1], tp: 1, zero: 3}")
    without, view = plan(*words), plan(*words, "--set", "placement.rollout={ranks: [0, 1], tp: 2}")
    half = 4 * view["num_parameters_of_roles"]["policy"] / 2
    assert view["memory"]["update policy"]["weights"] - without["memory"]["update policy"]["weights"] == pytest.approx(half, rel=0.05)  # positions and norms are whole
    assert view["seconds_of_a_step"]["rollout"] < without["seconds_of_a_step"]["rollout"], "no weights are gathered for every token"
    assert view["seconds_of_a_step"]["score"] == without["seconds_of_a_step"]["score"]


def test_cli_plan_ppo_gathers_weights_for_every_token_at_zero_3(plan):
    roles = [f"placement.{role}={{ranks: [0, 1], tp: 1, zero: %d}}" for role in ("policy", "value")]
    roles += [f"placement.{role}={{ranks: [0, 1]}}" for role in ("reference", "reward")]
    words = ("--config", SMOKE / "quickstart_rlhf.yaml", "--hardware", "cpu")
    one, three = (plan(*words, *(word for role in roles for word in ("--set", role.replace("%d", str(zero))))) for zero in (1, 3))
    weights = 4 * three["num_parameters_of_roles"]["policy"]
    assert three["memory"]["rollout"]["buffers"] - one["memory"]["rollout"]["buffers"] > weights
    assert three["memory"]["score"]["buffers"] - one["memory"]["score"]["buffers"] > weights
    seconds = weights / 2 / (1e9 * LINK_EFFICIENCY)  # half of them come from the other rank
    slower = three["seconds_of_a_step"]["rollout"] - one["seconds_of_a_step"]["rollout"]
    assert slower == pytest.approx((1 + 48) * seconds, rel=0.001), "for the prompts and for each token"
    assert three["seconds_of_a_step"]["score"] > one["seconds_of_a_step"]["score"]


@pytest.mark.parametrize("stage", ["pretrain", "rlhf"])
def test_cli_plan_says_that_ranks_on_a_cpu_take_more_memory(stage, plan, capsys):
    words = ("--config", SMOKE / f"quickstart_{stage}.yaml", "--hardware")
    assert plan(*words, "a100-80gb")["memory_note"] is None
    note = plan(*words, "cpu")["memory_note"]
    assert "30 to 59 % more than planned" in note
    assert main(["plan", *map(str, words), "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"{'':12}{note}" in lines[[line.strip().startswith("fits into") for line in lines].index(True) :]


def hosts(folder, *slots: int):
    path = folder / "hosts"
    path.write_text("".join(f"node{number} slots={count}\n" for number, count in enumerate(slots)))
    return path


def test_cli_plan_proposes_layouts_for_hosts_best_first(plan, tmp_path):
    facts = plan("--config", GPT3, "--hostfile", hosts(tmp_path, *[8] * 16))
    times = [float(words.split(" GB a rank, ")[1].split()[0]) for words in facts["layouts"]]
    assert len(times) == 5 and times == sorted(times) and times[0] <= facts["seconds_per_step"]
    rlhf = plan("--config", SMOKE / "quickstart_rlhf.yaml", "--hostfile", hosts(tmp_path, 4))
    assert rlhf["layouts"] and all(words.startswith("policy ") for words in rlhf["layouts"])


def test_cli_plan_of_an_automatic_placement_shows_its_choice_and_the_others(plan, capsys, tmp_path):
    words = ("--config", SMOKE / "quickstart_rlhf.yaml", "--set", "placement=auto")
    facts = plan(*words, "--hardware", "cpu", "--ranks", 4)
    assert facts["fits"] and facts["ranks"] == 4 and 1 < len(facts["layouts"]) <= 5
    assert facts["layouts"][0].endswith(f"{facts['memory_bytes_per_rank'] / 1e9:.1f} GB a rank, {facts['seconds_per_step']:.3g} s a step")
    assert facts == plan(*words, "--hardware", "cpu", "--ranks", 4)
    assert plan(*words, "--hostfile", hosts(tmp_path, 2, 2))["ranks"] == 4
    assert "placement = auto: say how many devices the job has, by --ranks or --hostfile" in error_of(capsys, *words)
    assert main(["rlhf", "--config", str(SMOKE / "quickstart_rlhf.yaml"), "--set", "placement=auto", "--dry-run"]) == 0
    assert "auto: the planner chooses at the start" in capsys.readouterr().out


def test_cli_plan_of_hosts_that_do_not_fit_says_what_would(capsys, tmp_path):
    few, tight = hosts(tmp_path, 8, 8), ("--hardware", "v100-32gb", "--set", "batch.micro_batch_size=16")
    error = error_of(capsys, "--config", GPT3, "--hostfile", few)
    assert "16 ranks: parallel: tensor_parallel_size 4 x" in error and "does not fit 16 ranks" in error and error.endswith("s a step would do\n")
    assert error.count("would do") == 1, "the grid's own advice would say something else"
    error = error_of(capsys, "--config", GPT3, "--hostfile", few, "--set", "parallel.data_parallel_size=4", *tight)
    assert "GB a rank, and a device of V100 SXM2 32 GB has 32; tp" in error and error.endswith("would do\n")
    error = error_of(capsys, "--config", PRETRAIN / "gpt3_175b_1024gpu_tp8_pp16.yaml", "--hostfile", few)
    assert "no layout fits here; " in error and error.endswith("ranks would do\n")


def test_cli_plan_names_what_is_wrong(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "--hardware a100: must be a .yaml file or one of a100-40gb, a100-80gb" in error_of(capsys, "--config", GPT3, "--hardware", "a100")
    assert "stage = data: nothing to plan" in error_of(capsys, "--config", SMOKE / "quickstart_data.yaml", "--set", "stage=data")
    error = error_of(capsys, "--config", SMOKE / "quickstart_sft.yaml", "--set", "parent=nothing")
    assert "parent nothing: no checkpoint in runs/quickstart/nothing" in error
    assert "pipeline_parallel_size = 5" in error_of(capsys, "--config", GPT3, "--set", "parallel={pipeline_parallel_size: 5, zero_stage: 3}")
    (tmp_path / "none.jsonl").write_text("\n")
    for stage in ("sft", "reward"):
        error = error_of(capsys, "--config", SMOKE / f"quickstart_{stage}.yaml", "--set", "data={train: [none.jsonl], max_length: 256}")
        assert "data.train = ['none.jsonl']: no record in them" in error


@pytest.mark.parametrize(("words", "rule"), [
    (("--price", "-1"), "--price -1: must be a finite number from 0"), (("--price", "nan"), "--price nan: must be"),
    (("--price", "inf"), "--price inf: must be"), (("--ranks", "0"), "--ranks 0: must be at least 1"), (("--ranks", "-8"), "--ranks -8: must be"),
    (("--ranks", "8", "--hostfile", "hosts"), "--ranks 8 with --hostfile: the hosts' slots are the ranks"),
])  # fmt: skip
def test_cli_plan_refuses_numbers_that_mean_nothing(capsys, words, rule):
    assert rule in error_of(capsys, "--config", GPT3, *words)


def test_cli_plan_refuses_a_host_named_twice(capsys, tmp_path):
    (tmp_path / "hosts").write_text("node0 slots=8\nnode1 slots=8\nnode0 slots=8\n")
    assert "hosts:3: node0 is named twice; give all its slots in one line" in error_of(capsys, "--config", GPT3, "--hostfile", tmp_path / "hosts")


def test_cli_plan_of_uneven_hosts_keeps_tensor_parallelism_within_what_divides_them(plan, tmp_path):
    even, uneven = (plan("--config", GPT3, "--hostfile", hosts(tmp_path, *slots)) for slots in ([8] * 16, [8] * 14 + [4] * 4))
    facts = [facts["seconds_of_a_step"]["data_parallel"] for facts in (even, uneven)]
    assert facts[0] == facts[1] and all(words.startswith(("tp 1", "tp 2", "tp 4")) for words in uneven["layouts"])
    two = plan("--config", GPT3, "--hostfile", hosts(tmp_path, *[8] * 15, 6, 2))
    assert two["seconds_of_a_step"]["tensor_parallel"] > 5 * even["seconds_of_a_step"]["tensor_parallel"], "tp 4 crosses nodes of 2"


def test_cli_plan_takes_a_chain_through_the_policy_and_refuses_a_circle(plan, capsys, tmp_path):
    facts = plan("--config", SMOKE / "quickstart_reward.yaml", "--set", "parent=rlhf")
    assert facts["num_parameters"] == parameters(4, 128, 2048) + 128 + 1
    path = tmp_path / "own_sft.yaml"
    path.write_text((SMOKE / "quickstart_sft.yaml").read_text().replace("parent: pretrain", "parent: sft"))
    assert f"parent sft: {path} starts from itself" in error_of(capsys, "--config", path)
