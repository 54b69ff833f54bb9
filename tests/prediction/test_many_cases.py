"""What is noted of cases while they are predicted."""

import time
from pathlib import Path

from rehrseg_nnunet.prediction.inputs import Case
from rehrseg_nnunet.prediction.many_cases import RunOptions, predict_cases


class Record:
    """Notes seconds."""

    def __init__(self):
        self.seconds = {}

    def took(self, name, seconds):
        self.seconds[name] = seconds


class Predictor:
    """Has workers for export, for which it waits as nnU-Net's does, before the network sees a case."""

    network_seconds = 0.0

    def predict_from_files(self, files, outputs, **options):
        items = ({"ofile": output, "data_properties": {}} for output in outputs)
        for number, _ in enumerate(self.preprocessed(items)):
            time.sleep(0.02)
            self.network_seconds = 1.0 + number


def test_seconds_are_the_networks_without_waiting_for_workers(tmp_path):
    record, predictor = Record(), Predictor()
    predictor.preprocessed = iter
    cases = [Case(name, (Path(name),)) for name in "ab"]
    predict_cases(predictor, cases, tmp_path, RunOptions(preprocessing=1, export=1), record)
    assert record.seconds == {"a": 1.0, "b": 2.0}
    assert predictor.preprocessed is iter


def test_a_predictor_notes_how_long_the_network_took(tiny):
    predictor = tiny.predictor(mirror=False)
    assert predictor.network_seconds == 0
    predictor.predict_logits_from_preprocessed_data(tiny.torch.zeros(1, 4, 16, 16))
    assert predictor.network_seconds > 0
