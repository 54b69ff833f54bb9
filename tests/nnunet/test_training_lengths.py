import pytest

from rehrseg_nnunet.nnunet.training_lengths import trainer_name, trainer_of_length


class Base:
    length = None


class Base_variant(Base):  # noqa: N801 (as nnU-Net's)
    pass


TRAINERS = {"Base": Base, "Base_variant": Base_variant}


@pytest.mark.parametrize(("epochs", "name"), [(1, "Base_1epoch"), (2, "Base_2epochs"), (100, "Base_100epochs")])
def test_names_are_nnunets_and_lead_back_to_the_length(epochs, name):
    assert trainer_name("Base", epochs) == name
    trainer = trainer_of_length(name, TRAINERS, module="here")
    assert issubclass(trainer, Base)
    assert (trainer.__name__, trainer.__module__, trainer.length) == (name, "here", epochs)
    assert Base.length is None


def test_the_whole_name_before_the_length_counts():
    assert issubclass(trainer_of_length("Base_variant_5epochs", TRAINERS, module="here"), Base_variant)


@pytest.mark.parametrize(
    "name", ["Base", "Other_5epochs", "Base_1epochs", "Base_2epoch", "Base_0epochs", "Base_05epochs"]
)
def test_other_names_are_no_attributes(name):
    with pytest.raises(AttributeError, match=f"module 'here' has no attribute '{name}'"):
        trainer_of_length(name, TRAINERS, module="here")
