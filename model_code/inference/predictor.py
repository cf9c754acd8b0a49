"""From a directory with model.onnx and model.json to a model that is known to be the released one and to answer right."""

import errno
import hashlib
import math
import os
import re
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model_code import environment
from model_code.inference.contract import (
    DEADLINE_SECONDS,
    MAX_INSTANCES,
    ModelDescription,
    Signature,
    TensorSpec,
    parse_model_json,
)
from model_code.inference.errors import (
    DeadlineExceeded,
    DigestMismatch,
    ModelInvalid,
    OutputNotFinite,
    ResourcesExhausted,
)
from model_code.inference.watchdog import Watchdog

# Largest difference of a probability between the training framework and this machine that still counts as the same answer.
PROBABILITY_TOLERANCE = 1e-5
_FEW, _SEVERAL = 4, 16  # instances
_QUICK_SECONDS = 0.02
# Operators whose inputs decide how much is computed, as NodeProto names them in a file: field 4, a length, the name.
_CONTROL_FLOW = re.compile(rb'"(?:\x04Loop|\x04Scan|\x02If|\x0bSequenceMap)')
_NO_RESOURCES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Predictor:
    """A verified model; `run` may be called from several threads at once (ONNX Runtime sessions allow it).

    `seconds_an_instance` is how long each instance of a batch takes on this machine, as the golden ones tell; infinite where that
    was not tried, and for a model with control flow, of which every request decides how long it takes.
    """

    release_id: str
    description: ModelDescription

    def __init__(
        self, session: ort.InferenceSession, description: ModelDescription, watchdog: Watchdog | None = None
    ) -> None:
        self.description = description
        self.release_id = description.release_id
        # Without the wrapper, which looks for missing inputs in every run, and keeps the file's bytes to make another session of.
        self._session = getattr(session, "_sess", session)
        self._watchdog = watchdog or Watchdog()
        self._input_name = description.signature.input.name
        self._output_names = [description.signature.output.name]
        self.seconds_an_instance = math.inf

    @classmethod
    def load(
        cls,
        directory: Path,
        *,
        threads: int = 1,
        release_id: str | None = None,
        model_json_sha256: str | None = None,
        keep_memory: bool = True,
        watchdog: Watchdog | None = None,
        timed: bool = False,
    ) -> "Predictor":
        """Read, verify and warm up the model in `directory`.

        Each file is read once and the session is made from the bytes that were hashed, so nothing can change in between.
        `threads` is the number of threads of one inference; `release_id` and `model_json_sha256` pin what a deployment
        expects. With `keep_memory` the model keeps what its largest batch so far took, for the next one; several models in
        one process rather give it back, and share one `watchdog`. With `timed` it knows `seconds_an_instance`. Raises ModelInvalid (DigestMismatch where a digest or the
        release id differs), and ResourcesExhausted where memory does not suffice.
        """
        description = load_description(directory, release_id=release_id, model_json_sha256=model_json_sha256)
        model = _read(directory / environment.MODEL_FILE)
        _expect("size of model.onnx", str(len(model)), str(description.onnx.size))
        _expect("sha256 of model.onnx", _sha256(model), description.onnx.sha256)
        session = _session(model, threads, keep_memory)
        _check_signature(session, description.signature)
        predictor = cls(session, description, watchdog)
        predictor._check_golden()
        if timed and not _CONTROL_FLOW.search(model):
            predictor.seconds_an_instance = predictor._time_golden()
        return predictor

    def run(self, inputs: NDArray[np.float32], *, seconds: float = DEADLINE_SECONDS) -> NDArray[np.float32]:
        """Raw outputs (n, classes) for normalised inputs (n, ...); more than MAX_INSTANCES are computed one after another.

        Raises DeadlineExceeded after `seconds`, as soon as the operator that is computed then has ended, and
        OutputNotFinite where an output is not finite.
        """
        deadline = time.monotonic() + seconds
        if len(inputs) <= MAX_INSTANCES:
            outputs = self._run_until(deadline, inputs, seconds)
        else:
            starts = range(0, len(inputs), MAX_INSTANCES)
            parts = [self._run_until(deadline, inputs[start : start + MAX_INSTANCES], seconds) for start in starts]
            outputs = np.concatenate(parts)
        if not _is_finite(outputs):
            number = int(np.isfinite(outputs).all(axis=1).argmin()) + 1
            raise OutputNotFinite(
                f"the model's output for instance {number} of {len(outputs)} is not finite: send numbers of the size that "
                "the model was trained with"
            )
        return outputs

    def joins(self, instances: int) -> bool:
        """Whether an instance gets the same output, bit for bit, alone and among up to so many others.

        The model, ONNX Runtime and the CPU decide: kernels for one row need not add in the same order as those for many. So
        it is tried, with the golden inputs; where they cannot tell, the answer is no. It also is for a model that takes long,
        which would gain nothing.
        """
        golden = self.description.signature.golden.inputs
        if instances < 2 or len(np.unique(golden, axis=0)) < 2:  # equal rows cannot tell whether one looks at another
            return False
        started = time.monotonic()
        alone = np.concatenate([self.run(row[np.newaxis]) for row in golden])
        if time.monotonic() - started > _QUICK_SECONDS * len(golden):
            return False
        rows = np.arange(instances) % len(golden)
        return all(np.array_equal(self.run(golden[rows[:n]]), alone[rows[:n]]) for n in range(2, instances + 1))

    def probabilities(self, outputs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probabilities (n, classes) from raw outputs of the same shape, as the signature's activation says."""
        match self.description.signature.activation:
            case "log_softmax":
                return np.exp(outputs)
            case "logits":
                with np.errstate(over="ignore"):  # to -inf, which exp() makes the 0 that it stands for
                    exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
                return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
            case _:
                return outputs

    def _run_until(self, deadline: float, inputs: NDArray[np.float32], seconds: float) -> NDArray[np.float32]:
        run = self._watchdog.watch(deadline)
        try:
            outputs: NDArray[np.float32] = self._session.run(self._output_names, {self._input_name: inputs}, run[1])[0]
        except Exception:
            if not run[1].terminate:
                raise
        else:
            if time.monotonic() < deadline:
                return outputs
        finally:
            self._watchdog.forget(run)
        raise DeadlineExceeded(f"the inference was ended after {seconds:.1f} seconds; try again with fewer instances")

    def _time_golden(self) -> float:
        golden = self.description.signature.golden.inputs
        several = golden[np.arange(_SEVERAL) % len(golden)]
        times = []
        for _ in range(3):
            started = time.monotonic()
            self.run(several)
            times.append(time.monotonic() - started)
        return min(times) / _SEVERAL

    def _check_golden(self) -> None:
        golden = self.description.signature.golden
        try:
            outputs = self.run(golden.inputs)
        except Exception as error:
            _check_resources(error)
            raise ModelInvalid(f"model.onnx: the golden inference failed: {error}") from error
        if not np.array_equal(outputs.argmax(axis=1), golden.outputs.argmax(axis=1)):
            raise ModelInvalid("model.onnx: the golden inputs get other labels than model.json says")
        difference = np.abs(self.probabilities(outputs) - self.probabilities(golden.outputs)).max()
        if not difference <= PROBABILITY_TOLERANCE:  # which NaN is not either
            raise ModelInvalid(
                f"model.onnx: a golden probability is off by {difference:.2g}; allowed: {PROBABILITY_TOLERANCE:g}"
            )


def load_description(
    directory: Path, *, release_id: str | None = None, model_json_sha256: str | None = None
) -> ModelDescription:
    """What model.json in `directory` says, under the pins of `Predictor.load`. Raises as that does."""
    raw = _read(directory / environment.SIGNATURE_FILE)
    if model_json_sha256 is not None:
        _expect("sha256 of model.json", _sha256(raw), model_json_sha256)
    description = parse_model_json(raw)
    if release_id is not None:
        _expect("release id", description.release_id, release_id)
    return description


def _check_signature(session: ort.InferenceSession, signature: Signature) -> None:
    for kind, nodes, spec in (
        ("inputs", session.get_inputs(), signature.input),
        ("outputs", session.get_outputs(), signature.output),
    ):
        found = [TensorSpec(node.name, _shape(node.shape), _dtype(node.type)) for node in nodes]
        if found != [spec]:
            raise ModelInvalid(f"model.onnx: its {kind} are {found}; model.json says {spec}")


def _check_resources(error: Exception) -> None:
    """Raises ResourcesExhausted where that is what `error` means: the model itself may be in order."""
    exhausted = isinstance(error, OSError) and error.errno in _NO_RESOURCES
    # ONNX Runtime has no class of its own for what its allocators say.
    if exhausted or isinstance(error, MemoryError) or "bad allocation" in str(error) or "Failed to alloc" in str(error):
        raise ResourcesExhausted(f"not enough memory or files for the model: {error}") from error


def _is_finite(outputs: NDArray[np.float32]) -> bool:
    if len(outputs) > _FEW:
        # Neither bound holds where there is NaN. np.isfinite makes an array and all() goes through Python.
        return bool(np.minimum.reduce(outputs, None) > -math.inf and np.maximum.reduce(outputs, None) < math.inf)
    # Python adds a few numbers in less time than numpy takes to begin. NaN and infinity stay in a sum, and no sum of so few
    # float32 is too large for a float64.
    return math.isfinite(sum(map(sum, outputs.tolist())))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _check_resources(error)
        raise ModelInvalid(f"{path}: cannot be read ({error.strerror})") from error


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _expect(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise DigestMismatch(f"{what} is {found}; expected: {expected}")


def _session(model: bytes, threads: int, keep_memory: bool) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.enable_cpu_mem_arena = keep_memory
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the other workers of the same instance.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Weights outside the file would come from the working directory, under no digest. Nothing lies below a device.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        _check_resources(error)
        raise ModelInvalid(f"model.onnx: ONNX Runtime refuses it: {error}") from error


def _shape(shape: list[int | str | None]) -> tuple[int | None, ...]:
    """A named dimension is a free one."""
    return tuple(size if isinstance(size, int) else None for size in shape)


def _dtype(onnx_type: str) -> str:
    return "float32" if onnx_type == "tensor(float)" else onnx_type
