"""What nnU-Net's commands make of their arguments."""

import argparse

import pytest


def arguments(entry_point, command):
    """A command's arguments as one of nnU-Net's entry points reads them."""

    class CaughtError(Exception):
        pass

    parse = argparse.ArgumentParser.parse_args

    def catch(parser, *args, **kwargs):
        raise CaughtError(parse(parser, command))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        with pytest.raises(CaughtError) as caught:
            entry_point()
    return caught.value.args[0]
