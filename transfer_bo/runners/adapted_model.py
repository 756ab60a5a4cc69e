"""The model of a study file with adapters: the reference transformer with trained, frozen weights."""

from __future__ import annotations

from collections.abc import Mapping

from transfer_bo.errors import StudyFileError, TransferError
from transfer_bo.parametrization.builds import BuildModel, build_meta
from transfer_bo.study_file import StudyFile
from transfer_bo.study_file.schema import AdapterSection
from transfer_bo.training.adapters import ROLES, AdapterConfig, adapted, weights_file

__all__ = ["roles_of", "with_adapters"]


def with_adapters(study_file: StudyFile, adapter: AdapterSection, build_model: BuildModel) -> BuildModel:
    """The function that builds a trained model with adapters, tried at every scale of the ladder.

    Args:
        study_file: The checked study file.
        adapter: Its section on adapters.
        build_model: Gives the model without them.

    Raises:
        StudyFileError: if trained weights are missing at a scale, or the adapters do not fit the model.
    """
    weights = study_file.path.parent / adapter.weights
    settings = adapter.model_dump(exclude={"weights", "layers"})
    try:
        build = adapted(build_model, AdapterConfig(**settings, layers=tuple(adapter.layers)), weights)
        for scale in dict.fromkeys([study_file.base, *study_file.proxies, study_file.target]):
            file = weights_file(weights, scale)
            if not file.is_file():
                raise study_file.error(
                    "adapter.weights",
                    f"there is no file {file}; keep there the state_dict of a trained model.",
                )
            build_meta(build, scale)
    except StudyFileError:
        raise
    except TransferError as error:
        raise StudyFileError(f"{study_file.path}: adapter: {error}") from error
    return build


def roles_of(study_file: StudyFile) -> Mapping[str, str]:
    """The roles of the adapters' tensors that a parametrization is to be given."""
    return {} if study_file.adapter is None else ROLES[study_file.adapter.method]
