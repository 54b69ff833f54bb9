"""The one command: what it does, in which order."""

import pytest
from filelock import FileLock

import benchmarks.quality.__main__ as command


@pytest.fixture
def start(make_benchmark, write_source, monkeypatch):
    """The command with options, on a source of five cases; every step that it takes."""
    steps = []
    write_source(make_benchmark().source)

    def note(run, step):
        steps.append((step, run.row.key, run.seed, run.fold, run.epochs))

    def prepare(benchmark, datasets, plans, execute, *, settings):
        steps.append(("prepare", benchmark, datasets, plans))

    monkeypatch.setattr(command, "set_environment", lambda benchmark, jobs: steps.append(jobs) if jobs > 1 else None)
    monkeypatch.setattr(command, "require_filter", lambda: None)
    monkeypatch.setattr(command, "prepare", prepare)
    monkeypatch.setattr(command, "train", lambda run, device: note(run, f"train on {device}"))
    monkeypatch.setattr(command, "predict", lambda run, device: note(run, f"predict on {device}"))
    monkeypatch.setattr(command, "score", lambda run: note(run, "score"))

    def run(*options):
        steps.clear()
        benchmark = make_benchmark()
        own = ["--source", str(benchmark.source), "--work", str(benchmark.work), "--cases", "5", "--test-cases", "2"]
        command.main([*own, *options])
        return steps

    return run


def test_all_rows_of_a_seed_and_fold_before_the_next(start, make_benchmark):
    first, *steps = start("--rows", "rehrseg", "--seeds", "0", "4", "--folds", "1", "2", "--stage-2-epochs", "20")
    assert first == ("prepare", make_benchmark(), set(), {""})
    expected = []
    for seed in (0, 4):
        for fold in (1, 2):
            for key, epochs in (("baseline", 10), ("self_sr", None), ("rehrseg", 20)):
                segments = key in ("baseline", "rehrseg")
                names = ["train on cpu", *(["predict on cpu", "score"] if segments else [])]
                expected += [(name, key, seed, fold, epochs) for name in names]
    assert steps == expected


def test_several_lengths_share_what_they_build_on(start):
    _, *steps = start("--rows", "rehrseg", "continued", "--stage-2-epochs", "5", "20")
    trained = [(key, epochs) for step, key, _, _, epochs in steps if step.startswith("train")]
    stage_2 = [("rehrseg", 5), ("rehrseg", 20), ("continued", 5), ("continued", 20)]
    assert trained == [("baseline", 10), ("self_sr", None), *stage_2]


def test_several_jobs_do_the_same(start):
    one = list(start("--rows", "rehrseg", "continued", "--folds", "0", "1"))
    jobs, *two = start("--rows", "rehrseg", "continued", "--folds", "0", "1", "--jobs", "2")
    assert jobs == 2
    assert sorted(map(str, two)) == sorted(map(str, one))


def test_two_commands_do_not_work_in_one_folder(start, make_benchmark):
    make_benchmark().remember()
    with (
        FileLock(make_benchmark().work / "work.lock"),
        pytest.raises(SystemExit, match=r"^error: --work \S+ is being worked in; wait for that, or add --report$"),
    ):
        start("--rows", "baseline")


def test_a_missing_filter_is_said_before_anything_is_made(start, monkeypatch):
    def missing():
        raise ModuleNotFoundError("itk must be installed")

    monkeypatch.setattr(command, "require_filter", missing)
    with pytest.raises(SystemExit, match=r"^error: itk must be installed$"):
        start("--rows", "baseline")
    assert start("--rows", "self_sr")[0][0] == "prepare"  # does not need it


def test_data_and_plans_that_rows_need_are_prepared(start):
    (_, _, datasets, plans), *_ = start("--rows", "true_hr", "eq11")
    assert datasets == {"true_hr"}
    assert plans == {"", "eq11"}
    (_, _, datasets, plans), *steps = start("--tables", "3", "--device", "cuda")
    assert datasets == {"interpolated", "interpolated_sparse", "true_hr"}
    assert plans == {""}
    assert ("train on cuda", "interpolated", 0, 0, 20) in steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--baseline-epochs", "0"], "--baseline-epochs must be at least 1, got 0"),
        (["--stage-2-epochs", "5", "0"], "--stage-2-epochs must be at least 1, got [5, 0]"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_lengths_that_cannot_be_trained_are_refused_at_once(start, make_benchmark, options, message):
    with pytest.raises(SystemExit) as error:
        start("--rows", "baseline", *options)
    assert error.value.code == f"error: {message}"
    assert not make_benchmark().work.exists()


def test_a_report_trains_nothing(start, make_benchmark, capsys):
    make_benchmark().remember()
    assert start("--tables", "3", "--report") == []
    assert "Everything per case: " in capsys.readouterr().out


def test_a_refused_command_leaves_nothing_so_that_a_corrected_one_works(start, make_benchmark):
    """Also where the refused setting is one that the work folder is of."""
    too_many = r"--cases and --test-cases must be at most 7 together, got \d \+ \d"
    factor = r"--factor must be from 2 to the fewest slices of a case, \d+, got \d+"
    refused = {too_many: [("--cases", "6"), ("--test-cases", "3")], factor: [("--factor", "1"), ("--factor", "17")]}
    for message, changes in refused.items():
        for options in changes:
            with pytest.raises(SystemExit, match=rf"^error: {message}$"):
                start("--rows", "baseline", *options)
            assert not make_benchmark().work.exists()
    steps = start("--rows", "baseline", "--cases", "6", "--test-cases", "1")
    assert [step[0] for step in steps] == ["prepare", "train on cpu", "predict on cpu", "score"]
    with pytest.raises(SystemExit, match=r"^error: --work \S+ was made with cases 6, got 5; take another$"):
        start("--rows", "baseline")


@pytest.mark.parametrize("options", [[], ["--report"]])
def test_a_source_that_is_none_is_refused_in_one_line(start, make_benchmark, options):
    missing = make_benchmark().source / "dataset.json"
    missing.unlink()
    with pytest.raises(SystemExit) as error:
        start("--rows", "baseline", *options)
    assert error.value.code == f"error: {missing} is missing; {missing.parent.name} is no nnU-Net dataset without it"
    assert not make_benchmark().work.exists()
