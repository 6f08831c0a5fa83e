"""The terms of the package, its files and its terminal. Names that need numpy or torch load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mixbit.core.arguments import (
    check_value as check_value,
    checked as checked,
    checked_class as checked_class,
)
from mixbit.core.budget import (
    OF_FILES as OF_FILES,
    OF_WEIGHTS as OF_WEIGHTS,
    RESOURCES as RESOURCES,
    Budget as Budget,
    MaxDrop as MaxDrop,
    untold as untold,
)
from mixbit.core.engine import Engine as Engine
from mixbit.core.errors import (
    InfeasibleBudget as InfeasibleBudget,
    InvalidInput as InvalidInput,
    MixbitError as MixbitError,
    TargetMismatch as TargetMismatch,
    UnsupportedModel as UnsupportedModel,
    did_you_mean as did_you_mean,
    pick as pick,
)
from mixbit.core.io.files import (
    beside as beside,
    cache_folder as cache_folder,
    check_matplotlib as check_matplotlib,
    check_new_file as check_new_file,
    file_errors as file_errors,
    has_matplotlib as has_matplotlib,
    hidden as hidden,
    new_figure as new_figure,
    open_file as open_file,
    quoted as quoted,
    read_bytes as read_bytes,
    real_path as real_path,
    save_figure as save_figure,
    scratch_folder as scratch_folder,
    sha256 as sha256,
    write_bytes as write_bytes,
    write_text as write_text,
)
from mixbit.core.io.folders import (
    check_writable_folder as check_writable_folder,
    new_file as new_file,
    reserved as reserved,
    whole_folder as whole_folder,
)
from mixbit.core.io.forms import form_of as form_of, forms_in as forms_in
from mixbit.core.io.memory import (
    forget_peak as forget_peak,
    release_memory as release_memory,
    resident_bytes as resident_bytes,
)
from mixbit.core.io.methods import (
    METHOD_PLACES as METHOD_PLACES,
    Methods as Methods,
    described_methods as described_methods,
    facts_of as facts_of,
    method as method,
    passes_of as passes_of,
)
from mixbit.core.io.terminal import (
    Said as Said,
    clean as clean,
    duration as duration,
    end_like_interrupts as end_like_interrupts,
    interrupts_later as interrupts_later,
    phase as phase,
    say as say,
    show as show,
    time_limit as time_limit,
    track as track,
    warn as warn,
)
from mixbit.core.io.versions import (
    Versions as Versions,
    package_version as package_version,
)
from mixbit.core.ports import BATCH as BATCH, Port as Port, Ports as Ports
from mixbit.core.scheme import (
    INPUT_BITS as INPUT_BITS,
    WEIGHT_BITS as WEIGHT_BITS,
    Format as Format,
    Scheme as Scheme,
    Sparsity as Sparsity,
)
from mixbit.core.target import (
    TARGETS as TARGETS,
    Runner as Runner,
    StoredWeight as StoredWeight,
    Target as Target,
    described_targets as described_targets,
    find_target as find_target,
)

if TYPE_CHECKING:
    from mixbit.core.batches import (
        Batch as Batch,
        Batches as Batches,
        Inputs as Inputs,
        Labels as Labels,
        as_given as as_given,
        differing as differing,
        hold_out as hold_out,
        labels_at as labels_at,
        loaded as loaded,
        split_all as split_all,
        split_batch as split_batch,
        split_batches as split_batches,
        unlabelled as unlabelled,
    )
    from mixbit.core.heads import (
        Head as Head,
        are_probabilities as are_probabilities,
        moments as moments,
        spread as spread,
    )
    from mixbit.core.io.jobs import (
        Answer as Answer,
        Job as Job,
        Workers as Workers,
        check_engine as check_engine,
        one_thread as one_thread,
        run_jobs as run_jobs,
        runtime_threads as runtime_threads,
        runtimes_in_one_thread as runtimes_in_one_thread,
        workers as workers,
    )
    from mixbit.core.io.json_files import (
        MOST_JSON as MOST_JSON,
        MOST_TABLE_VALUES as MOST_TABLE_VALUES,
        json_of as json_of,
        model_of as model_of,
        read_json as read_json,
        read_model as read_model,
    )
    from mixbit.core.io.spill import Spill as Spill, Spilled as Spilled
    from mixbit.core.io.store import (
        Journal as Journal,
        Store as Store,
        Stored as Stored,
        digest as digest,
        environment as environment,
        read_tensors as read_tensors,
    )
    from mixbit.core.io.stored import (
        Room as Room,
        StoredTensor as StoredTensor,
        num_bytes as num_bytes,
        stored_tensors as stored_tensors,
    )
    from mixbit.core.io.tensors import (
        TensorFile as TensorFile,
        safetensors_bytes as safetensors_bytes,
        save_arrays as save_arrays,
    )
    from mixbit.core.io.user_code import (
        absolute as absolute,
        call_function as call_function,
        load_function as load_function,
        names_function as names_function,
        no_batches as no_batches,
        pickled as pickled,
        reason_of as reason_of,
        users_code as users_code,
        users_frames as users_frames,
        users_program as users_program,
    )
    from mixbit.core.structures import plain as plain, unwrapped as unwrapped, with_pairs as with_pairs
    from mixbit.core.table import (
        LARGEST as LARGEST,
        MEASURED as MEASURED,
        FloatArray as FloatArray,
        Limit as Limit,
        Plan as Plan,
        Price as Price,
        Sensitivity as Sensitivity,
        Table as Table,
        TableFile as TableFile,
        converted as converted,
        pinned_schemes as pinned_schemes,
    )
    from mixbit.core.task import (
        ONLY as ONLY,
        Outputs as Outputs,
        Score as Score,
        Task as Task,
        named_leaves as named_leaves,
        outputs_of as outputs_of,
    )


def __getattr__(name: str) -> Any:
    """A name of one of the modules that load numpy, and then of those that load torch."""
    places = (
        "table", "io.json_files", "io.tensors",
        "batches", "heads", "task", "structures", "io.spill", "io.store", "io.stored", "io.user_code", "io.jobs",
    )  # fmt: skip
    for place in places if not name.startswith("_") else ():
        module = import_module(f"mixbit.core.{place}")
        if hasattr(module, name):
            return getattr(module, name)
    raise AttributeError(f"module 'mixbit.core' has no attribute {name!r}")
