"""Studies: which metric ranks plans best on the user's own model, by what random plans truly cost."""

from mixbit.studies.procedure import Study, study
from mixbit.studies.sampling import RandomPlans
from mixbit.studies.truth import Subject

__all__ = ["RandomPlans", "Study", "Subject", "study"]
