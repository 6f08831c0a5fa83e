"""The terms of the package, its files and its terminal: all that loads no torch, as `task` and `batches` do."""

from mixbit.core.budget import Budget as Budget, FloatArray as FloatArray, Limit as Limit, MaxDrop as MaxDrop
from mixbit.core.errors import (
    InfeasibleBudget as InfeasibleBudget,
    InvalidInput as InvalidInput,
    MixbitError as MixbitError,
    TargetMismatch as TargetMismatch,
    UnsupportedModel as UnsupportedModel,
    pick as pick,
)
from mixbit.core.io.files import (
    check_new_file as check_new_file,
    check_writable_folder as check_writable_folder,
    file_errors as file_errors,
    read_json as read_json,
    read_model as read_model,
    save_arrays as save_arrays,
    sha256 as sha256,
    whole_folder as whole_folder,
    write_bytes as write_bytes,
    write_text as write_text,
)
from mixbit.core.io.methods import Methods as Methods, facts_of as facts_of, method as method
from mixbit.core.io.terminal import (
    draw_nothing as draw_nothing,
    interrupts_later as interrupts_later,
    time_limit as time_limit,
    track as track,
)
from mixbit.core.plan import Plan as Plan, Price as Price
from mixbit.core.scheme import (
    FLOATS as FLOATS,
    INPUT_BITS as INPUT_BITS,
    WEIGHT_BITS as WEIGHT_BITS,
    Format as Format,
    Scheme as Scheme,
    Sparsity as Sparsity,
)
from mixbit.core.table import Sensitivity as Sensitivity, Table as Table, pinned_schemes as pinned_schemes
from mixbit.core.target import (
    DEFAULT_CHOICES as DEFAULT_CHOICES,
    TARGETS as TARGETS,
    Runner as Runner,
    StoredWeight as StoredWeight,
    Target as Target,
    find_target as find_target,
)
