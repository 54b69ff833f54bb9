"""Cases that a trained network makes of its fold's, in place of nnU-Net's validation: see `CaseExport`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from pydantic import JsonValue
from torch import distributed as dist
from torch import nn

from rehrseg_nnunet.cases.store import CaseManifest, CaseStore
from rehrseg_nnunet.nnunet.extended_network import unwrap
from rehrseg_nnunet.nnunet.fold_run import FoldRun
from rehrseg_nnunet.nnunet.trainer_mixin import TrainerMixin
from rehrseg_nnunet.nnunet.weights import hash_weights
from rehrseg_nnunet.restoration.image_training import refuse_prediction


class CaseExport(TrainerMixin):
    """Mixin for nnU-Net trainers that write derived cases after training, and again with `--val`.

    Attributes:
        store_name: folder of the fold that the cases are written to.
        stored: the cases, in messages.
        needed_by: who reads them, in messages.
        cases_between_barriers: cases that a rank of a DDP training writes before it waits for the others.
    """

    store_name: str
    stored: str
    needed_by: str
    cases_between_barriers: int = 4

    def cases_to_write(self) -> list[str]:
        """Identifiers of the cases that are written after training."""
        raise NotImplementedError

    def write_cases(self, network: nn.Module, store: CaseStore, identifiers: Sequence[str]) -> None:
        """Write those of some cases that are missing; each rank of a DDP training gets its share."""
        raise NotImplementedError

    def made_with(self) -> dict[str, JsonValue]:
        """What else the cases depend on than the network, see `CaseManifest`."""
        raise NotImplementedError

    def report(self, network: nn.Module) -> None:
        """Say how good the network is."""
        raise NotImplementedError

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Write the cases, then report."""
        weights = hash_weights(unwrap(self.network).state_dict())
        saved = FoldRun.of_trainer(self).checkpoint_with
        if self.disable_checkpointing and saved(weights, remedy="remove it") is None:
            self.print_to_log_file(
                f"no {self.stored} are written: {self.needed_by} needs the network that made them, which "
                "--disable_checkpointing does not keep"
            )
            return
        store = CaseStore(self.output_folder, self.store_name)
        with store.exclusive() if self.local_rank == 0 else nullcontext():
            self._export(store)

    def _export(self, store: CaseStore) -> None:
        network = unwrap(self.network).eval()
        manifest = self.manifest(hash_weights(network.state_dict()))
        if self.local_rank == 0:
            store.open_or_create(manifest)
        if self.is_ddp:
            dist.barrier()
            store.open_created(manifest)
        identifiers = sorted(self.cases_to_write())
        if self.is_ddp:
            self._write_in_turns(network, store, identifiers)
        else:
            self.write_cases(network, store, identifiers)
        if self.local_rank == 0:
            self.print_to_log_file(f"{len(store.complete_cases())} {self.stored} are in {store.folder}")
            self.report(network)

    def _write_in_turns(self, network: nn.Module, store: CaseStore, identifiers: Sequence[str]) -> None:
        """Each rank a share, with barriers between: one that waits longer than the timeout would end the job."""
        world_size = dist.get_world_size()
        together = self.cases_between_barriers * world_size
        for start in range(0, len(identifiers), together):
            self.write_cases(network, store, identifiers[start : start + together][self.local_rank :: world_size])
            dist.barrier()

    def manifest(self, weights_sha256: str) -> CaseManifest:
        """Header of the cases that this fold's network makes."""
        run = FoldRun.of_trainer(self)
        return CaseManifest.of_run(run, weights_sha256=weights_sha256, made_with=self.made_with())


def refuse_segmenting(trainer: str, *, enable_deep_supervision: bool) -> None:
    """Tell nnU-Net's predictor that a trainer writes cases, see `refuse_prediction`."""
    refuse_prediction(
        trainer,
        enable_deep_supervision=enable_deep_supervision,
        instead="makes training data, it does not segment: predict with -tr REHRSegTrainer",
    )
