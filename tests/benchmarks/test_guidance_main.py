"""The one command: what it does, in which order, and what it refuses."""

import pytest
from filelock import FileLock

import benchmarks.guidance.__main__ as command


@pytest.fixture
def start(make_guidance, write_source, monkeypatch):
    """The command with options, on a source of twelve cases; every step that it takes."""
    steps, benchmark = [], make_guidance()
    write_source(benchmark.source, cases=12)

    def note(step):
        return lambda run, **_: steps.append((step, run.row.key, run.seed))

    monkeypatch.setattr(command, "set_environment", lambda *_, **__: None)
    monkeypatch.setattr(command, "_make", lambda benchmark, data, runs: steps.append(data))
    for name in ("train", "predict"):
        monkeypatch.setattr(command, name, note(name))
    for module in (command.image_scores, command.segmentation_scores):
        monkeypatch.setattr(module, "score", note("score"))

    def run(*options):
        steps.clear()
        own = ["--source", str(benchmark.source), "--work", str(benchmark.work), "--pairs", "5", "--cases", "5"]
        command.main([*own, "--test-cases", "2", *options])
        return list(steps)

    return run


def test_pairs_need_their_dataset_alone(start):
    steps = start("--rows", "keeper_width16", "l1_unet")
    assert steps[0] == "pairs"
    keys = ["teacher_width16", "keeper_width16", "l1_unet"]
    assert [step for step in steps if step[0] == "train"] == [("train", key, 0) for key in keys]
    assert {step[0] for step in steps[1:]} == {"train", "score"}


def test_pairs_need_no_other_cases(start):
    assert start("--parts", "pairs", "--pairs", "12", "--cases", "0", "--test-cases", "0")[0] == "pairs"


def test_images_are_compared_in_features_of_a_teacher_that_is_there(start):
    steps = start("--rows", "l1_unet", "teacher")
    assert steps.index(("score", "teacher", 0)) < steps.index(("train", "l1_unet", 0))


def test_seeds_share_baseline_and_keeper(start):
    steps = start("--rows", "guided", "synthesised", "--seeds", "2", "5", "--keeper", "keeper_kernel7")
    trained = [step[1:] for step in steps if step[0] == "train"]
    assert sorted(trained) == sorted(
        [
            *((key, 2) for key in ("baseline", "teacher", "keeper_kernel7")),
            *((key, seed) for seed in (2, 5) for key in ("guided", "synthesised")),
        ]
    )
    assert steps.index("synthesised") > steps.index(("train", "keeper_kernel7", 2))
    assert steps.index("source") == 0
    for key in ("guided", "synthesised"):
        assert ("predict", key, 5) in steps
        assert ("score", key, 5) in steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rows", "nothing"), "--rows must be among teacher"),
        (("--baseline-epochs", "4"), "--baseline-epochs must be a length of nnU-Net's own trainers"),
        (("--jobs", "0"), "--jobs must be at least 1, got 0"),
        (("--test-cases", "3"), "must be at most 12 together, got 13"),
        (("--cases", "4"), "--cases must be at least 5, got 4"),
        (("--number", "999"), "--number must be from 1 to 994, got 999"),
        (("--report",), "there is nothing to report"),
    ],
)
def test_bad_options(start, options, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        start(*options)


def test_a_folder_is_of_one_comparison(start):
    start("--rows", "teacher")
    start("--rows", "teacher", "--continued-epochs", "9", "--keeper-epochs", "2")  # in the names of what is trained
    with pytest.raises(SystemExit, match=r"was made with snr 12\.0, got 8\.0; take another --number"):
        start("--rows", "teacher", "--snr", "8")
    start("--rows", "teacher", "--snr", "8", "--number", "614")
    start("--rows", "continued", "--continued-epochs", "9")
    start("--rows", "continued", "--continued-epochs", "3")
    for option, value, was in (("keeper", "keeper_kernel7", "keeper"), ("keeper-epochs", "2", "None")):
        name = option.replace("-", "_")
        with pytest.raises(SystemExit, match=f"was made with {name} {was}, got {value}"):
            start("--rows", "guided", f"--{option}", value)


def test_one_process_works_in_a_folder(start, make_guidance):
    start("--rows", "teacher")
    with FileLock(make_guidance().work / "work.lock"), pytest.raises(SystemExit, match="is being worked in"):
        start("--rows", "teacher")
